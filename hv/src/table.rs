//! Page tables of all kinds: the hypervisor's own, the nested ones that confine
//! a domain's CPU, and those of both IOMMUs that confine its devices. All are
//! trees of 512 entries a table and differ in bits only.
//!
//! Rights are in the leaves; entries that lead to tables allow everything.
//! Tables are made while the node is built and stay, so that changing a page
//! later changes one word and cannot run out of memory.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "levels are 1 to 4, indices below 512, and addresses below 2^52: `Format::reaches`"
)]

use alloc::vec::Vec;

use crate::phys::PhysIo;

/// Bits of the processor's long-mode format (APM vol. 2, 5.3), which is also
/// that of nested tables (15.25.3).
pub const PRESENT: u64 = 1 << 0;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const UNCACHED: u64 = 1 << 3 | 1 << 4;
pub const ACCESSED_DIRTY: u64 = 1 << 5 | DIRTY;
/// In a leaf: something was written there.
const DIRTY: u64 = 1 << 6;
pub const GLOBAL: u64 = 1 << 8;
pub const NO_EXECUTE: u64 = 1 << 63;
/// A leaf above the lowest level. An IOMMU's table has none.
const LARGE: u64 = 1 << 7;
/// The part of an entry that is an address, in all formats.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bytes of a page and of a table.
pub const PAGE: u64 = 4096;
const ENTRIES: u64 = 512;
/// Bytes of a line of the CPUs' caches.
const LINE: u64 = 64;

/// Address bits below those that index a table of `level`.
const fn shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Bytes that an entry of a table of `level` (from 1) stands for.
pub const fn span(level: u8) -> u64 {
    1 << shift(level)
}

/// Frames: `(count, alignment in bytes)` to the address of zeroed, contiguous
/// frames.
pub type AllocFrames<'a> = &'a mut dyn FnMut(usize, u64) -> Option<u64>;

/// How the reader of a table wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Levels of a table.
    pub levels: u8,
    /// Highest level with leaves.
    pub largest: u8,
    /// What allows reading. An entry with none of these bits, and none of
    /// `write`, is absent.
    pub read: u64,
    /// What allows writing.
    pub write: u64,
    /// Further bits of an IOMMU's leaf.
    pub leaf_bits: u64,
    /// Where a link tells the level of the table that it leads to, if it does.
    pub level_shift: Option<u32>,
    /// The reader does not see what is still in the CPUs' caches.
    pub write_back: bool,
}

impl Format {
    /// The processor's own.
    pub const fn long_mode(gib_pages: bool) -> Self {
        let largest = if gib_pages { 3 } else { 2 };
        let (read, leaf_bits) = (PRESENT | USER | ACCESSED_DIRTY, 0);
        let level_shift = None;
        Self { levels: 4, largest, read, write: WRITE, leaf_bits, level_shift, write_back: false }
    }

    /// The bits of an IOMMU's leaf.
    pub const fn device(&self, write: bool) -> u64 {
        self.read | self.leaf_bits | if write { self.write } else { 0 }
    }

    /// The bits, without the address, of an entry of `level` that leads to a table.
    fn link(&self, level: u8) -> u64 {
        let next = self.level_shift.map_or(0, |shift| u64::from(level - 1) << shift);
        next | self.read | self.write
    }

    fn is_present(&self, entry: u64) -> bool {
        entry & (self.read | self.write) != 0
    }

    fn is_leaf(&self, entry: u64, level: u8) -> bool {
        level == 1 || level <= self.largest && entry & LARGE != 0
    }

    /// Whether the addresses are page aligned and fit in.
    fn reaches(&self, virt: u64, phys: u64, len: u64) -> bool {
        let end = virt.checked_add(len).is_some_and(|end| end <= span(self.levels + 1));
        let there = phys.checked_add(len).is_some_and(|end| end & !(ADDRESS | (PAGE - 1)) == 0);
        end && there && (virt | phys | len).is_multiple_of(PAGE)
    }
}

/// A page table.
#[derive(Debug)]
pub struct PageTable<IO> {
    io: IO,
    format: Format,
    root: u64,
    /// Frames in use as tables, the only addresses that are followed.
    tables: Vec<u64>,
    /// The level-1 table of the last page, and which range it is of: pages that
    /// are changed together lie side by side.
    last: Option<(u64, u64)>,
}

impl<IO: PhysIo> PageTable<IO> {
    /// An empty table. `None` if memory is short.
    pub fn new(io: IO, format: Format, alloc: AllocFrames<'_>) -> Option<Self> {
        let mut this = Self { io, format, root: 0, tables: Vec::new(), last: None };
        this.root = this.add(alloc)?;
        Some(this)
    }

    /// Machine address of the root.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// How the table is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Frames that hold tables.
    pub fn tables(&self) -> &[u64] {
        &self.tables
    }

    fn add(&mut self, alloc: AllocFrames<'_>) -> Option<u64> {
        let frame = alloc(1, PAGE)?;
        self.tables.push(frame);
        (0..ENTRIES).for_each(|index| self.write(frame + index * 8, 0));
        Some(frame)
    }

    fn write(&self, at: u64, entry: u64) {
        self.io.write::<u64>(at, entry);
        if self.format.write_back {
            self.io.write_back(at);
        }
    }

    /// The entry for `virt` at `level`. Tables on the way there are made with
    /// `alloc`, and larger leaves split; without it, there is `None` then.
    fn slot(&mut self, virt: u64, level: u8, mut alloc: Option<AllocFrames<'_>>) -> Option<u64> {
        let range = virt / span(2);
        if let Some((_, table)) = self.last.filter(|&(of, _)| level == 1 && of == range) {
            return Some(entry_address(table, virt, 1));
        }
        let mut table = self.root;
        for above in (level + 1..=self.format.levels).rev() {
            let at = entry_address(table, virt, above);
            let entry = self.io.read::<u64>(at);
            let present = self.format.is_present(entry);
            if present && !self.format.is_leaf(entry, above) {
                table = entry & ADDRESS;
                continue;
            }
            table = self.add(alloc.as_mut()?)?;
            if present {
                let keep = if above == 2 { entry & !LARGE } else { entry };
                for index in 0..ENTRIES {
                    self.write(table + index * 8, keep + index * span(above - 1));
                }
            }
            // Linked only when it is complete: somebody may be walking.
            self.write(at, table | self.format.link(above));
        }
        // Who asks for a higher level may unlink what is below.
        self.last = (level == 1).then_some((range, table));
        Some(entry_address(table, virt, level))
    }

    /// Maps a range with the largest pages that fit, or unmaps it if `bits` is
    /// 0. `None` if memory is short or the range is not one of whole pages.
    pub fn map(
        &mut self,
        virt: u64,
        phys: u64,
        len: u64,
        bits: u64,
        alloc: AllocFrames<'_>,
    ) -> Option<()> {
        let mut done = if self.format.reaches(virt, phys, len) { 0 } else { return None };
        while done < len {
            let (v, p) = (virt + done, phys + done);
            let fits = |level: &u8| (v | p) % span(*level) == 0 && len - done >= span(*level);
            let level = (2..=self.format.largest).rev().find(fits).unwrap_or(1);
            let slot = self.slot(v, level, Some(&mut *alloc))?;
            let large = if level > 1 { LARGE } else { 0 };
            self.write(slot, if bits == 0 { 0 } else { p | bits | large });
            done += span(level);
        }
        Some(())
    }

    /// Makes all tables for a range that will be mapped page by page.
    pub fn reserve(&mut self, virt: u64, len: u64, alloc: AllocFrames<'_>) -> Option<()> {
        let mut done = if self.format.reaches(virt, 0, len) { 0 } else { return None };
        while done < len {
            self.slot(virt + done, 1, Some(&mut *alloc))?;
            done += PAGE;
        }
        Some(())
    }

    /// Sets one page of a reserved range to the address and bits in `entry`, or
    /// clears it with 0, in one store: there is no moment in between. Returns
    /// what was there; `None` if there is no table for it. The caller flushes.
    pub fn set(&mut self, virt: u64, entry: u64) -> Option<u64> {
        let there = self.format.reaches(virt, 0, PAGE);
        let slot = there.then(|| self.slot(virt, 1, None))??;
        let old = self.io.read::<u64>(slot);
        self.write(slot, entry);
        Some(old)
    }

    /// Sets pages from `virt` on, as [`Self::set`] does one. `None` if there is no
    /// table for some page; those before it are set.
    pub fn set_run(&mut self, virt: u64, entries: impl IntoIterator<Item = u64>) -> Option<()> {
        let (mut virt, mut slot) = (virt, None);
        for entry in entries {
            // The slots of a table follow each other.
            let next = slot.filter(|_| !virt.is_multiple_of(span(2))).map(|slot| slot + 8);
            if next.is_none() && !self.format.reaches(virt, 0, PAGE) {
                return None;
            }
            let at = next.or_else(|| self.slot(virt, 1, None))?;
            self.io.write::<u64>(at, entry);
            if self.format.write_back && (at + 8).is_multiple_of(LINE) {
                self.io.write_back(at);
            }
            slot = Some(at);
            virt += PAGE;
        }
        if let Some(last) = slot.filter(|_| self.format.write_back) {
            self.io.write_back(last);
        }
        Some(())
    }

    /// The leaf for `virt`, if it is mapped: where it is, what it says, and its
    /// level.
    fn find(&self, virt: u64) -> Option<(u64, u64, u8)> {
        let mut table = self.root;
        for level in (1..=self.format.levels).rev() {
            let at = entry_address(table, virt, level);
            let entry = self.io.read::<u64>(at);
            if !self.format.is_present(entry) {
                break;
            }
            if self.format.is_leaf(entry, level) {
                return Some((at, entry, level));
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// Whether the processor wrote through the leaf for `virt`, or
    /// [`Self::mark`] says so, since it was last clean.
    pub fn is_dirty(&self, virt: u64) -> bool {
        self.find(virt).is_some_and(|(_, entry, _)| entry & DIRTY != 0)
    }

    /// Marks the leaves for `len` bytes from `virt` on as written to. Nothing that
    /// the processor stores there meanwhile can get lost: it only ever sets the same bit.
    pub fn mark(&self, virt: u64, len: u64) {
        let (mut virt, end) = (virt, virt.saturating_add(len));
        while virt < end {
            let Some((mut at, mut entry, level)) = self.find(virt) else {
                virt = virt.saturating_add(PAGE);
                continue;
            };
            // The leaves of a table follow each other.
            loop {
                self.write(at, entry | DIRTY);
                virt = (virt & !(span(level) - 1)) + span(level);
                if virt >= end || virt.is_multiple_of(span(level + 1)) {
                    break;
                }
                at += 8;
                entry = self.io.read::<u64>(at);
                if !self.format.is_present(entry) || !self.format.is_leaf(entry, level) {
                    break;
                }
            }
        }
    }

    /// Takes the mark away, with the last page of a leaf; the earlier ones of a
    /// large leaf leave it. For tables that nobody walks now; the caller flushes.
    pub fn clean(&self, virt: u64) {
        if let Some((at, entry, level)) = self.find(virt)
            && (virt + PAGE).is_multiple_of(span(level))
        {
            self.write(at, entry & !DIRTY);
        }
    }

    /// Shows every leaf to `visit` as (virtual address, bits, physical address,
    /// bytes). Returns whether all entries on the way lead to tables of our
    /// own, as we write them; others are not followed.
    pub fn for_each(&self, visit: &mut dyn FnMut(u64, u64, u64, u64)) -> bool {
        self.walk(self.root, self.format.levels, 0, visit)
    }

    fn walk(
        &self,
        table: u64,
        level: u8,
        base: u64,
        visit: &mut dyn FnMut(u64, u64, u64, u64),
    ) -> bool {
        let mut sound = true;
        for index in 0..ENTRIES {
            let virt = base + index * span(level);
            let entry = self.io.read::<u64>(table + index * 8);
            let (bits, phys) = (entry & !ADDRESS, entry & ADDRESS);
            if entry == 0 {
                continue;
            }
            if self.format.is_leaf(entry, level) {
                visit(virt, bits, phys, span(level));
            } else if bits == self.format.link(level) && self.tables.contains(&phys) {
                // At most as deep as there are levels.
                sound &= self.walk(phys, level - 1, virt, visit);
            } else {
                sound = false;
            }
        }
        sound
    }
}

fn entry_address(table: u64, virt: u64, level: u8) -> u64 {
    table + (virt >> shift(level) & (ENTRIES - 1)) * 8
}
