//! Attacks over shared rings: by a guest on its drivers, and by a driver on its
//! guests.
//!
//! The table in the book's chapter "Attacks" says what each tries.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use system_tests::{
    attack::{Attack, LIMIT, Scene, UNDER_ATTACK, Verdict},
    bench::{Bench, Node, RECOVERY},
    runner::Test,
    values::value,
};
use xtask::{disk, manifest::Manifest};

use crate::serving::smoke;

/// All of them.
pub fn all() -> Vec<Test> {
    tests![
        self::g5_attack_ring_index,
        self::g5_attack_ring_requests,
        self::g5_attack_ring_ids,
        self::g5_attack_hello,
        self::g5_attack_flap,
        self::g5_attack_volume,
        self::g5_attack_rewrite,
        self::g1_attack_connection,
        self::g4_attack_backend_ring,
        self::g4_attack_backend_hello,
        self::g4_attack_backend_data,
    ]
}

const MIB: u64 = 1 << 20;
/// What the attacker's volume is filled with.
const OWN: u8 = 0xa7;
/// On the disk: kv's volume, the attacker's, and a third.
const VOLUMES: [(&str, u64); 3] = [("kv-data", 256), ("loot", 8), ("secret", 8)];

/// The attacker as a second guest of both drivers. Beside its volume lie those
/// of others.
fn guest(name: &str) -> Attack {
    Attack::guest(name)
        .and("[[connection]]\nprotocol = \"blk\"\nfrontend = \"attack\"\nbackend = \"blk\"\nvolume = \"loot\"")
        .and("[[connection]]\nprotocol = \"net\"\nfrontend = \"attack\"\nbackend = \"net\"")
        .and("[volume.loot]\nsize = \"8MiB\"\n\n[volume.secret]\nsize = \"8MiB\"")
}

/// Both connections serve at the end, and no more than these.
fn served(verdict: &Verdict, count: u64) -> Result<()> {
    let served = verdict.count("served")?;
    ensure!(served == count, "{served} instead of {count} times served: {:?}", verdict.text());
    Ok(())
}

/// What the parts of an attack say, each in a life of its own, added up.
fn parts(scene: &Scene<'_>, part: &str, key: &str) -> Result<u64> {
    let mark = format!(": {part}: ");
    let word = format!("{key}=");
    let lines = scene.lines();
    let mut counts = lines.iter().filter_map(|line| {
        let (_, words) = line.split_once("] attack: ")?.1.split_once(&mark)?;
        words.split_ascii_whitespace().find_map(|w| w.strip_prefix(&word)).map(str::parse::<u64>)
    });
    Ok(counts.try_fold(0, |sum, count| count.map(|count| sum + count))?)
}

/// All of at least `least` steps ended as they must.
fn all_right(scene: &Scene<'_>, least: u64) -> Result<()> {
    let (tried, right) = (parts(scene, "part", "tried")?, parts(scene, "part", "right")?);
    ensure!(tried >= least, "only {tried} steps were taken");
    ensure!(right == tried, "{} of {tried} steps did not end as they must", tried - right);
    Ok(())
}

/// Lines in which a driver says so of the attacker.
fn said(scene: &Scene<'_>, driver: &str, what: &str) -> usize {
    let tag = format!("[{driver}] ");
    let lines = scene.lines();
    lines.iter().filter(|line| line.contains(&tag) && line.contains(what)).count()
}

/// How often a driver says that it lost the attacker.
fn losses(scene: &Scene<'_>, driver: &str) -> usize {
    said(scene, driver, "attack disconnected")
}

fn g5_attack_ring_index(bench: &Bench) -> Result<()> {
    guest("ring-index").run(bench, |scene| {
        served(&scene.done(LIMIT)?, 2)?;
        all_right(scene, 18)?;
        // The drivers count 6 and 12, and say so at each power of two.
        for (driver, times) in [("blk", 4), ("net", 8)] {
            let count = format!(
                "attack broke the protocol (its ring index is out of bounds), {times} times"
            );
            ensure!(said(scene, driver, &count) > 0, "{driver} did not count {times} times");
        }
        Ok(())
    })
}

fn g5_attack_ring_requests(bench: &Bench) -> Result<()> {
    guest("ring-requests").run(bench, |scene| {
        let verdict = scene.done(LIMIT)?;
        verdict.all("tried", "refused", 80)?;
        served(&verdict, 2)?;
        // It was told, and not thrown out.
        let (blk, net) = (losses(scene, "blk"), losses(scene, "net"));
        ensure!(blk == 0 && net == 0, "blk dropped it {blk} times, net {net} times");
        Ok(())
    })
}

fn g5_attack_ring_ids(bench: &Bench) -> Result<()> {
    guest("ring-ids").run(bench, |scene| {
        let verdict = scene.done(LIMIT)?;
        verdict.all("tried", "answered", 640)?;
        served(&verdict, 2)
    })
}

fn g5_attack_hello(bench: &Bench) -> Result<()> {
    guest("hello").run(bench, |scene| {
        served(&scene.done(LIMIT)?, 2)?;
        all_right(scene, 80)
    })
}

fn g5_attack_flap(bench: &Bench) -> Result<()> {
    guest("flap").run(bench, |scene| {
        served(&scene.done(LIMIT)?, 2)?;
        let (hellos, answers) =
            (parts(scene, "storm", "hellos")?, parts(scene, "storm", "answers")?);
        let ms = parts(scene, "storm", "ms")?;
        ensure!(hellos > 2 * ms, "{hellos} hellos in {ms} ms are no storm");
        // Each makes the next wait longer; one in 10 ms if it forges its generation.
        ensure!(answers <= ms / 10 + 40, "{answers} answers in {ms} ms");
        let under_way = parts(scene, "revoked", "under_way")?;
        ensure!(under_way >= 60, "memory was taken back under way {under_way} times only");
        Ok(())
    })
}

/// The disk, and what lies where others' volumes are.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Makes the disk of `manifest`, the attacker's volume filled with
    /// [`OWN`], the third one with [`secret`].
    fn make(path: &Path, manifest: &Path) -> Result<()> {
        disk::create(path, &Manifest::load(manifest)?.volumes)?;
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&vec![OWN; (VOLUMES[1].1 * MIB) as usize], Self::start(1))?;
        file.write_all_at(&secret(), Self::start(2))?;
        Ok(())
    }

    /// Where a volume begins: they follow each other from the first MiB on.
    fn start(volume: usize) -> u64 {
        MIB + VOLUMES.iter().take(volume).map(|(_, size)| size * MIB).sum::<u64>()
    }

    fn of(bench: &Bench) -> Self {
        Self { path: bench.dir().join("disk.img") }
    }

    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        File::open(&self.path)?.read_exact_at(&mut bytes, at).context("the disk's image")?;
        Ok(bytes)
    }

    /// Partition tables: what is before the first volume and after the last.
    fn tables(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok((self.read(0, MIB)?, self.read(Self::start(VOLUMES.len()), MIB)?))
    }

    /// Fails if the third volume is not as it was made, or the attacker's
    /// holds anything but its own marker.
    fn check(&self) -> Result<()> {
        let found = self.read(Self::start(2), VOLUMES[2].1 * MIB)?;
        let wrong = found.iter().zip(secret()).position(|(a, b)| *a != b);
        ensure!(wrong.is_none(), "the foreign volume changed at byte {}", wrong.unwrap_or(0));
        let own = self.read(Self::start(1), VOLUMES[1].1 * MIB)?;
        let wrong = own.iter().position(|&byte| byte != OWN);
        ensure!(wrong.is_none(), "foreign data in the attacker's volume at {}", wrong.unwrap_or(0));
        Ok(())
    }
}

/// Content of the third volume: each word says where it is.
fn secret() -> Vec<u8> {
    (0..VOLUMES[2].1 * MIB / 8)
        .flat_map(|word| (word ^ 0x5ec2_e75e_c2e7_5ec2).to_le_bytes())
        .collect()
}

/// Runs an attack on the volumes of others.
fn on_disk(
    bench: &Bench,
    attack: Attack,
    judge: impl FnOnce(&mut Scene<'_>) -> Result<()>,
) -> Result<()> {
    let disk = Disk::of(bench);
    let sectors = |volume| (Disk::start(volume) / 512).abs_diff(Disk::start(1) / 512);
    let attack = attack.args(&format!("before={} after={}", sectors(0), sectors(2))).configure(
        |_, config| {
            if let Err(error) = Disk::make(&config.disk, &config.manifest) {
                eprintln!("note: no disk: {error:#}");
            }
        },
    );
    attack.run(bench, |scene| {
        let tables = disk.tables()?;
        judge(scene)?;
        ensure!(tables == disk.tables()?, "the partition tables changed");
        disk.check()
    })
}

fn g5_attack_volume(bench: &Bench) -> Result<()> {
    on_disk(bench, guest("volume"), |scene| {
        let verdict = scene.done(LIMIT)?;
        verdict.all("tried", "refused", 200)?;
        // The own sectors, with the marker in them.
        served(&verdict, 2)
    })
}

fn g5_attack_rewrite(bench: &Bench) -> Result<()> {
    let capture = bench.dir().join("wire.pcap");
    let object = format!("filter-dump,id=capture,netdev=wire,file={}", capture.display());
    // The attacker has a core for itself.
    let attack = guest("rewrite")
        .with("core = 1")
        .replace("image = \"blk\"\n", "image = \"blk\"\ncore = 0\n")
        .replace("image = \"net\"\n", "image = \"net\"\ncore = 0\n")
        .qemu(&["-object", &object]);
    on_disk(bench, attack, |scene| {
        let verdict = scene.done(LIMIT)?;
        verdict.all("tried", "answered", 1000)?;
        served(&verdict, 2)
    })?;
    // Whole, now that QEMU has ended.
    on_the_wire(&capture).context(UNDER_ATTACK)
}

/// Fails if the attacker's frames did not all go out with the same source.
fn on_the_wire(capture: &Path) -> Result<()> {
    let sources = sources(&std::fs::read(capture).context("the capture")?)?;
    ensure!(sources.len() > 100, "only {} frames of the attacker on the wire", sources.len());
    let first = sources.first().copied().unwrap_or_default();
    let spoofed = sources.iter().filter(|&&source| source != first).count();
    ensure!(spoofed == 0, "{spoofed} frames went out with a source that was not checked");
    Ok(())
}

/// Sources of the attacker's frames in a capture (pcap, little-endian).
fn sources(capture: &[u8]) -> Result<Vec<[u8; 6]>> {
    const FILE_HEADER: usize = 24;
    const RECORD_HEADER: usize = 16;
    const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
    ensure!(capture.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "not a capture");
    let mut sources = Vec::new();
    let mut rest = capture.get(FILE_HEADER..).unwrap_or_default();
    while let Some((header, body)) = rest.split_at_checked(RECORD_HEADER) {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        // The last record may be cut off.
        let Some((frame, next)) = body.split_at_checked(len) else { break };
        if frame.get(12..14) == Some(&ETHERTYPE)
            && let Some(source) = frame.get(6..).and_then(|rest| rest.first_chunk())
        {
            sources.push(*source);
        }
        rest = next;
    }
    Ok(sources)
}

fn g1_attack_connection(bench: &Bench) -> Result<()> {
    guest("connection").run(bench, |scene| {
        let verdict = scene.done(LIMIT)?;
        verdict.all("tried", "refused", 10_000)?;
        let touched = verdict.count("touched")? as u32;
        for generation in 1..=touched {
            scene.ended(generation, "nested-fault")?;
        }
        ensure!(touched >= 7, "only {touched} pages were tried");
        Ok(())
    })
}

/// Both drivers are the attacker's, each with the device that it drives in
/// its honest lives: the first, and the one after the last act.
fn backends(name: &str) -> Attack {
    let image = |driver: &str| format!("image = \"{driver}\"");
    let attack = format!("image = \"attack-{name}\"");
    Attack::on_node(name, "blk", system_tests::attack::demo())
        .replace(&image("blk"), &attack)
        .replace(&image("net"), &attack)
        // Who completes nothing, or is complained of and does not answer, would be ended
        // in the middle of its acts.
        .replace("[[connection]]\n", "[[connection]]\nstall_ms = 600000\n")
        .replace("window_s = 10 }", "window_s = 10, check_ms = 65535 }")
        .may_change("net")
}

/// Lets both drivers play all their acts, `least` together, while kv's clients
/// wait; then they are served.
fn play(bench: &Bench, name: &str, least: u64) -> Result<()> {
    backends(name).run(bench, |scene| {
        for driver in ["blk", "net"] {
            let log = scene.node().machine().log();
            let from = log.lines().len();
            match driver {
                "blk" => scene.start()?,
                // It may be slow to serve; what counts is the line below.
                _ => drop(scene.control()?.restart(driver, RECOVERY)),
            }
            let done = format!("[{driver}] attack: {name}: done");
            let breach = format!("attack: {name}: BREACH");
            let told = |line: &str| line.contains(&done) || line.contains(&breach);
            let (_, line) = log
                .wait_for_line(from, told, LIMIT)
                .with_context(|| format!("{driver} did not finish its acts"))?;
            ensure!(!line.contains(&breach), "{line}");
            scene.served(4).with_context(|| format!("after the acts of {driver}"))?;
        }
        all_right(scene, least)
    })
}

fn g4_attack_backend_ring(bench: &Bench) -> Result<()> {
    play(bench, "backend-ring", 32)
}

fn g4_attack_backend_hello(bench: &Bench) -> Result<()> {
    play(bench, "backend-hello", 30)
}

/// Restarts the driver of one's choice and waits for a line of it.
fn restart(scene: &mut Scene<'_>, driver: &str, line: &str) -> Result<()> {
    let log = scene.node().machine().log();
    let from = log.lines().len();
    // It may be slow to serve; what counts is the line.
    drop(scene.control()?.restart(driver, RECOVERY));
    let line = format!("[{driver}] {line}");
    log.wait_for_line(from, |found| found.contains(&line), LIMIT)
        .map(drop)
        .with_context(|| format!("waited in vain for {line:?}"))
}

/// What a GET gives while the disk lies: the value, or none. Anything else
/// fails.
fn get(node: &Node, key: &str, wanted: &[u8]) -> Result<bool> {
    let mut connection = node.connect()?;
    match connection.get(key) {
        Ok(Some(value)) if value == wanted => Ok(true),
        Ok(Some(_)) => bail!("garbage was handed on as the value of {key}"),
        Ok(None) => bail!("{key} was said not to be there"),
        // A clear error, or an answer that was broken off.
        Err(_) => Ok(false),
    }
}

fn g4_attack_backend_data(bench: &Bench) -> Result<()> {
    let sizes = [1, 4096, 70_000, 1 << 20];
    backends("backend-data").clients(0).run(bench, |scene| {
        let node = scene.node();
        let values: Vec<(String, Vec<u8>)> = sizes
            .iter()
            .zip(1..)
            .map(|(&len, seed)| (format!("k{seed}"), value(seed, len)))
            .collect();
        for (key, value) in &values {
            node.connect()?.put(key, value)?;
        }
        scene.start()?;
        let mut good = 0;
        for (key, value) in values.iter().cycle().take(12) {
            good += u32::from(get(node, key, value)?);
        }
        let lies = scene.done(LIMIT)?.count("lies")?;
        ensure!(lies >= 12 && good < 12, "{lies} lies, {good} values came through all the same");
        restart(scene, "blk", "kv connected")?;
        for (key, value) in &values {
            ensure!(get(node, key, value)?, "{key} is lost");
        }
        restart(scene, "net", "attack: backend-data: done")?;
        let frames = parts(scene, "done", "frames")?;
        ensure!(frames >= 1000, "only {frames} frames of garbage came in");
        restart(scene, "net", "kv connected")?;
        for (key, value) in &values {
            ensure!(get(node, key, value)?, "{key} is lost");
        }
        smoke(node)
    })
}
