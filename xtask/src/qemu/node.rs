//! A node that runs.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::log::Log;
use super::{NodeConfig, process};
use crate::disk::Disk;
use crate::http;

/// QEMU's exit code when the hypervisor shut down in order (it wrote 0x10).
const EXIT_ORDERLY: i32 = 33;
/// QEMU's exit code when the hypervisor panicked (it wrote 0x11).
const EXIT_PANIC: i32 = 35;
/// How long QEMU may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long one question to the node may take while it starts.
const HEALTH_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two questions.
const HEALTH_PAUSE: Duration = Duration::from_millis(50);
/// Lines of the log that go with an error.
const LAST_LINES: usize = 12;

const NOT_ASKED: u8 = 0;
const ASKED_TO_STOP: u8 = 1;
const KILLED: u8 = 2;

/// How a node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hypervisor shut the node down in order.
    Orderly,
    /// The hypervisor panicked.
    HypervisorPanic,
    /// We asked QEMU to stop, and it did.
    Stopped,
    /// We killed QEMU: a power cut.
    Killed,
    /// QEMU failed an assertion of its own, and said so.
    Aborted,
    /// Anything else, such as a triple fault, which looks like success to QEMU.
    Unknown(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orderly => f.write_str("the node shut down"),
            Self::HypervisorPanic => f.write_str("the hypervisor panicked"),
            Self::Stopped => f.write_str("the node was stopped"),
            Self::Killed => f.write_str("the node was killed"),
            Self::Aborted => f.write_str("QEMU failed an assertion of its own"),
            Self::Unknown(how) => write!(f, "the node ended for an unknown reason ({how})"),
        }
    }
}

/// A node that runs; it ends when this is dropped.
///
/// All methods take `&self`, so threads can share it.
pub struct RunningNode {
    child: Mutex<Child>,
    pid: u32,
    /// Names the process beyond doubt, and tells when it ended.
    pidfd: OwnedFd,
    asked: AtomicU8,
    address: SocketAddr,
    url: String,
    control: PathBuf,
    log: Arc<Log>,
    log_path: PathBuf,
    messages: Arc<Log>,
    messages_path: PathBuf,
    /// Holds the image's lock until QEMU ended.
    disk: Mutex<Option<Arc<Disk>>>,
}

impl fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, url, control, .. } = self;
        write!(f, "node at {url} (control {}, process {pid})", control.display())
    }
}

impl RunningNode {
    pub(super) fn start(
        command: Command,
        config: &NodeConfig,
        address: SocketAddr,
        disk: Arc<Disk>,
    ) -> Result<Self> {
        let mut child = process::spawn(command).context("can't start QEMU")?;
        let pid = child.id();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = raw
            .ok_or_else(|| anyhow!("QEMU has a strange process number {pid}"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        let outputs = child.stdout.take().zip(child.stderr.take());
        let follow = || {
            let (stdout, stderr) = outputs.ok_or_else(|| anyhow!("QEMU has no output"))?;
            let log = Log::follow(stdout, &config.serial_log, config.on_line.clone())?;
            anyhow::Ok((log, Log::follow(stderr, &config.qemu_log, None)?))
        };
        let ((log, messages), pidfd) = match (follow(), pidfd) {
            (Ok(logs), Ok(pidfd)) => (logs, pidfd),
            (Err(error), _) | (_, Err(error)) => {
                // Without these it can't be looked after.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        Ok(Self {
            child: Mutex::new(child),
            pid,
            pidfd,
            asked: AtomicU8::new(NOT_ASKED),
            address,
            url: format!("http://{address}"),
            control: config.control_socket.clone(),
            log,
            log_path: config.serial_log.clone(),
            messages,
            messages_path: config.qemu_log.clone(),
            disk: Mutex::new(Some(disk)),
        })
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where the node serves HTTP, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same as an address.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.address
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The node's log so far.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The file with the node's log.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// QEMU's own messages so far.
    #[must_use]
    pub fn qemu_log(&self) -> &Log {
        &self.messages
    }

    /// The file with QEMU's own messages.
    #[must_use]
    pub fn qemu_log_path(&self) -> &Path {
        &self.messages_path
    }

    /// Waits until the node answers `GET /health` with 200.
    ///
    /// # Errors
    ///
    /// It ended or did not answer in time; with the last lines of its log.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let answer = http::get_status(self.address, "/health", HEALTH_PATIENCE);
            let problem = match answer {
                Ok(200) => return Ok(()),
                Ok(status) => format!("GET /health gives {status}"),
                Err(error) => format!("GET /health gives no answer: {error}"),
            };
            if let Some(verdict) = self.wait(Some(HEALTH_PAUSE)) {
                bail!("{verdict} before it was ready{}", self.last_lines());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the node was not ready within {} s: {problem}{}",
                    timeout.as_secs(),
                    self.last_lines()
                );
            }
        }
    }

    fn last_lines(&self) -> String {
        let mut text = String::new();
        for (name, log) in [("its log", &self.log), ("QEMU", &self.messages)] {
            let last = log.last(LAST_LINES);
            if !last.is_empty() {
                text += &format!("\n  last lines of {name}:");
                last.iter().for_each(|line| text += &format!("\n    {line}"));
            }
        }
        text + &format!("\n  all of it is in {}", self.log_path.display())
    }

    /// Waits until the node ended, at most for `timeout`; `None` if it still runs.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Verdict> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            // A time too long for the system is as good as none.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut watched, left.as_ref()) {
                Ok(0) => return None,
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Some(Verdict::Unknown(format!("can't wait: {error}"))),
            }
        }
        let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What it said last is still on its way through the pipe.
        self.log.wait_ended(STOP_PATIENCE);
        self.messages.wait_ended(STOP_PATIENCE);
        Some(match status {
            Ok(status) => judge(status, self.asked.load(Ordering::SeqCst)),
            Err(error) => Verdict::Unknown(format!("can't wait: {error}")),
        })
    }

    /// Ends QEMU in order, by force if it does not listen.
    pub fn stop(&self) -> Verdict {
        self.ask(Signal::TERM, ASKED_TO_STOP);
        match self.wait(Some(STOP_PATIENCE)) {
            Some(verdict) => verdict,
            None => self.kill(),
        }
    }

    /// Cuts the power: SIGKILL.
    pub fn kill(&self) -> Verdict {
        self.ask(Signal::KILL, KILLED);
        self.wait(None).unwrap_or_else(|| Verdict::Unknown("it does not end".to_owned()))
    }

    /// Has QEMU itself stand still, or go on. A machine that is paused is not enough to have it
    /// take no time: its main loop may go on looking at clocks.
    pub fn freeze(&self, still: bool) {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        // It fails only if QEMU has ended already, which whoever needs it sees.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    fn ask(&self, signal: Signal, asked: u8) {
        self.asked.fetch_max(asked, Ordering::SeqCst);
        // It fails only if QEMU has ended already, which is what is wanted.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// QEMU's messages, if it ended before the machine ran.
    pub(super) fn failed_to_start(&self) -> Option<String> {
        if self.log.started() || !self.log.ended() {
            return None;
        }
        // Its output ends a moment before the process does.
        self.wait(Some(STOP_PATIENCE))?;
        let code = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait().ok()?.code();
        (code == Some(1)).then(|| self.messages.lines().join("\n"))
    }
}

impl Drop for RunningNode {
    fn drop(&mut self) {
        if self.wait(Some(Duration::ZERO)).is_none() {
            self.stop();
        }
    }
}

/// The signal by which a process ends that calls `abort`.
const ABORT: i32 = 6;

fn judge(status: ExitStatus, asked: u8) -> Verdict {
    match (status.code(), status.signal(), asked) {
        (Some(EXIT_ORDERLY), _, _) => Verdict::Orderly,
        (Some(EXIT_PANIC), _, _) => Verdict::HypervisorPanic,
        (Some(0), _, ASKED_TO_STOP | KILLED) => Verdict::Stopped,
        (_, Some(9), KILLED) => Verdict::Killed,
        (Some(0), _, _) => {
            Verdict::Unknown("QEMU ended with 0: a reset, or a triple fault".to_owned())
        }
        (Some(code), _, _) => Verdict::Unknown(format!("QEMU ended with {code}")),
        (None, Some(ABORT), _) => Verdict::Aborted,
        (None, Some(signal), _) => Verdict::Unknown(format!("QEMU ended by signal {signal}")),
        (None, None, _) => Verdict::Unknown("QEMU ended".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_success_only_if_asked_for() {
        let judge = |raw, asked| judge(ExitStatus::from_raw(raw), asked);
        assert_eq!(judge(33 << 8, NOT_ASKED), Verdict::Orderly);
        assert_eq!(judge(35 << 8, ASKED_TO_STOP), Verdict::HypervisorPanic);
        assert_eq!(judge(0, ASKED_TO_STOP), Verdict::Stopped);
        assert_eq!(judge(9, KILLED), Verdict::Killed);
        assert_eq!(judge(ABORT, NOT_ASKED), Verdict::Aborted);
        assert!(matches!(judge(0, NOT_ASKED), Verdict::Unknown(_)));
        assert!(matches!(judge(9, NOT_ASKED), Verdict::Unknown(_)));
        assert!(matches!(judge(1 << 8, NOT_ASKED), Verdict::Unknown(_)));
    }
}
