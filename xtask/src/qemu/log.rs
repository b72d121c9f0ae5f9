//! What a running node says: lines in a file, in memory, and to a listener.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::OnLine;

/// Most lines that are kept in memory; the file has them all.
const LINES_MAX: usize = 100_000;

/// The lines of one output.
#[derive(Default)]
pub struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    started: bool,
    ended: bool,
}

impl Log {
    /// Copies `input` into the file and into memory until it ends.
    pub(super) fn follow(
        mut input: impl Read + Send + 'static,
        file: &Path,
        on_line: Option<OnLine>,
    ) -> Result<Arc<Self>> {
        let log = Arc::new(Self::default());
        let mut file = File::create(file)
            .with_context(|| format!("can't write the log {}", file.display()))?;
        let shared = log.clone();
        let follow = move || {
            let mut chunk = [0; 4096];
            let mut rest = Vec::new();
            while let Ok(count @ 1..) = input.read(&mut chunk) {
                let bytes = chunk.get(..count).unwrap_or_default();
                // A full disk must not stop the node, which would wait for its log to be read.
                let _ = file.write_all(bytes);
                rest.extend(bytes);
                shared.take_lines(&mut rest, on_line.as_ref());
            }
            if !rest.is_empty() {
                rest.push(b'\n');
                shared.take_lines(&mut rest, on_line.as_ref());
            }
            shared.lock().ended = true;
            shared.changed.notify_all();
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(follow)?;
        Ok(log)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves whole lines out of `rest`.
    fn take_lines(&self, rest: &mut Vec<u8>, on_line: Option<&OnLine>) {
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text: Vec<u8> = rest.drain(..whole).collect();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().map(|line| line.trim_end_matches('\r').to_owned());
        let lines: Vec<String> = lines.collect();
        if let Some(on_line) = on_line {
            lines.iter().for_each(|line| on_line(line));
        }
        let mut state = self.lock();
        state.started = true;
        let room = LINES_MAX.saturating_sub(state.lines.len());
        state.lines.extend(lines.into_iter().take(room));
        self.changed.notify_all();
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// The last `count` lines.
    #[must_use]
    pub fn last(&self, count: usize) -> Vec<String> {
        let state = self.lock();
        let from = state.lines.len().saturating_sub(count);
        state.lines.get(from..).unwrap_or_default().to_vec()
    }

    /// Waits for a line that `wanted` likes, from line number `from` on; `None` if none came in
    /// time or the output ended. Gives its number and text.
    pub fn wait_for_line(
        &self,
        from: usize,
        wanted: impl Fn(&str) -> bool,
        timeout: Duration,
    ) -> Option<(usize, String)> {
        let deadline = Instant::now() + timeout;
        let mut next = from;
        let mut state = self.lock();
        loop {
            let fresh = state.lines.get(next..).unwrap_or_default();
            if let Some(found) = fresh.iter().position(|line| wanted(line)) {
                return Some((next + found, fresh.get(found)?.clone()));
            }
            next = next.max(state.lines.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until there was output or there will be none.
    pub(super) fn wait_started(&self, timeout: Duration) {
        self.wait_until(|state| state.started || state.ended, timeout);
    }

    /// Waits until the output ended.
    pub(super) fn wait_ended(&self, timeout: Duration) {
        self.wait_until(|state| state.ended, timeout);
    }

    fn wait_until(&self, done: impl Fn(&State) -> bool, timeout: Duration) {
        // Poisoned or timed out: the caller looks for itself either way.
        let _ = self.changed.wait_timeout_while(self.lock(), timeout, |state| !done(state));
    }

    /// There was output.
    pub(super) fn started(&self) -> bool {
        self.lock().started
    }

    /// There will be no more output.
    pub(super) fn ended(&self) -> bool {
        self.lock().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_and_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text: &[u8] = b"[hv] one\r\n[kv] t\xffwo\nthree";
        let log = Log::follow(text, &path, None).unwrap();
        log.wait_ended(Duration::from_secs(10));
        assert_eq!(log.lines(), ["[hv] one", "[kv] t\u{fffd}wo", "three"]);
        assert_eq!(log.last(1), ["three"]);
        assert_eq!(std::fs::read(&path).unwrap(), text);
        let wait = |from, what: &str| {
            log.wait_for_line(from, |line| line.contains(what), Duration::from_secs(10))
        };
        assert_eq!(wait(0, "three"), Some((2, "three".to_owned())));
        assert_eq!(wait(1, "one"), None);
    }
}
