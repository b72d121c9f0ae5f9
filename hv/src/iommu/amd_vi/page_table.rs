//! I/O page tables in AMD-Vi's format: four levels, leaves of 4 KiB.

use crate::phys::PhysIo;

/// Levels of a table, for [`crate::iommu::Iommu::attach`].
pub const LEVELS: u8 = 4;
/// Bytes of a page and of a table.
const PAGE: u64 = 4096;
/// Entries of a table.
const ENTRIES: u64 = 512;
/// Addresses are below this.
const IOVA_LIMIT: u64 = 1 << 48;

const PRESENT: u64 = 1 << 0;
const NEXT_LEVEL_SHIFT: u32 = 9;
const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The access must snoop the CPUs' caches.
const COHERENT: u64 = 1 << 60;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;

/// Why a table could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// An address is not page aligned or out of range.
    BadArgument,
    /// There is a leaf already.
    Mapped,
    /// There is no leaf.
    Absent,
    /// No frame is left for a table in between.
    Exhausted,
    /// An entry holds what we never wrote.
    Corrupt,
}

/// One mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// I/O virtual address.
    pub iova: u64,
    /// Physical address.
    pub phys: u64,
    /// The device may write.
    pub write: bool,
}

/// The page table of one domain's devices.
///
/// All its memory is given at construction. Tables in between stay where they
/// are until [`IoTable::clear`], so removing a page never changes more than
/// its own entry.
#[derive(Debug)]
pub struct IoTable<IO> {
    io: IO,
    base: u64,
    frames: u64,
    used: u64,
}

impl<IO: PhysIo> IoTable<IO> {
    /// An empty table in the `frames` contiguous frames at `base`, which
    /// belong to it from now on.
    pub fn new(io: IO, base: u64, frames: u64) -> Result<Self, Error> {
        let len = frames.checked_mul(PAGE).ok_or(Error::BadArgument)?;
        let end = base.checked_add(len).ok_or(Error::BadArgument)?;
        if base == 0
            || !base.is_multiple_of(PAGE)
            || end & !(ADDRESS | (PAGE - 1)) != 0
            || frames == 0
        {
            return Err(Error::BadArgument);
        }
        let mut table = Self { io, base, frames, used: 0 };
        table.clear();
        Ok(table)
    }

    /// Frames for a table in which every page of `ranges` (first address,
    /// pages) can be mapped at once.
    pub fn frames_for(ranges: &[(u64, u64)]) -> u64 {
        // A table of level l is shared by all pages with the same `span` bits;
        // ranges that do not share one are counted as if they did not.
        let tables = |&(iova, pages): &(u64, u64)| {
            (1..LEVELS).fold(0_u64, |sum, level| {
                let shift = entry_shift(level + 1);
                let last = iova.saturating_add(pages.saturating_sub(1).saturating_mul(PAGE));
                sum.saturating_add((last >> shift).saturating_sub(iova >> shift) + 1)
            })
        };
        ranges.iter().filter(|r| r.1 != 0).map(tables).fold(1, u64::saturating_add)
    }

    /// Physical address of the root.
    pub fn root(&self) -> u64 {
        self.base
    }

    /// Removes everything. Only while no device is attached to the table.
    pub fn clear(&mut self) {
        self.used = 1;
        self.zero(self.base);
    }

    /// Maps a page that the device may read, and write if `write`. The
    /// device may see it once [`crate::iommu::Iommu::flush_added`] was called.
    pub fn map(&mut self, iova: u64, phys: u64, write: bool) -> Result<(), Error> {
        check(iova, phys)?;
        let mut table = self.base;
        for level in (2..=LEVELS).rev() {
            let at = entry_address(table, iova, level);
            let entry = self.io.read64(at);
            table = if entry & PRESENT == 0 {
                let next = self.take_frame()?;
                let link = u64::from(level - 1) << NEXT_LEVEL_SHIFT;
                // Linked only after it was zeroed: a device may be walking.
                self.io.write64(at, next | link | READ | WRITE | PRESENT);
                next
            } else {
                self.follow(entry, level)?
            };
        }
        let at = entry_address(table, iova, 1);
        if self.io.read64(at) & PRESENT != 0 {
            return Err(Error::Mapped);
        }
        self.io.write64(at, leaf(phys, write));
        Ok(())
    }

    /// Removes a page and returns where it led. The device may still reach it
    /// until [`crate::iommu::Iommu::flush_pages`] has returned.
    pub fn unmap(&mut self, iova: u64) -> Result<u64, Error> {
        let (at, entry) = self.find(iova)?;
        self.io.write64(at, 0);
        Ok(entry & ADDRESS)
    }

    /// Has a mapped page lead to `phys`, writable; there is no moment at which it leads nowhere.
    /// The device may still reach the old page until [`crate::iommu::Iommu::flush_pages`] has
    /// returned.
    pub fn redirect(&mut self, iova: u64, phys: u64) -> Result<(), Error> {
        check(iova, phys)?;
        let (at, _) = self.find(iova)?;
        self.io.write64(at, leaf(phys, true));
        Ok(())
    }

    /// Calls `visit` for every page a device can reach, in address order.
    /// Fails on an entry that leads anywhere but to a table of our own.
    pub fn leaves(&self, visit: &mut dyn FnMut(Leaf)) -> Result<(), Error> {
        self.leaves_below(self.base, LEVELS, 0, visit)
    }

    fn leaves_below(
        &self,
        table: u64,
        level: u8,
        base: u64,
        visit: &mut dyn FnMut(Leaf),
    ) -> Result<(), Error> {
        for index in 0..ENTRIES {
            let entry = self.io.read64(table + index * 8);
            if entry & (PRESENT | READ | WRITE) == 0 {
                continue;
            }
            let iova = base | index << entry_shift(level);
            if level > 1 {
                // At most LEVELS deep.
                self.leaves_below(self.follow(entry, level)?, level - 1, iova, visit)?;
            } else if entry & (PRESENT | READ | NEXT_LEVEL) == PRESENT | READ {
                visit(decode_leaf(iova, entry));
            } else {
                return Err(Error::Corrupt);
            }
        }
        Ok(())
    }

    /// Address and value of the leaf for `iova`.
    fn find(&self, iova: u64) -> Result<(u64, u64), Error> {
        check(iova, 0)?;
        let mut table = self.base;
        for level in (2..=LEVELS).rev() {
            let entry = self.io.read64(entry_address(table, iova, level));
            if entry & PRESENT == 0 {
                return Err(Error::Absent);
            }
            table = self.follow(entry, level)?;
        }
        let at = entry_address(table, iova, 1);
        let entry = self.io.read64(at);
        if entry & PRESENT == 0 { Err(Error::Absent) } else { Ok((at, entry)) }
    }

    /// The table that an entry of level `level` leads to.
    fn follow(&self, entry: u64, level: u8) -> Result<u64, Error> {
        let table = entry & ADDRESS;
        let ours = table > self.base && table < self.base + self.used * PAGE;
        let next = (entry & NEXT_LEVEL) >> NEXT_LEVEL_SHIFT;
        if ours && entry & PRESENT != 0 && next == u64::from(level - 1) {
            Ok(table)
        } else {
            Err(Error::Corrupt)
        }
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
            self.io.write64(frame + index * 8, 0);
        }
    }
}

fn check(iova: u64, phys: u64) -> Result<(), Error> {
    let good = iova.is_multiple_of(PAGE) && iova < IOVA_LIMIT && phys & !ADDRESS == 0;
    if good { Ok(()) } else { Err(Error::BadArgument) }
}

/// Address bits below those that index a table of `level`.
const fn entry_shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

fn entry_address(table: u64, iova: u64, level: u8) -> u64 {
    table + (iova >> entry_shift(level) & (ENTRIES - 1)) * 8
}

fn leaf(phys: u64, write: bool) -> u64 {
    phys | PRESENT | READ | COHERENT | if write { WRITE } else { 0 }
}

fn decode_leaf(iova: u64, entry: u64) -> Leaf {
    Leaf { iova, phys: entry & ADDRESS, write: entry & WRITE != 0 }
}
