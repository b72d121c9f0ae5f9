//! What stands between devices and memory.
//!
//! From the moment [`init`] returns, no function can reach memory or raise an
//! interrupt unless it was attached. Without an IOMMU there is no [`Iommu`],
//! and then no device may be given to a domain: nothing would confine it.
//!
//! Every change of a table ends with the invalidations that it needs and waits
//! until the IOMMU has carried them out; when a call returns `Ok`, no device
//! acts on the old state any more. When one returns [`Error::Hardware`], that
//! is not known, and all owners of devices must be considered unconfined.

mod amd_vi;
mod queue;
mod vt_d;

use alloc::{boxed::Box, vec::Vec};
use core::fmt;

use crate::acpi::Platform;
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use crate::table::{AllocFrames, Format};
use queue::Command;

/// Most functions and I/O APICs that can be attached at a time.
const MAX_ATTACHED: usize = 16;
/// Interrupts of a function that can be mapped.
const INDEXES: u16 = 256;
const PAGE: u64 = 4096;
/// How often a value is read before a unit counts as broken. A read of a
/// cached word and a pause take some tens of cycles, so this is about a second.
const PATIENCE: u32 = if cfg!(test) { 10_000 } else { 20_000_000 };

/// Why an IOMMU operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The IOMMU did not carry out a command in time, or stopped; or a table
    /// holds what we never wrote.
    Hardware,
    /// No IOMMU serves this function under its own requester id, or the
    /// firmware keeps using it.
    NotServed,
    /// The function is attached or the page mapped already, or is not.
    BadState,
    /// An argument is out of its range.
    BadArgument,
    /// Out of interrupt tables or frames.
    Exhausted,
    /// The IOMMU or its description lacks something that we need.
    Unsupported(&'static str),
}

/// Something that a device did and the IOMMU did not like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who did it; 0 if the event is about the IOMMU itself.
    pub bdf: Bdf,
    /// Where: the I/O virtual address, or the address of a broken table.
    pub address: u64,
    /// What happened.
    pub kind: EventKind,
}

/// Kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A read that the tables do not allow.
    Read,
    /// A write that the tables do not allow.
    Write,
    /// An interrupt message that the tables do not allow.
    Interrupt,
    /// Events were lost because there were too many.
    Overflow,
    /// Something else (a broken table or command, a device that does not answer),
    /// with the number the IOMMU gives it.
    Other(u8),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused by the IOMMU: {:?} at {:#x} by {}", self.kind, self.address, self.bdf)
    }
}

/// Something that the tables let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// DMA of a function, by the page table at `root`.
    Memory { bdf: Bdf, domain_id: u16, root: u64 },
    /// An interrupt of a function.
    Interrupt { bdf: Bdf, index: u16, vector: u8, apic_id: u8 },
    /// An entry, at this address, that we never wrote there.
    Odd(u64),
}

/// What kinds of IOMMUs differ in: their tables and their commands.
trait Kind: Send {
    /// Lets `bdf` through: to the memory of a (domain id, root of a page table)
    /// if there is one, and interrupts by the part of the tables that is its
    /// slot's, where it finds none.
    fn open(&mut self, bdf: Bdf, slot: usize, memory: Option<(u16, u64)>);

    /// Blocks `bdf`.
    fn close(&mut self, bdf: Bdf, slot: usize);

    /// Has an interrupt of `bdf` arrive and returns what it is to send.
    fn set_interrupt(&mut self, bdf: Bdf, slot: usize, index: u16, to: (u8, u8)) -> Message;

    /// Commands to forget the entry of `bdf`, a domain's translations and the
    /// interrupts of `bdf`, in this order: a walk that began with the old entry
    /// must not refill what was just emptied.
    fn forget(&self, bdf: Bdf, domain_id: u16) -> [Command; 3];

    /// Returns once all units have carried out the commands.
    fn run(&mut self, commands: &[Command]) -> Result<(), Error>;

    /// See [`Iommu::poll_event`].
    fn poll_event(&mut self) -> Option<Event>;

    /// See [`Iommu::openings`].
    fn openings(&self, slots: &Slots, visit: &mut dyn FnMut(Opening));
}

/// An IOMMU, or several that act as one.
pub struct Iommu {
    /// What it is called.
    pub name: &'static str,
    /// How page tables have to look.
    pub format: Format,
    /// Invalidations of translations since boot.
    pub flushes: u64,
    /// It also remembers what was absent.
    caches_absent: bool,
    /// Functions that its tables confine.
    served: Vec<Bdf>,
    kind: Box<dyn Kind>,
    slots: Slots,
}

impl Iommu {
    /// Confines the DMA of `bdf` to the page table at `root` and gives it
    /// interrupts of its own, none at first. Domain id 0 is not allowed.
    pub fn attach(&mut self, bdf: Bdf, domain_id: u16, root: u64) -> Result<(), Error> {
        if !self.served.contains(&bdf) {
            return Err(Error::NotServed);
        }
        // All IOMMUs have 256 domains (QEMU 7.2's AMD-Vi has no more); VT-d
        // files blocked functions under 0.
        if !(1..=255).contains(&domain_id) || root == 0 || !root.is_multiple_of(PAGE) {
            return Err(Error::BadArgument);
        }
        self.occupy(bdf, domain_id, Some((domain_id, root)))
    }

    /// Gives `bdf` interrupts, none at first, but no memory: for I/O APICs.
    pub fn attach_interrupts(&mut self, bdf: Bdf) -> Result<(), Error> {
        self.occupy(bdf, 0, None)
    }

    fn occupy(&mut self, bdf: Bdf, id: u16, memory: Option<(u16, u64)>) -> Result<(), Error> {
        let slot = self.slots.take(bdf, id)?;
        self.kind.open(bdf, slot, memory);
        let commands = self.kind.forget(bdf, id);
        self.kind.run(&commands)
    }

    /// Blocks DMA and interrupts of `bdf`. On `Ok`, none of them is on its way
    /// any more and nothing of its translations is cached.
    pub fn detach(&mut self, bdf: Bdf) -> Result<(), Error> {
        let (slot, domain_id) = self.slots.find(bdf)?;
        self.kind.close(bdf, slot);
        self.flushes = self.flushes.wrapping_add(1);
        let commands = self.kind.forget(bdf, domain_id);
        self.kind.run(&commands)?;
        // On failure the slot stays taken: its tables may still be read or remembered.
        self.slots.give_back(slot);
        Ok(())
    }

    /// After entries of a domain's page table were removed or restricted.
    pub fn flush_all(&mut self, domain_id: u16) -> Result<(), Error> {
        self.flushes = self.flushes.wrapping_add(1);
        let [_, translations, _] = self.kind.forget(Bdf(0), domain_id);
        self.kind.run(&[translations])
    }

    /// After entries were added where there were none. Free of charge unless
    /// the IOMMU also remembers what was absent.
    pub fn flush_added(&mut self, domain_id: u16) -> Result<(), Error> {
        if self.caches_absent { self.flush_all(domain_id) } else { Ok(()) }
    }

    /// Has interrupt `index` of `bdf` arrive as `vector` at a core. Returns
    /// the message that the function must be programmed with.
    pub fn interrupt_map(
        &mut self,
        bdf: Bdf,
        index: u16,
        vector: u8,
        apic_id: u32,
    ) -> Result<Message, Error> {
        const FIRST_VECTOR: u8 = 16;
        let (slot, _) = self.slots.find(bdf)?;
        let apic_id = u8::try_from(apic_id).map_err(|_| Error::Unsupported("APIC id above 255"))?;
        if index >= INDEXES || vector < FIRST_VECTOR {
            return Err(Error::BadArgument);
        }
        let message = self.kind.set_interrupt(bdf, slot, index, (vector, apic_id));
        let [_, _, interrupts] = self.kind.forget(bdf, 0);
        self.kind.run(&[interrupts])?;
        Ok(message)
    }

    /// The next event that was reported, if any. Never waits for one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.kind.poll_event()
    }

    /// Shows all that the tables let through, as they stand in memory.
    pub fn openings(&self, visit: &mut dyn FnMut(Opening)) {
        self.kind.openings(&self.slots, visit);
    }
}

/// An IOMMU, and the memory of its tables and queues: (address, bytes).
pub type Found = (Iommu, Vec<(u64, u64)>);

/// Finds the IOMMU and has it block every function there can be. `None` if
/// the platform has none. Bus mastering must be off already.
///
/// The I/O APICs' interrupts are attached, as [`Iommu::attach_interrupts`] does.
pub fn init<IO: PhysIo + Send + 'static>(
    io: IO,
    platform: &Platform,
    pci: &Pci<IO>,
    alloc: AllocFrames<'_>,
) -> Result<Option<Found>, Error> {
    let mut memory = Vec::new();
    let mut alloc = |count, align| {
        let at = alloc(count, align)?;
        memory.push((at, (count as u64).saturating_mul(PAGE)));
        Some(at)
    };
    let mut iommu = match (&*platform.amd_vi, &*platform.vt_d.units) {
        ([], []) => return Ok(None),
        (units, []) => amd_vi::start(io, units, pci, &mut alloc)?,
        ([], _) => vt_d::start(io, &platform.vt_d, pci, &mut alloc)?,
        _ => return Err(Error::Unsupported("both IVRS and DMAR")),
    };
    for &(_, source) in &platform.ioapic_sources {
        match iommu.attach_interrupts(Bdf(source)) {
            // I/O APICs may share a requester id.
            Ok(()) | Err(Error::BadState) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some((iommu, memory)))
}

/// Who is attached. The place in the list says which part of the interrupt
/// tables is whose.
#[derive(Debug, Default)]
struct Slots([Option<(Bdf, u16)>; MAX_ATTACHED]);

impl Slots {
    /// The slot of `bdf` and its domain id (0 = interrupts only).
    fn find(&self, bdf: Bdf) -> Result<(usize, u16), Error> {
        let found = |(slot, owner): (_, &Option<_>)| match *owner {
            Some((owner, domain_id)) if owner == bdf => Some((slot, domain_id)),
            _ => None,
        };
        self.0.iter().enumerate().find_map(found).ok_or(Error::BadState)
    }

    /// A slot for `bdf`.
    fn take(&mut self, bdf: Bdf, domain_id: u16) -> Result<usize, Error> {
        if self.find(bdf).is_ok() {
            return Err(Error::BadState);
        }
        let mut places = self.0.iter_mut().enumerate();
        let (slot, place) = places.find(|(_, p)| p.is_none()).ok_or(Error::Exhausted)?;
        *place = Some((bdf, domain_id));
        Ok(slot)
    }

    fn give_back(&mut self, slot: usize) {
        if let Some(place) = self.0.get_mut(slot) {
            *place = None;
        }
    }
}
