//! The I/O Virtualization Reporting Structure: which AMD IOMMUs there are and
//! which requester ids each of them serves.

use heapless::Vec;

use super::table::Table;
use super::{Error, IoApicSources, Platform};
use crate::phys::PhysIo;

/// Most ranges of requester ids of one unit.
const MAX_RANGES: usize = 64;

const MALFORMED: Error = Error::Malformed(*b"IVRS");
const TOO_MANY: Error = Error::TooMany(*b"IVRS");

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
    pub ranges: Vec<Range, MAX_RANGES>,
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
    const BLOCKS: usize = 48;
    const BLOCK_HEADER: usize = 4;
    let mut at = BLOCKS;
    while at < ivrs.size() {
        let kind = ivrs.u8(at).ok_or(MALFORMED)?;
        let len = usize::from(ivrs.u16(at.saturating_add(2)).ok_or(MALFORMED)?);
        let block = ivrs.part(at, len).filter(|_| len >= BLOCK_HEADER).ok_or(MALFORMED)?;
        let entries = match kind {
            0x10 => Some(24),
            0x11 | 0x40 => Some(40),
            _ => None,
        };
        if let Some(entries) = entries {
            read_unit(&block, entries, platform)?;
        }
        at = at.saturating_add(len);
    }
    Ok(())
}

/// One IVHD block, whose device entries begin at `entries`.
fn read_unit<IO: PhysIo>(
    block: &Table<'_, IO>,
    entries: usize,
    platform: &mut Platform,
) -> Result<(), Error> {
    const PAGE: u64 = 4096;
    let units = &mut platform.amd_vi;
    let bdf = block.u16(4).ok_or(MALFORMED)?;
    let mmio = block.u64(8).filter(|&a| a != 0 && a.is_multiple_of(PAGE)).ok_or(MALFORMED)?;
    if block.u16(16).ok_or(MALFORMED)? != 0 {
        // Another PCI segment: none of its functions is ever given away, but
        // nothing would hold them back either.
        return Err(TOO_MANY);
    }
    let known = units.iter().position(|u| u.mmio == mmio);
    if known.is_none() {
        units
            .push(AmdViUnit {
                bdf,
                capability: block.u16(6).ok_or(MALFORMED)?,
                mmio,
                flags: block.u8(1).ok_or(MALFORMED)?,
                ranges: Vec::new(),
            })
            .map_err(|_| TOO_MANY)?;
    }
    let index = known.unwrap_or(units.len().saturating_sub(1));
    let unit = units.get_mut(index).ok_or(MALFORMED)?;
    let mut at = entries;
    let mut open: Option<(u16, Option<u16>)> = None;
    while at < block.size() {
        let kind = block.u8(at).ok_or(MALFORMED)?;
        let len = entry_len(block, at, kind)?;
        let entry = block.part(at, len).ok_or(MALFORMED)?;
        read_entry(&entry, kind, &mut open, &mut unit.ranges, &mut platform.ioapic_sources)?;
        at = at.saturating_add(len);
    }
    if open.is_some() { Err(MALFORMED) } else { Ok(()) }
}

/// Bytes of a device entry; at least 4.
fn entry_len<IO: PhysIo>(block: &Table<'_, IO>, at: usize, kind: u8) -> Result<usize, Error> {
    const NAMED: u8 = 0xf0;
    const NAMED_LEN: usize = 22;
    if kind == NAMED {
        let name = block.u8(at.saturating_add(NAMED_LEN - 1)).ok_or(MALFORMED)?;
        return Ok(NAMED_LEN + usize::from(name));
    }
    Ok(4 << (kind >> 6))
}

/// One device entry. `open` is the range whose end has not come yet.
fn read_entry<IO: PhysIo>(
    entry: &Table<'_, IO>,
    kind: u8,
    open: &mut Option<(u16, Option<u16>)>,
    ranges: &mut Vec<Range, MAX_RANGES>,
    ioapics: &mut IoApicSources,
) -> Result<(), Error> {
    const IOAPIC: u8 = 1;
    let device = entry.u16(1).ok_or(MALFORMED)?;
    let alias = || entry.u16(5).map(Some).ok_or(MALFORMED);
    let mut range =
        |first, last, alias| ranges.push(Range { first, last, alias }).map_err(|_| TOO_MANY);
    match kind {
        0x01 => range(0, u16::MAX, None),
        0x02 | 0x46 => range(device, device, None),
        0x42 => range(device, device, alias()?),
        0x03 | 0x43 | 0x47 if open.is_some() => Err(MALFORMED),
        0x03 | 0x47 => {
            *open = Some((device, None));
            Ok(())
        }
        0x43 => {
            *open = Some((device, alias()?));
            Ok(())
        }
        0x04 => {
            let (first, alias) = open.take().ok_or(MALFORMED)?;
            if first > device {
                return Err(MALFORMED);
            }
            range(first, device, alias)
        }
        0x48 if entry.u8(7) == Some(IOAPIC) => {
            let item = (entry.u8(4).ok_or(MALFORMED)?, entry.u16(5).ok_or(MALFORMED)?);
            if ioapics.contains(&item) {
                return Ok(());
            }
            ioapics.push(item).map_err(|_| TOO_MANY)
        }
        _ => Ok(()),
    }
}
