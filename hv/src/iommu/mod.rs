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

pub mod amd_vi;

use crate::acpi::Platform;
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use amd_vi::AmdVi;

/// Why an IOMMU operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The IOMMU did not carry out a command in time, or stopped.
    Hardware,
    /// No IOMMU serves this function under its own requester id.
    NotServed,
    /// The function is attached already, or is not attached.
    BadState,
    /// An argument is out of its range.
    BadArgument,
    /// Out of interrupt tables or frames.
    Exhausted,
    /// The IOMMU or its description lacks something that we need.
    Unsupported,
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
    /// An access that the tables do not allow.
    PageFault {
        /// Domain id of the device's table entry.
        domain_id: u16,
        /// It wanted to write.
        write: bool,
        /// It was an interrupt instead of a memory access.
        interrupt: bool,
    },
    /// A request of a kind that is never allowed.
    InvalidRequest,
    /// A table of ours that the IOMMU finds wrong or cannot read.
    BadTable,
    /// A command of ours that the IOMMU finds wrong or cannot read.
    BadCommand,
    /// A device did not confirm an invalidation.
    DeviceTimeout,
    /// Events were lost because there were too many.
    Overflow,
    /// Something else, with the number the IOMMU gives it.
    Other(u8),
}

/// Frames at boot: `(count, alignment in bytes)` to the address of zeroed,
/// contiguous frames.
pub type AllocFrames<'a> = &'a mut dyn FnMut(usize, u64) -> Option<u64>;

/// An IOMMU, or several that act as one.
pub trait Iommu {
    /// Confines the DMA of `bdf` to the page table at `root` (`levels` levels)
    /// and gives it an interrupt table of its own, empty at first. Domain id 0
    /// is not allowed.
    fn attach(&mut self, bdf: Bdf, domain_id: u16, root: u64, levels: u8) -> Result<(), Error>;

    /// Gives `bdf` an empty interrupt table but no memory: for I/O APICs.
    fn attach_interrupts(&mut self, bdf: Bdf) -> Result<(), Error>;

    /// Blocks DMA and interrupts of `bdf`. On `Ok`, none of them is on its way
    /// any more and nothing of its translations is cached.
    fn detach(&mut self, bdf: Bdf) -> Result<(), Error>;

    /// After entries of a domain's page table were removed or restricted.
    fn flush_pages(&mut self, domain_id: u16, iova: u64, pages: u64) -> Result<(), Error>;

    /// As [`Iommu::flush_pages`] for the whole of a domain's address space.
    fn flush_all(&mut self, domain_id: u16) -> Result<(), Error>;

    /// After entries were added where there were none. Free of charge unless
    /// the IOMMU also remembers what was absent.
    fn flush_added(&mut self, domain_id: u16, iova: u64, pages: u64) -> Result<(), Error>;

    /// Has interrupt `index` of `bdf` arrive as `vector` at a core. Returns
    /// the message that the function must be programmed with.
    fn interrupt_map(
        &mut self,
        bdf: Bdf,
        index: u16,
        vector: u8,
        apic_id: u32,
    ) -> Result<Message, Error>;

    /// Blocks interrupt `index` of `bdf`.
    #[allow(dead_code)] // so far interrupts go with their function, by `detach`
    fn interrupt_unmap(&mut self, bdf: Bdf, index: u16) -> Result<(), Error>;

    /// The next event that was reported, if any. Never waits for one.
    fn poll_event(&mut self) -> Option<Event>;

    /// Invalidations of translations since boot.
    fn flushes(&self) -> u64;
}

/// Finds the IOMMU and has it block every function there can be. `None` if
/// the platform has none. Bus mastering must be off already.
///
/// The I/O APICs' interrupts are attached, as [`Iommu::attach_interrupts`] does.
pub fn init<IO: PhysIo>(
    io: IO,
    platform: &Platform,
    pci: &Pci<IO>,
    alloc: AllocFrames<'_>,
) -> Result<Option<AmdVi<IO>>, Error> {
    if platform.iommus.is_empty() {
        return Ok(None);
    }
    let mut iommu = AmdVi::new(io, &platform.iommus, pci, alloc)?;
    for bdf in platform.iommus.iter().flat_map(|u| &u.ioapics).map(|&(_, source)| Bdf(source)) {
        match iommu.attach_interrupts(bdf) {
            // I/O APICs may share a requester id.
            Ok(()) | Err(Error::BadState) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(iommu))
}
