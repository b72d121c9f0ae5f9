//! Deaths without end: what is left of a node after thousands of them.
//!
//! `BULKHEAD_DEATHS` says how many each test brings about; by default few, so
//! that the whole suite stays within minutes:
//!
//! ```sh
//! BULKHEAD_DEATHS=10000 cargo xtask test --only system g3_deaths_leave
//! ```

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use nodectl::{
    Client,
    control::{CrashEntry, How},
    names,
};
use system_tests::{
    bench::{Bench, RECOVERY},
    workload::Workload,
};

use crate::{
    control::is_reason,
    recovery::{PATIENCE, crash, under},
};

/// Deaths of a test unless `BULKHEAD_DEATHS` says otherwise.
const DEATHS: usize = 60;
/// Deaths at either end of a life that are compared for speed.
const COMPARED: usize = 100;
/// How much slower the last recoveries may be than the first, on the node's
/// clock. That runs with the host's here, which other programs slow down; the
/// exact figure is `drift` of `cargo xtask bench recovery`.
const SLOWER: u64 = 4;
/// Bound of a hang, ms.
const WATCHDOG_MS: u32 = 2000;
/// Deaths between two lines about the progress.
const TELL: usize = 250;

fn wanted() -> Result<usize> {
    match std::env::var("BULKHEAD_DEATHS") {
        Ok(text) => text.parse().with_context(|| format!("BULKHEAD_DEATHS={text}")),
        Err(_) => Ok(DEATHS),
    }
}

/// The demo node, with more time before a driver counts as hung: a host that
/// stops QEMU for a moment among so many deaths must not bring one about.
fn patient_manifest(bench: &Bench) -> Result<PathBuf> {
    let path = bench.dir().join("patient.toml");
    let mut text = std::fs::read_to_string(xtask::manifest::default_path())?;
    for domain in ["blk", "net"] {
        let head = format!("[domain.{domain}]\n");
        ensure!(text.contains(&head), "the demo node has no {domain}");
        text = text.replace(&head, &format!("{head}watchdog_ms = {WATCHDOG_MS}\n"));
    }
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&path, text)?;
    Ok(path)
}

/// What must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Books {
    /// RAM that nobody has.
    free: u64,
    /// Name, pages mapped, pages granted of each domain.
    grants: Vec<(String, u32, u32)>,
    /// States of both ends of each connection.
    connections: Vec<(u16, u32, u32)>,
}

impl Books {
    fn read(client: &mut Client) -> Result<Self> {
        let domains = client.domains()?.into_iter();
        let connections = client.connections()?.into_iter();
        Ok(Self {
            free: client.info()?.free,
            grants: domains.map(|d| (d.name.to_string(), d.mapped, d.granted)).collect(),
            connections: connections.map(|c| (c.id, c.frontend_state, c.backend_state)).collect(),
        })
    }
}

/// Both drivers die in every way, one after the other, at once, and again
/// before they are back, while clients put and get: no value is lost, and the
/// node is afterwards what it was before.
pub fn g3_deaths_leave_nothing_behind(bench: &Bench) -> Result<()> {
    let wanted = wanted()?;
    let manifest = patient_manifest(bench)?;
    bench.with_node(
        |config| config.manifest = manifest,
        |node| {
            let before = Books::read(&mut node.control()?)?;
            let mut deaths = Vec::new();
            under(Workload::light(), node, 4, |workload, client| {
                let begin = Instant::now();
                let mut ways = How::ALL.into_iter().cycle();
                let mut way = || ways.next().unwrap_or(How::Panic);
                let mut told = 0;
                for round in 0.. {
                    let what = || format!("round {round}, {} deaths", deaths.len());
                    // So that after a while each place has seen each way.
                    match round % 5 {
                        0 => {
                            way();
                            crash(client, "blk", way())
                        }
                        1 => crash(client, "net", way()),
                        2 => client
                            .crash_all(&["blk", "net"], way(), RECOVERY)
                            .map(drop)
                            .map_err(Into::into),
                        3 => client
                            .crash_twice("blk", [way(), way()], RECOVERY)
                            .map(drop)
                            .map_err(Into::into),
                        _ => client
                            .crash_twice("net", [way(), way()], RECOVERY)
                            .map(drop)
                            .map_err(Into::into),
                    }
                    .with_context(what)?;
                    workload.wait_progress(1, PATIENCE).with_context(what)?;
                    let next = deaths.last().map_or(0, |last: &CrashEntry| last.sequence + 1);
                    deaths.extend(client.crashes(next)?);
                    if deaths.len() >= told + TELL {
                        told = deaths.len();
                        eprintln!("{told} deaths of {wanted} in {} s", begin.elapsed().as_secs());
                    }
                    if deaths.len() >= wanted {
                        return Ok(());
                    }
                }
                Ok(())
            })?;
            judge(&deaths)?;
            let after = Books::read(&mut node.control()?)?;
            ensure!(before == after, "before: {before:?}\nafter: {after:?}");
            Ok(())
        },
    )
}

/// No record is missing, all ways of dying are among them, some deaths came
/// before the last one was over, and nothing got slower.
fn judge(deaths: &[CrashEntry]) -> Result<()> {
    for (number, death) in (0..).zip(deaths) {
        ensure!(death.sequence == number, "record {number} is missing");
    }
    for domain in ["blk", "net"] {
        for how in How::ALL {
            let died = |death: &CrashEntry| {
                death.name == domain && is_reason(how, &names::reason(death.reason))
            };
            ensure!(deaths.iter().any(died), "no {domain} died of {how:?}");
        }
    }
    let early = deaths.iter().filter(|death| death.times.ready == 0).count();
    ensure!(early > 0, "no domain died before it was back");
    let median = |deaths: &[CrashEntry]| {
        let served = deaths.iter().filter(|death| death.times.ready != 0);
        let mut times: Vec<u64> = served.map(|d| d.times.ready - d.times.detected).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    };
    let compared = COMPARED.min(deaths.len() / 2);
    let (first, last) = (&deaths[..compared], &deaths[deaths.len() - compared..]);
    let (first, last) = (median(first), median(last));
    eprintln!(
        "{} deaths, {early} of them before a recovery was over; detected to ready, median of \
         {compared}: first {} us, last {} us",
        deaths.len(),
        first / 1000,
        last / 1000
    );
    ensure!(last <= SLOWER * first, "recovery took {first} ns at first and {last} ns at last");
    Ok(())
}
