//! The I/O Virtualization Reporting Structure: which AMD IOMMUs there are and
//! which requester ids each of them serves.

use alloc::vec::Vec;

use super::Platform;
use super::table::{Error, MALFORMED, OTHER_SEGMENT, Table};
use crate::phys::PhysIo;

/// Requester ids that a unit serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First requester id.
    pub first: u16,
    /// Last requester id.
    pub last: u16,
    /// The IOMMU sees these functions under this id instead of their own.
    pub alias: Option<u16>,
}

/// One AMD IOMMU.
#[derive(Clone, Debug)]
pub struct AmdViUnit {
    /// Its own PCI function.
    pub bdf: u16,
    /// Offset of its capability in that function's configuration space.
    pub capability: u16,
    /// Physical address of its registers.
    pub mmio: u64,
    /// IVHD flags: how HyperTransport is to be set up.
    pub flags: u8,
    /// Whom it serves.
    pub ranges: Vec<Range>,
}

impl AmdViUnit {
    /// `Some(alias)` if the unit serves `bdf`.
    pub fn serves(&self, bdf: u16) -> Option<Option<u16>> {
        // A more special entry may stand beside a general one; an alias wins.
        let mut hits = self.ranges.iter().filter(|r| (r.first..=r.last).contains(&bdf));
        let first = hits.next()?;
        Some(first.alias.or_else(|| hits.find_map(|r| r.alias)))
    }
}

/// Reads the table. The same unit may be described by several blocks for
/// software of different ages; what they say is added up.
pub fn read<IO: PhysIo>(ivrs: &Table<'_, IO>, platform: &mut Platform) -> Result<(), Error> {
    for block in ivrs.parts(48, 4, |at| Ok(ivrs.get::<[u16; 2]>(at)?[1].into())) {
        let block = block?;
        match block.get::<u8>(0)? {
            0x10 => read_unit(&block, 24, platform)?,
            0x11 | 0x40 => read_unit(&block, 40, platform)?,
            _ => {}
        }
    }
    Ok(())
}

/// One IVHD block, whose device entries begin at `entries`.
fn read_unit<IO: PhysIo>(
    block: &Table<'_, IO>,
    entries: u64,
    platform: &mut Platform,
) -> Result<(), Error> {
    const PAGE: u64 = 4096;
    let units = &mut platform.amd_vi;
    let mmio: u64 = block.get(8)?;
    if mmio == 0 || !mmio.is_multiple_of(PAGE) {
        return Err(block.error(MALFORMED));
    }
    if block.get::<u16>(16)? != 0 {
        // Another PCI segment: none of its functions is ever given away, but
        // nothing would hold them back either.
        return Err(block.error(OTHER_SEGMENT));
    }
    if !units.iter().any(|u| u.mmio == mmio) {
        let (flags, bdf, capability) = (block.get(1)?, block.get(4)?, block.get(6)?);
        units.push(AmdViUnit { bdf, capability, mmio, flags, ranges: Vec::new() });
    }
    let unit = units.iter_mut().find(|u| u.mmio == mmio).ok_or(block.error(MALFORMED))?;
    let mut open = None;
    for entry in block.parts(entries, 4, |at| entry_len(block, at)) {
        read_entry(&entry?, &mut open, &mut unit.ranges, &mut platform.ioapic_sources)?;
    }
    if open.is_some() { Err(block.error(MALFORMED)) } else { Ok(()) }
}

/// Bytes of a device entry.
fn entry_len<IO: PhysIo>(block: &Table<'_, IO>, at: u64) -> Result<u64, Error> {
    const NAMED: u8 = 0xf0;
    match block.get::<u8>(at)? {
        NAMED => Ok(22 + u64::from(block.get::<u8>(at.saturating_add(21))?)),
        kind => Ok(4 << (kind >> 6)),
    }
}

/// One device entry. `open` is the range whose end has not come yet.
fn read_entry<IO: PhysIo>(
    entry: &Table<'_, IO>,
    open: &mut Option<(u16, Option<u16>)>,
    ranges: &mut Vec<Range>,
    ioapics: &mut Vec<(u8, u16)>,
) -> Result<(), Error> {
    const IOAPIC: u8 = 1;
    let (kind, device) = (entry.get::<u8>(0)?, entry.get(1)?);
    let alias = || entry.get(5).map(Some);
    let mut range = |first, last, alias| ranges.push(Range { first, last, alias });
    match kind {
        0x01 => range(0, u16::MAX, None),
        0x02 | 0x46 => range(device, device, None),
        0x42 => range(device, device, alias()?),
        0x03 | 0x43 | 0x47 if open.is_some() => return Err(entry.error(MALFORMED)),
        0x03 | 0x47 => *open = Some((device, None)),
        0x43 => *open = Some((device, alias()?)),
        0x04 => match open.take() {
            Some((first, alias)) if first <= device => range(first, device, alias),
            _ => return Err(entry.error(MALFORMED)),
        },
        0x48 if entry.get(7) == Ok(IOAPIC) => {
            let item = (entry.get(4)?, entry.get(5)?);
            if !ioapics.contains(&item) {
                ioapics.push(item);
            }
        }
        _ => {}
    }
    Ok(())
}
