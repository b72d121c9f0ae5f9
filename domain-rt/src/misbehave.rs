#![allow(unsafe_code)]
//! The misbehaviour that an operator may order, to see a domain die of it.
//!
//! Each kind is the real thing, not a report of it: what detects it in earnest
//! detects it here.

use alloc::vec;
use core::hint::black_box;

use ring_proto::event::{Inject, PORT_IRQ, SLOW_NS};

use crate::{
    events, hypercall,
    panic::give_up,
    time::{NEVER, now_ns},
};

/// Bytes that [`exhaust_memory`] takes at a time.
const CHUNK: usize = 64 << 10;
/// Turns of [`busy`].
const BUSY: u32 = 1024;

/// Does what was ordered, which ends this generation but for `Slow`. To the
/// compiler some other kinds return. A function of its own, as a fault campaign
/// also has a domain come here from any instruction.
#[inline(never)]
pub(crate) fn carry_out(kind: Inject) {
    match kind {
        Inject::Panic => give_up(format_args!("ordered by the operator")),
        Inject::NullWrite => null_write(),
        Inject::Loop => endless_loop(),
        Inject::Exception => undefined_instruction(),
        Inject::StackOverflow => {
            black_box(overflow_stack(0));
        }
        Inject::TripleFault => triple_fault(),
        Inject::OutOfMemory => exhaust_memory(),
        Inject::Stall => stall(),
        Inject::Livelock => livelock(|| {}),
        // Its own device's, if it has one.
        Inject::Storm => livelock(|| {
            let _ = hypercall::irq_unmask(PORT_IRQ);
        }),
        Inject::Slow => slow(),
    }
}

fn null_write() {
    // SAFETY: not sound by any rule of Rust, and meant so: address 0 is never
    // mapped in a domain, so the store ends this generation with a nested fault
    // and nothing runs after it. In assembly, as the compiler may assume that
    // a null store does not happen.
    unsafe { core::arch::asm!("mov dword ptr [{0}], 0", in(reg) 0u64, options(nostack)) };
}

fn endless_loop() -> ! {
    loop {
        busy();
    }
}

/// The watchdog sees a domain that waits as it should.
fn stall() -> ! {
    loop {
        let _ = hypercall::wait(NEVER);
        // An event that stays would end the next wait at once.
        let _ = events::take_all();
    }
}

/// The same, and it burns CPU time.
fn livelock(turn: impl Fn()) -> ! {
    loop {
        turn();
        busy();
        let _ = hypercall::wait(0);
        let _ = events::take_all();
    }
}

/// Is slow now, and will be at the next look.
fn slow() {
    events::misbehave_again(Inject::Slow);
    let until = now_ns().saturating_add(SLOW_NS);
    while now_ns() < until {
        busy();
    }
}

/// Some 65,000 instructions, none of which a hypervisor could notice. Where instructions
/// are emulated most of these cost nothing, so that a machine full of domains that do this is
/// no slower than its clock says.
fn busy() {
    for _ in 0..BUSY {
        // SAFETY: touches nothing.
        unsafe { core::arch::asm!(".rept 64", "nop", ".endr", options(nomem, nostack)) };
    }
}

fn undefined_instruction() -> ! {
    // SAFETY: the exception leads to the domain's handler, which does not return.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

#[inline(never)]
fn overflow_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    // The compiler must not see that it has no end.
    let deeper = if black_box(true) { overflow_stack(depth.wrapping_add(1)) } else { 0 };
    // Used after the call, which therefore is no jump.
    deeper.wrapping_add(black_box(frame).iter().sum())
}

fn triple_fault() -> ! {
    let empty = [0u16; 5];
    // SAFETY: with an empty table no exception finds a handler, so the next
    // instruction shuts the CPU down and nothing runs after it.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

fn exhaust_memory() -> ! {
    loop {
        // Touched, as a driver's own leak would be; and seen, or the compiler
        // would leave it out.
        black_box(vec![0x5au8; CHUNK].leak());
    }
}
