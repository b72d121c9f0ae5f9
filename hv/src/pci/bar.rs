//! Base address registers.

use super::config::{Ecam, register};
use super::{BARS, Bdf};
use crate::phys::PhysIo;

/// A range of memory addresses of a function. I/O ports do not count: no domain
/// reaches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Physical address of its first byte.
    pub address: u64,
    /// Bytes, a power of two.
    pub len: u64,
}

impl Bar {
    /// Some of `start..start + len` is in it.
    pub fn overlaps(&self, start: u64, len: u64) -> bool {
        self.address < start.saturating_add(len) && start < self.address.saturating_add(self.len)
    }

    /// The bytes `offset..offset + len` as a physical address, if they are
    /// within the BAR.
    pub fn slice(&self, offset: u64, len: u64) -> Option<u64> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if fits { self.address.checked_add(offset) } else { None }
    }
}

/// Makes sense of a BAR's value and of what it read after all ones were
/// written. The upper halves are those of the next register; returns also
/// whether they belong to this BAR.
pub fn decode(value: [u32; 2], probe: [u32; 2]) -> (bool, Option<Bar>) {
    const IO: u32 = 1;
    const TYPE: u32 = 0b110;
    const TYPE_64: u32 = 0b100;
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low & !0xf);
    let wide = value[0] & (IO | TYPE) == TYPE_64;
    let (address, mask) = match probe[0] & !0xf {
        _ if value[0] & IO != 0 => (0, 0),
        _ if wide => (join(value[0], value[1]), join(probe[0], probe[1])),
        0 => (0, 0),
        low => (join(value[0], 0), join(low, u32::MAX)),
    };
    // The lowest writable address bit is the size.
    let len = mask & mask.wrapping_neg();
    let usable = len != 0
        && address != 0
        && address.is_multiple_of(len)
        && address.checked_add(len).is_some();
    (wide, usable.then_some(Bar { address, len }))
}

/// Sizes the BARs of a function whose decoding is switched off. The registers
/// are as before when this returns.
pub(super) fn read_all<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> [Option<Bar>; BARS] {
    let registers = [0, 4, 8, 12, 16, 20].map(|offset| {
        let offset = register::BAR0.saturating_add(offset);
        let value = ecam.read::<u32>(bdf, offset);
        ecam.write::<u32>(bdf, offset, u32::MAX);
        let probe = ecam.read::<u32>(bdf, offset);
        ecam.write::<u32>(bdf, offset, value);
        (value, probe)
    });
    let mut next = registers.into_iter().skip(1).chain([(0, 0)]);
    let mut upper_half = false;
    registers.map(|(value, probe)| {
        let (next_value, next_probe) = next.next()?;
        if core::mem::take(&mut upper_half) {
            return None;
        }
        let (wide, bar) = decode([value, next_value], [probe, next_probe]);
        upper_half = wide;
        bar
    })
}
