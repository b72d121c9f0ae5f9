//! Attacks on CPU, memory and hypercalls by a domain without a device.
//!
//! The table in the book's chapter "Attacks" says what each tries.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use ring_proto::{PAGE_SIZE, layout};
use system_tests::{
    attack::{Attack, LIMIT, Scene, Verdict},
    bench::Bench,
    runner::Test,
};

/// Deaths of a sweep that may look other than they should: QEMU 7.2 now and
/// then breaks the entry into a domain, see the book's chapter "Status".
const BROKEN_ENTRIES: usize = 2;

/// All of them.
pub fn all() -> Vec<Test> {
    tests![
        self::g1_attack_memory,
        self::g1_attack_own_rights,
        self::g1_attack_privileged,
        self::g1_attack_forbidden_calls,
        self::g1_attack_grants_foreign,
        self::g1_attack_grants_forged,
        self::g1_attack_grants_lifecycle,
        self::g5_attack_grant_limits,
        self::g1_attack_registers,
        self::g1_attack_secrets,
        self::g2_attack_call_arguments,
        self::g2_attack_hypercall_fuzz,
        self::g2_attack_cpu_hog,
        self::g2_attack_event_flood,
    ]
}

fn g1_attack_forbidden_calls(bench: &Bench) -> Result<()> {
    Attack::guest("forbidden-calls")
        .run(bench, |scene| scene.done(LIMIT)?.all("tried", "refused", 500))
}

fn g1_attack_memory(bench: &Bench) -> Result<()> {
    Attack::guest("memory").memory("1MiB").run(bench, |scene| {
        sweep(scene, 150, |what, death| {
            let address = what.split(' ').next_back().unwrap_or_default();
            death.contains(&format!("NestedFault at address {address},"))
        })
    })
}

fn g1_attack_own_rights(bench: &Bench) -> Result<()> {
    Attack::guest("own-rights").memory("1MiB").run(bench, |scene| {
        sweep(scene, 18, |what, death| {
            let address = what.split(' ').next_back().unwrap_or_default();
            death.contains(&format!("NestedFault at address {address},"))
        })
    })
}

fn g1_attack_privileged(bench: &Bench) -> Result<()> {
    Attack::guest("privileged").memory("1MiB").run(bench, |scene| {
        sweep(scene, 130, |what, death| {
            // What QEMU's CPU does not know ends in the domain's own handler.
            match what {
                "xsetbv" | "int1" | "vmcall" | "mwait" => {
                    death.starts_with("Forbidden") || death.starts_with("Exception: exception 6 ")
                }
                "triple fault" => death.starts_with("Shutdown"),
                _ => death.starts_with("Forbidden"),
            }
        })
    })
}

/// A second domain of the attack's program, for `role`; domain number 5.
fn second(name: &str, domain: &str, args: &str) -> String {
    format!(
        "[domain.{domain}]\nimage = \"attack-{name}\"\nmemory = \"1MiB\"\n\
         grant_window_pages = 512\nargs = \"{args}\"\n\
         restart = {{ floor_ms = 0, backoff = 1.0, budget = 0 }}\n"
    )
}

fn g1_attack_grants_foreign(bench: &Bench) -> Result<()> {
    const NAME: &str = "grants-foreign";
    Attack::guest(NAME)
        .with("grant_window_pages = 512")
        // Domain 0, the supervisor, maps nothing.
        .and(&second(NAME, "victim", "role=victim friend=0"))
        .run(bench, |scene| scene.done(LIMIT)?.all("tried", "refused", 100_000))
}

fn g1_attack_grants_forged(bench: &Bench) -> Result<()> {
    const NAME: &str = "grants-forged";
    Attack::guest(NAME)
        .args("role=granter peer=5")
        .and(&second(NAME, "accomplice", "role=grantee peer=4"))
        .run(bench, |scene| scene.done(LIMIT)?.all("tried", "refused", 1000))
}

fn g1_attack_grants_lifecycle(bench: &Bench) -> Result<()> {
    const NAME: &str = "grants-lifecycle";
    Attack::guest(NAME)
        .with("grant_window_pages = 512")
        .args("role=attacker peer=5")
        .and(&second(NAME, "victim", "role=victim peer=4"))
        .may_change("victim")
        .run(bench, |scene| {
            Verdict::new(scene.line("first life", LIMIT)?).all("tried", "refused", 10)?;
            // A write to a page mapped to read, then a call into a granted page.
            for (generation, page) in [(1, 5), (2, 6)] {
                let death = scene.ended(generation, "nested-fault")?;
                let address = layout::GRANT_WINDOW + page * PAGE_SIZE as u64;
                ensure!(
                    death.fault_address == address,
                    "generation {generation} died at {:#x} instead of {address:#x}",
                    death.fault_address
                );
            }
            ensure!(scene.done(LIMIT)?.count("lives")? == 2, "{NAME} did not come to its end");
            let victim = scene.control()?.domain("victim")?;
            let lives = victim.map_or(0, |victim| victim.generation);
            ensure!(lives == 2, "the victim is in generation {lives} instead of 2");
            Ok(())
        })
}

fn g5_attack_grant_limits(bench: &Bench) -> Result<()> {
    const NAME: &str = "grant-limits";
    Attack::guest(NAME)
        .with("grant_window_pages = 1024")
        .args("role=attacker granter=5")
        .and(&second(NAME, "granter", "role=granter attacker=4 neighbour=6"))
        .and(&second(NAME, "neighbour", "role=neighbour granter=5"))
        .run(bench, |scene| {
            scene.done(LIMIT)?.all("tried", "refused", 150)?;
            let free = scene.before().0;
            ensure!(scene.control()?.info()?.free == free, "memory is missing");
            Ok(())
        })
}

fn g1_attack_registers(bench: &Bench) -> Result<()> {
    const NAME: &str = "registers";
    // On core 0: QEMU 7.2 mixes up its cores where FXRSTOR is executed on another one (see the
    // book's status).
    Attack::guest(NAME)
        .with("core = 0")
        .and(&(second(NAME, "victim", "role=victim") + "core = 0\n"))
        .run(bench, |scene| {
            scene.done(LIMIT)?;
            // The victim's registers are in use when the next generation begins.
            scene.start()?;
            scene.done(LIMIT).map(drop)
        })
}

fn g1_attack_secrets(bench: &Bench) -> Result<()> {
    Attack::guest("secrets").run(bench, |scene| {
        let looks = scene.done(LIMIT)?.count("looks")?;
        let deaths = scene.deaths()?.len() as u64;
        ensure!(deaths == 2 * looks - 1, "{deaths} deaths for {looks} looks");
        Ok(())
    })
}

fn g2_attack_call_arguments(bench: &Bench) -> Result<()> {
    Attack::guest("call-arguments")
        .with("grant_window_pages = 512")
        .run(bench, |scene| scene.done(2 * LIMIT)?.all("tried", "right", 500_000))
}

/// First a million calls by a domain that has nothing, then some by the owner
/// of a device.
fn g2_attack_hypercall_fuzz(bench: &Bench) -> Result<()> {
    const NIC: [&str; 4] = [
        "-netdev",
        "user,id=second",
        "-device",
        "virtio-net-pci,netdev=second,addr=0x1d,disable-legacy=on,iommu_platform=on",
    ];
    let attack = || Attack::guest("hypercall-fuzz").with("grant_window_pages = 512");
    fuzz(bench, attack(), 20_261_123, 1_000_000)?;
    let owner = attack().with("dma_pool = \"1MiB\"\ndevice = \"nic1\"").qemu(&NIC);
    let nic = "[device.nic1]\nmatch = { class = \"network\", index = 1 }";
    fuzz(bench, owner.and(nic), 7, 100_000)
}

/// Makes `calls` random hypercalls of `seed`, then the first of them again.
///
/// What the hypervisor counts must be the same before and after, and so must
/// what a request costs in exits of the drivers and of the guest.
fn fuzz(bench: &Bench, attack: Attack, seed: u64, calls: u64) -> Result<()> {
    const REQUESTS: u64 = 60;
    let args = format!("seed={seed} calls={calls} again=20000");
    attack.args(&args).measure(REQUESTS).run(bench, |scene| {
        let (first, again) = (scene.done(4 * LIMIT)?, scene.line("prefix", LIMIT)?);
        ensure!(first.count("calls")? == calls, "{first:?}");
        let again = Verdict::new(again);
        scene.start()?;
        let second = scene.done(LIMIT)?;
        let (one, two) = (again.word("digest")?, second.word("digest")?);
        ensure!(one == two, "the same seed made other calls: {one}, then {two}");
        let (free, connections) = scene.before();
        let connections = connections.to_vec();
        let control = scene.control()?;
        ensure!(control.info()?.free == free, "memory is missing");
        ensure!(control.connections()? == connections, "a connection changed");
        let after = scene.exits(REQUESTS)?;
        let before = scene.exits_before();
        ensure!(
            after <= 3 * before,
            "{REQUESTS} requests took {before} exits of drivers and guest, and now {after}"
        );
        Ok(())
    })
}

fn g2_attack_cpu_hog(bench: &Bench) -> Result<()> {
    const REQUESTS: u64 = 40;
    Attack::guest("cpu-hog").run(bench, |scene| {
        scene.ended(1, "watchdog")?;
        scene.line("begins, generation 2", LIMIT)?;
        scene.served_meanwhile(REQUESTS)?;
        let domain = scene.control()?.domain("attack")?;
        let generation = domain.map_or(0, |domain| domain.generation);
        ensure!(generation == 2, "the hog is in generation {generation} instead of 2");
        Ok(())
    })
}

fn g2_attack_event_flood(bench: &Bench) -> Result<()> {
    const SIGNALS: u64 = 100_000;
    let connection = "[[connection]]\nprotocol = \"blk\"\nfrontend = \"attack\"\n\
        backend = \"blk\"\nvolume = \"attack-data\"\n[volume.attack-data]\nsize = \"16MiB\"\n";
    Attack::guest("event-flood").args(&format!("signals={SIGNALS}")).and(connection).run(
        bench,
        |scene| {
            scene.served_meanwhile(20)?;
            let done = scene.lines().iter().any(|line| line.contains(": done: "));
            ensure!(!done, "the clients were served only when the flood was over");
            scene.done(2 * LIMIT)?.all("signals", "sent", SIGNALS)
        },
    )
}

/// Waits for the end of a sweep: each attempt must have ended its generation
/// as `is_right` says of what was tried and what the hypervisor logged.
fn sweep(scene: &Scene<'_>, least: u64, is_right: impl Fn(&str, &str) -> bool) -> Result<()> {
    let tried = scene.done(LIMIT)?.count("tried")?;
    ensure!(tried >= least, "only {tried} attempts");
    let lines = scene.lines();
    let numbered = |mark: &str| -> BTreeMap<u64, String> {
        let after = |line: &str| {
            let (_, rest) = line.split_once(mark)?;
            let (number, what) = rest.split_once(' ')?;
            Some((number.parse().ok()?, what.trim().to_owned()))
        };
        lines.iter().filter_map(|line| after(line)).collect()
    };
    let attempts = numbered(": try ");
    let deaths = numbered("attack: generation ");
    ensure!(attempts.len() as u64 == tried, "{} of {tried} attempts in the log", attempts.len());
    let mut wrong = Vec::new();
    for (generation, what) in &attempts {
        let death = deaths
            .get(generation)
            .map_or("it lived", |text| text.strip_prefix("ended: ").unwrap_or(text));
        if !is_right(what, death) {
            wrong.push(format!("{what}: {death}"));
        }
    }
    wrong.iter().for_each(|line| eprintln!("note: {line}"));
    let broken = wrong.iter().filter(|line| line.contains(": Shutdown ")).count();
    ensure!(broken <= BROKEN_ENTRIES && broken == wrong.len(), "{}", wrong.join("\n"));
    Ok(())
}
