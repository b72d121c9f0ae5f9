//! VT-d, in legacy mode.
//!
//! All units share one root table, one context table for each bus that has a
//! function, and one interrupt remapping table, and get every command. What
//! has no entry is blocked: a function before [`Iommu::attach`] and after
//! [`Iommu::detach`], and every requester id that belongs to no function.
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
    Error, Event, INDEXES, Iommu, MAX_ATTACHED, Opening, PAGE, Slots, check_domain, check_interrupt,
};
use crate::acpi::MAX_IOMMUS;
use crate::acpi::dmar::{Dmar, Named};
use crate::pci::msix::Message;
use crate::pci::{Bdf, MAX_FUNCTIONS, Pci};
use crate::phys::PhysIo;
use crate::table::{AllocFrames, Format};
use unit::Unit;

/// Entries of the interrupt table: those of all slots, one after the other.
const INTERRUPTS: u16 = INDEXES * MAX_ATTACHED as u16;
/// log2 of that, less one, as the register wants it.
const INTERRUPTS_SIZE: u64 = INTERRUPTS.ilog2() as u64 - 1;
/// Bytes of an entry of any table.
const ENTRY: u64 = 16;

/// All VT-d units of the platform.
#[derive(Debug)]
pub struct VtD<IO> {
    io: IO,
    units: Vec<Unit<IO>, MAX_IOMMUS>,
    format: Format,
    /// A unit remembers what was absent.
    caches_absent: bool,
    root_table: u64,
    interrupts: u64,
    /// Functions that may be attached.
    served: Vec<Bdf, MAX_FUNCTIONS>,
    slots: Slots,
    flushes: u64,
}

impl<IO: PhysIo> VtD<IO> {
    /// Blocks every requester id and switches all units on.
    pub fn new(io: IO, info: &Dmar, pci: &Pci<IO>, alloc: AllocFrames<'_>) -> Result<Self, Error> {
        // What all can do, and whether any remembers what was absent.
        let (mut basic, mut extended, mut caches_absent) = (u64::MAX, u64::MAX, false);
        for &mmio in &info.units {
            let this = unit::abilities(&io, mmio)?;
            (basic, extended) = (basic & this[0], extended & this[1]);
            caches_absent |= this[0] >> 7 & 1 != 0;
        }
        let levels = match basic >> 8 & 0b110 {
            0 => return Err(Error::Unsupported("VT-d without tables of three or four levels")),
            0b010 => 3,
            _ => 4,
        };
        let snoop = if extended >> 7 & 1 != 0 { 1 << 11 } else { 0 };
        let write_back = extended & 1 == 0;
        // Section 9.8.
        let format = Format {
            levels,
            largest: 1,
            read: 1 << 0,
            write: 1 << 1,
            leaf_bits: snoop,
            level_shift: None,
            write_back,
        };
        let root_table = alloc(1, PAGE).ok_or(Error::Exhausted)?;
        let interrupts_len = u64::from(INTERRUPTS) * ENTRY;
        let interrupts = alloc((interrupts_len / PAGE) as usize, PAGE).ok_or(Error::Exhausted)?;
        let mut iommu = Self {
            io: io.clone(),
            units: Vec::new(),
            format,
            caches_absent,
            root_table,
            interrupts,
            served: Vec::new(),
            slots: Slots::default(),
            flushes: 0,
        };
        iommu.clear(root_table, PAGE);
        iommu.clear(interrupts, interrupts_len);
        for function in pci.functions() {
            let root = root_table + u64::from(function.bdf.bus()) * ENTRY;
            if io.read::<u64>(root) == 0 {
                let contexts = alloc(1, PAGE).ok_or(Error::Exhausted)?;
                iommu.clear(contexts, PAGE);
                iommu.write(root, contexts | entry::PRESENT);
            }
            let within = |named: &Named| {
                let mut path = pci.bridges_above(function.bdf).chain([function]);
                path.any(|f| named.contains(&f.bdf.0))
            };
            if (info.all || within(&info.served)) && !within(&info.reserved) {
                iommu.served.push(function.bdf).map_err(|_| Error::Exhausted)?;
            }
        }
        let tables = [root_table, interrupts | INTERRUPTS_SIZE];
        for &mmio in &info.units {
            let unit = Unit::start(io.clone(), mmio, tables, alloc)?;
            iommu.units.push(unit).map_err(|_| Error::Exhausted)?;
        }
        Ok(iommu)
    }

    fn run(&mut self, commands: &[Command]) -> Result<(), Error> {
        queue::run(&mut self.units, |unit| &mut unit.queue, commands)
    }

    fn write(&self, at: u64, value: u64) {
        self.io.write::<u64>(at, value);
        if self.format.write_back {
            self.io.write_back(at);
        }
    }

    fn clear(&self, at: u64, len: u64) {
        (0..len).step_by(8).for_each(|offset| self.write(at + offset, 0));
    }

    fn read(&self, at: u64) -> [u64; 2] {
        [self.io.read::<u64>(at), self.io.read::<u64>(at + 8)]
    }

    /// Address of a function's context entry, if its bus has a table.
    fn context(&self, bdf: Bdf) -> Result<u64, Error> {
        match self.io.read::<u64>(self.root_table + u64::from(bdf.bus()) * ENTRY) {
            0 => Err(Error::NotServed),
            root => Ok((root & !(PAGE - 1)) + u64::from(bdf.0 & 0xff) * ENTRY),
        }
    }

    /// The part of the interrupt table that is a slot's.
    fn table(&self, slot: usize) -> u64 {
        self.interrupts + slot as u64 * u64::from(INDEXES) * ENTRY
    }

    /// Invalidates all that may be remembered of a function.
    fn forget(&mut self, domain_id: u16) -> Result<(), Error> {
        // The entry before what was reached through it: a walk that began with
        // the old entry must not refill what was just emptied.
        self.run(&[
            entry::INVALIDATE_CONTEXTS,
            entry::invalidate_domain(domain_id),
            entry::INVALIDATE_INTERRUPTS,
        ])
    }
}

impl<IO: PhysIo + Send> Iommu for VtD<IO> {
    fn name(&self) -> &'static str {
        "VT-d"
    }

    fn format(&self) -> Format {
        self.format
    }

    fn attach(&mut self, bdf: Bdf, domain_id: u16, root: u64) -> Result<(), Error> {
        let at = self.context(bdf)?;
        if !self.served.contains(&bdf) {
            return Err(Error::NotServed);
        }
        check_domain(domain_id, root)?;
        self.slots.take(bdf, domain_id)?;
        let [low, high] = entry::context(domain_id, root, self.format.levels);
        // The word that makes it count comes last: a half-written entry blocks.
        self.write(at + 8, high);
        self.write(at, low);
        self.forget(domain_id)
    }

    fn attach_interrupts(&mut self, bdf: Bdf) -> Result<(), Error> {
        // Its interrupt entries are empty, and no context entry lets DMA in.
        self.slots.take(bdf, 0).map(drop)
    }

    fn detach(&mut self, bdf: Bdf) -> Result<(), Error> {
        let (slot, domain_id) = self.slots.find(bdf)?;
        if let Ok(at) = self.context(bdf) {
            self.write(at, 0);
            self.write(at + 8, 0);
        }
        self.clear(self.table(slot), u64::from(INDEXES) * ENTRY);
        self.flushes = self.flushes.wrapping_add(1);
        self.forget(domain_id)?;
        // On failure the slot stays taken: its entries may still be remembered.
        self.slots.give_back(slot);
        Ok(())
    }

    fn flush_all(&mut self, domain_id: u16) -> Result<(), Error> {
        self.flushes = self.flushes.wrapping_add(1);
        self.run(&[entry::invalidate_domain(domain_id)])
    }

    fn flush_added(&mut self, domain_id: u16) -> Result<(), Error> {
        if self.caches_absent { self.flush_all(domain_id) } else { Ok(()) }
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
        let at = self.table(slot) + u64::from(index) * ENTRY;
        let [low, high] = entry::interrupt(bdf, vector, apic_id);
        // Absent while its halves do not belong together.
        self.write(at, 0);
        self.write(at + 8, high);
        self.write(at, low);
        self.run(&[entry::INVALIDATE_INTERRUPTS])?;
        let number = slot as u16 * INDEXES + index;
        Ok(Message { address: entry::message_address(number), data: 0 })
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.units.iter_mut().find_map(Unit::poll_event)
    }

    fn openings(&self, visit: &mut dyn FnMut(Opening)) {
        for bus in 0..=u8::MAX {
            let at = self.root_table + u64::from(bus) * ENTRY;
            match self.read(at) {
                [0, 0] => continue,
                [low, 0] if low & (PAGE - 1) == entry::PRESENT => {}
                _ => visit(Opening::Odd(at)),
            }
            for bdf in (0..=u8::MAX).map(|devfn| Bdf(u16::from_be_bytes([bus, devfn]))) {
                let Ok(at) = self.context(bdf) else { continue };
                let found = self.read(at);
                let (domain_id, root) = entry::domain(found);
                if found == entry::context(domain_id, root, self.format.levels) {
                    visit(Opening::Memory { bdf, domain_id, root });
                } else if found != [0, 0] {
                    visit(Opening::Odd(at));
                }
            }
        }
        for (slot, owner) in self.slots.0.iter().enumerate() {
            for index in 0..INDEXES {
                let at = self.table(slot) + u64::from(index) * ENTRY;
                let found = self.read(at);
                let [_, _, vector, _, _, apic_id, ..] = found[0].to_le_bytes();
                match *owner {
                    _ if found == [0, 0] => {}
                    Some((bdf, _)) if found == entry::interrupt(bdf, vector, apic_id) => {
                        visit(Opening::Interrupt { bdf, index, vector, apic_id });
                    }
                    _ => visit(Opening::Odd(at)),
                }
            }
        }
    }

    fn flushes(&self) -> u64 {
        self.flushes
    }
}
