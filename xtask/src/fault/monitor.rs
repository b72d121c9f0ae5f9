//! QEMU's monitor (QMP), for what happens to devices.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// How long QEMU may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to it.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects to its socket.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("QEMU's monitor")?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut monitor = Self(BufReader::new(stream));
        let greeting = monitor.line()?;
        ensure!(greeting.get("QMP").is_some(), "QEMU's monitor says {greeting}");
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Has it carry out a command; returns its answer.
    ///
    /// # Errors
    ///
    /// It does not answer, or refuses.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}").context("QEMU's monitor")?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU's monitor refuses {command}: {error}");
            }
            // An event.
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        ensure!(self.0.read_line(&mut text).context("QEMU's monitor")? > 0, "QEMU's monitor left");
        serde_json::from_str(&text).with_context(|| format!("QEMU's monitor says {text:?}"))
    }
}
