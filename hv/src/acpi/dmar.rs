//! The DMA Remapping Reporting table: which Intel IOMMUs there are. (Intel
//! VT-d specification, document D51397, chapter 8.)
//!
//! All units share their tables and get every command, so it does not matter
//! which of them serves whom, only who is served at all.

use alloc::vec::Vec;

use super::Platform;
use super::table::{Error, MALFORMED, OTHER_SEGMENT, Table};
use crate::phys::PhysIo;

/// Functions by their requester ids; a bridge stands for all behind it, too.
pub type Named = Vec<u16>;

/// What the table says.
#[derive(Clone, Debug, Default)]
pub struct Dmar {
    /// Physical addresses of the units' registers.
    pub units: Vec<u64>,
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
    const PAGE: u64 = 4096;
    let info = &mut platform.vt_d;
    for part in dmar.parts(48, 8, |at| Ok(dmar.get::<[u16; 2]>(at)?[1].into())) {
        let part = part?;
        let kind: u16 = part.get(0)?;
        // Another PCI segment: nothing would hold its functions back.
        if kind <= 1 && part.get::<u16>(6)? != 0 {
            return Err(part.error(OTHER_SEGMENT));
        }
        match kind {
            0 => {
                let mmio: u64 = part.get(8)?;
                if mmio == 0 || !mmio.is_multiple_of(PAGE) {
                    return Err(part.error(MALFORMED));
                }
                info.units.push(mmio);
                info.all |= part.get::<u8>(4)? & 1 != 0;
                read_scopes(&part, 16, |kind, id, source, direct| match kind {
                    IOAPIC => platform.ioapic_sources.push((id, source)),
                    // Of a longer path only the end is served, and that is not in sight.
                    ENDPOINT | BRIDGE if direct => info.served.push(source),
                    _ => {}
                })?;
            }
            1 => read_scopes(&part, 24, |_, _, source, _| info.reserved.push(source))?,
            _ => {}
        }
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
    at: u64,
    mut visit: impl FnMut(u8, u8, u16, bool),
) -> Result<(), Error> {
    for scope in part.parts(at, 8, |at| Ok(part.get::<[u8; 2]>(at)?[1].into())) {
        let scope = scope?;
        let [kind, _, _, _, id, bus, device, function] = scope.get(0)?;
        let source = u16::from_be_bytes([bus, device << 3 | function & 7]);
        visit(kind, id, source, scope.size() == 8);
    }
    Ok(())
}
