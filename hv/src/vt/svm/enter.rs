//! The world switch.

#![allow(unsafe_code)]

use core::{arch::naked_asm, mem::offset_of};

use super::Registers;

/// Runs a guest until its next exit.
///
/// VMRUN switches RAX, RSP, RIP, RFLAGS, the control registers and CS, SS, DS,
/// ES; VMSAVE and VMLOAD the rest of the segment state; this function the
/// general registers and the FPU. Interrupts are held off by GIF from before
/// the guest's state is loaded until the host's is back (APM vol. 2, 15.17);
/// the host's RFLAGS.IF is set across VMRUN so that a physical interrupt ends
/// the run (V_INTR_MASKING, 15.21.1).
///
/// Without `x87` only the SSE part of the FPU is loaded.
///
/// # Safety
/// `vmcb` and `host_vmcb` are physical addresses of VMCB frames, identity
/// mapped; `registers` belongs to the same vCPU; no other core uses them; SVM
/// is enabled on this core; interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn run(
    vmcb: u64,
    registers: *mut Registers,
    host_vmcb: u64,
    x87: bool,
) {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "push rdx", "push rsi", "push rdi",
        "clgi",
        // Not right before VMRUN, where its interrupt shadow would reach the guest.
        "sti",
        "mov rax, rdx",
        "vmsave rax",
        "test cl, cl",
        "jz 2f",
        "fxrstor64 [rsi + {fpu}]",
        "2:",
        "ldmxcsr [rsi + {fpu} + 24]",
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movaps xmm\\n, [rsi + {fpu} + 160 + 16 * \\n]",
        ".endr",
        "mov rax, rdi",
        "vmload rax",
        "mov rbx, [rsi]",
        "mov rcx, [rsi + 8]",
        "mov rdx, [rsi + 16]",
        "mov rdi, [rsi + 32]",
        "mov rbp, [rsi + 40]",
        ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
        "mov r\\n, [rsi + 8 * (\\n - 2)]",
        ".endr",
        "mov rsi, [rsi + 24]",
        "vmrun rax",
        "cli",
        "vmsave rax",
        // Guest RSI goes through the stack to free a pointer register.
        "push rsi",
        "mov rsi, [rsp + 16]",
        "mov [rsi], rbx",
        "mov [rsi + 8], rcx",
        "mov [rsi + 16], rdx",
        "mov [rsi + 32], rdi",
        "mov [rsi + 40], rbp",
        ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
        "mov [rsi + 8 * (\\n - 2)], r\\n",
        ".endr",
        "pop rax",
        "mov [rsi + 24], rax",
        "fxsave64 [rsi + {fpu}]",
        "mov rax, [rsp + 16]",
        "vmload rax",
        "stgi",
        // The guest's FPU modes must not govern the hypervisor's code, nor where
        // its last x87 instruction was reach the next guest: FXRSTOR may leave
        // that alone (APM vol. 2, 11.4.4).
        "fninit",
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "add rsp, 8",
        "pop rdi", "pop rsi", "pop rdx",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        fpu = const offset_of!(Registers, fpu),
    )
}
