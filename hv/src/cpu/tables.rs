//! GDT, TSS and IDT.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "sizes of tables, known when this is compiled"
)]

extern crate alloc;

use alloc::boxed::Box;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use super::exception;
use super::stack::{ALL, Stack};

const VECTORS: usize = 256;
/// Selector of the code segment: the first entry of the GDT below.
const CODE: u64 = 8;

/// One table for all cores: the stacks differ by the TSS.
static IDT: Once<[[u64; 2]; VECTORS]> = Once::new();

fn gate(vector: usize) -> [u64; 2] {
    let stack = match vector {
        2 => Stack::Nmi,
        8 => Stack::DoubleFault,
        18 => Stack::MachineCheck,
        _ => Stack::Other,
    };
    let handler = exception::stub(vector);
    // An IST field of 0 would mean none.
    let ist = stack.ist().map_or(0, |i| i as u64 + 1);
    // Present, ring 0, 64-bit interrupt gate.
    let kind = 0x8e00 | ist;
    let low = (handler & 0xffff) | CODE << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Loads the tables of core `core`.
#[expect(clippy::indexing_slicing, reason = "the field is packed; IST numbers are constants")]
pub(super) fn load(core: usize) {
    let mut tss = TaskStateSegment::new();
    for stack in ALL {
        if let Some(ist) = stack.ist() {
            tss.interrupt_stack_table[ist] = VirtAddr::new(stack.top(core));
        }
    }
    let tss: &'static TaskStateSegment = Box::leak(Box::new(tss));
    let gdt = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    assert_eq!(u64::from(code.0), CODE);
    gdt.load();
    let idt = IDT.call_once(|| core::array::from_fn(gate));
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(idt) - 1) as u16,
        base: VirtAddr::from_ptr(idt),
    };
    // SAFETY: the selectors belong to the table just loaded; TSS and IDT live
    // for ever and name mapped stacks and handlers.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
        lidt(&pointer);
    }
}
