//! I/O APICs: how interrupts without messages of their own reach a core.
#![expect(clippy::arithmetic_side_effects, reason = "registers of a unit with at most 256 pins")]

use alloc::vec::Vec;

use crate::acpi::{IoApicInfo, Line, Platform};
use crate::iommu::{Error, Iommu};
use crate::pci::Bdf;
use crate::phys::PhysIo;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;
const FIRST_PIN: u32 = 0x10;
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

#[derive(Debug)]
struct Unit {
    info: IoApicInfo,
    pins: u32,
    /// Its requester id, where an IOMMU remaps its interrupts.
    source: Option<Bdf>,
}

/// All I/O APICs.
#[derive(Debug)]
pub struct IoApics<IO> {
    io: IO,
    units: Vec<Unit>,
}

impl<IO: PhysIo> IoApics<IO> {
    /// Takes over all I/O APICs and masks all pins.
    pub fn new(io: IO, platform: &Platform) -> Self {
        let mut this = Self { io, units: Vec::new() };
        for &info in &platform.ioapics {
            let [_, _, last, _] = this.read(info.address, VERSION).to_le_bytes();
            let source = platform.ioapic_sources.iter().find(|(id, _)| *id == info.id);
            let pins = u32::from(last) + 1;
            for pin in 0..pins {
                this.write_pin(info.address, pin, MASKED, 0);
            }
            this.units.push(Unit { info, pins, source: source.map(|&(_, id)| Bdf(id)) });
        }
        this
    }

    /// Has a global system interrupt arrive as `vector` at the core with this
    /// APIC id. `iommu` is the node's, if it has one.
    ///
    /// With an IOMMU the vector is also the index into the interrupt table, so
    /// no two pins may have the same vector, not even on different cores.
    pub fn route(
        &self,
        gsi: u32,
        line: Line,
        vector: u8,
        apic_id: u32,
        iommu: Option<&mut Iommu>,
    ) -> Result<(), Error> {
        let pin_of = |u: &Unit| gsi.checked_sub(u.info.gsi_base).filter(|&pin| pin < u.pins);
        let found = self.units.iter().find_map(|u| Some((u, pin_of(u)?)));
        let (&Unit { info: IoApicInfo { address, .. }, source, .. }, pin) =
            found.ok_or(Error::BadArgument)?;
        let destination = u8::try_from(apic_id).map_err(|_| Error::BadArgument)?;
        let high = match (iommu, source) {
            (Some(iommu), Some(source)) => {
                // Nothing arrives by the old way while the new one is built.
                self.write_pin(address, pin, MASKED, 0);
                let message = iommu.interrupt_map(source, vector.into(), vector, apic_id)?;
                // Bits 19:4 of the address that the pin's message goes to.
                let [low, high, ..] = (message.address >> 4).to_le_bytes();
                u32::from_le_bytes([0, 0, low, high])
            }
            // An IOMMU that does not know the I/O APIC blocks it.
            (Some(_), None) => return Err(Error::NotServed),
            (None, _) => u32::from(destination) << 24,
        };
        let mode =
            if line.level { LEVEL } else { 0 } | if line.active_low { ACTIVE_LOW } else { 0 };
        self.write_pin(address, pin, u32::from(vector) | mode, high);
        Ok(())
    }

    fn write_pin(&self, address: u64, pin: u32, low: u32, high: u32) {
        let register = FIRST_PIN + 2 * pin;
        // Masked while its halves do not belong together.
        self.write(address, register, MASKED);
        self.write(address, register + 1, high);
        self.write(address, register, low);
    }

    fn read(&self, address: u64, register: u32) -> u32 {
        self.io.write::<u32>(address + SELECT, register);
        self.io.read::<u32>(address + WINDOW)
    }

    fn write(&self, address: u64, register: u32, value: u32) {
        self.io.write::<u32>(address + SELECT, register);
        self.io.write::<u32>(address + WINDOW, value);
    }
}
