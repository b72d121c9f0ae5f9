//! The wire between the driver's NIC and its peer's. Frames go straight through
//! QEMU's hub until a trial has them come by here: QEMU's `filter-redirector`
//! objects send them to a thread for each direction, and take them back.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fault::wire::{Armed, Towards, Wire};
use serde_json::{Value, json};

use super::monitor::Monitor;

/// The NIC's end of the wire.
const NETDEV: &str = "under-test";
/// Longest frame that QEMU sends (`NET_BUFSIZE`, 4096 + 65536).
const LONGEST: usize = 4096 + 65536;

/// One direction.
#[derive(Debug)]
struct Way {
    wire: Arc<Mutex<Wire>>,
    thread: Option<JoinHandle<()>>,
    /// Where QEMU sends frames, and where it takes them back.
    sockets: [PathBuf; 2],
}

/// The wire, and QEMU's monitor that redirects it.
#[derive(Debug)]
pub struct Tap {
    ways: [Way; 2],
    monitor_path: PathBuf,
    monitor: Option<Monitor>,
    /// Since when the link is down, and for how long.
    down: Option<(Instant, Duration)>,
    /// The direction that is redirected.
    redirected: Option<Towards>,
}

fn index(towards: Towards) -> usize {
    match towards {
        Towards::Driver => 0,
        Towards::Peer => 1,
    }
}

/// QEMU's names of the directions: as the netdev sees them, which sends to the NIC.
const QUEUES: [&str; 2] = ["tx", "rx"];

impl Tap {
    /// Listens for QEMU; `path` makes the path of a socket from its name.
    ///
    /// # Errors
    ///
    /// Nobody can listen there.
    pub fn start(path: impl Fn(&str) -> PathBuf) -> Result<Self> {
        let way = |queue: &str| {
            let sockets = ["out", "in"].map(|end| path(&format!("{queue}-{end}")));
            let listen = |socket: &PathBuf| {
                let _ = std::fs::remove_file(socket);
                UnixListener::bind(socket)
                    .with_context(|| format!("the socket {}", socket.display()))
            };
            let listeners = [listen(&sockets[0])?, listen(&sockets[1])?];
            let wire = Arc::new(Mutex::new(Wire::default()));
            let shared = wire.clone();
            let work = move || {
                if let Err(why) = carry(&listeners, &shared) {
                    eprintln!("the wire under test: {why:#}");
                }
            };
            let thread = std::thread::Builder::new().name("wire".to_owned()).spawn(work)?;
            anyhow::Ok(Way { wire, thread: Some(thread), sockets })
        };
        let ways = [way(QUEUES[0])?, way(QUEUES[1])?];
        let monitor_path = path("monitor");
        Ok(Self { ways, monitor_path, monitor: None, down: None, redirected: None })
    }

    /// What QEMU is to be started with, after the network's own arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        for (queue, way) in QUEUES.iter().zip(&self.ways) {
            for (end, socket) in ["out", "in"].iter().zip(&way.sockets) {
                let chardev = format!("socket,id={queue}-{end},path=");
                all.extend(["-chardev".into(), crate::qemu::with_path(&chardev, socket)]);
            }
            // What comes back goes on behind the filter that took it out: frames to the NIC
            // meet the filters in this order, those from it in the other.
            let out = format!("id=take-{queue},outdev={queue}-out,status=off");
            let back = format!("id=give-{queue},indev={queue}-in");
            let filters = if *queue == "tx" { [out, back] } else { [back, out] };
            for filter in filters {
                let object = format!("filter-redirector,netdev={NETDEV},queue={queue},{filter}");
                all.extend(["-object".into(), object.into()]);
            }
        }
        let socket = crate::qemu::with_path("unix:", &self.monitor_path);
        let mut monitor = socket;
        monitor.push(",server=on,wait=off");
        all.extend(["-qmp".into(), monitor]);
        all
    }

    /// Connects to QEMU's monitor.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn attach(&mut self) -> Result<()> {
        self.monitor = Some(Monitor::connect(&self.monitor_path)?);
        Ok(())
    }

    /// Has mischief wait for frames towards one end.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn arm(&mut self, towards: Towards, armed: Armed) -> Result<()> {
        self.wire(towards).lock().unwrap_or_else(PoisonError::into_inner).arm(Some(armed));
        self.redirected = Some(towards);
        self.redirect(towards, true)
    }

    /// Takes the link away for a while of the host's time; [`Self::look`] has it back.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn unplug(&mut self, time: Duration) -> Result<()> {
        self.down = Some((Instant::now(), time));
        self.link(false)
    }

    /// Plugs the link in again if it is time, or at once.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn look(&mut self, at_once: bool) -> Result<()> {
        if let Some((since, time)) = self.down
            && (at_once || since.elapsed() >= time)
        {
            self.down = None;
            self.link(true)?;
        }
        Ok(())
    }

    /// Whether a frame was struck.
    pub fn has_struck(&self) -> bool {
        self.redirected.is_some_and(|towards| {
            self.wire(towards).lock().unwrap_or_else(PoisonError::into_inner).has_struck()
        })
    }

    /// All as it was. Frames that are under way still arrive.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn disarm(&mut self) -> Result<()> {
        self.look(true)?;
        let Some(towards) = self.redirected.take() else { return Ok(()) };
        self.redirect(towards, false)?;
        self.wire(towards).lock().unwrap_or_else(PoisonError::into_inner).arm(None);
        Ok(())
    }

    fn wire(&self, towards: Towards) -> &Mutex<Wire> {
        &self.ways[index(towards)].wire
    }

    fn redirect(&mut self, towards: Towards, on: bool) -> Result<()> {
        let path = format!("/objects/take-{}", QUEUES[index(towards)]);
        let value = if on { "on" } else { "off" };
        self.ask("qom-set", &json!({ "path": path, "property": "status", "value": value }))
    }

    fn link(&mut self, up: bool) -> Result<()> {
        self.ask("set_link", &json!({ "name": NETDEV, "up": up }))
    }

    /// QEMU's monitor.
    ///
    /// # Errors
    ///
    /// It is not attached.
    pub fn monitor(&mut self) -> Result<&mut Monitor> {
        self.monitor.as_mut().context("QEMU's monitor is not attached")
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<()> {
        self.monitor()?.ask(command, arguments).map(drop)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        for way in &mut self.ways {
            // If QEMU never came, they still wait for it.
            for socket in &way.sockets {
                drop(UnixStream::connect(socket));
                let _ = std::fs::remove_file(socket);
            }
            if let Some(thread) = way.thread.take() {
                let _ = thread.join();
            }
        }
        let _ = std::fs::remove_file(&self.monitor_path);
    }
}

/// Carries frames from one socket to the other, each behind its length in big-endian.
fn carry([out, back]: &[UnixListener; 2], wire: &Mutex<Wire>) -> Result<()> {
    let (mut out, mut back) = (out.accept()?.0, back.accept()?.0);
    loop {
        let mut len = [0; 4];
        if !is_there(out.read_exact(&mut len))? {
            return Ok(());
        }
        let len = usize::try_from(u32::from_be_bytes(len))?;
        ensure!(len <= LONGEST, "a frame of {len} bytes");
        let mut frame = vec![0; len];
        if !is_there(out.read_exact(&mut frame))? {
            return Ok(());
        }
        let frames = wire.lock().unwrap_or_else(PoisonError::into_inner).pass(frame);
        for frame in frames {
            let len = u32::try_from(frame.len())?.to_be_bytes();
            if !is_there(back.write_all(&[&len[..], &frame].concat()))? {
                return Ok(());
            }
        }
    }
}

/// Whether the other side is still there.
fn is_there(done: std::io::Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                Ok(false)
            }
            _ => Err(error).context("a socket of the wire"),
        },
    }
}

#[cfg(test)]
mod tests {
    use fault::wire::Mischief;

    use super::*;

    #[test]
    fn frames_are_carried_and_struck() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let tap = Tap::start(path).unwrap();
        let connect = |name: &str| UnixStream::connect(path(name)).unwrap();
        let (mut out, mut back) = (connect("rx-out"), connect("rx-in"));
        back.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let armed = Armed { after: 1, count: 1, mischief: Mischief::Duplicate };
        tap.wire(Towards::Peer).lock().unwrap().arm(Some(armed));
        for byte in 1..=3 {
            out.write_all(&[0, 0, 0, 1, byte]).unwrap();
        }
        let mut came = [0; 4 * 5];
        back.read_exact(&mut came).unwrap();
        let bytes: Vec<u8> = came.chunks(5).map(|frame| frame[4]).collect();
        assert_eq!(bytes, [1, 2, 2, 3]);
        drop((out, back));
        drop(tap);
    }

    #[test]
    fn it_ends_though_nobody_came() {
        let dir = tempfile::tempdir().unwrap();
        drop(Tap::start(|name: &str| dir.path().join(name)).unwrap());
    }
}
