//! The first instructions: from the PVH entry (32 bits, no paging) to Rust in
//! 64-bit mode, for the boot processor and for application processors.
//!
//! Both run on an early map of the first 4 GiB that is writable and
//! executable; [`crate::paging`] replaces it at once.
#![allow(unsafe_code)]
#![expect(clippy::arithmetic_side_effects, reason = "addresses of the image")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes of the stack on which the boot processor starts.
const BOOT_STACK: usize = 32 * 1024;

/// CR0: paging, write protection, native FPU errors, protected mode.
const CR0: u32 = 0x8001_0033;
/// CR4: PAE, FXSAVE and SSE exceptions.
const CR4: u32 = 0x0620;
/// EFER: long mode, no-execute.
const EFER: u32 = 0x0900;

/// Core number plus one that the application processor now being started is
/// to take; 0 = none, so a processor that comes too late parks itself.
#[unsafe(no_mangle)]
pub static AP_TICKET: AtomicU32 = AtomicU32::new(0);
/// Top of the stack for that processor.
#[unsafe(no_mangle)]
pub static AP_STACK: AtomicU64 = AtomicU64::new(0);
/// The final page tables.
#[unsafe(no_mangle)]
pub static AP_CR3: AtomicU64 = AtomicU64::new(0);

/// The 16-bit code that an application processor starts with; it is
/// position-independent and must be copied to a page below 1 MiB.
pub fn trampoline() -> &'static [u8] {
    unsafe extern "C" {
        static ap_trampoline: u8;
        static ap_trampoline_end: u8;
    }
    let start = &raw const ap_trampoline;
    let end = &raw const ap_trampoline_end;
    // SAFETY: both labels delimit read-only data of this image.
    unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
}

// PVH: "Xen" note 18 holds the address of the 32-bit entry, EBX the address of
// the start information.
global_asm!(
    ".section .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_start",

    ".section .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    "early_pml4: .skip 4096",
    "early_pdpt: .skip 4096",
    "early_pd: .skip 4 * 4096",
    ".skip {stack}",
    "boot_stack_top:",

    ".section .rodata.boot, \"a\"",
    ".balign 8",
    "boot_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "boot_gdtr: .word 23",
    "           .quad boot_gdt",

    ".macro enter_long_mode root",
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, \\root",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "mov eax, {efer}",
    "xor edx, edx",
    "wrmsr",
    "mov eax, {cr0}",
    "mov cr0, eax",
    ".endm",

    ".section .text.boot, \"ax\"",
    ".code32",
    ".global pvh_start",
    "pvh_start:",
    "cli",
    "cld",
    "mov esi, ebx",
    // 2048 large pages of 2 MiB: present, writable, large.
    "mov edi, offset early_pd",
    "mov eax, 0x83",
    "xor ecx, ecx",
    "2: mov [edi + ecx * 8], eax",
    "mov dword ptr [edi + ecx * 8 + 4], 0",
    "add eax, 0x200000",
    "inc ecx",
    "cmp ecx, 2048",
    "jb 2b",
    "mov eax, offset early_pd + 3",
    "mov edi, offset early_pdpt",
    "xor ecx, ecx",
    "3: mov [edi + ecx * 8], eax",
    "add eax, 4096",
    "inc ecx",
    "cmp ecx, 4",
    "jb 3b",
    "mov eax, offset early_pdpt + 3",
    "mov edi, offset early_pml4",
    "mov [edi], eax",
    "enter_long_mode edi",
    "mov edi, offset boot_gdtr",
    "lgdt [edi]",
    "mov esp, offset boot_stack_top",
    "push 8",
    "mov eax, offset bsp_start64",
    "push eax",
    "retf",

    ".code64",
    "bsp_start64:",
    "xor eax, eax",
    ".irp s, ds, es, ss, fs, gs",
    "mov \\s, eax",
    ".endr",
    "lea rsp, [rip + boot_stack_top]",
    "xor ebp, ebp",
    "mov edi, esi",
    "call hv_main",
    "ud2",

    // An application processor in 64-bit mode on the early map: take the
    // ticket, then the final page tables, then the stack that only they map.
    "ap_start64:",
    "xor eax, eax",
    ".irp s, ds, es, ss, fs, gs",
    "mov \\s, eax",
    ".endr",
    "xchg dword ptr [rip + AP_TICKET], eax",
    "test eax, eax",
    "jz 4f",
    "mov rcx, [rip + AP_CR3]",
    "mov cr3, rcx",
    "mov rsp, [rip + AP_STACK]",
    "xor ebp, ebp",
    "lea edi, [rax - 1]",
    "call ap_entry",
    "ud2",
    "4: cli",
    "hlt",
    "jmp 4b",

    // Real mode, CS = page of the copy, IP = 0.
    ".section .rodata.trampoline, \"a\"",
    ".code16",
    ".global ap_trampoline",
    ".global ap_trampoline_end",
    ".balign 4",
    "ap_trampoline:",
    "jmp ap_start16",
    // Data at offsets 4 and 12.
    ".balign 4",
    ".word 23",
    ".long boot_gdt",
    ".balign 4",
    ".long early_pml4",
    "ap_start16:",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    // Only 24 bits of the base count here; the image lies below 16 MiB.
    "lgdt [4]",
    "enter_long_mode [12]",
    // Far jump to 8:ap_start64 with a 32-bit offset.
    ".byte 0x66, 0xea",
    ".long ap_start64",
    ".word 8",
    "ap_trampoline_end:",
    ".code64",
    ".text",
    stack = const BOOT_STACK,
    cr0 = const CR0,
    cr4 = const CR4,
    efer = const EFER,
);
