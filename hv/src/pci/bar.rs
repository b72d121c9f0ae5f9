//! Base address registers.

use super::config::{Ecam, register};
use super::{BARS, Bdf};
use crate::phys::PhysIo;

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory, 32-bit address.
    Memory32,
    /// Memory, 64-bit address; takes the next BAR's register too.
    Memory64,
    /// I/O ports.
    Io,
}

/// An address range of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Physical address (or I/O port) of its first byte.
    pub address: u64,
    /// Bytes, a power of two.
    pub len: u64,
    /// What it decodes.
    pub kind: BarKind,
}

impl Bar {
    /// It is memory.
    pub fn is_memory(&self) -> bool {
        self.kind != BarKind::Io
    }

    /// Some of `start..start + len` is in it.
    pub fn overlaps(&self, start: u64, len: u64) -> bool {
        self.address < start.saturating_add(len) && start < self.address.saturating_add(self.len)
    }

    /// The bytes `offset..offset + len` as a physical address, if they are
    /// memory and within the BAR.
    pub fn slice(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        if self.is_memory() && end <= self.len { self.address.checked_add(offset) } else { None }
    }
}

/// Makes sense of a BAR's value and of what it read after all ones were
/// written. The upper halves are those of the next register.
pub fn decode(value: [u32; 2], probe: [u32; 2]) -> (BarKind, Option<Bar>) {
    const IO: u32 = 1;
    const TYPE: u32 = 0b110;
    const TYPE_64: u32 = 0b100;
    let wide =
        |halves: [u32; 2], flags: u32| u64::from(halves[1]) << 32 | u64::from(halves[0] & !flags);
    let (kind, address, mask) = if value[0] & IO != 0 {
        // The upper 16 bits may be hardwired to zero: treat them as decoded.
        let mask = wide([probe[0] | 0xffff_0000, u32::MAX], 0b11);
        (BarKind::Io, u64::from(value[0] & !0b11), if probe[0] == 0 { 0 } else { mask })
    } else if value[0] & TYPE == TYPE_64 {
        (BarKind::Memory64, wide(value, 0xf), wide(probe, 0xf))
    } else {
        let mask = if probe[0] & !0xf == 0 { 0 } else { wide([probe[0], u32::MAX], 0xf) };
        (BarKind::Memory32, u64::from(value[0] & !0xf), mask)
    };
    // The lowest writable address bit is the size.
    let len = mask & mask.wrapping_neg();
    let usable = len != 0
        && address != 0
        && address.is_multiple_of(len)
        && address.checked_add(len).is_some();
    (kind, usable.then_some(Bar { address, len, kind }))
}

/// Sizes the BARs of a function whose decoding is switched off. The registers
/// are as before when this returns.
pub(super) fn read_all<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> [Option<Bar>; BARS] {
    let mut bars = [None; BARS];
    let mut raw = [0; BARS];
    let mut probe = [0; BARS];
    let registers = || (register::BAR0..).step_by(4);
    for ((raw, probe), offset) in raw.iter_mut().zip(&mut probe).zip(registers()) {
        *raw = ecam.read::<u32>(bdf, offset);
        ecam.write::<u32>(bdf, offset, u32::MAX);
        *probe = ecam.read::<u32>(bdf, offset);
        ecam.write::<u32>(bdf, offset, *raw);
    }
    let mut upper_half = false;
    for (index, slot) in bars.iter_mut().enumerate() {
        if core::mem::take(&mut upper_half) {
            continue;
        }
        let pair = |from: &[u32; BARS]| {
            let at = |i: usize| from.get(i).copied().unwrap_or(0);
            [at(index), at(index.saturating_add(1))]
        };
        let (kind, bar) = decode(pair(&raw), pair(&probe));
        upper_half = kind == BarKind::Memory64;
        *slot = bar;
    }
    bars
}
