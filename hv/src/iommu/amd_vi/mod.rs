//! AMD-Vi.
//!
//! All units share one device table with an entry for each of the 65,536
//! requester ids there can be, and get every command. An entry starts out, and
//! ends up after [`Iommu::detach`], as [`DeviceEntry::blocked`]: valid,
//! translating, with neither read nor write permission and interrupts aborted.
//! (An entry that is not valid would let everything through.)

mod entry;
pub mod page_table;
mod unit;

use heapless::Vec;

use super::{AllocFrames, Error, Event, Iommu};
use crate::acpi::MAX_IOMMUS;
use crate::acpi::ivrs::AmdViUnit;
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use entry::{Command, DeviceEntry, INDEXES, INTERRUPT_TABLE, IRTE, MESSAGE_ADDRESS};
use unit::Unit;

/// Most functions and I/O APICs that can be attached at a time.
pub const MAX_ATTACHED: usize = 16;
/// Highest domain id. More fit, but QEMU 7.2 takes bit 8 for a reserved one.
pub const MAX_DOMAIN_ID: u16 = 255;

const PAGE: u64 = 4096;
const DEVICE_TABLE_FRAMES: usize = 512;
const DEVICE_ENTRY: u64 = 32;
const INTERRUPT_TABLE_FRAMES: usize = 2;

/// An interrupt table and who has it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    table: u64,
    owner: Option<Owner>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    bdf: Bdf,
    /// 0 = interrupts only.
    domain_id: u16,
}

/// All AMD-Vi units of the platform.
#[derive(Debug)]
pub struct AmdVi<IO> {
    io: IO,
    infos: Vec<AmdViUnit, MAX_IOMMUS>,
    units: Vec<Unit<IO>, MAX_IOMMUS>,
    device_table: u64,
    /// An interrupt table in which no entry is valid.
    no_interrupts: u64,
    slots: Vec<Slot, MAX_ATTACHED>,
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
        let mut table = || alloc(INTERRUPT_TABLE_FRAMES, PAGE).ok_or(Error::Exhausted);
        let no_interrupts = table()?;
        let mut slots = Vec::new();
        while slots.push(Slot { table: table()?, owner: None }).is_ok() && !slots.is_full() {}
        let device_table = alloc(DEVICE_TABLE_FRAMES, PAGE).ok_or(Error::Exhausted)?;
        let mut iommu = Self {
            io: io.clone(),
            infos: Vec::from_slice(infos).map_err(|_| Error::Unsupported)?,
            units: Vec::new(),
            device_table,
            no_interrupts,
            slots,
            flushes: 0,
        };
        iommu.clear_interrupts(no_interrupts);
        for bdf in 0..=u16::MAX {
            iommu.write_entry(Bdf(bdf), DeviceEntry::blocked(no_interrupts), &[0, 1, 2, 3]);
        }
        for info in infos {
            let unit = Unit::start(io.clone(), info, pci, device_table, alloc)?;
            iommu.units.push(unit).map_err(|_| Error::Unsupported)?;
        }
        Ok(iommu)
    }

    /// Hands commands to all units and waits until all have carried them out.
    fn run(&mut self, commands: &[Command]) -> Result<(), Error> {
        // All are told before any is waited for; one that fails does not keep
        // the others from being told.
        let mut result = Ok(());
        for unit in &mut self.units {
            result = result.and(unit.submit(commands));
        }
        for unit in &mut self.units {
            result = result.and(unit.wait());
        }
        result
    }

    /// Writes a device table entry, its words in the order given. The unit may
    /// read it between any two of them.
    fn write_entry(&self, bdf: Bdf, entry: DeviceEntry, order: &[u8; 4]) {
        let at = self.device_table + u64::from(bdf.0) * DEVICE_ENTRY;
        for &word in order {
            if let Some(&value) = entry.0.get(usize::from(word)) {
                self.io.write64(at + u64::from(word) * 8, value);
            }
        }
    }

    fn clear_interrupts(&self, table: u64) {
        for offset in (0..INTERRUPT_TABLE).step_by(8) {
            self.io.write64(table + offset, 0);
        }
    }

    fn slot(&self, bdf: Bdf) -> Option<usize> {
        self.slots.iter().position(|s| s.owner.is_some_and(|o| o.bdf == bdf))
    }

    /// Takes a slot for `bdf` and puts an entry into the device table.
    fn occupy(
        &mut self,
        bdf: Bdf,
        domain_id: u16,
        entry: impl FnOnce(u64) -> DeviceEntry,
    ) -> Result<(), Error> {
        if self.slot(bdf).is_some() {
            return Err(Error::BadState);
        }
        let free = self.slots.iter_mut().find(|s| s.owner.is_none()).ok_or(Error::Exhausted)?;
        free.owner = Some(Owner { bdf, domain_id });
        let table = free.table;
        self.clear_interrupts(table);
        // The word that grants DMA comes last: a half-written entry blocks.
        self.write_entry(bdf, entry(table), &[3, 1, 2, 0]);
        self.run(&[
            Command::invalidate_device(bdf.0),
            Command::invalidate_domain(domain_id),
            Command::invalidate_interrupts(bdf.0),
        ])
    }

    fn irte(&self, bdf: Bdf, index: u16) -> Result<u64, Error> {
        let slot = self.slot(bdf).and_then(|i| self.slots.get(i)).ok_or(Error::BadState)?;
        if index >= INDEXES {
            return Err(Error::BadArgument);
        }
        Ok(slot.table + u64::from(index) * IRTE)
    }
}

impl<IO: PhysIo> Iommu for AmdVi<IO> {
    fn attach(&mut self, bdf: Bdf, domain_id: u16, root: u64, levels: u8) -> Result<(), Error> {
        // A function that is seen under another id, or under none, would not
        // be confined by its own entry.
        match self.infos.iter().find_map(|i| i.serves(bdf.0)) {
            Some(alias) if alias.is_none_or(|a| a == bdf.0) => {}
            _ => return Err(Error::NotServed),
        }
        let good = (1..=MAX_DOMAIN_ID).contains(&domain_id)
            && root != 0
            && root.is_multiple_of(PAGE)
            && (1..=4).contains(&levels);
        if !good {
            return Err(Error::BadArgument);
        }
        self.occupy(bdf, domain_id, |interrupts| {
            DeviceEntry::attached(domain_id, root, levels, interrupts)
        })
    }

    fn attach_interrupts(&mut self, bdf: Bdf) -> Result<(), Error> {
        self.occupy(bdf, 0, DeviceEntry::interrupts)
    }

    fn detach(&mut self, bdf: Bdf) -> Result<(), Error> {
        let index = self.slot(bdf).ok_or(Error::BadState)?;
        let domain_id =
            self.slots.get(index).and_then(|s| s.owner).map_or(0, |owner| owner.domain_id);
        // DMA first, then interrupts; the domain id last, so that nothing is
        // cached under another one meanwhile.
        self.write_entry(bdf, DeviceEntry::blocked(self.no_interrupts), &[0, 2, 3, 1]);
        self.flushes = self.flushes.wrapping_add(1);
        self.run(&[
            // The entry before what was reached through it: a walk that began
            // with the old entry must not refill what was just emptied.
            Command::invalidate_device(bdf.0),
            Command::invalidate_domain(domain_id),
            Command::invalidate_interrupts(bdf.0),
        ])?;
        // On failure the slot stays taken: the IOMMU may still read its table.
        if let Some(slot) = self.slots.get_mut(index) {
            slot.owner = None;
        }
        Ok(())
    }

    fn flush_pages(&mut self, domain_id: u16, iova: u64, pages: u64) -> Result<(), Error> {
        self.flushes = self.flushes.wrapping_add(1);
        self.run(&[Command::invalidate_pages(domain_id, iova, pages)])
    }

    fn flush_all(&mut self, domain_id: u16) -> Result<(), Error> {
        self.flushes = self.flushes.wrapping_add(1);
        self.run(&[Command::invalidate_domain(domain_id)])
    }

    fn flush_added(&mut self, domain_id: u16, iova: u64, pages: u64) -> Result<(), Error> {
        if self.units.iter().any(|u| u.caches_absent) {
            return self.flush_pages(domain_id, iova, pages);
        }
        Ok(())
    }

    fn interrupt_map(
        &mut self,
        bdf: Bdf,
        index: u16,
        vector: u8,
        apic_id: u32,
    ) -> Result<Message, Error> {
        const FIRST_VECTOR: u8 = 16;
        let at = self.irte(bdf, index)?;
        let apic_id = u8::try_from(apic_id).map_err(|_| Error::Unsupported)?;
        if vector < FIRST_VECTOR {
            return Err(Error::BadArgument);
        }
        self.io.write32(at, entry::interrupt_entry(vector, apic_id));
        self.run(&[Command::invalidate_interrupts(bdf.0)])?;
        Ok(Message { address: MESSAGE_ADDRESS, data: index.into() })
    }

    fn interrupt_unmap(&mut self, bdf: Bdf, index: u16) -> Result<(), Error> {
        let at = self.irte(bdf, index)?;
        self.io.write32(at, 0);
        self.run(&[Command::invalidate_interrupts(bdf.0)])
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.units.iter_mut().find_map(Unit::poll_event)
    }

    fn flushes(&self) -> u64 {
        self.flushes
    }
}
