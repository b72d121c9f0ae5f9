#![allow(unsafe_code)]
//! CPU tables, and from an exception to a crash record.
//!
//! Domains take no interrupts, so each vector that can occur is this domain's
//! own mistake. All of them switch to a stack of their own: compiled code uses
//! the red zone, and the stack pointer may be the very thing that is wrong.

use core::{arch::global_asm, fmt::Write};

use ring_proto::crash::{CrashReport, Reason};
use x86_64::{
    VirtAddr,
    instructions::tables::load_tss,
    registers::{
        control::Cr2,
        segmentation::{CS, DS, ES, SS, Segment},
    },
    structures::{
        gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector},
        idt::{Entry, InterruptDescriptorTable},
        tss::TaskStateSegment,
    },
};
use zerocopy::FromZeros;

use crate::{console::Line, hypercall, panic::backtrace, time::now_ns};

const STACK: usize = 8192;
/// Vectors 0–31.
const VECTORS: usize = 32;
/// Bytes from one stub to the next.
const STUB: u64 = 16;

#[repr(C, align(16))]
struct Tables {
    stack: [u8; STACK],
    tss: TaskStateSegment,
    gdt: GlobalDescriptorTable,
    idt: InterruptDescriptorTable,
}

static mut TABLES: Tables = Tables {
    stack: [0; STACK],
    tss: TaskStateSegment::new(),
    gdt: GlobalDescriptorTable::new(),
    idt: InterruptDescriptorTable::new(),
};

// One stub a vector, 16 bytes apart. The CPU pushes an error code for vectors
// 8, 10-14, 17, 21, 29 and 30; the others push a zero in its place.
global_asm!(
    ".section .text.exceptions, \"ax\", @progbits",
    ".balign 16",
    "domain_exception_stubs:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp domain_exception_common",
    ".set vector, vector + 1",
    ".endr",
    "domain_exception_common:",
    "push r15",
    "push r14",
    "push r13",
    "push r12",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rbp",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rbx",
    "push rax",
    "cld",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {handler}",
    "ud2",
    ".text",
    handler = sym exception,
);

unsafe extern "C" {
    static domain_exception_stubs: u8;
}

/// What the stubs and the CPU pushed.
#[repr(C)]
struct Frame {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15.
    registers: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

extern "C" fn exception(frame: &Frame) -> ! {
    let mut report = CrashReport::new_zeroed();
    report.reason = Reason::Exception as u32;
    report.time_ns = now_ns();
    // The stubs push numbers below 32.
    report.vector = u32::try_from(frame.vector).unwrap_or(u32::MAX);
    report.error_code = frame.error_code;
    report.rip = frame.rip;
    report.rsp = frame.rsp;
    report.cr2 = Cr2::read_raw();
    report.registers = frame.registers;
    let [.., rbp, _, _, _, _, _, _, _, _] = frame.registers;
    // The innermost address is that of the instruction itself.
    let chain = core::iter::once(frame.rip).chain(backtrace(rbp));
    for (to, from) in report.backtrace.iter_mut().zip(chain) {
        *to = from;
    }
    let mut message = Line::<192>::new();
    let _ = write!(message, "exception {} ({})", frame.vector, name(frame.vector));
    report.message = message.into_bytes();
    hypercall::crash(&report)
}

const fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "NMI",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD",
        _ => "reserved",
    }
}

/// Loads GDT, TSS and IDT.
pub(crate) fn init() {
    // SAFETY: called once, before anything else; nobody else touches TABLES.
    let tables: &'static mut Tables = unsafe { (&raw mut TABLES).as_mut_unchecked() };
    let stack = &raw const tables.stack as u64;
    tables.tss.interrupt_stack_table[0] = VirtAddr::new(stack.saturating_add(STACK as u64));
    // SAFETY: TABLES is a static, so the descriptor never dangles; the CPU
    // changes the TSS nowhere that Rust looks.
    let tss = unsafe { Descriptor::tss_segment_unchecked(&raw const tables.tss) };
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let tss = tables.gdt.append(tss);
    // SAFETY: TABLES lives for ever, and the selectors name its descriptors. A
    // null SS is valid at privilege level 0 of long mode.
    unsafe {
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        SS::set_reg(SegmentSelector::NULL);
        load_tss(tss);
    }
    let idt = &mut tables.idt;
    set(&mut idt.divide_error, 0);
    set(&mut idt.debug, 1);
    set(&mut idt.non_maskable_interrupt, 2);
    set(&mut idt.breakpoint, 3);
    set(&mut idt.overflow, 4);
    set(&mut idt.bound_range_exceeded, 5);
    set(&mut idt.invalid_opcode, 6);
    set(&mut idt.device_not_available, 7);
    set(&mut idt.double_fault, 8);
    set(&mut idt.invalid_tss, 10);
    set(&mut idt.segment_not_present, 11);
    set(&mut idt.stack_segment_fault, 12);
    set(&mut idt.general_protection_fault, 13);
    set(&mut idt.page_fault, 14);
    set(&mut idt.x87_floating_point, 16);
    set(&mut idt.alignment_check, 17);
    set(&mut idt.machine_check, 18);
    set(&mut idt.simd_floating_point, 19);
    // SAFETY: TABLES lives for ever.
    unsafe { idt.load_unsafe() };
}

fn set<F>(entry: &mut Entry<F>, vector: usize) {
    debug_assert!(vector < VECTORS);
    let stubs = &raw const domain_exception_stubs as u64;
    let stub = stubs.saturating_add((vector as u64).saturating_mul(STUB));
    // SAFETY: the stub follows the CPU's convention for `vector` and never
    // returns; IST entry 0 is set before the table is loaded.
    unsafe {
        entry.set_handler_addr(VirtAddr::new(stub)).set_stack_index(0);
    }
}
