//! Failures on order, by `selftest=…` on the command line: the system tests
//! see with them that a hypervisor that fails says so. A module of the
//! hypervisor with its feature `selftest`, which no other node's has.
#![allow(unsafe_code)]
#![expect(clippy::panic, reason = "boot only, and what was ordered")]

use core::arch::asm;

use x86_64::instructions::tables::{lidt, sidt};
use x86_64::structures::DescriptorTablePointer;

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
            // SAFETY: as for "null"; neither the #PF nor the #GP over its gate, which
            // the table has no longer, can be delivered any more.
            unsafe {
                lidt(&DescriptorTablePointer { limit: 9 * 16 - 1, ..sidt() });
                asm!("mov {0}, [{0}]", inout(reg) 0u64 => _)
            }
        }
        "machine-check" => {
            // SAFETY: enters the handler as the processor would.
            unsafe { asm!("int 18") }
        }
        _ => log::warn!("unknown order: selftest={order}"),
    }
}
