//! Looks for another domain's registers: at its own first instruction, and
//! after it yielded the core to that domain.
//!
//! `role=victim` and the attacker share a core and do the same with different
//! values: load all general registers and the FPU, yield, and look at them.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use attacks::{argument, begin, breach, done, number, rest};
use ring_proto::{boot::BootInfo, hypercall::Nr};

domain_rt::entry!(main);

const NAME: &str = "registers";
/// What the victim's registers hold; the number of the register is added.
const SECRET: u64 = 0x5ec2_e700_5ec2_e700;
const HARMLESS: u64 = 0x0123_4567_89ab_cd00;

/// Registers before and after a yield. The assembly knows the offsets.
#[repr(C, align(64))]
struct State {
    /// RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15.
    before: [u64; 14],
    _pad: [u64; 2],
    after: [u64; 14],
    _pad2: [u64; 2],
    fpu: [u64; 64],
    fpu_before: [u64; 64],
    fpu_after: [u64; 64],
}

/// Words of an FXSAVE image that hold registers: x87 and MMX, then XMM.
const FPU_REGISTERS: core::ops::Range<usize> = 4..52;
/// RDX takes the value of a hypercall.
const RDX: usize = 2;

impl State {
    fn new(pattern: u64) -> Self {
        let mut this = Self {
            before: core::array::from_fn(|i| pattern + i as u64),
            _pad: [0; 2],
            after: [0; 14],
            _pad2: [0; 2],
            fpu: [0; 64],
            fpu_before: [0; 64],
            fpu_after: [0; 64],
        };
        // SAFETY: writes to the 512 bytes only.
        unsafe { asm!("fxsave64 [{0}]", in(reg) &raw mut this.fpu, options(nostack)) };
        this
    }

    /// Values as they come to a domain that loaded none.
    fn at_entry(&self, pattern: u64) -> usize {
        let is_secret = |word: &&u64| **word & !0xff == pattern;
        self.fpu.iter().filter(is_secret).count()
    }

    /// Loads the registers, yields, and stores them.
    fn yield_core(&mut self) {
        // SAFETY: changes no register but RAX beyond the block: it saves and
        // restores RBX and RBP, and the rest are named as clobbered; memory
        // only in `self` and below the stack pointer.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "push rax",
                "fxrstor64 [rax + 256]",
                "fxsave64 [rax + 768]",
                "mov rbx, [rax]",
                "mov rcx, [rax + 8]",
                "mov rdx, [rax + 16]",
                "mov rsi, [rax + 24]",
                "mov rdi, [rax + 32]",
                "mov rbp, [rax + 40]",
                "mov r8, [rax + 48]",
                "mov r9, [rax + 56]",
                "mov r10, [rax + 64]",
                "mov r11, [rax + 72]",
                "mov r12, [rax + 80]",
                "mov r13, [rax + 88]",
                "mov r14, [rax + 96]",
                "mov r15, [rax + 104]",
                "mov eax, {yield_now}",
                "vmmcall",
                "mov rax, [rsp]",
                "mov [rax + 128], rbx",
                "mov [rax + 136], rcx",
                "mov [rax + 144], rdx",
                "mov [rax + 152], rsi",
                "mov [rax + 160], rdi",
                "mov [rax + 168], rbp",
                "mov [rax + 176], r8",
                "mov [rax + 184], r9",
                "mov [rax + 192], r10",
                "mov [rax + 200], r11",
                "mov [rax + 208], r12",
                "mov [rax + 216], r13",
                "mov [rax + 224], r14",
                "mov [rax + 232], r15",
                "fxsave64 [rax + 1280]",
                "pop rax",
                "pop rbp",
                "pop rbx",
                yield_now = const Nr::Yield as u64,
                inout("rax") core::ptr::from_mut(self) => _,
                out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("C"),
            );
        }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(State, after) == 128);
    assert!(offset_of!(State, fpu) == 256);
    assert!(offset_of!(State, fpu_before) == 768);
    assert!(offset_of!(State, fpu_after) == 1280);
};

fn main(_: &'static BootInfo) -> ! {
    // Before much else has used the FPU.
    let victim = argument(domain_rt::boot(), "role") == Some("victim");
    let pattern = if victim { SECRET } else { HARMLESS };
    let other = if victim { HARMLESS } else { SECRET };
    let mut state = State::new(pattern);
    let boot = begin(NAME);
    let found = state.at_entry(other);
    if found != 0 {
        breach!(NAME, "{found} words of another domain at the entry: {:x?}", state.fpu);
    }
    for (word, number) in state.fpu[FPU_REGISTERS].iter_mut().zip(64..) {
        *word = pattern + number;
    }
    let rounds = number(boot, "rounds", 20_000);
    for round in 0..rounds {
        state.yield_core();
        let general = state.before.iter().zip(&state.after).enumerate();
        let mut changed = general.filter(|(i, (before, after))| *i != RDX && before != after);
        if let Some((i, (before, after))) = changed.next() {
            breach!(NAME, "round {round}: register {i} was {before:x} and is {after:x}");
            rest();
        }
        if state.after[RDX] != 0 {
            breach!(NAME, "round {round}: yield returned {:x}", state.after[RDX]);
            rest();
        }
        if state.fpu_before != state.fpu_after {
            breach!(NAME, "round {round}: the FPU held {:x?}", state.fpu_after);
            rest();
        }
        if round % 64 == 0 {
            // It feeds the watchdog.
            domain_rt::hypercall::wait(0);
        }
    }
    if victim {
        // The attacker is to find this domain's registers in use.
        loop {
            state.yield_core();
            domain_rt::hypercall::wait(0);
        }
    }
    done!(NAME, "rounds={rounds}");
}
