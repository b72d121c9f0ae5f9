//! The slot of the device under test, out of which it is pulled.
//!
//! On a node of [`Kind::Ports`](super::rig::Kind::Ports) each device is behind a root port of its
//! own. What an operating system does to have the slot of one emptied QEMU's monitor does
//! instead, by the registers of ACPI's hot plug, and asks nobody: the device is gone at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::monitor::Monitor;
use crate::qemu;

/// Which bus the next register is of, and those of its slots that are emptied (QEMU's
/// `docs/specs/acpi_pci_hotplug.rst`).
const SELECT: u32 = 0xcd0;
const EJECT: u32 = 0xcc8;
/// The slot of a root port.
const SLOT: u32 = 1;
/// How long QEMU may take to have the device gone, or there again.
const GONE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_micros(200);

/// A slot.
#[derive(Debug)]
pub struct Slot {
    index: usize,
    /// What belongs there, as `-device` wants it.
    device: String,
    /// Since when it is empty, and for how long.
    empty: Option<(Instant, Duration)>,
}

impl Slot {
    /// That of device `index`.
    pub fn new(index: usize, device: String) -> Self {
        Self { index, device, empty: None }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.empty.is_some()
    }

    /// Pulls the device, for a while of the host's time; [`Self::look`] puts it back.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn pull(&mut self, monitor: &mut Monitor, time: Duration) -> Result<()> {
        let port = qemu::port(self.index);
        // The bus in a port is named like the port.
        let path = format!("/machine/peripheral/{port}/{port}");
        let arguments = json!({ "path": path, "property": "acpi-pcihp-bsel" });
        let bus = monitor.ask("qom-get", &arguments)?;
        let bus = bus.as_u64().with_context(|| format!("bus {bus} of {port}"))?;
        command(monitor, &format!("o /w {SELECT:#x} {bus:#x}"))?;
        command(monitor, &format!("o /w {EJECT:#x} {SLOT:#x}"))?;
        let begin = Instant::now();
        while self.is_there(monitor)? {
            ensure!(begin.elapsed() < GONE, "QEMU does not have {} gone", self.device);
            std::thread::sleep(PAUSE);
        }
        self.empty = Some((Instant::now(), time));
        Ok(())
    }

    /// Puts the device back if it is time, or at once.
    ///
    /// # Errors
    ///
    /// QEMU does not obey.
    pub fn look(&mut self, monitor: &mut Monitor, at_once: bool) -> Result<()> {
        let Some((since, time)) = self.empty else { return Ok(()) };
        if !at_once && since.elapsed() < time {
            return Ok(());
        }
        // QEMU lets go of a drive some time after its device is gone.
        let line = format!("device_add {}", self.device);
        let begin = Instant::now();
        while let Err(why) = command(monitor, &line) {
            if begin.elapsed() > GONE {
                return Err(why);
            }
            std::thread::sleep(PAUSE);
        }
        self.empty = None;
        Ok(())
    }

    fn is_there(&self, monitor: &mut Monitor) -> Result<bool> {
        let all = monitor.ask("qom-list", &json!({ "path": "/machine/peripheral" }))?;
        let name = qemu::plugged(self.index);
        let is_it = |child: &Value| child.get("name").and_then(Value::as_str) == Some(&*name);
        Ok(all.as_array().context("QEMU's devices")?.iter().any(is_it))
    }
}

/// Has the monitor for people carry out a command, which has nothing to say if all is well.
fn command(monitor: &mut Monitor, line: &str) -> Result<()> {
    let said = monitor.ask("human-monitor-command", &json!({ "command-line": line }))?;
    let said = said.as_str().unwrap_or_default().trim();
    ensure!(said.is_empty(), "QEMU's monitor says to {line}: {said}");
    Ok(())
}
