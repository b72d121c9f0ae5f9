//! The node of the fault campaigns: two judges in it, and their orders from outside.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use judge_orders::{Kind, Orders, Outcome, VERIFY, state};
use nodectl::Client;
use xtask::{bench::real_disk_devices, judge::Judge, qemu::NodeConfig, size::MIB, workspace};

use crate::{
    bench::{BOOT, Bench, Node},
    runner::wait_for,
};

/// For a round, however slow the host is.
const ROUND: Duration = Duration::from_secs(120);
/// Where a machine's memory is best kept: nobody writes it to a disk.
const SHM: &str = "/dev/shm";

/// Both judges of a node.
#[derive(Debug)]
pub struct Judges {
    /// The client of blk.
    pub blk: Judge,
    /// The client of net.
    pub net: Judge,
}

/// A round that is given up after a second of the node's time.
pub fn round(requests: u64) -> Orders {
    Orders {
        seed: requests,
        requests,
        moment: u64::MAX,
        window: 16,
        limit_ns: 1_000_000_000,
        flags: VERIFY,
        ..Orders::default()
    }
}

/// Boots the node and lets `body` work with it.
///
/// # Errors
///
/// As for [`Bench::with_node`].
pub fn with_judges<T>(
    bench: &Bench,
    body: impl FnOnce(&Node, &mut Client, &mut Judges) -> Result<T>,
) -> Result<T> {
    let ram = Ram::new(bench);
    bench.with_node(
        |config| configure(config, &ram.0),
        |node| {
            let mut client = node.control()?;
            let mut judges = Judges::find(&mut client, &ram.0)?;
            body(node, &mut client, &mut judges)
        },
    )
}

fn configure(config: &mut NodeConfig, ram: &Path) {
    config.manifest = workspace::root().join("nodes/fault.toml");
    config.ram = Some(ram.to_owned());
    config.memory = 128 * MIB;
    // Time is what the node executes; while its core sleeps it goes on as the host's, as the
    // disk takes its time.
    (config.icount, config.smp) = (true, Some(1));
    config.extra_args.extend(["-icount", "sleep=on"].map(Into::into));
    config.devices = Some(real_disk_devices(&config.disk));
}

/// The file of a machine's memory; it goes when this does.
struct Ram(PathBuf);

impl Ram {
    fn new(bench: &Bench) -> Self {
        let folder = Path::new(SHM);
        let folder = if folder.is_dir() { folder } else { bench.dir() };
        Self(folder.join(format!("bulkhead-{}-{}.ram", bench.name(), std::process::id())))
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // Of a node that did not start there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Judges {
    /// Waits until both serve.
    fn find(client: &mut Client, ram: &Path) -> Result<Self> {
        let elf = workspace::node_dir().join("judge.elf");
        let mut find = |name: &str, kind| {
            wait_for(name, BOOT, || {
                let domain = client.domain(name)?.with_context(|| format!("there is no {name}"))?;
                ensure!(domain.deaths == 0, "{name} died");
                Ok(domain.ready.then_some(()))
            })?;
            let numbers = client.names()?;
            let number = numbers.iter().find(|(_, other)| other == name).context("no number")?.0;
            let judge = Judge::find(ram, &elf, number)?.context("it serves no orders")?;
            ensure!(judge.kind()? == kind, "{name} is another judge");
            anyhow::Ok(judge)
        };
        Ok(Self { blk: find("judge-blk", Kind::Blk)?, net: find("judge-net", Kind::Net)? })
    }

    /// Both carry out a round.
    ///
    /// # Errors
    ///
    /// It does not come to its end.
    pub fn both(&mut self, orders: Orders) -> Result<[Outcome; 2]> {
        self.blk.order(orders)?;
        self.net.order(orders)?;
        Ok([finish(&self.blk)?, finish(&self.net)?])
    }
}

/// A judge carries out a round.
///
/// # Errors
///
/// It does not come to its end.
pub fn carry_out(judge: &mut Judge, orders: Orders) -> Result<Outcome> {
    judge.order(orders)?;
    finish(judge)
}

/// Waits for the end of a round.
///
/// # Errors
///
/// There is none, or it is another end than that all was done.
pub fn finish(judge: &Judge) -> Result<Outcome> {
    let outcome = judge.wait(ROUND)?;
    ensure!(outcome.state == state::DONE, "the round ended otherwise: {outcome:?}");
    Ok(outcome)
}

/// Fails unless all requests were completed, and all data is as it must be.
///
/// # Errors
///
/// They were not, or it is not.
pub fn is_intact(orders: &Orders, outcome: &Outcome) -> Result<()> {
    let Outcome { submitted, completed, lost, errors, wrong, stale, damaged, .. } = *outcome;
    ensure!(submitted == orders.requests && completed + lost == submitted, "{outcome:?}");
    ensure!((errors, wrong, stale, damaged) == (0, 0, 0, 0), "{outcome:?}");
    Ok(())
}
