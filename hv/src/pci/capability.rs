//! The lists of capabilities.

use super::Bdf;
use super::config::{Ecam, register};
use crate::phys::PhysIo;

/// MSI.
pub const MSI: u8 = 0x05;
/// Vendor-specific.
pub const VENDOR: u8 = 0x09;
/// PCI Express.
pub const PCI_EXPRESS: u8 = 0x10;
/// MSI-X.
pub const MSI_X: u8 = 0x11;

/// Extended: access control services.
pub const ACS: u16 = 0x0d;
/// Extended: address translation services.
pub const ATS: u16 = 0x0f;
/// Extended: page requests.
pub const PRI: u16 = 0x13;
/// Extended: process address spaces.
pub const PASID: u16 = 0x1b;

/// Where capabilities may begin.
const FIRST: u8 = 0x40;
/// More do not fit, so a longer list is a circle.
const MOST: usize = 48;
/// Where extended capabilities begin.
const FIRST_EXTENDED: u16 = 0x100;
/// Likewise.
const MOST_EXTENDED: usize = 480;

/// Ids and offsets of a function's capabilities.
pub fn all<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> impl Iterator<Item = (u8, u16)> {
    const HAS_LIST: u16 = 1 << 4;
    let listed = ecam.read::<u16>(bdf, register::STATUS) & HAS_LIST != 0;
    let mut at = if listed { ecam.read::<u8>(bdf, register::CAPABILITIES) & !3 } else { 0 };
    core::iter::from_fn(move || {
        let here = (at >= FIRST).then_some(u16::from(at))?;
        let [found, next] = ecam.read::<u16>(bdf, here).to_le_bytes();
        at = next & !3;
        Some((found, here))
    })
    .take(MOST)
}

/// The offset of the capability `id`.
pub fn find<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf, id: u8) -> Option<u16> {
    all(ecam, bdf).find(|&(found, _)| found == id).map(|(_, at)| at)
}

/// Ids and offsets of a function's extended capabilities.
pub fn extended<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> impl Iterator<Item = (u16, u16)> {
    let mut at = FIRST_EXTENDED;
    core::iter::from_fn(move || {
        let here = (at >= FIRST_EXTENDED).then_some(at)?;
        let [a, b, c, d] = ecam.read::<u32>(bdf, here).to_le_bytes();
        at = u16::from_le_bytes([c, d]) >> 4 & !3;
        Some((u16::from_le_bytes([a, b]), here)).filter(|&(id, _)| !matches!(id, 0 | u16::MAX))
    })
    .take(MOST_EXTENDED)
}
