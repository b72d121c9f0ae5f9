//! The hypervisor's own page tables: virtual = physical for RAM and device
//! registers, stacks in an area of their own.
//!
//! Nothing is both writable and executable: the image's text is read-execute,
//! its constants and the bundle are read-only, all else is read-write and not
//! executable. Page 0 is not mapped. After the boot the only change is
//! [`map_mmio`], which adds and never takes away, so no TLB flush is needed.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    reason = "boot only: numbers of the firmware or our own, and who cannot go on says so"
)]

use core::sync::atomic::Ordering;

use spin::Mutex;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3};

use crate::boot::AP_CR3;
use crate::cpu::{
    features,
    stack::{ALL, Stack},
};
use crate::memmap::{self, Boot, Range};
use crate::phys::Identity;
use crate::table::{
    ACCESSED_DIRTY, Format, GLOBAL, NO_EXECUTE, PAGE, PRESENT, PageTable, UNCACHED, WRITE, span,
};

/// Bytes of a large page.
const BIG: u64 = span(2);
const LOW_END: u64 = 4 << 30;
/// End of the identity map.
const IDENTITY_END: u64 = 512 << 30;

/// A page table in the processor's format.
pub type Table = PageTable<Identity>;

/// An empty page table, whose leaves may be `large`; `None` if memory is short.
pub fn new_table(large: bool) -> Option<Table> {
    // SAFETY: the early map reaches all frames that are given out before the
    // final one is in use, and that one reaches all; a table touches only the
    // frames that it was given.
    let io = unsafe { Identity::new() };
    let mut format = Format::long_mode(features::get().gib_pages);
    if !large {
        format.largest = 1;
    }
    PageTable::new(io, format, &mut memmap::alloc_frames)
}

/// Bits of a leaf: rights and cacheability.
const CODE: u64 = PRESENT | GLOBAL | ACCESSED_DIRTY;
const CONSTANT: u64 = CODE | NO_EXECUTE;
const DATA: u64 = CONSTANT | WRITE;
const DEVICE: u64 = DATA | UNCACHED;

/// The final tables; `None` = the early ones are still in use.
static TABLES: Mutex<Option<Table>> = Mutex::new(None);

/// Whether all RAM is mapped.
pub fn ready() -> bool {
    AP_CR3.load(Ordering::Acquire) != 0
}

fn map(table: &mut Table, virt: u64, phys: u64, len: u64, bits: u64) {
    let alloc = &mut memmap::alloc_frames;
    table.map(virt, phys, len, bits, alloc).expect("no memory for page tables");
}

fn map_identity(table: &mut Table, range: Range, bits: u64) {
    let range = range.whole_pages();
    map(table, range.start, range.start, range.len(), bits);
}

/// Builds the final tables and moves this core onto them. Uses the early map.
///
/// # Panics
/// Where memory is short, or the tables would make anything writable and
/// executable.
pub fn init(boot: &Boot) {
    let mut table = new_table(true).expect("no memory for page tables");
    // The first 4 GiB in steps of 2 MiB: RAM wherever there is any, else registers.
    let mut at = 0;
    while at < LOW_END {
        let access = access_of(boot, at);
        let mut end = at + BIG;
        while end < LOW_END && access_of(boot, end) == access {
            end += BIG;
        }
        map_identity(&mut table, Range { start: at, end }, access);
        at = end;
    }
    for ram in boot.ram() {
        let [start, end] = [ram.start, ram.end].map(|at| at.clamp(LOW_END, IDENTITY_END));
        map_identity(&mut table, Range { start, end }, DATA);
    }
    map_identity(&mut table, memmap::text(), CODE);
    map_identity(&mut table, memmap::constants(), CONSTANT);
    map_identity(&mut table, boot.bundle, CONSTANT);
    map_identity(&mut table, Range { start: 0, end: PAGE }, 0);
    map_stacks(&mut table, 0);
    table.for_each(&mut |virt, bits, _, _| {
        assert!(bits & WRITE == 0 || bits & NO_EXECUTE != 0, "{virt:#x} is writable code");
    });
    enter(table.root());
    AP_CR3.store(table.root(), Ordering::Release);
    *TABLES.lock() = Some(table);
}

fn access_of(boot: &Boot, at: u64) -> u64 {
    let big = Range { start: at, end: at + BIG };
    if boot.ram().any(|ram| ram.overlaps(big)) { DATA } else { DEVICE }
}

fn map_stacks(table: &mut Table, core: usize) {
    for stack in ALL {
        let pages = stack.len() / PAGE;
        let frames = memmap::alloc_frames(pages as usize, PAGE).expect("no memory for stacks");
        map(table, stack.bottom(core), frames, stack.len(), DATA);
    }
}

/// Moves this core onto the final tables; application processors come here
/// with them already loaded.
fn enter(root: u64) {
    // SAFETY: the tables map everything that the early ones did and that is in
    // use; write protection makes the rights hold for the hypervisor too.
    unsafe {
        let (_, flags) = Cr3::read();
        let root = x86_64::PhysAddr::new(root);
        Cr3::write(x86_64::structures::paging::PhysFrame::containing_address(root), flags);
        Cr0::write(Cr0::read() | Cr0Flags::WRITE_PROTECT);
    }
}

/// Maps the stacks of an application processor that is to be started and
/// returns the top of its main stack.
pub fn add_stacks(core: usize) -> u64 {
    if let Some(table) = TABLES.lock().as_mut() {
        map_stacks(table, core);
    }
    Stack::Main.top(core)
}

/// Has device registers at `start..start + len` mapped, uncached, at their
/// physical address. Does nothing where they are already (all below 4 GiB
/// that is not RAM is). To be called before [`memmap::seal`].
///
/// # Panics
/// Where the range is RAM or beyond the identity map's 512 GiB.
pub fn map_mmio(start: u64, len: u64) {
    let end = start.saturating_add(len);
    let range = Range { start: start.max(LOW_END), end };
    if range.is_empty() {
        return;
    }
    assert!(end <= IDENTITY_END, "device registers at {start:#x} are out of reach");
    let ram = memmap::boot().ram().any(|ram| ram.overlaps(range));
    assert!(!ram, "device registers at {start:#x} overlap RAM");
    if let Some(table) = TABLES.lock().as_mut() {
        map_identity(table, range, DEVICE);
    }
}
