//! The console: COM1 by polling, the `log` backend, tagged lines for domains.
//!
//! Every line has the form `[name] text`; the hypervisor's own name is `hv`.
//!
//! While the node boots, and once it panics, writers wait for the line. In
//! between nobody does: lines go into a queue, which the cores empty as fast as
//! the UART takes it ([`drain`]), outside of the node's lock. Lines that find
//! no room are dropped and counted.
#![allow(unsafe_code)]

use alloc::collections::VecDeque;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;
const LSR: u16 = COM1 + 5;
const LSR_THR_EMPTY: u8 = 0x20;
/// Bytes that the transmit FIFO takes once it is empty.
const FIFO: u32 = 16;
/// Polls after which a UART that does not drain counts as absent. At 115200
/// baud sixteen bytes take 1.4 ms.
const POLLS: u32 = 100_000;

/// Longest line of the hypervisor's own log; the rest is cut off.
pub const LINE: usize = 240;

/// Bytes of lines that wait.
const QUEUE: usize = 16 << 10;

struct Uart {
    present: bool,
    room: u32,
    /// Lines go here instead of waiting for the line. It never grows.
    queue: Option<VecDeque<u8>>,
    dropped: usize,
}

impl Uart {
    fn init(&mut self) {
        // SAFETY: COM1 belongs to the hypervisor, which has no other code
        // that touches its ports.
        unsafe {
            Port::<u8>::new(COM1 + 1).write(0); // no interrupts
            Port::<u8>::new(COM1 + 3).write(0x80); // divisor access
            Port::<u8>::new(COM1).write(1); // 115200 baud
            Port::<u8>::new(COM1 + 1).write(0);
            Port::<u8>::new(COM1 + 3).write(3); // 8n1
            Port::<u8>::new(COM1 + 2).write(7); // FIFO on, cleared
            Port::<u8>::new(COM1 + 4).write(3); // DTR, RTS
            // A port without a device reads all ones.
            self.present = Port::<u8>::new(LSR).read() != 0xff;
        }
    }

    /// Whether the UART takes a byte now.
    fn has_room(&mut self) -> bool {
        // SAFETY: as in `init`; reading the status has no effect that matters.
        if self.room == 0 && unsafe { Port::<u8>::new(LSR).read() } & LSR_THR_EMPTY != 0 {
            self.room = FIFO;
        }
        self.room > 0
    }

    fn byte(&mut self, byte: u8) {
        if let Some(queue) = &mut self.queue {
            // `line` looked whether there is room.
            if queue.len() < QUEUE {
                queue.push_back(byte);
            }
            PENDING.store(true, Ordering::Relaxed);
            return;
        }
        for _ in 0..POLLS {
            if !self.present {
                return;
            }
            if self.has_room() {
                return self.put(byte);
            }
        }
        self.present = false;
    }

    fn put(&mut self, byte: u8) {
        self.room = self.room.saturating_sub(1);
        // SAFETY: as in `init`.
        unsafe { Port::<u8>::new(COM1).write(byte) };
    }

    /// Waits until the queue is empty, and has writers wait from now on.
    fn stop_queueing(&mut self) {
        for byte in self.queue.take().into_iter().flatten() {
            self.byte(byte);
        }
    }

    /// Text from anywhere: what could steer a terminal is made harmless.
    fn text(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\t' | b' '..=b'~' | 0x80.. => self.byte(byte),
                _ => self.byte(b'.'),
            }
        }
    }

    fn line(&mut self, tag: &str, text: &[u8]) {
        let len = tag.len().saturating_add(text.len()).saturating_add(5);
        if self.queue.as_ref().is_some_and(|q| QUEUE.saturating_sub(q.len()) < len) {
            self.dropped = self.dropped.saturating_add(len);
            return;
        }
        self.byte(b'[');
        self.text(tag.as_bytes());
        self.byte(b']');
        self.byte(b' ');
        self.text(text);
        self.text_end();
    }

    fn text_end(&mut self) {
        self.byte(b'\r');
        self.byte(b'\n');
    }
}

static UART: Mutex<Uart> = Mutex::new(Uart { present: false, room: 0, queue: None, dropped: 0 });
/// There is something in the queue.
static PENDING: AtomicBool = AtomicBool::new(false);
/// Set by a panic: from then on nobody waits for the lock.
static FORCED: AtomicBool = AtomicBool::new(false);

fn with_uart(f: impl FnOnce(&mut Uart)) {
    if FORCED.load(Ordering::Relaxed) {
        match UART.try_lock() {
            Some(mut uart) => f(&mut uart),
            // The holder is stopped for good: write past it.
            None => f(&mut Uart { present: true, room: 0, queue: None, dropped: 0 }),
        }
    } else {
        f(&mut UART.lock());
    }
}

/// Sets the UART up and makes it the backend of `log`.
pub fn init() {
    with_uart(Uart::init);
    // Fails only when called twice.
    if log::set_logger(&Backend).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// From now on nobody waits for the line, which [`drain`] serves. Allocates.
pub fn start_queueing() {
    with_uart(|uart| uart.queue = Some(VecDeque::with_capacity(QUEUE)));
}

/// Writes what waits, and has writers wait for the line again.
pub fn stop_queueing() {
    with_uart(Uart::stop_queueing);
}

/// Writes as much of the queue as the UART takes at once. Returns whether
/// something is left.
pub fn drain() -> bool {
    if !PENDING.load(Ordering::Relaxed) {
        return false;
    }
    // Who has the lock writes or drains.
    let Some(mut uart) = UART.try_lock() else { return true };
    for _ in 0..FIFO {
        if uart.present && !uart.has_room() {
            return true;
        }
        let Some(byte) = uart.queue.as_mut().and_then(VecDeque::pop_front) else {
            let dropped = core::mem::take(&mut uart.dropped);
            PENDING.store(false, Ordering::Relaxed);
            drop(uart);
            if dropped > 0 {
                say(format_args!("the console is too slow: {dropped} bytes were dropped"));
            }
            return dropped > 0;
        };
        if uart.present {
            uart.put(byte);
        }
    }
    true
}

/// From now on nobody waits for the console's lock: for a panic, whose other
/// cores are stopped, perhaps while one of them writes.
pub fn force() {
    FORCED.store(true, Ordering::Relaxed);
    if UART.is_locked() {
        // Somebody was stopped within a line: end it.
        with_uart(|uart| uart.text_end());
    }
    stop_queueing();
}

/// Writes `text` in lines that carry `tag`; each `\n` ends a line, and so does
/// the end of `text`. Control characters come out as dots. Callers that have
/// text in pieces collect whole lines first.
pub fn tagged(tag: &str, text: &[u8]) {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    with_uart(|uart| {
        for line in text.split(|&b| b == b'\n') {
            uart.line(tag, line.strip_suffix(b"\r").unwrap_or(line));
        }
    });
}

/// A line of text with a bound; what does not fit is cut off.
struct Line(heapless::String<LINE>);

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if self.0.push(c).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Writes one line of the hypervisor's own log.
fn say(args: fmt::Arguments<'_>) {
    let mut line = Line(heapless::String::new());
    // `Line` itself never fails; a `Display` that does has written what it could.
    let _ = line.write_fmt(args);
    tagged("hv", line.0.as_bytes());
}

struct Backend;

impl Log for Backend {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => say(format_args!("error: {}", record.args())),
            Level::Warn => say(format_args!("warning: {}", record.args())),
            _ => say(*record.args()),
        }
    }

    fn flush(&self) {}
}
