//! Failures on order, by `selftest=…` on the command line: the system tests
//! see with them that a hypervisor that fails says so.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "boot only: numbers of the firmware or our own, and who cannot go on says so"
)]

use core::arch::asm;

use crate::{apic, cpu, irq, power_off, time};

/// ns that the timer is armed for in [`timer`].
const TIMER_NS: u64 = 100_000;
/// ns after which a timer that did not come is broken.
const PATIENCE_NS: u64 = 2_000_000_000;

/// Checks that the timer comes on this core, and not before its time. Returns
/// by how many ns it was late.
pub fn timer() -> Result<u64, &'static str> {
    let core = cpu::core();
    let word = usize::from(irq::TIMER / 64);
    let has_timer = |v: [u64; 4]| v.get(word).is_some_and(|w| w >> (irq::TIMER % 64) & 1 != 0);
    let start = time::now_ns();
    let deadline = start + TIMER_NS;
    apic::arm_timer(deadline);
    loop {
        cpu::interrupt_window();
        let now = time::now_ns();
        if has_timer(irq::take_pending(core)) {
            return now.checked_sub(deadline).ok_or("comes too early");
        }
        if now - start > PATIENCE_NS {
            return Err("does not come");
        }
    }
}

/// Carries out what `selftest=` orders; returns for an unknown order.
pub fn run(order: &str) {
    match order {
        "panic" => panic!("ordered on the command line"),
        "exception" => {
            // SAFETY: reads an address outside the canonical halves, which
            // raises #GP and reads nothing.
            unsafe { asm!("mov {0}, [{0}]", inout(reg) 1u64 << 62 => _) }
        }
        "null" => {
            // SAFETY: page 0 is not mapped: raises #PF and reads nothing.
            unsafe { asm!("mov {0}, [{0}]", inout(reg) 0u64 => _) }
        }
        "text" => {
            // SAFETY: writes to the hypervisor's text, which is not writable:
            // raises #PF and changes nothing.
            unsafe { asm!("mov byte ptr [{}], 0", in(reg) run as *const () as u64) }
        }
        "execute" => {
            let code = [0xc3u8; 16];
            // SAFETY: calls into the stack, which is not executable: raises
            // #PF; would return at once if it were.
            unsafe { asm!("call {}", in(reg) code.as_ptr(), clobber_abi("C")) }
        }
        "overflow" => {
            // SAFETY: pushes until the guard below the stack raises #PF.
            unsafe { asm!("2: push rax", "jmp 2b", options(noreturn)) }
        }
        "double-fault" => {
            cpu::break_page_fault_gate();
            // SAFETY: as for "null"; the #PF cannot be delivered any more.
            unsafe { asm!("mov {0}, [{0}]", inout(reg) 0u64 => _) }
        }
        "machine-check" => {
            // SAFETY: enters the handler as the processor would.
            unsafe { asm!("int 18") }
        }
        "alloc" => {
            crate::memmap::seal();
            drop(core::hint::black_box(alloc::boxed::Box::new(0u64)));
        }
        "exit" => power_off(crate::panic::EXIT_SHUTDOWN),
        _ => log::warn!("unknown order: selftest={order}"),
    }
}
