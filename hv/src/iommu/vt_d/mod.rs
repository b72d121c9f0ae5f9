//! VT-d, in legacy mode.
//!
//! All units share one root table, one context table for each bus that has a
//! function, and one interrupt remapping table, and get every command. What
//! has no entry is blocked: a function before [`Iommu::attach`] and after
//! [`Iommu::detach`], and every requester id that belongs to no function.
#![expect(clippy::arithmetic_side_effects, reason = "addresses within tables of our own")]

mod entry;
mod unit;

use alloc::{boxed::Box, vec::Vec};

use super::queue::{self, Command};
use super::{Error, Event, INDEXES, Iommu, Kind, MAX_ATTACHED, Opening, PAGE, Slots};
use crate::acpi::dmar::{Dmar, Named};
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use crate::table::{AllocFrames, Format};
use unit::Unit;

/// Entries of the interrupt table: those of all slots, one after the other.
const INTERRUPTS: usize = INDEXES as usize * MAX_ATTACHED;
/// log2 of that, less one, as the register wants it.
const INTERRUPTS_SIZE: u64 = INTERRUPTS.ilog2() as u64 - 1;
/// Bytes of an entry of any table, and how many a frame holds.
const ENTRY: u64 = 16;
const ENTRIES: usize = 256;

/// All VT-d units of the platform.
#[derive(Debug)]
struct VtD<IO> {
    io: IO,
    units: Vec<Unit<IO>>,
    format: Format,
    root_table: u64,
    interrupts: u64,
}

/// Blocks every requester id and switches all units on.
pub(super) fn start<IO: PhysIo + Send + 'static>(
    io: IO,
    info: &Dmar,
    pci: &Pci<IO>,
    alloc: AllocFrames<'_>,
) -> Result<Iommu, Error> {
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
    let interrupts = alloc(INTERRUPTS / ENTRIES, PAGE).ok_or(Error::Exhausted)?;
    let mut kind = VtD { io: io.clone(), units: Vec::new(), format, root_table, interrupts };
    kind.clear(root_table, PAGE);
    kind.clear(interrupts, INTERRUPTS as u64 * ENTRY);
    let mut served = Vec::new();
    for function in pci.functions() {
        let root = root_table + u64::from(function.bdf.bus()) * ENTRY;
        if io.read::<u64>(root) == 0 {
            let contexts = alloc(1, PAGE).ok_or(Error::Exhausted)?;
            kind.clear(contexts, PAGE);
            kind.write(root, contexts | entry::PRESENT);
        }
        let within = |named: &Named| {
            let mut path = pci.bridges_above(function.bdf).chain([function]);
            path.any(|f| named.contains(&f.bdf.0))
        };
        if (info.all || within(&info.served)) && !within(&info.reserved) {
            served.push(function.bdf);
        }
    }
    let tables = [root_table, interrupts | INTERRUPTS_SIZE];
    for &mmio in &info.units {
        kind.units.push(Unit::start(io.clone(), mmio, tables, alloc)?);
    }
    Ok(Iommu {
        name: "VT-d",
        format,
        flushes: 0,
        caches_absent,
        served,
        kind: Box::new(kind),
        slots: Slots::default(),
    })
}

impl<IO: PhysIo> VtD<IO> {
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
    fn context(&self, bdf: Bdf) -> Option<u64> {
        match self.io.read::<u64>(self.root_table + u64::from(bdf.bus()) * ENTRY) {
            0 => None,
            root => Some((root & !(PAGE - 1)) + u64::from(bdf.0 & 0xff) * ENTRY),
        }
    }

    /// The part of the interrupt table that is a slot's.
    fn table(&self, slot: usize) -> u64 {
        self.interrupts + slot as u64 * u64::from(INDEXES) * ENTRY
    }
}

impl<IO: PhysIo + Send> Kind for VtD<IO> {
    fn open(&mut self, bdf: Bdf, _: usize, memory: Option<(u16, u64)>) {
        // Its interrupt entries are empty, and without memory no context entry
        // lets DMA in.
        if let (Some((domain_id, root)), Some(at)) = (memory, self.context(bdf)) {
            let [low, high] = entry::context(domain_id, root, self.format.levels);
            // The word that makes it count comes last: a half-written entry blocks.
            self.write(at + 8, high);
            self.write(at, low);
        }
    }

    fn close(&mut self, bdf: Bdf, slot: usize) {
        if let Some(at) = self.context(bdf) {
            self.clear(at, ENTRY);
        }
        self.clear(self.table(slot), u64::from(INDEXES) * ENTRY);
    }

    fn set_interrupt(&mut self, bdf: Bdf, slot: usize, index: u16, to: (u8, u8)) -> Message {
        let at = self.table(slot) + u64::from(index) * ENTRY;
        let number = (at - self.interrupts) / ENTRY;
        let [low, high] = entry::interrupt(bdf, to.0, to.1);
        // Absent while its halves do not belong together.
        self.write(at, 0);
        self.write(at + 8, high);
        self.write(at, low);
        Message { address: entry::message_address(number), data: 0 }
    }

    fn forget(&self, _: Bdf, domain_id: u16) -> [Command; 3] {
        let translations = entry::invalidate_domain(domain_id);
        [entry::INVALIDATE_CONTEXTS, translations, entry::INVALIDATE_INTERRUPTS]
    }

    fn run(&mut self, commands: &[Command]) -> Result<(), Error> {
        queue::run(&mut self.units, |unit| &mut unit.queue, commands)
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.units.iter_mut().find_map(Unit::poll_event)
    }

    fn openings(&self, slots: &Slots, visit: &mut dyn FnMut(Opening)) {
        for bus in 0..=u8::MAX {
            let at = self.root_table + u64::from(bus) * ENTRY;
            match self.read(at) {
                [low, 0] if low & (PAGE - 1) == entry::PRESENT => {}
                [0, 0] => continue,
                // It may lead anywhere.
                _ => {
                    visit(Opening::Odd(at));
                    continue;
                }
            }
            for bdf in (0..=u8::MAX).map(|devfn| Bdf(u16::from_be_bytes([bus, devfn]))) {
                let Some(at) = self.context(bdf) else { continue };
                let found = self.read(at);
                let (domain_id, root) = entry::domain(found);
                if found == entry::context(domain_id, root, self.format.levels) {
                    visit(Opening::Memory { bdf, domain_id, root });
                } else if found != [0, 0] {
                    visit(Opening::Odd(at));
                }
            }
        }
        for (slot, owner) in slots.0.iter().enumerate() {
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
}
