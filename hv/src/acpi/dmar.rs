//! The DMA Remapping Reporting table: which Intel IOMMUs there are. (Intel
//! VT-d specification, document D51397, chapter 8.)
//!
//! All units share their tables and get every command, so it does not matter
//! which of them serves whom, only that all functions are served: one unit
//! must be the one for all that no other names. Scopes are read for I/O APICs
//! and for functions that the firmware keeps using.

use heapless::Vec;

use super::table::Table;
use super::{Error, Platform};
use crate::phys::PhysIo;

/// Most functions with reserved memory of one table.
pub const MAX_RESERVED: usize = 16;

const MALFORMED: Error = Error::Malformed(*b"DMAR");
const TOO_MANY: Error = Error::TooMany(*b"DMAR");

/// One VT-d unit.
#[derive(Clone, Debug)]
pub struct VtdUnit {
    /// Physical address of its registers.
    pub mmio: u64,
    /// It serves all functions that no other unit names.
    pub all: bool,
    /// Functions (or bridges above them) that the firmware does DMA with, to
    /// memory that it reserved. That DMA is blocked as any other, and nobody
    /// may own such a function. Only in the first unit.
    pub reserved: Vec<u16, MAX_RESERVED>,
}

/// Reads the table.
pub fn read<IO: PhysIo>(dmar: &Table<'_, IO>, platform: &mut Platform) -> Result<(), Error> {
    const STRUCTURES: usize = 48;
    const PAGE: u64 = 4096;
    let mut reserved = Vec::new();
    let mut at = STRUCTURES;
    while at < dmar.size() {
        let kind = dmar.u16(at).ok_or(MALFORMED)?;
        let len = usize::from(dmar.u16(at + 2).ok_or(MALFORMED)?);
        let part = dmar.part(at, len).filter(|_| len >= 16).ok_or(MALFORMED)?;
        // Another PCI segment: nothing would hold its functions back.
        if kind <= 1 && part.u16(6).ok_or(MALFORMED)? != 0 {
            return Err(TOO_MANY);
        }
        match kind {
            0 => {
                let mmio = part.u64(8).filter(|&a| a != 0 && a.is_multiple_of(PAGE));
                let unit = VtdUnit {
                    mmio: mmio.ok_or(MALFORMED)?,
                    all: part.u8(4).is_some_and(|flags| flags & 1 != 0),
                    reserved: Vec::new(),
                };
                platform.vt_d.push(unit).map_err(|_| TOO_MANY)?;
                read_scopes(&part, 16, |kind, id, source| match kind {
                    3 => platform.ioapic_sources.push((id, source)).map_err(|_| TOO_MANY),
                    _ => Ok(()),
                })?;
            }
            1 => {
                read_scopes(&part, 24, |_, _, source| reserved.push(source).map_err(|_| TOO_MANY))?
            }
            _ => {}
        }
        at = at.saturating_add(len);
    }
    platform.vt_d.first_mut().ok_or(MALFORMED)?.reserved = reserved;
    Ok(())
}

/// Shows device scopes from `at` on: their kind, the id that the firmware
/// numbers them by, and the requester id of the first function of the path.
fn read_scopes<IO: PhysIo>(
    part: &Table<'_, IO>,
    mut at: usize,
    mut visit: impl FnMut(u8, u8, u16) -> Result<(), Error>,
) -> Result<(), Error> {
    while at < part.size() {
        let len = usize::from(part.u8(at.saturating_add(1)).ok_or(MALFORMED)?);
        let scope = part.part(at, len).filter(|_| len >= 8).ok_or(MALFORMED)?;
        let byte = |at| scope.u8(at).ok_or(MALFORMED);
        let source = u16::from_be_bytes([byte(5)?, byte(6)? << 3 | byte(7)? & 7]);
        visit(byte(0)?, byte(4)?, source)?;
        at = at.saturating_add(len);
    }
    Ok(())
}
