//! `cargo xtask bench recovery`: how long a guest waits when its driver dies.
//!
//! # What a figure means
//!
//! As in the other benches a node with one core runs under `-icount
//! shift=0,sleep=off`: an instruction takes a nanosecond, whatever the host
//! does. One guest keeps 32 requests in flight at the driver that dies: random
//! reads and writes of 4 KiB, or datagrams to a peer and back. The disk takes no
//! time, the wire 5 us each way. After the reconnect one datagram goes first and the
//! others once it came back, as transports do after a loss; the peer, which has the
//! same core, sends datagrams back from below its stack.
//!
//! - **One core** is the worst case: supervisor, rebuilding and the new driver's
//!   start follow each other there, and so does all that the guest has to do.
//! - **The host orders each death** over the control line, so deaths fall at any
//!   point of the load. It takes no part in the recovery: the supervisor hears of
//!   the death like of any other.
//! - **Cold**: the image is restored and started. **Warm**: a spare takes over;
//!   each death waits until the spare of the one before stands by.
//! - **The clock starts** with the panic or exception. Of a hang it starts when
//!   the hypervisor detects it: before that passes the bound that the manifest
//!   sets, which is a figure of its own.
//! - **Enabled**: the new driver has reset its device and masters the bus.
//! - **Ready**: the new driver says that it serves, as the hypervisor notes at its
//!   next `wait`. **Served**: the guest has the answer to a request, as the guest
//!   saw it. All on the node's clock.
//! - **Replayed** are requests that the frontend sent a second time. **Lost** are
//!   datagrams that never came back; for blk there is no such thing.
//! - **Drift** is the median of the last deaths over that of the first, up to 100
//!   of each.

mod node;
mod plot;
mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};
use ring_proto::crash::Timeline;

use crate::{figures, manifest::Manifest, qemu::install, workspace};

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// Only cases whose name contains one of these, such as `blk.cold` or `hang`
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Deaths of each case
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    deaths: u32,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the time line as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Whose death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Blk,
    Net,
}

/// What replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Cold,
    Warm,
}

/// How it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Panic,
    Exception,
    Hang,
}

impl Driver {
    const ALL: [Self; 2] = [Self::Blk, Self::Net];

    fn name(self) -> &'static str {
        match self {
            Self::Blk => "blk",
            Self::Net => "net",
        }
    }
}

impl Mode {
    const ALL: [Self; 2] = [Self::Cold, Self::Warm];

    fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }

    /// p99 from death to the first request served, ms (DESIGN's budget).
    fn budget_ms(self) -> f64 {
        match self {
            Self::Cold => 10.0,
            Self::Warm => 1.0,
        }
    }
}

impl Kind {
    const ALL: [Self; 3] = [Self::Panic, Self::Exception, Self::Hang];

    fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Exception => "exception",
            Self::Hang => "hang",
        }
    }
}

/// One death, times in ns on the node's clock; 0 = not known.
#[derive(Clone, Copy, Debug)]
struct Death {
    times: Timeline,
    served: u64,
    replayed: u64,
    lost: u64,
}

/// A step of a recovery.
struct Step {
    name: &'static str,
    /// When it was done.
    at: fn(&Death) -> u64,
}

/// All steps in their order.
const STEPS: [Step; 5] = [
    Step { name: "quiesced", at: |death| death.times.quiesced },
    Step { name: "decided", at: |death| death.times.decided },
    Step { name: "entered", at: |death| death.times.entered },
    Step { name: "enabled", at: |death| death.times.enabled },
    Step { name: "served", at: |death| death.served },
];

/// All deaths of one kind.
#[derive(Debug)]
struct Case {
    driver: Driver,
    mode: Mode,
    kind: Kind,
    deaths: Vec<Death>,
}

impl Case {
    fn name(driver: Driver, mode: Mode, kind: Kind) -> String {
        format!("{}.{}.{}", driver.name(), mode.name(), kind.name())
    }
}

/// Runs all cases that are wanted, prints the table and writes what is asked for.
pub(super) fn bench(options: &Options) -> Result<()> {
    let wanted = |name: &str| {
        options.names.is_empty() || options.names.iter().any(|part| name.contains(part.as_str()))
    };
    let runs: Vec<_> = Driver::ALL
        .into_iter()
        .flat_map(|driver| Mode::ALL.map(|mode| (driver, mode)))
        .filter_map(|(driver, mode)| {
            let kinds = Kind::ALL.into_iter();
            let kinds: Vec<_> =
                kinds.filter(|kind| wanted(&Case::name(driver, mode, *kind))).collect();
            (!kinds.is_empty()).then_some((driver, mode, kinds))
        })
        .collect();
    if runs.is_empty() {
        bail!("no case is named so; one is blk.cold.panic");
    }
    install::ensure()?;
    let _lock = super::alone()?;
    let manifest = Manifest::load(&workspace::root().join("nodes/bench-recovery.toml"))?;
    let mut cases = Vec::new();
    for (driver, mode, kinds) in runs {
        cases.extend(node::measure(&manifest, driver, mode, &kinds, options.deaths)?);
    }
    report::print(&cases);
    if let Some(path) = &options.json {
        figures::write(path, &report::figures(&cases))?;
    }
    if let Some(path) = &options.plot {
        plot::draw(path, &cases)?;
    }
    Ok(())
}
