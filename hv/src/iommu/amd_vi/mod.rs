//! AMD-Vi.
//!
//! All units share one device table with an entry for each of the 65,536
//! requester ids there can be, and get every command. An entry starts out, and
//! ends up after [`Iommu::detach`], as [`DeviceEntry::blocked`]: valid,
//! translating, with neither read nor write permission and interrupts aborted.
//! (An entry that is not valid would let everything through.)
#![expect(clippy::arithmetic_side_effects, reason = "addresses within tables of our own")]

mod entry;
mod unit;

use alloc::{boxed::Box, vec::Vec};

use super::queue::{self, Command};
use super::{Error, Event, Iommu, Kind, MAX_ATTACHED, Opening, PAGE, Slots};
use crate::acpi::ivrs::AmdViUnit;
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use crate::table::AllocFrames;
use entry::{DeviceEntry, INTERRUPT_TABLE, INTERRUPTS, IRTE, MESSAGE_ADDRESS};
use unit::Unit;

const DEVICE_TABLE_FRAMES: usize = 512;
const DEVICE_ENTRY: u64 = 32;
const INTERRUPT_TABLE_FRAMES: usize = 2;

/// All AMD-Vi units of the platform.
#[derive(Debug)]
struct AmdVi<IO> {
    io: IO,
    units: Vec<Unit<IO>>,
    device_table: u64,
    /// An interrupt table for each slot, and one in which no entry is valid.
    interrupts: u64,
}

/// Blocks every requester id and switches all units on.
pub(super) fn start<IO: PhysIo + Send + 'static>(
    io: IO,
    infos: &[AmdViUnit],
    pci: &Pci<IO>,
    alloc: AllocFrames<'_>,
) -> Result<Iommu, Error> {
    let interrupts =
        alloc((MAX_ATTACHED + 1) * INTERRUPT_TABLE_FRAMES, PAGE).ok_or(Error::Exhausted)?;
    let device_table = alloc(DEVICE_TABLE_FRAMES, PAGE).ok_or(Error::Exhausted)?;
    let mut kind = AmdVi { io: io.clone(), units: Vec::new(), device_table, interrupts };
    let blocked = DeviceEntry::blocked(kind.table(MAX_ATTACHED));
    for bdf in 0..=u16::MAX {
        kind.write_entry(Bdf(bdf), blocked, &[0, 1, 2, 3]);
    }
    for info in infos {
        kind.units.push(Unit::start(io.clone(), info, pci, device_table, alloc)?);
    }
    // A function that is seen under another id, or under none, would not be
    // confined by its own entry.
    let seen_as = |bdf: Bdf| Some(infos.iter().find_map(|i| i.serves(bdf.0))?.unwrap_or(bdf.0));
    let all = pci.functions().iter().map(|f| f.bdf);
    Ok(Iommu {
        name: "AMD-Vi",
        format: entry::FORMAT,
        flushes: 0,
        caches_absent: kind.units.iter().any(|u| u.caches_absent),
        served: all.filter(|&bdf| seen_as(bdf) == Some(bdf.0)).collect(),
        kind: Box::new(kind),
        slots: Slots::default(),
    })
}

impl<IO: PhysIo> AmdVi<IO> {
    /// The interrupt table of a slot.
    fn table(&self, slot: usize) -> u64 {
        self.interrupts + slot as u64 * INTERRUPT_TABLE
    }

    /// Writes a device table entry, its words in the order given. The unit may
    /// read it between any two of them.
    fn write_entry(&self, bdf: Bdf, entry: DeviceEntry, order: &[u8; 4]) {
        let at = self.device_table + u64::from(bdf.0) * DEVICE_ENTRY;
        for &word in order {
            if let Some(&value) = entry.0.get(usize::from(word)) {
                self.io.write::<u64>(at + u64::from(word) * 8, value);
            }
        }
    }
}

impl<IO: PhysIo + Send> Kind for AmdVi<IO> {
    fn open(&mut self, bdf: Bdf, slot: usize, memory: Option<(u16, u64)>) {
        let table = self.table(slot);
        for offset in (0..INTERRUPT_TABLE).step_by(8) {
            self.io.write::<u64>(table + offset, 0);
        }
        let entry = match memory {
            Some((domain_id, root)) => DeviceEntry::attached(domain_id, root, table),
            None => DeviceEntry::interrupts(table),
        };
        // The word that grants DMA comes last: a half-written entry blocks.
        self.write_entry(bdf, entry, &[3, 1, 2, 0]);
    }

    fn close(&mut self, bdf: Bdf, _: usize) {
        let blocked = DeviceEntry::blocked(self.table(MAX_ATTACHED));
        // DMA first, then interrupts; the domain id last, so that nothing is
        // cached under another one meanwhile.
        self.write_entry(bdf, blocked, &[0, 2, 3, 1]);
    }

    fn set_interrupt(&mut self, _: Bdf, slot: usize, index: u16, to: (u8, u8)) -> Message {
        // The index travels in bits 10:0 of the message, of which 10:8 are the
        // delivery mode: those stay "fixed".
        let at = self.table(slot) + u64::from(index) * IRTE;
        self.io.write::<u32>(at, entry::interrupt_entry(to.0, to.1));
        Message { address: MESSAGE_ADDRESS, data: index.into() }
    }

    fn forget(&self, bdf: Bdf, domain_id: u16) -> [Command; 3] {
        [
            entry::invalidate_device(bdf.0),
            entry::invalidate_domain(domain_id),
            entry::invalidate_interrupts(bdf.0),
        ]
    }

    fn run(&mut self, commands: &[Command]) -> Result<(), Error> {
        queue::run(&mut self.units, |unit| &mut unit.queue, commands)
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.units.iter_mut().find_map(Unit::poll_event)
    }

    fn openings(&self, slots: &Slots, visit: &mut dyn FnMut(Opening)) {
        let blocked = DeviceEntry::blocked(self.table(MAX_ATTACHED));
        for bdf in (0..=u16::MAX).map(Bdf) {
            let at = self.device_table + u64::from(bdf.0) * DEVICE_ENTRY;
            let entry = DeviceEntry([0, 8, 16, 24].map(|offset| self.io.read::<u64>(at + offset)));
            // All but a few.
            if entry == blocked {
                continue;
            }
            let (domain_id, root) = entry.domain();
            match slots.find(bdf).map(|(slot, _)| self.table(slot)) {
                Ok(table) if entry == DeviceEntry::interrupts(table) => {}
                Ok(table) if entry == DeviceEntry::attached(domain_id, root, table) => {
                    visit(Opening::Memory { bdf, domain_id, root });
                }
                _ => visit(Opening::Odd(at)),
            }
        }
        for (slot, owner) in slots.0.iter().chain([&None]).enumerate() {
            for index in 0..INTERRUPTS {
                let at = self.table(slot) + u64::from(index) * IRTE;
                let value = self.io.read::<u32>(at);
                let [_, apic_id, vector, _] = value.to_le_bytes();
                match *owner {
                    _ if value == 0 => {}
                    Some((bdf, _)) if value == entry::interrupt_entry(vector, apic_id) => {
                        visit(Opening::Interrupt { bdf, index, vector, apic_id });
                    }
                    // What the last owner left; nothing leads there.
                    None if slot < MAX_ATTACHED => {}
                    _ => visit(Opening::Odd(at)),
                }
            }
        }
    }
}
