//! The DMA Remapping Reporting table: which Intel IOMMUs there are. (Intel
//! VT-d specification, document D51397, chapter 8.)
//!
//! All units share their tables and get every command, so it does not matter
//! which of them serves whom, only who is served at all.

use heapless::Vec;

use super::table::Table;
use super::{Error, MAX_IOMMUS, Platform};
use crate::phys::PhysIo;

/// Most functions that the table may name.
const MAX_NAMED: usize = 64;

const MALFORMED: Error = Error::Malformed(*b"DMAR");
const TOO_MANY: Error = Error::TooMany(*b"DMAR");

/// Functions by their requester ids; a bridge stands for all behind it, too.
pub type Named = Vec<u16, MAX_NAMED>;

/// What the table says.
#[derive(Clone, Debug, Default)]
pub struct Dmar {
    /// Physical addresses of the units' registers.
    pub units: Vec<u64, MAX_IOMMUS>,
    /// One of them serves all functions that no other unit names.
    pub all: bool,
    /// Functions that a unit names.
    pub served: Named,
    /// Functions that the firmware does DMA with, to memory that it reserved
    /// (RMRR). That DMA is blocked as any other, and nobody may own them.
    pub reserved: Named,
}

/// Reads the table.
pub fn read<IO: PhysIo>(dmar: &Table<'_, IO>, platform: &mut Platform) -> Result<(), Error> {
    const STRUCTURES: usize = 48;
    const PAGE: u64 = 4096;
    let info = &mut platform.vt_d;
    let mut at = STRUCTURES;
    while at < dmar.size() {
        let kind = dmar.u16(at).ok_or(MALFORMED)?;
        let len = usize::from(dmar.u16(at.saturating_add(2)).ok_or(MALFORMED)?);
        let part = dmar.part(at, len).filter(|_| len >= 8).ok_or(MALFORMED)?;
        // Another PCI segment: nothing would hold its functions back.
        if kind <= 1 && part.u16(6).ok_or(MALFORMED)? != 0 {
            return Err(TOO_MANY);
        }
        match kind {
            0 => {
                let mmio = part.u64(8).filter(|&a| a != 0 && a.is_multiple_of(PAGE));
                info.units.push(mmio.ok_or(MALFORMED)?).map_err(|_| TOO_MANY)?;
                info.all |= part.u8(4).is_some_and(|flags| flags & 1 != 0);
                read_scopes(&part, 16, |kind, id, source, direct| match kind {
                    IOAPIC => platform.ioapic_sources.push((id, source)).map_err(|_| TOO_MANY),
                    // Of a longer path only the end is served, and that is not in sight.
                    ENDPOINT | BRIDGE if direct => info.served.push(source).map_err(|_| TOO_MANY),
                    _ => Ok(()),
                })?;
            }
            1 => read_scopes(&part, 24, |_, _, source, _| {
                info.reserved.push(source).map_err(|_| TOO_MANY)
            })?,
            _ => {}
        }
        at = at.saturating_add(len);
    }
    Ok(())
}

const ENDPOINT: u8 = 1;
const BRIDGE: u8 = 2;
const IOAPIC: u8 = 3;

/// Shows the device scopes from `at` on (section 8.3.1): kind, the id that the
/// firmware numbers it by, the requester id of the first function of its path,
/// whether the path has no other.
fn read_scopes<IO: PhysIo>(
    part: &Table<'_, IO>,
    mut at: usize,
    mut visit: impl FnMut(u8, u8, u16, bool) -> Result<(), Error>,
) -> Result<(), Error> {
    while at < part.size() {
        let len = usize::from(part.u8(at.saturating_add(1)).ok_or(MALFORMED)?);
        let scope = part.part(at, len).filter(|_| len >= 8).ok_or(MALFORMED)?;
        let byte = |at| scope.u8(at).ok_or(MALFORMED);
        let source = u16::from_be_bytes([byte(5)?, byte(6)? << 3 | byte(7)? & 7]);
        visit(byte(0)?, byte(4)?, source, len == 8)?;
        at = at.saturating_add(len);
    }
    Ok(())
}
