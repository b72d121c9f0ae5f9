#![allow(unsafe_code)]
//! From a panic to a crash record.

use core::{
    fmt::Write,
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};

use ring_proto::crash::{BACKTRACE, CrashReport, Reason};
use zerocopy::FromZeros;

use crate::{console::Line, heap, hypercall, time::now_ns};

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __stack_bottom: u8;
    static __stack_top: u8;
}

/// Ends this generation on purpose: what a driver does when its device cannot
/// be used any more. The next generation resets the device. Not for anything
/// that a peer can bring about.
#[track_caller]
#[expect(clippy::panic, reason = "the way in which a domain ends itself")]
pub fn give_up(why: core::fmt::Arguments<'_>) -> ! {
    panic!("{why}")
}

/// Why this generation ends: it cannot work. Set right before the panic.
static STALLED: AtomicBool = AtomicBool::new(false);

/// Ends this generation because it cannot work any more: its device does not
/// answer.
#[track_caller]
pub fn stalled(why: core::fmt::Arguments<'_>) -> ! {
    STALLED.store(true, Ordering::Relaxed);
    give_up(why)
}

/// Ends this generation with a record of the panic.
pub fn report(info: &PanicInfo<'_>) -> ! {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    let mut report = CrashReport::new_zeroed();
    let reason = if STALLED.load(Ordering::Relaxed) {
        Reason::Stalled
    } else if heap::is_exhausted() {
        Reason::Memory
    } else {
        Reason::Panic
    };
    report.reason = reason as u32;
    report.time_ns = now_ns();
    let (rbp, rsp): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        core::arch::asm!("mov {}, rbp", "mov {}, rsp", out(reg) rbp, out(reg) rsp, options(nomem, nostack, preserves_flags));
    }
    report.rsp = rsp;
    report.backtrace = backtrace(rbp);
    report.rip = report.backtrace.first().copied().unwrap_or(0);
    // A Display that panics must not lead here for ever: the second time the
    // record goes out without a message.
    if !PANICKING.swap(true, Ordering::Relaxed) {
        let mut message = Line::<192>::new();
        let _ = match info.location() {
            Some(place) => {
                write!(message, "{} at {}:{}", info.message(), place.file(), place.line())
            }
            None => write!(message, "{}", info.message()),
        };
        report.message = message.into_bytes();
    }
    hypercall::crash(&report)
}

/// Return addresses along the chain of frame pointers that begins at `rbp`.
///
/// The chain may be damaged, so nothing is read that does not lie in this
/// domain's stack, and frames must ascend.
pub(crate) fn backtrace(mut rbp: u64) -> [u64; BACKTRACE] {
    let text = (&raw const __text_start as u64)..(&raw const __text_end as u64);
    let stack = (&raw const __stack_bottom as u64)..(&raw const __stack_top as u64);
    let mut frames = [0; BACKTRACE];
    for frame in &mut frames {
        let end = rbp.saturating_add(16);
        if !stack.contains(&rbp) || !rbp.is_multiple_of(8) || end > stack.end {
            break;
        }
        // SAFETY: both words lie in the stack, which is mapped.
        let (next, address) = unsafe {
            let words = rbp as *const u64;
            (words.read_volatile(), words.add(1).read_volatile())
        };
        if !text.contains(&address) {
            break;
        }
        *frame = address;
        if next <= rbp {
            break;
        }
        rbp = next;
    }
    frames
}
