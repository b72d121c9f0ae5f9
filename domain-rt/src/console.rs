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
        &self.bytes[..self.len]
    }

    /// Ends with a newline, over the last byte if it must.
    fn end(&mut self) {
        self.len = self.len.min(N - 1) + 1;
        self.bytes[self.len - 1] = b'\n';
    }

    pub(crate) fn into_bytes(self) -> [u8; N] {
        self.bytes
    }
}

impl<const N: usize> Write for Line<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let mut end = text.len().min(N - self.len);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes[self.len..self.len + end].copy_from_slice(&text.as_bytes()[..end]);
        self.len += end;
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
