//! Configuration space through ECAM.

use super::Bdf;
use crate::acpi::EcamInfo;
use crate::phys::{PhysIo, Word};

/// Registers that all functions, or all of one header type, have.
pub mod register {
    /// Vendor id, 16 bits; all ones = no function.
    pub const VENDOR: u16 = 0x00;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision, interface, subclass, class.
    pub const CLASS: u16 = 0x08;
    /// Header type, 8 bits; bit 7 = several functions.
    pub const HEADER: u16 = 0x0e;
    /// The first BAR.
    pub const BAR0: u16 = 0x10;
    /// Bridges: primary, secondary, subordinate bus.
    pub const BUSES: u16 = 0x18;
    /// The first capability, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Bridges: control, 16 bits.
    pub const BRIDGE_CONTROL: u16 = 0x3e;
}

/// Bits of the command register.
pub mod command {
    /// Answers to I/O ports.
    pub const IO: u16 = 1 << 0;
    /// Answers to memory.
    pub const MEMORY: u16 = 1 << 1;
    /// May issue requests, MSI and MSI-X among them.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Must not use its interrupt pin.
    pub const NO_INTX: u16 = 1 << 10;
}

/// Bytes of a function's configuration space.
const SPACE: u16 = 4096;

/// The memory-mapped configuration space of a segment.
#[derive(Clone, Debug)]
pub struct Ecam<IO> {
    io: IO,
    info: EcamInfo,
}

impl<IO: PhysIo> Ecam<IO> {
    /// The space that the firmware described.
    pub fn new(io: IO, info: EcamInfo) -> Self {
        Self { io, info }
    }

    /// Buses that the space covers.
    pub fn buses(&self) -> core::ops::RangeInclusive<u8> {
        self.info.first_bus..=self.info.last_bus
    }

    /// Address and length of the space.
    pub fn range(&self) -> (u64, u64) {
        const PER_BUS: u64 = 1 << 20;
        let buses = self.buses().len() as u64;
        let start = self.info.base.saturating_add(u64::from(self.info.first_bus) << 20);
        (start, buses.saturating_mul(PER_BUS))
    }

    /// Access to physical memory.
    pub fn io(&self) -> &IO {
        &self.io
    }

    fn address<W: Word>(&self, bdf: Bdf, offset: u16) -> Option<u64> {
        let aligned = usize::from(offset).is_multiple_of(size_of::<W>());
        let fits = aligned && offset < SPACE && self.buses().contains(&bdf.bus());
        let offset = u64::from(bdf.0) << 12 | u64::from(offset);
        if fits { self.info.base.checked_add(offset) } else { None }
    }

    /// Reads a word; all ones where there is none.
    pub fn read<W: Word>(&self, bdf: Bdf, offset: u16) -> W {
        self.address::<W>(bdf, offset).map_or(!W::default(), |a| self.io.read(a))
    }

    /// Writes a word.
    pub fn write<W: Word>(&self, bdf: Bdf, offset: u16, value: W) {
        if let Some(address) = self.address::<W>(bdf, offset) {
            self.io.write(address, value);
        }
    }

    /// Clears and sets bits of the command register. It is read back, so the
    /// write has reached the function when this returns.
    pub fn change_command(&self, bdf: Bdf, clear: u16, set: u16) {
        let old = self.read::<u16>(bdf, register::COMMAND);
        self.write::<u16>(bdf, register::COMMAND, old & !clear | set);
        let _ = self.read::<u16>(bdf, register::COMMAND);
    }
}
