//! Deaths without end: what is left of a node after thousands of them.
//!
//! `BULKHEAD_DEATHS` says how many each test brings about; by default few, so
//! that the whole suite stays within minutes:
//!
//! ```sh
//! BULKHEAD_DEATHS=10000 cargo xtask test --only system g3_deaths_leave
//! ```

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use nodectl::{
    Client,
    control::{CrashEntry, DomainStatus, How},
    names,
};
use ring_proto::crash::Rebuild;
use system_tests::{
    bench::{Bench, RECOVERY},
    runner::wait_for,
    workload::Workload,
};
use xtask::{manifest::Manifest, qemu::NodeConfig};

use crate::{
    control::is_reason,
    recovery::{PATIENCE, crash, number, under},
    spares::standby,
};

const DRIVERS: [&str; 2] = ["blk", "net"];
/// Deaths of a test unless `BULKHEAD_DEATHS` says otherwise.
const DEATHS: usize = 60;
/// Recoveries of a kind at either end of a life that are compared for speed; a
/// kind that has not twice as many is not compared.
const COMPARED: usize = 100;
/// How much slower the last recoveries may be than the first, percent. Of some
/// thousand recoveries, no two hundreds differed by more than 14 %.
const SLOWER: u64 = 25;
/// Bound of a hang, virtual ms.
const WATCHDOG_MS: u32 = 50;
/// Until frontends complain, virtual ms.
const STALL_MS: u32 = 150;
/// Of so many rounds one has a driver that does no work, which takes long to be seen.
const STALLS: usize = 4;
/// Deaths between two lines about the progress.
const TELL: usize = 250;

/// How many deaths a test brings about: `BULKHEAD_DEATHS`, or a number that fits
/// a run of all tests.
pub fn wanted(otherwise: usize) -> Result<usize> {
    number("BULKHEAD_DEATHS", otherwise)
}

/// The demo node with short bounds. On the clock of instructions the watchdog
/// counts what a driver executes, however slow the host is meanwhile.
fn manifest(bench: &Bench) -> Result<PathBuf> {
    let mut text = std::fs::read_to_string(xtask::manifest::default_path())?;
    let mut put = |after: &str, line: &str| {
        ensure!(text.contains(after), "the demo node has no {after:?}");
        text = text.replace(after, &format!("{after}{line}\n"));
        anyhow::Ok(())
    };
    for domain in DRIVERS {
        put(&format!("[domain.{domain}]\n"), &format!("watchdog_ms = {WATCHDOG_MS}"))?;
    }
    put("[[connection]]\n", &format!("stall_ms = {STALL_MS}"))?;
    let path = bench.dir().join("endurance.toml");
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Time is what the node executes; while its core sleeps it goes on as the
/// host's, as what comes from there takes its time. What the host does with its
/// own cache is not the subject here, and no power is cut.
///
/// One core: with two, a driver that nobody had told to hang was ended as hung.
/// Why was not proven. QEMU runs the cores in turns then, on one clock for all,
/// which may charge a driver for the other core's turn.
fn count_instructions(config: &mut NodeConfig) {
    (config.icount, config.smp) = (true, Some(1));
    let arguments = ["-icount", "sleep=on", "-set", "drive.disk.cache.no-flush=on"];
    config.extra_args.extend(arguments.map(Into::into));
}

/// What must be the same before and after. Other things cannot leak unseen:
/// once the node is set up, the hypervisor panics if a frame is allocated; the
/// ports of a domain are fixed numbers; and a driver that does not get its
/// interrupt back, because the vector of the last life is still taken, is never
/// ready.
#[derive(Debug, PartialEq, Eq)]
struct Books {
    /// Name, pages mapped, pages granted of each domain.
    grants: Vec<(String, u32, u32)>,
    /// States of both ends of each connection.
    connections: Vec<(u16, u32, u32)>,
}

impl Books {
    /// Once all domains serve or stand by, as they do after the boot.
    fn read(client: &mut Client) -> Result<Self> {
        let domains = wait_for("all domains to be there", RECOVERY, || {
            let domains = client.domains()?;
            let is_there = |d: &DomainStatus| d.ready && names::domain_state(d.state) == "running";
            Ok(domains.iter().all(is_there).then_some(domains))
        })?;
        let connections = client.connections()?.into_iter();
        Ok(Self {
            grants: domains
                .into_iter()
                .map(|d| (d.name.to_string(), d.mapped, d.granted))
                .collect(),
            connections: connections.map(|c| (c.id, c.frontend_state, c.backend_state)).collect(),
        })
    }
}

/// Both drivers die in every way, one after the other, at once, again before
/// they are back, and together with their spares, while clients put and get: no
/// value is lost, and the node is afterwards what it was before.
pub fn g3_deaths_leave_nothing_behind(bench: &Bench) -> Result<()> {
    let wanted = wanted(DEATHS)?;
    let manifest = manifest(bench)?;
    let floors = floors(&manifest)?;
    bench.with_node(
        |config| {
            config.manifest = manifest;
            count_instructions(config);
        },
        |node| {
            let before = Books::read(&mut node.control()?)?;
            let mut deaths = Vec::new();
            under(Workload::light(), node, 4, |workload, client| {
                let begin = Instant::now();
                let mut ways = Ways { all: How::ALL.into_iter().cycle() };
                let mut told = 0;
                for round in 0.. {
                    let what = || format!("round {round}, {} deaths", deaths.len());
                    for driver in DRIVERS {
                        ways.round(client, driver, round).with_context(what)?;
                    }
                    workload.wait_progress(1, PATIENCE).with_context(what)?;
                    let next = deaths.last().map_or(0, |last: &CrashEntry| last.sequence + 1);
                    deaths.extend(client.crashes(next)?);
                    if deaths.len() >= told + TELL {
                        told = deaths.len();
                        let s = begin.elapsed().as_secs();
                        eprintln!(
                            "{told} deaths of {wanted} and {} answers in {s} s",
                            workload.requests()
                        );
                    }
                    if deaths.len() >= wanted {
                        return Ok(());
                    }
                }
                Ok(())
            })?;
            all_kinds(&deaths)?;
            as_quick_as_at_first(&recoveries(&deaths, &floors))?;
            let after = Books::read(&mut node.control()?)?;
            ensure!(before == after, "before: {before:?}\nafter: {after:?}");
            Ok(())
        },
    )
}

/// Who dies how.
struct Ways<T> {
    all: T,
}

impl<T: Iterator<Item = How>> Ways<T> {
    fn next(&mut self) -> How {
        self.all.next().unwrap_or(How::Panic)
    }

    /// Deaths of `driver`, some of them during a recovery: its own, of the
    /// other driver, of its spare.
    fn round(&mut self, client: &mut Client, driver: &str, round: usize) -> Result<()> {
        let spare = format!("{driver}-spare");
        crash(client, driver, self.next())?;
        client.crash_twice(driver, [self.next(), self.next()], RECOVERY)?;
        let order = if round.is_multiple_of(2) { ["blk", "net"] } else { ["net", "blk"] };
        client.crash_all(&order, self.next(), RECOVERY)?;
        match round % STALLS {
            0 => crash(client, driver, How::Stall)?,
            _ => crash(client, driver, self.next())?,
        }
        // The spare in its driver's place dies, or both at once; then the driver before there
        // is another spare.
        standby(client, driver)?;
        client.crash_all(&[&spare, driver], self.next(), RECOVERY)?;
        crash(client, driver, self.next())
    }
}

/// No record is missing, all ways of dying are among them, and some deaths came
/// before the last one was over.
fn all_kinds(deaths: &[CrashEntry]) -> Result<()> {
    for (number, death) in (0..).zip(deaths) {
        ensure!(death.sequence == number, "record {number} is missing");
    }
    for domain in DRIVERS {
        for how in How::ALL.into_iter().chain([How::Stall]) {
            let died = |death: &CrashEntry| {
                death.name == domain && is_reason(how, &names::reason(death.reason))
            };
            ensure!(deaths.iter().any(died), "no {domain} died of {how:?}");
        }
        let spare = format!("{domain}-spare");
        ensure!(deaths.iter().any(|death| *death.name == *spare), "no {spare} died");
    }
    // A driver that is ready still has its guests to connect and what they send again to do.
    // The last of its deaths may be too young to tell.
    let early = |driver: &&str| {
        let own = deaths.iter().rev().filter(|death| &*death.name == *driver).skip(1);
        own.filter(|death| death.times.served == 0).count()
    };
    let early: usize = DRIVERS.iter().map(early).sum();
    ensure!(early > 0, "no driver died before it served again");
    eprintln!("{} deaths, {early} of them before a recovery was over", deaths.len());
    Ok(())
}

/// A recovery that came to its end.
struct Recovery {
    domain: &'static str,
    rebuild: u16,
    /// From detection to service, without the pause that the floor asks for.
    ns: u64,
}

/// Floor of the restarts of each driver, ns.
fn floors(manifest: &Path) -> Result<Vec<(&'static str, u64)>> {
    let manifest = Manifest::load(manifest)?;
    let floor = |name| {
        let domain = manifest.domains.iter().find(|domain| domain.spec.name == name);
        let domain = domain.with_context(|| format!("there is no {name}"))?;
        anyhow::Ok((name, u64::from(domain.spec.restart.floor_ms) * 1_000_000))
    };
    DRIVERS.into_iter().map(floor).collect()
}

/// All recoveries of drivers, in their order. A driver that dies soon after its
/// start waits until the floor is over; how long depends on when the order to
/// die came, so that is no part of how quick the node is.
fn recoveries(deaths: &[CrashEntry], floors: &[(&'static str, u64)]) -> Vec<Recovery> {
    let mut recoveries = Vec::new();
    for &(domain, floor) in floors {
        let mut started: Option<u64> = None;
        for death in deaths.iter().filter(|death| death.name == domain) {
            let times = death.times;
            if times.ready != 0
                && let Some(started) = started
            {
                let pause = (started + floor).saturating_sub(times.told);
                let ns = (times.ready - times.detected).saturating_sub(pause);
                recoveries.push(Recovery { domain, rebuild: death.rebuild, ns });
            }
            started = Some(times.entered).filter(|&entered| entered != 0);
        }
    }
    recoveries
}

/// The last recoveries of each driver and each kind took no longer than the
/// first. Lower quartiles: what comes in between (a slow disk of the host,
/// another domain's turn on the only core) makes some recoveries longer, and
/// none shorter; what grows over a life makes all of them longer.
fn as_quick_as_at_first(recoveries: &[Recovery]) -> Result<()> {
    let mut slower = Vec::new();
    for domain in DRIVERS {
        for (way, rebuild) in [("cold", Rebuild::Cold), ("by spare", Rebuild::Spare)] {
            let of_kind = |r: &&Recovery| r.domain == domain && r.rebuild == rebuild as u16;
            let times: Vec<u64> = recoveries.iter().filter(of_kind).map(|r| r.ns).collect();
            let hundreds: Vec<u64> = times.chunks_exact(COMPARED).map(lower_quartile).collect();
            let last =
                lower_quartile(times.get(times.len().saturating_sub(COMPARED)..).unwrap_or(&[]));
            let (Some(&first), true) = (hundreds.first(), times.len() >= 2 * COMPARED) else {
                eprintln!("{domain}, {way}: {} recoveries, too few to compare", times.len());
                continue;
            };
            let (low, high) = (hundreds.iter().min(), hundreds.iter().max());
            eprintln!(
                "{domain}, {way}: {} recoveries; lower quartile from detection to service of the \
                 first {COMPARED}: {} us, of the last: {} us, of any in between: {} to {} us",
                times.len(),
                first / 1000,
                last / 1000,
                low.unwrap_or(&first) / 1000,
                high.unwrap_or(&first) / 1000
            );
            if last * 100 > first * (100 + SLOWER) {
                slower.push(format!("{domain}, {way}: {first} ns at first, {last} ns in the end"));
            }
        }
    }
    ensure!(slower.is_empty(), "recovery became slower: {}", slower.join("; "));
    Ok(())
}

fn lower_quartile(times: &[u64]) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 4).copied().unwrap_or(0)
}
