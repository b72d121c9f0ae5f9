//! Entry stubs of all vectors. Exceptions end in a panic with registers;
//! interrupts note their number, acknowledge it and return, all in assembly
//! and without touching the FPU.
#![allow(unsafe_code)]
#![expect(clippy::arithmetic_side_effects, reason = "the address of a stub, 16 bytes each")]

use core::arch::global_asm;

use super::{OFFSET_EOI, OFFSET_PENDING};
use crate::irq;
use log::info;

/// Bytes from one stub to the next.
const STUB: usize = 16;

/// Registers at an exception.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Frame {
    pub rbp: u64,
    /// R15 to R8, RDI, RSI, RDX, RCX, RBX, RAX.
    general: [u64; 14],
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

// Vectors 8, 10–14, 17, 21, 29 and 30 push an error code; the other stubs push
// a zero in its place.
global_asm!(
    ".pushsection .text.vectors, \"ax\"",
    ".balign 16",
    "vector_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector < 32) && ((0x60227d00 >> vector) & 1)",
    ".else",
    "push $0",
    ".endif",
    "push $vector",
    ".if vector < 32",
    "jmp exception_common",
    ".else",
    "jmp interrupt_common",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    ".popsection",
    options(att_syntax)
);

global_asm!(
    ".pushsection .text.vectors, \"ax\"",
    "exception_common:",
    ".irp r, rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rbp",
    "push \\r",
    ".endr",
    "cld",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call exception_entry",
    "ud2",
    "interrupt_common:",
    "push rax",
    "push rcx",
    "mov rax, [rsp + 16]",
    "lock bts qword ptr gs:[{pending}], rax",
    "cmp eax, {unacknowledged}",
    "jae 2f",
    "mov rcx, gs:[{eoi}]",
    "mov dword ptr [rcx], 0",
    "2: pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    pending = const OFFSET_PENDING,
    eoi = const OFFSET_EOI,
    unacknowledged = const irq::DEVICE_LAST as u32 + 1,
);

/// Address of the stub of `vector`.
pub(super) fn stub(vector: usize) -> u64 {
    unsafe extern "C" {
        static vector_stubs: u8;
    }
    (&raw const vector_stubs) as u64 + (vector * STUB) as u64
}

#[unsafe(no_mangle)]
extern "C" fn exception_entry(frame: &Frame) -> ! {
    if frame.vector == 2 && crate::panic::stopping() {
        super::halt();
    }
    crate::panic::exception(frame)
}

impl Frame {
    /// Says what is in the registers.
    pub fn say(&self) {
        let Self { rsp, rip, rbp, rflags, .. } = *self;
        let [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rbx, rax] = self.general;
        info!("rip {rip:016x} rsp {rsp:016x} rbp {rbp:016x} rfl {rflags:016x}");
        info!("rax {rax:016x} rbx {rbx:016x} rcx {rcx:016x} rdx {rdx:016x}");
        info!("rsi {rsi:016x} rdi {rdi:016x}  r8 {r8:016x}  r9 {r9:016x}");
        info!("r10 {r10:016x} r11 {r11:016x} r12 {r12:016x} r13 {r13:016x}");
        info!("r14 {r14:016x} r15 {r15:016x}");
    }
}
