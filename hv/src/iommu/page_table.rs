//! I/O page tables: three or four levels, leaves of 4 KiB. The formats differ
//! in their bits only.

use super::{Error, PAGE};
use crate::phys::PhysIo;

/// Entries of a table.
const ENTRIES: u64 = 512;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How an IOMMU wants its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Levels of a table.
    pub levels: u8,
    /// What lets a device read. An entry with none of these bits, and none of
    /// `write`, is absent.
    pub read: u64,
    /// What lets it write.
    pub write: u64,
    /// Further bits of a leaf.
    pub leaf_bits: u64,
    /// Where a link tells the level of the table that it leads to, if it does.
    pub level_shift: Option<u32>,
    /// The IOMMU does not see what is still in the CPUs' caches.
    pub write_back: bool,
}

impl Format {
    /// Frames for a table in which every page of `ranges` (first address,
    /// pages) can be mapped at once.
    pub fn frames_for(&self, ranges: &[(u64, u64)]) -> u64 {
        // A table of level l is shared by all pages with the same `span` bits;
        // ranges that do not share one are counted as if they did not.
        let tables = |&(iova, pages): &(u64, u64)| {
            (1..self.levels).fold(0_u64, |sum, level| {
                let shift = entry_shift(level + 1);
                let last = iova.saturating_add(pages.saturating_sub(1).saturating_mul(PAGE));
                sum.saturating_add((last >> shift).saturating_sub(iova >> shift) + 1)
            })
        };
        ranges.iter().filter(|r| r.1 != 0).map(tables).fold(1, u64::saturating_add)
    }

    /// The bits, without the address, of an entry of `level` that leads to a table.
    fn link(&self, level: u8) -> u64 {
        let next = self.level_shift.map_or(0, |shift| u64::from(level - 1) << shift);
        next | self.read | self.write
    }

    fn leaf(&self, phys: u64, write: bool) -> u64 {
        phys | self.read | self.leaf_bits | if write { self.write } else { 0 }
    }

    fn is_present(&self, entry: u64) -> bool {
        entry & (self.read | self.write) != 0
    }
}

/// The page table of one domain's devices.
///
/// All its memory is given at construction. Tables in between stay where they
/// are until [`IoTable::clear`], so removing a page never changes more than
/// its own entry.
#[derive(Debug)]
pub struct IoTable<IO> {
    io: IO,
    format: Format,
    base: u64,
    frames: u64,
    used: u64,
}

impl<IO: PhysIo> IoTable<IO> {
    /// An empty table in the `frames` contiguous frames at `base`, which
    /// belong to it from now on.
    pub fn new(io: IO, format: Format, base: u64, frames: u64) -> Result<Self, Error> {
        let len = frames.checked_mul(PAGE).ok_or(Error::BadArgument)?;
        let end = base.checked_add(len).ok_or(Error::BadArgument)?;
        if base == 0
            || !base.is_multiple_of(PAGE)
            || end & !(ADDRESS | (PAGE - 1)) != 0
            || frames == 0
        {
            return Err(Error::BadArgument);
        }
        let mut table = Self { io, format, base, frames, used: 0 };
        table.clear();
        Ok(table)
    }

    /// Physical address of the root.
    pub fn root(&self) -> u64 {
        self.base
    }

    /// Address and bytes of all its frames.
    pub fn memory(&self) -> (u64, u64) {
        (self.base, self.frames * PAGE)
    }

    /// Removes everything. Only while no device is attached to the table.
    pub fn clear(&mut self) {
        self.used = 1;
        self.zero(self.base);
    }

    /// Maps a page that the device may read, and write if `write`. The
    /// device may see it once [`crate::iommu::Iommu::flush_added`] was called.
    pub fn map(&mut self, iova: u64, phys: u64, write: bool) -> Result<(), Error> {
        self.check(iova, phys)?;
        let mut table = self.base;
        for level in (2..=self.format.levels).rev() {
            let at = entry_address(table, iova, level);
            let entry = self.io.read64(at);
            table = if self.format.is_present(entry) {
                self.follow(entry, level)?
            } else {
                let next = self.take_frame()?;
                // Linked only after it was zeroed: a device may be walking.
                self.write(at, next | self.format.link(level));
                next
            };
        }
        let at = entry_address(table, iova, 1);
        if self.format.is_present(self.io.read64(at)) {
            return Err(Error::BadState);
        }
        self.write(at, self.format.leaf(phys, write));
        Ok(())
    }

    /// Removes a page and returns where it led. The device may still reach it
    /// until [`crate::iommu::Iommu::flush_all`] has returned.
    pub fn unmap(&mut self, iova: u64) -> Result<u64, Error> {
        let (at, entry) = self.find(iova)?;
        self.write(at, 0);
        Ok(entry & ADDRESS)
    }

    /// Has a mapped page lead to `phys`, writable; there is no moment at which it leads nowhere.
    /// The device may still reach the old page until [`crate::iommu::Iommu::flush_all`] has
    /// returned.
    pub fn redirect(&mut self, iova: u64, phys: u64) -> Result<(), Error> {
        self.check(iova, phys)?;
        let (at, _) = self.find(iova)?;
        self.write(at, self.format.leaf(phys, true));
        Ok(())
    }

    /// Calls `visit` for every page a device can reach, in address order: where
    /// it is, where it leads, whether it may be written.
    /// Fails on an entry that leads anywhere but to a table of our own.
    pub fn leaves(&self, visit: &mut dyn FnMut(u64, u64, bool)) -> Result<(), Error> {
        self.leaves_below(self.base, self.format.levels, 0, visit)
    }

    fn leaves_below(
        &self,
        table: u64,
        level: u8,
        base: u64,
        visit: &mut dyn FnMut(u64, u64, bool),
    ) -> Result<(), Error> {
        for index in 0..ENTRIES {
            let entry = self.io.read64(table + index * 8);
            if entry == 0 {
                continue;
            }
            let iova = base | index << entry_shift(level);
            if level > 1 {
                // At most as deep as there are levels.
                self.leaves_below(self.follow(entry, level)?, level - 1, iova, visit)?;
            } else {
                let (phys, write) = (entry & ADDRESS, entry & self.format.write != 0);
                if entry != self.format.leaf(phys, write) {
                    return Err(Error::Hardware);
                }
                visit(iova, phys, write);
            }
        }
        Ok(())
    }

    /// Address and value of the leaf for `iova`.
    fn find(&self, iova: u64) -> Result<(u64, u64), Error> {
        self.check(iova, 0)?;
        let mut table = self.base;
        for level in (2..=self.format.levels).rev() {
            let entry = self.io.read64(entry_address(table, iova, level));
            if !self.format.is_present(entry) {
                return Err(Error::BadState);
            }
            table = self.follow(entry, level)?;
        }
        let at = entry_address(table, iova, 1);
        let entry = self.io.read64(at);
        if self.format.is_present(entry) { Ok((at, entry)) } else { Err(Error::BadState) }
    }

    /// The table that an entry of level `level` leads to.
    fn follow(&self, entry: u64, level: u8) -> Result<u64, Error> {
        let table = entry & ADDRESS;
        let ours = table > self.base && table < self.base + self.used * PAGE;
        let ours = ours && entry & !ADDRESS == self.format.link(level);
        if ours { Ok(table) } else { Err(Error::Hardware) }
    }

    fn take_frame(&mut self) -> Result<u64, Error> {
        if self.used >= self.frames {
            return Err(Error::Exhausted);
        }
        let frame = self.base + self.used * PAGE;
        self.used += 1;
        self.zero(frame);
        Ok(frame)
    }

    fn zero(&self, frame: u64) {
        for index in 0..ENTRIES {
            self.write(frame + index * 8, 0);
        }
    }

    fn write(&self, at: u64, entry: u64) {
        self.io.write64(at, entry);
        if self.format.write_back {
            self.io.write_back(at);
        }
    }

    fn check(&self, iova: u64, phys: u64) -> Result<(), Error> {
        let limit = 1 << entry_shift(self.format.levels + 1);
        let good = iova.is_multiple_of(PAGE) && iova < limit && phys & !ADDRESS == 0;
        if good { Ok(()) } else { Err(Error::BadArgument) }
    }
}

/// Address bits below those that index a table of `level`.
const fn entry_shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

fn entry_address(table: u64, iova: u64, level: u8) -> u64 {
    table + (iova >> entry_shift(level) & (ENTRIES - 1)) * 8
}
