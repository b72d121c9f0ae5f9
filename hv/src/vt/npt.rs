//! Nested page tables: the memory that a domain's CPU can reach.
//!
//! Tables come from a fixed pool that is filled when the node is built; the
//! grant window gets all of its tables then, so that mapping a grant later
//! cannot run out.

#![allow(unsafe_code)]

use alloc::vec::Vec;

use crate::memmap;

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;
const GIANT: u64 = 1 << 30;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// Nested walks are user accesses (APM vol. 2, 15.25.5).
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Device registers: not to be cached.
    pub device: bool,
}

impl Rights {
    fn bits(self) -> u64 {
        let mut bits = PRESENT | USER | ACCESSED_DIRTY;
        if self.write {
            bits |= WRITE;
        }
        if !self.execute {
            bits |= NO_EXECUTE;
        }
        if self.device {
            bits |= UNCACHED;
        }
        bits
    }
}

/// A four-level nested page table.
#[derive(Debug)]
pub struct NestedTable {
    root: u64,
    /// Frames in use as tables: the only addresses that are followed.
    tables: Vec<u64>,
}

impl NestedTable {
    /// An empty table. `None` if memory is short.
    pub fn new() -> Option<Self> {
        let root = memmap::alloc_frames(1, 4096)?;
        Some(Self { root, tables: alloc::vec![root] })
    }

    /// Machine address of the root, for nCR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Frames that hold tables.
    pub fn tables(&self) -> &[u64] {
        &self.tables
    }

    fn entry(&self, table: u64, index: u64) -> *mut u64 {
        (table + (index & 511) * 8) as *mut u64
    }

    fn read(&self, table: u64, index: u64) -> u64 {
        // SAFETY: `table` is a frame of this table's own (only `new` and
        // `grow` make them), identity mapped; the index is below 512.
        unsafe { self.entry(table, index).read_volatile() }
    }

    fn write(&mut self, table: u64, index: u64, value: u64) {
        // SAFETY: as for `read`; `&mut self` under the node's lock keeps other
        // writers out, and a racing hardware walk sees the old or new entry.
        unsafe { self.entry(table, index).write_volatile(value) };
    }

    /// The table below `table`'s entry, made if asked for.
    fn below(&mut self, table: u64, index: u64, make: bool) -> Option<u64> {
        let e = self.read(table, index);
        if e & PRESENT != 0 {
            return (e & LARGE == 0).then_some(e & ADDRESS);
        }
        if !make {
            return None;
        }
        let frame = memmap::alloc_frames(1, 4096)?;
        self.tables.push(frame);
        self.write(table, index, frame | PRESENT | WRITE | USER | ACCESSED_DIRTY);
        Some(frame)
    }

    fn leaf_table(&mut self, gpa: u64, make: bool) -> Option<u64> {
        let pdpt = self.below(self.root, gpa >> 39, make)?;
        let pd = self.below(pdpt, gpa >> 30, make)?;
        self.below(pd, gpa >> 21, make)
    }

    /// Maps a range while the node is being built, with the largest pages
    /// that fit. All values are page aligned. `None` if memory is short.
    pub fn map_range(&mut self, gpa: u64, hpa: u64, len: u64, rights: Rights) -> Option<()> {
        let mut done = 0;
        while done < len {
            let (g, h, left) = (gpa + done, hpa + done, len - done);
            let fits = |size: u64| (g | h) & (size - 1) == 0 && left >= size;
            let step = if fits(GIANT) && crate::cpu::features::get().gib_pages {
                let pdpt = self.below(self.root, g >> 39, true)?;
                self.write(pdpt, g >> 30, h | rights.bits() | LARGE);
                GIANT
            } else if fits(HUGE) {
                let pdpt = self.below(self.root, g >> 39, true)?;
                let pd = self.below(pdpt, g >> 30, true)?;
                self.write(pd, g >> 21, h | rights.bits() | LARGE);
                HUGE
            } else {
                let table = self.leaf_table(g, true)?;
                self.write(table, g >> 12, h | rights.bits());
                PAGE
            };
            done += step;
        }
        Some(())
    }

    /// Makes all tables for a range that will be mapped page by page.
    pub fn reserve(&mut self, gpa: u64, len: u64) -> Option<()> {
        let mut at = gpa & !(HUGE - 1);
        while at < gpa + len {
            self.leaf_table(at, true)?;
            at += HUGE;
        }
        Some(())
    }

    /// Sets or clears one page of a reserved range. Returns whether there was
    /// a table for it. The caller flushes where a mapping was there before.
    pub fn set_page(&mut self, gpa: u64, target: Option<(u64, Rights)>) -> bool {
        let Some(table) = self.leaf_table(gpa, false) else { return false };
        let value = target.map_or(0, |(hpa, rights)| (hpa & ADDRESS) | rights.bits());
        self.write(table, gpa >> 12, value);
        true
    }

    /// Whether the tables allow an access.
    pub fn allows(&self, gpa: u64, write: bool, execute: bool) -> bool {
        let mut table = self.root;
        for level in (0..4).rev() {
            let e = self.read(table, gpa >> (12 + 9 * level));
            if e & PRESENT == 0 {
                return false;
            }
            if level == 0 || e & LARGE != 0 {
                return (e & WRITE != 0 || !write) && (e & NO_EXECUTE == 0 || !execute);
            }
            table = e & ADDRESS;
        }
        false
    }

    /// Shows every mapped range to `visit` as (guest-physical, machine, bytes,
    /// writable, executable).
    pub fn for_each(&self, mut visit: impl FnMut(u64, u64, u64, bool, bool)) {
        self.walk(self.root, 3, 0, &mut visit);
    }

    fn walk(
        &self,
        table: u64,
        level: u32,
        base: u64,
        visit: &mut impl FnMut(u64, u64, u64, bool, bool),
    ) {
        for i in 0..512 {
            let e = self.read(table, i);
            let size = PAGE << (9 * level);
            let gpa = base + i * size;
            if e & PRESENT == 0 {
                continue;
            }
            if level == 0 || e & LARGE != 0 {
                visit(gpa, e & ADDRESS & !(size - 1), size, e & WRITE != 0, e & NO_EXECUTE == 0);
            } else {
                self.walk(e & ADDRESS, level - 1, gpa, visit);
            }
        }
    }
}
