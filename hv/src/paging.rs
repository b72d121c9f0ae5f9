//! The hypervisor's own page tables: virtual = physical for RAM and device
//! registers, stacks in an area of their own.
//!
//! Nothing is both writable and executable: the image's text is read-execute,
//! its constants and the bundle are read-only, all else is read-write and not
//! executable. Page 0 is not mapped. After the boot the only change is
//! [`map_mmio`], which adds and never takes away, so no TLB flush is needed.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3};

use crate::boot::HANDOVER;
use crate::cpu::features;
use crate::cpu::stack::{ALL, Stack};
use crate::memmap::{self, Boot, Kind, Range};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE: u64 = 4096;
const BIG: u64 = 2 << 20;
const GIANT: u64 = 1 << 30;
const LOW_END: u64 = 4 << 30;
/// End of the identity map.
const IDENTITY_END: u64 = 512 << 30;

/// Rights and cacheability of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Data,
    Constant,
    Code,
    Device,
    None,
}

impl Access {
    const fn bits(self) -> u64 {
        match self {
            Access::Data => PRESENT | WRITE | GLOBAL | NO_EXECUTE,
            Access::Constant => PRESENT | GLOBAL | NO_EXECUTE,
            Access::Code => PRESENT | GLOBAL,
            Access::Device => PRESENT | WRITE | GLOBAL | NO_EXECUTE | UNCACHED,
            Access::None => 0,
        }
    }
}

/// Physical address of the PML4; 0 = the early tables are still in use.
static ROOT: AtomicU64 = AtomicU64::new(0);
static READY: AtomicBool = AtomicBool::new(false);
/// Held while entries change.
static TABLES: Mutex<()> = Mutex::new(());

/// Whether all RAM is mapped.
pub fn ready() -> bool {
    READY.load(Ordering::Acquire)
}

fn new_table() -> u64 {
    memmap::alloc_frames(1, PAGE).expect("no memory for page tables")
}

/// The entry for `virt` in a table at `level` (0 = leaves of 4 KiB).
fn entry(table: u64, virt: u64, level: u32) -> *mut u64 {
    let index = virt >> (12 + 9 * level) & 511;
    (table + index * 8) as *mut u64
}

/// Maps one page of level 0, 1 or 2, splitting larger ones above it.
fn map_page(root: u64, virt: u64, phys: u64, level: u32, access: Access) {
    let mut table = root;
    for above in (level + 1..4).rev() {
        let slot = entry(table, virt, above);
        // SAFETY: `table` is a page table frame of ours, the index is below 512.
        let value = unsafe { slot.read() };
        let next = if value & PRESENT == 0 {
            new_table()
        } else if value & LARGE != 0 {
            split(value, above)
        } else {
            value & ADDRESS
        };
        // SAFETY: likewise. Rights are in the leaves.
        unsafe { slot.write(next | PRESENT | WRITE) };
        table = next;
    }
    let large = if level > 0 && access != Access::None { LARGE } else { 0 };
    let value = if access == Access::None { 0 } else { phys | access.bits() | large };
    // SAFETY: likewise.
    unsafe { entry(table, virt, level).write(value) };
}

/// A table with the same meaning as the large entry `value` at `level`.
fn split(value: u64, level: u32) -> u64 {
    let table = new_table();
    let step = PAGE << (9 * (level - 1));
    let flags = if level == 1 { value & !LARGE } else { value };
    for i in 0..512u64 {
        // SAFETY: a fresh frame of 512 entries.
        unsafe { (table as *mut u64).add(i as usize).write(flags + i * step) };
    }
    table
}

/// Maps `virt..virt + len` to `phys..` with the largest pages that fit.
fn map(root: u64, virt: u64, phys: u64, len: u64, access: Access) {
    let giant = features::get().gib_pages;
    let mut done = 0;
    while done < len {
        let (v, p) = (virt + done, phys + done);
        let fits = |size: u64| (v | p) & (size - 1) == 0 && len - done >= size;
        let (level, size) = match () {
            () if giant && fits(GIANT) => (2, GIANT),
            () if fits(BIG) => (1, BIG),
            () => (0, PAGE),
        };
        map_page(root, v, p, level, access);
        done += size;
    }
}

fn map_identity(root: u64, range: Range, access: Access) {
    let start = range.start & !(PAGE - 1);
    let end = range.end.saturating_add(PAGE - 1) & !(PAGE - 1);
    map(root, start, start, end.saturating_sub(start), access);
}

/// Builds the final tables and moves this core onto them. Uses the early map.
pub fn init(boot: &Boot) {
    let root = new_table();
    // The first 4 GiB in steps of 2 MiB: RAM wherever there is any, else registers.
    let mut at = 0;
    while at < LOW_END {
        let access = access_of(boot, at);
        let mut end = at + BIG;
        while end < LOW_END && access_of(boot, end) == access {
            end += BIG;
        }
        map_identity(root, Range { start: at, end }, access);
        at = end;
    }
    for region in boot.regions.iter().filter(|r| r.kind != Kind::Reserved) {
        let start = region.range.start.max(LOW_END);
        let end = region.range.end.min(IDENTITY_END);
        if start < end {
            map_identity(root, Range { start, end }, Access::Data);
        }
    }
    protect_image(root);
    if !boot.bundle.is_empty() {
        map_identity(root, boot.bundle, Access::Constant);
    }
    map_identity(root, Range { start: 0, end: PAGE }, Access::None);
    map_stacks(root, 0);
    ROOT.store(root, Ordering::Release);
    HANDOVER.cr3.store(root, Ordering::Release);
    enter();
    READY.store(true, Ordering::Release);
}

fn access_of(boot: &Boot, at: u64) -> Access {
    let big = Range { start: at, end: at + BIG };
    let ram = boot.regions.iter().any(|r| r.kind != Kind::Reserved && r.range.overlaps(big));
    if ram { Access::Data } else { Access::Device }
}

fn protect_image(root: u64) {
    unsafe extern "C" {
        static __text_start: u8;
        static __text_end: u8;
        static __rodata_start: u8;
        static __rodata_end: u8;
    }
    let range = |start: *const u8, end: *const u8| Range { start: start as u64, end: end as u64 };
    map_identity(root, range(&raw const __text_start, &raw const __text_end), Access::Code);
    map_identity(root, range(&raw const __rodata_start, &raw const __rodata_end), Access::Constant);
}

fn map_stacks(root: u64, core: usize) {
    for stack in ALL {
        let pages = stack.len() / PAGE;
        let frames = memmap::alloc_frames(pages as usize, PAGE).expect("no memory for stacks");
        map(root, stack.bottom(core), frames, stack.len(), Access::Data);
    }
}

/// Moves this core onto the final tables; application processors come here
/// with them already loaded.
fn enter() {
    // SAFETY: the tables map everything that the early ones did and that is in
    // use; write protection makes the rights hold for the hypervisor too.
    unsafe {
        let (_, flags) = Cr3::read();
        let root = x86_64::PhysAddr::new(ROOT.load(Ordering::Acquire));
        Cr3::write(x86_64::structures::paging::PhysFrame::containing_address(root), flags);
        Cr0::write(Cr0::read() | Cr0Flags::WRITE_PROTECT);
    }
}

/// Maps the stacks of an application processor that is to be started and
/// returns the top of its main stack.
pub fn add_stacks(core: usize) -> u64 {
    let _guard = TABLES.lock();
    map_stacks(ROOT.load(Ordering::Acquire), core);
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
    let ram =
        memmap::boot().regions.iter().find(|r| r.kind != Kind::Reserved && r.range.overlaps(range));
    assert!(ram.is_none(), "device registers at {start:#x} overlap RAM");
    let _guard = TABLES.lock();
    map_identity(ROOT.load(Ordering::Acquire), range, Access::Device);
}
