//! Four-level page tables in the processor's long-mode format (APM vol. 2,
//! 5.3), which is also that of nested tables (15.25.3).
//!
//! Rights are in the leaves; the entries above them allow everything.

#![allow(unsafe_code)]

use alloc::vec::Vec;

use crate::{cpu::features, memmap};

pub const PRESENT: u64 = 1 << 0;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const UNCACHED: u64 = 1 << 3 | 1 << 4;
pub const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
pub const GLOBAL: u64 = 1 << 8;
pub const NO_EXECUTE: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Level of the root; leaves are at levels 0 (4 KiB), 1 (2 MiB) and 2 (1 GiB).
const ROOT: u32 = 3;

/// Bytes that an entry of a table at `level` stands for.
pub const fn span(level: u32) -> u64 {
    PAGE << (9 * level)
}

/// A page table.
#[derive(Debug)]
pub struct PageTable {
    root: u64,
    /// Frames in use as tables, the only addresses that are followed.
    tables: Vec<u64>,
}

impl PageTable {
    /// An empty table. `None` if memory is short.
    pub fn new() -> Option<Self> {
        let root = memmap::alloc_frames(1, PAGE)?;
        Some(Self { root, tables: alloc::vec![root] })
    }

    /// Machine address of the root.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Frames that hold tables.
    pub fn tables(&self) -> &[u64] {
        &self.tables
    }

    /// Where `virt`'s entry is in a table at `level`.
    fn slot(table: u64, virt: u64, level: u32) -> *mut u64 {
        (table + virt / span(level) % 512 * 8) as *mut u64
    }

    fn read(&self, table: u64, virt: u64, level: u32) -> u64 {
        // SAFETY: `table` is a frame of this table's own (only `new` and
        // `add` make them), identity mapped; the index is below 512.
        unsafe { Self::slot(table, virt, level).read_volatile() }
    }

    fn write(&mut self, table: u64, virt: u64, level: u32, value: u64) {
        // SAFETY: as for `read`; `&mut self` keeps other writers out, and a
        // racing hardware walk sees the old or the new entry.
        unsafe { Self::slot(table, virt, level).write_volatile(value) };
    }

    fn add(&mut self) -> Option<u64> {
        let frame = memmap::alloc_frames(1, PAGE)?;
        self.tables.push(frame);
        Some(frame)
    }

    /// The table for `virt` at `level`. If `make`, it is made where there is
    /// none yet, and larger leaves on the way are split.
    fn find(&mut self, virt: u64, level: u32, make: bool) -> Option<u64> {
        let mut table = self.root;
        for above in (level + 1..=ROOT).rev() {
            let entry = self.read(table, virt, above);
            if entry & PRESENT != 0 && entry & LARGE == 0 {
                table = entry & ADDRESS;
                continue;
            }
            if !make {
                return None;
            }
            let next = self.add()?;
            if entry & PRESENT != 0 {
                let keep = if above == 1 { entry & !LARGE } else { entry };
                for i in 0..512 {
                    let at = i * span(above - 1);
                    self.write(next, at, above - 1, keep + at);
                }
            }
            let link = PRESENT | WRITE | USER | ACCESSED_DIRTY;
            self.write(table, virt, above, next | link);
            table = next;
        }
        Some(table)
    }

    /// Maps a range with the largest pages that fit, or unmaps it if `bits` is
    /// 0. All values are page aligned. `None` if memory is short.
    pub fn map(&mut self, virt: u64, phys: u64, len: u64, bits: u64) -> Option<()> {
        let largest = if features::get().gib_pages { 2 } else { 1 };
        let mut done = 0;
        while done < len {
            let (v, p) = (virt + done, phys + done);
            let fits = |level: &u32| (v | p) % span(*level) == 0 && len - done >= span(*level);
            let level = (1..=largest).rev().find(fits).unwrap_or(0);
            let table = self.find(v, level, true)?;
            let large = if level > 0 { LARGE } else { 0 };
            self.write(table, v, level, if bits == 0 { 0 } else { p | bits | large });
            done += span(level);
        }
        Some(())
    }

    /// Makes all tables for a range that will be mapped page by page.
    pub fn reserve(&mut self, virt: u64, len: u64) -> Option<()> {
        for offset in (0..len).step_by(span(1) as usize) {
            self.find(virt + offset, 0, true)?;
        }
        Some(())
    }

    /// Sets one page of a reserved range to the address and bits in `value`, or
    /// clears it with 0. Returns whether there was a table for it. The caller
    /// flushes where a mapping was there before.
    pub fn set_page(&mut self, virt: u64, value: u64) -> bool {
        let table = self.find(virt, 0, false);
        if let Some(table) = table {
            self.write(table, virt, 0, value);
        }
        table.is_some()
    }

    /// Shows every leaf to `visit` as (virtual address, entry without its
    /// address, physical address, bytes).
    pub fn for_each(&self, mut visit: impl FnMut(u64, u64, u64, u64)) {
        self.walk(self.root, ROOT, 0, &mut visit);
    }

    fn walk(&self, table: u64, level: u32, base: u64, visit: &mut impl FnMut(u64, u64, u64, u64)) {
        for i in 0..512 {
            let virt = base + i * span(level);
            let entry = self.read(table, virt, level);
            if entry & PRESENT != 0 && (level == 0 || entry & LARGE != 0) {
                visit(virt, entry & !ADDRESS, entry & ADDRESS, span(level));
            } else if entry & PRESENT != 0 {
                self.walk(entry & ADDRESS, level - 1, virt, visit);
            }
        }
    }

    /// The leaf for `virt` without its address; 0 = not mapped.
    pub fn leaf(&self, virt: u64) -> u64 {
        let mut table = self.root;
        for level in (0..=ROOT).rev() {
            let entry = self.read(table, virt, level);
            if entry & PRESENT == 0 {
                break;
            }
            if level == 0 || entry & LARGE != 0 {
                return entry & !ADDRESS;
            }
            table = entry & ADDRESS;
        }
        0
    }
}
