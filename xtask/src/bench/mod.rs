//! `cargo xtask bench`: blk and net through driver domains, beside *fused*: the
//! same workload with the driver linked into it, one domain, no rings.
//!
//! # What a figure means
//!
//! Both nodes run under `-icount shift=0,sleep=off`: an instruction takes a
//! nanosecond of virtual time, whatever the host is doing. What runs is the
//! same binary, `guests/bench`; only how it reaches the device differs.
//!
//! - **One core.** Under icount QEMU runs the cores of a machine one after the
//!   other, on one clock: a second core adds no speed in virtual time. So the
//!   node has one, and the time of a request is the sum of all instructions on
//!   its way: workload, ring, hypervisor, driver domain. On real hardware the
//!   driver domain has a core of its own and works beside the guest; the ratios
//!   here are the worst case.
//! - **The disk takes no time.** While all cores sleep, the virtual clock jumps
//!   to the next timer, however long the host's disk takes; an image file would
//!   turn each wait into a jump that measures nothing. So the disk is QEMU's
//!   `null-co` under a partition table (see `disk.rs`), which answers
//!   within the same turn of QEMU's main loop, before any jump. MB/s and IOPS
//!   are therefore those of the software, as if the disk were infinitely fast.
//!   What a real disk takes would be added to both sides.
//! - **Data is touched.** What is written is copied into the request's buffer
//!   and what was read is copied out of it, once, in both modes.
//! - **The wire takes [`WIRE_NS`] each way**, by a timer of the NIC on the
//!   virtual clock. The peer is a third domain on the same machine, behind a
//!   NIC of its own on a QEMU hub. In bulk figures its CPU time is subtracted,
//!   as if it were another machine (the exits that it causes are not). In the
//!   round trip it is part of what is measured.
//! - **Per request** means exits, hypercalls and notifications of the guest and
//!   the driver domain together, without the peer's, for each request; in bulk
//!   TCP for each full segment of 1460 bytes.
//!
//! QEMU's main loop finishes disk requests beside the CPU, so where exactly a
//! completion falls differs a little between runs; ratios move by a few
//! hundredths. Figures of net repeat more closely.

mod disk;
mod recovery;
mod table;

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::manifest::{Manifest, Plugged};
use crate::qemu::{NodeConfig, Place, Verdict, install, with_path, with_peer};
use crate::{build, figures, workspace};

/// ns of virtual time from a sent frame to its arrival.
pub const WIRE_NS: u32 = 5000;
/// Wall time that a node may take. It says nothing on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// Names of all cases, for a filter that fits none.
const CASES: [&str; 11] = [
    "blk.seq128k.read.d1",
    "blk.seq128k.read.d32",
    "blk.seq128k.write.d1",
    "blk.seq128k.write.d32",
    "blk.rand4k.read.d1",
    "blk.rand4k.read.d32",
    "blk.rand4k.write.d1",
    "blk.rand4k.write.d32",
    "net.tcp.out",
    "net.tcp.in",
    "net.tcp.rtt",
];

/// Options.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Instead of speed
    #[command(subcommand)]
    what: Option<What>,
    /// Only cases whose name contains one of these, such as `rand4k` or `net`
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Measure how long guests wait when drivers die
    Recovery(recovery::Options),
}

/// What the guest counted in one case.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Counts {
    pub requests: u64,
    pub bytes: u64,
    pub p50_ns: u64,
    pub elapsed_ns: u64,
    pub guest_ns: u64,
    pub driver_ns: u64,
    pub peer_ns: u64,
    pub exits: u64,
    pub hypercalls: u64,
    pub notifications: u64,
    pub interrupts: u64,
}

/// A line of the guest.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Record {
    Case {
        case: String,
        #[serde(flatten)]
        counts: Counts,
    },
    Failed {
        failed: String,
    },
    End {
        #[allow(dead_code, reason = "its presence is what counts")]
        end: bool,
    },
}

/// How the devices are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Ring,
    Fused,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Fused => "fused",
        }
    }
}

/// Builds both nodes, runs them, prints the table and writes the figures.
///
/// # Errors
///
/// A node does not build, run or end in order, or a name fits no case.
pub fn bench(options: &Options) -> Result<()> {
    if let Some(What::Recovery(options)) = &options.what {
        return recovery::bench(options);
    }
    let fits = |case: &str| options.names.iter().any(|name| case.contains(name.as_str()));
    if !options.names.is_empty() && !CASES.iter().any(|case| fits(case)) {
        bail!("no case is named so; there is {}", CASES.join(", "));
    }
    // The words reach the guest through `args`.
    let plain = |name: &String| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.') && !name.is_empty()
    };
    if let Some(name) = options.names.iter().find(|name| !plain(name)) {
        bail!("`{name}` is part of no case's name; there is {}", CASES.join(", "));
    }
    install::ensure()?;
    let _lock = alone()?;
    let ring = measure(Mode::Ring, &options.names)?;
    let fused = measure(Mode::Fused, &options.names)?;
    let mut rows = Vec::new();
    for (case, ring) in ring {
        let fused = fused.iter().find(|(other, _)| *other == case).map(|(_, counts)| *counts);
        let fused = fused.ok_or_else(|| anyhow!("case {case} ran over rings only"))?;
        rows.push(table::Row { case, ring, fused });
    }
    table::print(&rows);
    if let Some(path) = &options.json {
        figures::write(path, &table::figures(&rows))?;
    }
    Ok(())
}

/// Has other benches keep off until the lock is dropped: their bundles and folders have the
/// same names.
fn alone() -> Result<File> {
    let path = workspace::node_dir().join("bench.lock");
    std::fs::create_dir_all(workspace::node_dir())?;
    let lock = File::create(&path).with_context(|| format!("can't open {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "another bench runs in this tree and has {} locked; wait for its end",
            workspace::show(&path)
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("can't lock {}", path.display()))
        }
    }
}

/// Runs one node and collects what it counted.
fn measure(mode: Mode, names: &[String]) -> Result<Vec<(String, Counts)>> {
    let name = mode.name();
    let path = workspace::root().join(format!("nodes/bench-{name}.toml"));
    let mut manifest = Manifest::load(&path)?;
    if !names.is_empty() {
        let bench = manifest.domains.iter_mut().find(|domain| domain.spec.name == "bench");
        let bench = bench.ok_or_else(|| anyhow!("{} has no bench", path.display()))?;
        let args = format!("{} only={}", bench.spec.args, names.join(","));
        bench.spec.args = heapless::String::try_from(args.as_str())
            .map_err(|_| anyhow!("these are too many names"))?;
    }
    let built = build::build(&manifest)?;
    let dir = workspace::run_dir().join(format!("bench-{name}"));
    std::fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
    let config = NodeConfig {
        smp: Some(1),
        icount: true,
        devices: Some(devices(&dir)?),
        ..NodeConfig::new(&path, &dir)
    };
    eprintln!("running {} …", workspace::show(&path));
    let node = config.launch_built(&built)?;
    let verdict = node.wait(Some(PATIENCE));
    let mut cases = Vec::new();
    for line in node.log().lines() {
        let Some((_, json)) = line.split_once("record {") else { continue };
        let record: Record = serde_json::from_str(&format!("{{{json}"))
            .with_context(|| format!("the guest wrote a strange record: {line}"))?;
        match record {
            Record::Case { case, counts } => cases.push((case, counts)),
            Record::Failed { failed } => {
                bail!("the {name} workload failed: {failed}; log: {}", show(&config))
            }
            Record::End { .. } => {}
        }
    }
    match verdict {
        Some(Verdict::Orderly) => Ok(cases),
        Some(verdict) => bail!("the {name} node: {verdict}; log: {}", show(&config)),
        None => bail!(
            "the {name} node was not done after {} s, with {} cases measured; log: {}",
            PATIENCE.as_secs(),
            cases.len(),
            show(&config)
        ),
    }
}

fn show(config: &NodeConfig) -> String {
    workspace::show(&config.serial_log)
}

/// The same NICs, and a disk whose image is the file `disk`. The host writes it to a
/// medium when it likes to.
#[must_use]
pub fn real_disk_devices(disk: &Path, plugged: &Plugged) -> Vec<OsString> {
    let options = "if=none,id=disk,format=raw,cache=unsafe,file.locking=on,file.filename=";
    let drive = vec!["-drive".into(), with_path(options, disk)];
    with_peer(drive, plugged, WIRE_NS, Place::Root)
}

/// A disk without a medium, a NIC, and the peer's NIC on the same hub.
fn devices(dir: &Path) -> Result<Vec<OsString>> {
    Ok(with_peer(disk::arguments(dir)?, &Plugged::default(), WIRE_NS, Place::Root))
}
