//! AMD-Vi.
//!
//! All units share one device table with an entry for each of the 65,536
//! requester ids there can be, and get every command. An entry starts out, and
//! ends up after [`Iommu::detach`], as [`DeviceEntry::blocked`]: valid,
//! translating, with neither read nor write permission and interrupts aborted.
//! (An entry that is not valid would let everything through.)
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "addresses within tables of our own"
)]

mod entry;
mod unit;

use heapless::Vec;

use super::queue::{self, Command};
use super::{
    Error, Event, Iommu, MAX_ATTACHED, Opening, PAGE, Slots, check_domain, check_interrupt,
};
use crate::acpi::MAX_IOMMUS;
use crate::acpi::ivrs::AmdViUnit;
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use crate::table::{AllocFrames, Format};
use entry::{DeviceEntry, INTERRUPT_TABLE, IRTE, MESSAGE_ADDRESS};
use unit::Unit;

const DEVICE_TABLE_FRAMES: usize = 512;
const DEVICE_ENTRY: u64 = 32;
const INTERRUPT_TABLE_FRAMES: usize = 2;

/// All AMD-Vi units of the platform.
#[derive(Debug)]
pub struct AmdVi<IO> {
    io: IO,
    infos: Vec<AmdViUnit, MAX_IOMMUS>,
    units: Vec<Unit<IO>, MAX_IOMMUS>,
    device_table: u64,
    /// An interrupt table for each slot, and one in which no entry is valid.
    interrupts: u64,
    slots: Slots,
    flushes: u64,
}

impl<IO: PhysIo> AmdVi<IO> {
    /// Blocks every requester id and switches all units on.
    pub fn new(
        io: IO,
        infos: &[AmdViUnit],
        pci: &Pci<IO>,
        alloc: AllocFrames<'_>,
    ) -> Result<Self, Error> {
        let too_many = |_| Error::Unsupported("so many units");
        let interrupts =
            alloc((MAX_ATTACHED + 1) * INTERRUPT_TABLE_FRAMES, PAGE).ok_or(Error::Exhausted)?;
        let device_table = alloc(DEVICE_TABLE_FRAMES, PAGE).ok_or(Error::Exhausted)?;
        let mut iommu = Self {
            io: io.clone(),
            infos: Vec::from_slice(infos).map_err(too_many)?,
            units: Vec::new(),
            device_table,
            interrupts,
            slots: Slots::default(),
            flushes: 0,
        };
        let blocked = DeviceEntry::blocked(iommu.table(MAX_ATTACHED));
        for bdf in 0..=u16::MAX {
            iommu.write_entry(Bdf(bdf), blocked, &[0, 1, 2, 3]);
        }
        for info in infos {
            let unit = Unit::start(io.clone(), info, pci, device_table, alloc)?;
            iommu.units.push(unit).map_err(|_| Error::Unsupported("so many units"))?;
        }
        Ok(iommu)
    }

    fn run(&mut self, commands: &[Command]) -> Result<(), Error> {
        queue::run(&mut self.units, |unit| &mut unit.queue, commands)
    }

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

    /// Takes a slot for `bdf` and puts an entry into the device table.
    fn occupy(
        &mut self,
        bdf: Bdf,
        domain_id: u16,
        entry: impl FnOnce(u64) -> DeviceEntry,
    ) -> Result<(), Error> {
        let slot = self.slots.take(bdf, domain_id)?;
        let table = self.table(slot);
        for offset in (0..INTERRUPT_TABLE).step_by(8) {
            self.io.write::<u64>(table + offset, 0);
        }
        // The word that grants DMA comes last: a half-written entry blocks.
        self.write_entry(bdf, entry(table), &[3, 1, 2, 0]);
        self.run(&[
            entry::invalidate_device(bdf.0),
            entry::invalidate_domain(domain_id),
            entry::invalidate_interrupts(bdf.0),
        ])
    }
}

impl<IO: PhysIo + Send> Iommu for AmdVi<IO> {
    fn name(&self) -> &'static str {
        "AMD-Vi"
    }

    fn format(&self) -> Format {
        entry::FORMAT
    }

    fn attach(&mut self, bdf: Bdf, domain_id: u16, root: u64) -> Result<(), Error> {
        // A function that is seen under another id, or under none, would not
        // be confined by its own entry.
        match self.infos.iter().find_map(|i| i.serves(bdf.0)) {
            Some(alias) if alias.is_none_or(|a| a == bdf.0) => {}
            _ => return Err(Error::NotServed),
        }
        check_domain(domain_id, root)?;
        self.occupy(bdf, domain_id, |table| DeviceEntry::attached(domain_id, root, table))
    }

    fn attach_interrupts(&mut self, bdf: Bdf) -> Result<(), Error> {
        self.occupy(bdf, 0, DeviceEntry::interrupts)
    }

    fn detach(&mut self, bdf: Bdf) -> Result<(), Error> {
        let (slot, domain_id) = self.slots.find(bdf)?;
        let blocked = DeviceEntry::blocked(self.table(MAX_ATTACHED));
        // DMA first, then interrupts; the domain id last, so that nothing is
        // cached under another one meanwhile.
        self.write_entry(bdf, blocked, &[0, 2, 3, 1]);
        self.flushes = self.flushes.wrapping_add(1);
        self.run(&[
            // The entry before what was reached through it: a walk that began
            // with the old entry must not refill what was just emptied.
            entry::invalidate_device(bdf.0),
            entry::invalidate_domain(domain_id),
            entry::invalidate_interrupts(bdf.0),
        ])?;
        // On failure the slot stays taken: the IOMMU may still read its table.
        self.slots.give_back(slot);
        Ok(())
    }

    fn flush_all(&mut self, domain_id: u16) -> Result<(), Error> {
        self.flushes = self.flushes.wrapping_add(1);
        self.run(&[entry::invalidate_domain(domain_id)])
    }

    fn flush_added(&mut self, domain_id: u16) -> Result<(), Error> {
        if self.units.iter().any(|u| u.caches_absent) { self.flush_all(domain_id) } else { Ok(()) }
    }

    fn interrupt_map(
        &mut self,
        bdf: Bdf,
        index: u16,
        vector: u8,
        apic_id: u32,
    ) -> Result<Message, Error> {
        let (slot, _) = self.slots.find(bdf)?;
        let apic_id = check_interrupt(index, vector, apic_id)?;
        // The index travels in bits 10:0 of the message, of which 10:8 are the
        // delivery mode: those stay "fixed".
        let at = self.table(slot) + u64::from(index) * IRTE;
        self.io.write::<u32>(at, entry::interrupt_entry(vector, apic_id));
        self.run(&[entry::invalidate_interrupts(bdf.0)])?;
        Ok(Message { address: MESSAGE_ADDRESS, data: index.into() })
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.units.iter_mut().find_map(Unit::poll_event)
    }

    fn openings(&self, visit: &mut dyn FnMut(Opening)) {
        let blocked = DeviceEntry::blocked(self.table(MAX_ATTACHED));
        for bdf in (0..=u16::MAX).map(Bdf) {
            let at = self.device_table + u64::from(bdf.0) * DEVICE_ENTRY;
            let entry = DeviceEntry([0, 8, 16, 24].map(|offset| self.io.read::<u64>(at + offset)));
            let (domain_id, root) = entry.domain();
            match self.slots.find(bdf).map(|(slot, _)| self.table(slot)) {
                _ if entry == blocked => {}
                Ok(table) if entry == DeviceEntry::interrupts(table) => {}
                Ok(table) if entry == DeviceEntry::attached(domain_id, root, table) => {
                    visit(Opening::Memory { bdf, domain_id, root });
                }
                _ => visit(Opening::Odd(at)),
            }
        }
        for (slot, owner) in self.slots.0.iter().chain([&None]).enumerate() {
            for (index, offset) in (0_u16..).zip((0..INTERRUPT_TABLE).step_by(IRTE as usize)) {
                let at = self.table(slot) + offset;
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

    fn flushes(&self) -> u64 {
        self.flushes
    }
}
