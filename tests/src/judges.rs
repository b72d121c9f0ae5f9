//! The node of the fault campaigns: two judges in it, and their orders from outside.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use judge_orders::{Kind, Orders, Outcome, VERIFY, state};
use nodectl::Client;
use xtask::{
    bench::real_disk_devices, judge::Judge, manifest::Manifest, qemu::NodeConfig, size::MIB,
    workspace,
};

use crate::{
    bench::{BOOT, Bench, Node},
    runner::wait_for,
};

/// For a round, however slow the host is.
const ROUND: Duration = Duration::from_secs(120);
/// Where a machine's memory is best kept: nobody writes it to a disk.
const SHM: &str = "/dev/shm";

/// A third end of the wire between `net` and the peer: it hears every frame, and
/// may add some.
#[derive(Debug)]
pub struct Tap {
    socket: UnixDatagram,
    own: PathBuf,
    /// QEMU's.
    other: PathBuf,
}

impl Tap {
    /// A tap that is not on the wire yet.
    ///
    /// # Errors
    ///
    /// There is no socket to be had.
    pub fn new(bench: &Bench) -> Result<Self> {
        // The path of a Unix socket is short; that of a checkout may not be.
        let path = |end| {
            let name = format!("bulkhead-{}-{}-{end}", std::process::id(), bench.name());
            std::env::temp_dir().join(name)
        };
        let (own, other) = (path("tap"), path("qemu"));
        let _ = std::fs::remove_file(&own);
        let socket = UnixDatagram::bind(&own).context("can't make a socket")?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, own, other })
    }

    /// Puts it on the wire.
    pub fn connect(&self, config: &mut NodeConfig) {
        let [own, other] = [&self.own, &self.other].map(|path| path.display());
        let ends = format!("local.type=unix,local.path={other},remote.type=unix,remote.path={own}");
        let arguments = [
            "-netdev".to_owned(),
            format!("dgram,id=tap,{ends}"),
            "-netdev".to_owned(),
            "hubport,id=tapped,hubid=0,netdev=tap".to_owned(),
        ];
        config.extra_args.extend(arguments.map(Into::into));
    }

    /// The next frame that was heard and not looked at yet.
    ///
    /// # Errors
    ///
    /// The socket fails.
    pub fn hear(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 2048];
        match self.socket.recv(&mut frame) {
            Ok(len) => {
                frame.truncate(len);
                Ok(Some(frame))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("can't hear the wire"),
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    ///
    /// QEMU does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.socket.send_to(frame, &self.other).context("can't send a frame").map(drop)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // QEMU's is there only if it began.
        for path in [&self.own, &self.other] {
            let _ = std::fs::remove_file(path);
        }
    }
}

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
    more: impl FnOnce(&mut NodeConfig),
    body: impl FnOnce(&Node, &mut Client, &mut Judges) -> Result<T>,
) -> Result<T> {
    let ram = Ram::new(bench);
    bench.with_node(
        |config| {
            configure(config, &ram.0);
            more(config);
            // A manifest that can't be read is the build's to complain of.
            let manifest = Manifest::load(&config.manifest);
            let plugged = manifest.map(|manifest| manifest.plugged).unwrap_or_default();
            config.devices = Some(real_disk_devices(&config.disk, &plugged));
        },
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
    ensure!(completed >= orders.requests && completed + lost == submitted, "{outcome:?}");
    ensure!((errors, wrong, stale, damaged) == (0, 0, 0, 0), "{outcome:?}");
    Ok(())
}
