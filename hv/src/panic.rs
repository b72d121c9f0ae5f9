//! The end of the hypervisor: what is known goes to the console, the other
//! cores stop, and QEMU ends with a code of its own.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    reason = "a core number, and an address that was found to be in the text"
)]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use x86_64::instructions::port::Port;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::ExceptionVector;

use crate::cpu::exception::Frame;
use crate::cpu::{self, stack};
use crate::{apic, memmap, serial};
use log::info;

/// Exit value: the hypervisor panicked (QEMU ends with 35).
const EXIT_PANIC: u8 = 0x11;

/// I/O port of QEMU's isa-debug-exit device.
const DEBUG_EXIT: u16 = 0xf4;
/// Frames of a backtrace.
const FRAMES: usize = 24;

/// Core that panics, plus one.
static PANICKING: AtomicUsize = AtomicUsize::new(0);

/// Whether a core panics and has the others stop.
pub fn stopping() -> bool {
    PANICKING.load(Ordering::Acquire) != 0
}

/// Ends the machine: QEMU exits with `code << 1 | 1`; without its exit device
/// the core halts.
pub fn power_off(code: u8) -> ! {
    serial::stop_queueing();
    // SAFETY: the port is QEMU's exit device, or nobody's.
    unsafe { Port::<u8>::new(DEBUG_EXIT).write(code) };
    cpu::halt()
}

/// The core that runs this, told by the stack: GS may be a guest's.
fn core() -> usize {
    let here = 0u8;
    stack::place((&raw const here) as u64).map_or(0, |place| place.core)
}

/// Makes this core the one that panics. Others stop here; a panic within the
/// panic ends at once.
fn begin() {
    let me = core() + 1;
    match PANICKING.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(other) if other == me => {
            info!("panic: again, while telling of the first");
            power_off(EXIT_PANIC);
        }
        Err(_) => cpu::halt(),
    }
    if apic::ready() {
        apic::send_nmi_to_others();
    }
    serial::force();
}

/// Whether two words at `address` lie on one mapped stack. (Between two of them
/// is a guard. The first moments of the boot have another, and no backtrace.)
fn on_stack(address: u64) -> bool {
    let mapped = |at| stack::place(at).is_some_and(|place| !place.guard);
    address.is_multiple_of(8) && mapped(address) && mapped(address.wrapping_add(15))
}

/// Prints return addresses found by frame pointers from `rbp` on.
fn backtrace(mut rbp: u64) {
    for i in 0..FRAMES {
        if !on_stack(rbp) {
            break;
        }
        // SAFETY: both words lie on a mapped stack, and all bit patterns are valid.
        let [next, ret] = unsafe { (rbp as *const [u64; 2]).read_volatile() };
        let text = memmap::text();
        if !(text.start..text.end).contains(&ret) {
            break;
        }
        // The call is before the return address.
        info!("  #{i} {:#x}", ret - 1);
        if next <= rbp {
            break;
        }
        rbp = next;
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    info!("panic: core {}: {}", core(), info.message());
    if let Some(at) = info.location() {
        info!("at {}:{}", at.file(), at.line());
    }
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack)) };
    info!("backtrace:");
    backtrace(rbp);
    power_off(EXIT_PANIC)
}

/// Ends in a panic over an exception.
pub(crate) fn exception(frame: &Frame) -> ! {
    begin();
    let Frame { vector, error, rip, .. } = *frame;
    info!("panic: core {}: exception {vector}, error {error:#x}, at {rip:#x}", core());
    if let Some(name) = u8::try_from(vector).ok().and_then(|v| ExceptionVector::try_from(v).ok()) {
        info!("exception {vector}: {name:?}");
    }
    // A double fault comes out of a page fault more often than not.
    if vector == 14 || vector == 8 {
        let address = Cr2::read_raw();
        match stack::place(address).filter(|place| place.guard) {
            Some(p) => info!("address {address:#x}: below core {}'s {:?} stack", p.core, p.stack),
            None => info!("address {address:#x}"),
        }
    }
    frame.say();
    info!("backtrace:");
    info!("  rip {rip:#x}");
    backtrace(frame.rbp);
    power_off(EXIT_PANIC)
}
