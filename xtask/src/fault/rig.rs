//! A node under test, and what is needed to test it from outside.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fault::class::Class;
use judge_orders::{Orders, Outcome};
use nodectl::control::CrashEntry;
use nodectl::{Client, names, report};
use ring_proto::DomainId;
use ring_proto::bundle::Node;
use ring_proto::event::{READY, SERVED, STANDBY};

use super::disk::Server;
use super::gdb::Wait;
use super::host;
use super::machine::Machine;
use super::node::{self, Judged};
use super::slot::Slot;
use super::target::Target;
use super::wire::Tap;
use crate::bench::WIRE_NS;
use crate::build::Built;
use crate::manifest::Manifest;
use crate::qemu::{Iommu, NodeConfig, Place, RunningNode, Verdict};
use crate::{bundle, judge, qemu};

// Wall time says nothing on a busy machine, so limits are far off.
/// For the node to come up.
const BOOT: Duration = Duration::from_secs(300);
/// For an answer of the supervisor, or a restart.
pub const CONTROL: Duration = Duration::from_secs(60);
/// For a round without a fault.
const ROUND: Duration = Duration::from_secs(60);
/// For QEMU to end that has failed an assertion.
const ABORT: Duration = Duration::from_secs(2);
/// Pause between two looks at what goes on by itself.
const PAUSE: Duration = Duration::from_micros(300);

/// A kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What most trials are tried on: what the manifest says.
    Plain,
    /// The drivers that are judged have spares.
    Spares,
    /// Each device is behind a root port of its own, out of which it can be pulled, under VT-d:
    /// QEMU's AMD-Vi knows no devices behind ports.
    Ports,
}

impl Kind {
    /// What a class is tried on.
    pub fn of(class: Class) -> Self {
        match class {
            Class::SpareFault => Self::Spares,
            Class::DeviceGone => Self::Ports,
            _ => Self::Plain,
        }
    }

    /// Its manifest, if that of the plain node is this.
    ///
    /// # Errors
    ///
    /// There can't be such a node.
    pub fn manifest(self, plain: &Manifest) -> Result<Manifest> {
        match self {
            Self::Plain | Self::Ports => Ok(plain.clone()),
            Self::Spares => node::with_spares(plain),
        }
    }

    /// Its name, for people and directories.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Spares => "spares",
            Self::Ports => "ports",
        }
    }
}

/// A judge in a guest.
#[derive(Debug)]
pub struct Judge {
    /// Its domain.
    pub domain: DomainId,
    block: judge::Judge,
}

/// A node that runs for trials.
#[derive(Debug)]
pub struct Rig {
    /// Its processor and memory.
    pub machine: Machine,
    /// Its supervisor.
    pub client: Client,
    /// Drivers that can be struck.
    pub judged: [Judged; 2],
    /// Their judges, in the same order.
    pub judges: [Judge; 2],
    /// What it was made from.
    pub bundle: Node,
    /// Sequence number of the next death.
    pub next_death: u64,
    running: RunningNode,
    /// Its disk, which outlives it.
    pub disk: Server,
    /// Its wire.
    pub tap: Tap,
    /// The slots of what its drivers drive, if it can be pulled, in the order of [`Self::judged`].
    slots: Option<[Slot; 2]>,
    /// Files that go when the node does.
    files: [PathBuf; 4],
}

impl Rig {
    /// Boots a node, and waits until its judges serve.
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub fn boot(built: &Built, kind: Kind, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("can't create {}", dir.display()))?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let unique = format!("bulkhead-{}-{name}", std::process::id());
        // The paths of Unix sockets are short; that of a checkout may not be.
        let socket = |what: &str| std::env::temp_dir().join(format!("{unique}-{what}.sock"));
        let (control, gdb, nbd) = (socket("control"), socket("gdb"), socket("disk"));
        let ram = memory_folder(dir).join(format!("{unique}.ram"));
        let image = memory_folder(dir).join(format!("{unique}.disk"));
        let mut tap = Tap::start(socket)?;
        let judged = node::judged(&built.manifest)?;
        let plugged = &built.manifest.plugged;
        let place = if kind == Kind::Ports { Place::Ports } else { Place::Root };
        let devices = qemu::under_test(plugged, WIRE_NS, place);
        let [disk, nic] = devices;
        let slots = (place == Place::Ports).then(|| [Slot::new(0, disk), Slot::new(1, nic)]);
        let config = NodeConfig {
            smp: Some(1),
            icount: true,
            control_socket: control,
            disk: image.clone(),
            ram: Some(ram.clone()),
            memory: 128 << 20,
            iommu: if kind == Kind::Ports { Iommu::Intel } else { Iommu::Amd },
            devices: Some(qemu::with_peer(drive(&nbd), plugged, WIRE_NS, place)),
            extra_args: [arguments(&gdb), tap.arguments()].concat(),
            ..NodeConfig::new(built.manifest.path(), dir)
        };
        let files = [gdb.clone(), ram.clone(), image.clone(), nbd.clone()];
        for file in &files {
            let _ = std::fs::remove_file(file);
        }
        crate::disk::create(&image, &built.manifest.volumes)?;
        let disk = Server::start(&image, crate::disk::place(&image, &judged[0].volume)?, &nbd)?;
        let running = config.launch_built(built)?;
        tap.attach()?;
        let bytes = std::fs::read(&built.bundle).context("the bundle")?;
        let bundle = bundle::read(&bytes)?;
        let mut client = Client::connect(running.control(), BOOT)?;
        for judged in &judged {
            wait_running(&mut client, &judged.judge, true)?;
        }
        for spare in bundle.domains.iter().filter(|domain| domain.spare_of.is_some()) {
            wait_running(&mut client, &spare.name, false)?;
        }
        let machine = Machine::attach(&gdb, &ram, &built.hv, &bundle)?;
        let image = built.images.iter().find(|image| image.name == "judge");
        let elf = &image.context("the node has no judge")?.elf;
        let find = |name: &str| {
            let domain = number(&bundle, name)?;
            let block = judge::Judge::find(&ram, elf, domain)?;
            let block = block.with_context(|| format!("{name} serves no orders"))?;
            anyhow::Ok(Judge { domain, block })
        };
        let judges = [find(&judged[0].judge)?, find(&judged[1].judge)?];
        let next_death = 0;
        let mut rig = Self {
            machine,
            client,
            judged,
            judges,
            bundle,
            next_death,
            running,
            disk,
            tap,
            slots,
            files,
        };
        rig.machine.gdb.resume()?;
        rig.next_death = rig.client.info()?.next_crash;
        ensure!(rig.next_death == 0, "a domain died before there was a fault");
        Ok(rig)
    }

    /// Has the machine run, and waits until the target's spare stands by, if it has one. Which
    /// body is whose is known then: outside of trials nobody sees a spare take over. The target
    /// has answered since it last died.
    ///
    /// # Errors
    ///
    /// No spare stands by.
    pub fn settle(&mut self, target: &Target) -> Result<()> {
        if self.machine.gdb.is_stopped() {
            self.running.freeze(false);
            self.set_free()?;
        }
        let Some(spare) = target.spare else { return Ok(()) };
        let machine = &mut self.machine;
        let found = until(CONTROL, PAUSE, || {
            let ready = (machine.ready(target.domain)?, machine.ready(spare)?);
            if matches!(ready, (STANDBY, READY | SERVED)) {
                machine.exchange(target.domain, spare);
                return Ok(Some(()));
            }
            Ok(matches!(ready, (READY | SERVED, STANDBY)).then_some(()))
        })?;
        found.with_context(|| format!("no spare of {} stands by", target.name))
    }

    /// Has the machine stand still until [`Self::settle`], so that it takes no time of the host.
    ///
    /// # Errors
    ///
    /// It ended, or QEMU does not obey.
    pub fn rest(&mut self) -> Result<()> {
        self.pause()?;
        self.running.freeze(true);
        Ok(())
    }

    /// Has the machine stand still, for the debugger.
    ///
    /// # Errors
    ///
    /// It ended, or QEMU does not obey.
    pub fn pause(&mut self) -> Result<()> {
        ensure!(self.machine.gdb.interrupt()? == Wait::Stopped, "the machine ended");
        Ok(())
    }

    /// Number of a domain.
    ///
    /// # Errors
    ///
    /// There is none of that name.
    pub fn domain(&self, name: &str) -> Result<DomainId> {
        number(&self.bundle, name)
    }

    /// Orders a round of both judges.
    ///
    /// # Errors
    ///
    /// The orders are none, or can't be written.
    pub fn order(&mut self, orders: [&Orders; 2]) -> Result<()> {
        for (judge, orders) in self.judges.iter_mut().zip(orders) {
            judge.block.order(*orders)?;
        }
        Ok(())
    }

    /// Whether the moment of the round has come for the judge at this place.
    ///
    /// # Errors
    ///
    /// Its memory can't be read.
    pub fn is_at_moment(&self, index: usize) -> Result<bool> {
        self.judges[index].block.is_at_moment()
    }

    /// The moment is over: lets that judge go on.
    ///
    /// # Errors
    ///
    /// Its memory can't be written.
    pub fn let_go(&self, index: usize) -> Result<()> {
        self.judges[index].block.let_go()
    }

    /// What both judges saw; `None` while one of them still works.
    ///
    /// # Errors
    ///
    /// Their memory can't be read.
    pub fn outcomes(&self) -> Result<Option<[Outcome; 2]>> {
        let [blk, net] = &self.judges;
        Ok(blk.block.result()?.zip(net.block.result()?).map(|(blk, net)| [blk, net]))
    }

    /// A round without a fault, to its end.
    ///
    /// # Errors
    ///
    /// It does not come to an end.
    pub fn round(&mut self, orders: &Orders) -> Result<[Outcome; 2]> {
        self.order([orders, orders])?;
        let outcomes = until(ROUND, PAUSE, || {
            let outcomes = self.outcomes()?;
            match self.ended() {
                Some(verdict) if outcomes.is_none() => bail!("{verdict}"),
                _ => Ok(outcomes),
            }
        })?;
        outcomes.context("a round does not come to its end")
    }

    /// Pulls what driver `index` drives, for a while of the host's time.
    ///
    /// # Errors
    ///
    /// It can't be pulled on this kind of node, or QEMU does not obey.
    pub fn pull(&mut self, index: usize, time: Duration) -> Result<()> {
        let slots = self.slots.as_mut().context("devices are soldered to this node")?;
        slots[index].pull(self.tap.monitor()?, time)
    }

    /// Puts back what was pulled, if it is time, or at once. Returns whether all is there.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn put_back(&mut self, at_once: bool) -> Result<bool> {
        for slot in self.slots.iter_mut().flatten() {
            slot.look(self.tap.monitor()?, at_once)?;
        }
        Ok(!self.slots.iter().flatten().any(Slot::is_empty))
    }

    /// Releases a driver if it is held, as it is whose device was gone. Returns whether it was.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer, or can't have it begin.
    pub fn release_held(&mut self, index: usize) -> Result<bool> {
        let name = &self.judged[index].driver;
        let domain = self.client.domain(name)?.with_context(|| format!("there is no {name}"))?;
        let is_held = names::domain_state(domain.state) == "held";
        if is_held {
            self.client.release(name, CONTROL)?;
        }
        Ok(is_held)
    }

    /// Deaths since the last call.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer.
    pub fn deaths(&mut self) -> Result<Vec<CrashEntry>> {
        let deaths = self.client.crashes(self.next_death)?;
        if let Some(last) = deaths.last() {
            self.next_death = last.sequence + 1;
        }
        Ok(deaths)
    }

    /// What the audit finds; `None`: nothing.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer.
    pub fn audit(&mut self) -> Result<Option<String>> {
        let audit = self.client.audit()?;
        Ok((!report::is_clean(&audit)).then(|| report::audit(&audit)))
    }

    /// Time that the host let it wait since it was booted; `None`: the host does not tell.
    pub fn waited(&self) -> Option<Duration> {
        host::waited(self.running.pid())
    }

    /// Whether the machine ends within this time.
    pub fn ends_within(&self, limit: Duration) -> bool {
        self.running.wait(Some(limit)).is_some()
    }

    /// How the machine ended, if it did.
    pub fn ended(&self) -> Option<Verdict> {
        self.running.wait(Some(Duration::ZERO))
    }

    /// What QEMU said last, if it failed an assertion of its own. Then it ends as a process does,
    /// not as a machine.
    pub fn aborted(&self) -> Option<String> {
        match self.running.wait(Some(ABORT)) {
            Some(Verdict::Aborted) => Some(self.last_messages(1).concat()),
            _ => None,
        }
    }

    /// Takes all breakpoints away and lets the machine run, so that it can be talked to.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn set_free(&mut self) -> Result<()> {
        if self.machine.gdb.interrupt()? == Wait::Stopped {
            self.machine.gdb.clear()?;
            self.machine.gdb.resume()?;
        }
        Ok(())
    }

    /// Last lines of the node's log, for a trial that went wrong.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        self.running.log().last(count)
    }

    /// Last lines that QEMU itself wrote.
    pub fn last_messages(&self, count: usize) -> Vec<String> {
        self.running.qemu_log().last(count)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A machine that its debugger stopped ends all the same.
        self.running.kill();
        let _ = std::fs::remove_file(self.running.control());
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn number(bundle: &Node, name: &str) -> Result<DomainId> {
    let place = bundle.domains.iter().position(|domain| domain.name == name);
    let place = place.with_context(|| format!("the node has no domain `{name}`"))?;
    Ok(DomainId::try_from(place)?)
}

/// Where the machine's memory and its disk are files that never meet a real disk, if there is
/// such a place: idle time goes on as the host's, and so does a request that waits for the host.
fn memory_folder(otherwise: &Path) -> &Path {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared } else { otherwise }
}

/// The disk that is served at `socket`. The host keeps what is written as long as the node lives,
/// and the drive stays when its device is pulled.
fn drive(socket: &Path) -> Vec<OsString> {
    let options = "driver=nbd,node-name=disk,cache.no-flush=on,server.type=unix,server.path=";
    vec!["-blockdev".into(), qemu::with_path(options, socket)]
}

/// QEMU's gdbstub; and idle time goes on as the host's, as what the disk does takes its time.
fn arguments(gdb: &Path) -> Vec<OsString> {
    let socket = qemu::with_path("socket,id=gdb,server=on,wait=off,path=", gdb);
    let mut arguments: Vec<OsString> = ["-icount", "sleep=on", "-chardev"].map(Into::into).into();
    arguments.extend([socket, "-gdb".into(), "chardev:gdb".into()]);
    arguments
}

/// Waits until a domain runs, and says that it is ready if it is to.
fn wait_running(client: &mut Client, name: &str, and_ready: bool) -> Result<()> {
    let runs = until(BOOT, Duration::from_millis(20), || {
        let domain = client.domain(name)?.with_context(|| format!("there is no {name}"))?;
        ensure!(domain.deaths == 0, "{name} died before there was a fault");
        let is_ready = domain.ready || !and_ready;
        Ok((is_ready && names::domain_state(domain.state) == "running").then_some(()))
    })?;
    runs.with_context(|| format!("{name} does not serve"))
}

/// Looks until something is found, with a `pause` between two looks; `None`: it was not within
/// `limit`.
fn until<T>(
    limit: Duration,
    pause: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let begin = Instant::now();
    loop {
        let found = look()?;
        if found.is_some() || begin.elapsed() >= limit {
            return Ok(found);
        }
        std::thread::sleep(pause);
    }
}
