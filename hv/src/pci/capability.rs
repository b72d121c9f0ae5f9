//! The list of capabilities.

use super::Bdf;
use super::config::{Ecam, register};
use crate::phys::PhysIo;

/// MSI.
pub const MSI: u8 = 0x05;
/// PCI Express.
pub const PCI_EXPRESS: u8 = 0x10;
/// MSI-X.
pub const MSI_X: u8 = 0x11;

/// Where capabilities may begin.
const FIRST: u8 = 0x40;
/// More do not fit, so a longer list is a circle.
const MOST: usize = 48;

/// The offset of the capability `id`.
pub fn find<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf, id: u8) -> Option<u16> {
    const HAS_LIST: u16 = 1 << 4;
    if ecam.read16(bdf, register::STATUS) & HAS_LIST == 0 {
        return None;
    }
    let mut at = ecam.read8(bdf, register::CAPABILITIES) & !3;
    for _ in 0..MOST {
        if at < FIRST {
            return None;
        }
        let [found, next] = ecam.read16(bdf, at.into()).to_le_bytes();
        if found == id {
            return Some(at.into());
        }
        at = next & !3;
    }
    None
}
