//! `log` over the hypervisor's console.

use core::fmt::Write;

use crate::hypercall;

/// Text of bounded length; what does not fit is cut off.
pub(crate) struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    /// Ends with a newline, over the last byte if it must.
    fn end(&mut self) {
        let last = self.len.min(N.saturating_sub(1));
        if let Some(byte) = self.bytes.get_mut(last) {
            *byte = b'\n';
            self.len = last.saturating_add(1);
        }
    }

    pub(crate) fn into_bytes(self) -> [u8; N] {
        self.bytes
    }
}

impl<const N: usize> Write for Line<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        // What does not fit is cut off between two characters.
        let end = text.floor_char_boundary(room.len());
        for (to, from) in room.iter_mut().zip(text.bytes().take(end)) {
            *to = from;
        }
        self.len = self.len.saturating_add(end);
        Ok(())
    }
}

struct Console;

impl log::Log for Console {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line::<480>::new();
        let prefix = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            log::Level::Info => "",
            log::Level::Debug => "debug: ",
            log::Level::Trace => "trace: ",
        };
        let written = write!(line, "{prefix}{}", record.args());
        // A Line never fails; a Display that does loses its own text.
        let _ = written;
        line.end();
        hypercall::console_write(line.as_bytes());
    }

    fn flush(&self) {}
}

pub(crate) fn init() {
    static CONSOLE: Console = Console;
    if log::set_logger(&CONSOLE).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
