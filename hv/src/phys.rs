//! Physical memory and device registers.
//!
//! Everything that drives the platform's devices (ACPI, PCI, IOMMU, I/O APIC)
//! reaches memory through [`PhysIo`] only, by physical address. On the machine
//! that is [`Identity`]; host tests put a simulated machine in its place, so
//! those modules need no unsafe code and run on the host.
#![allow(unsafe_code)]

use core::ops::Not;
use core::ptr::with_exposed_provenance_mut;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What one access reads or writes: an integer of 8, 16, 32 or 64 bits.
pub trait Word: Copy + Default + Not<Output = Self> + FromBytes + IntoBytes + Immutable {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// Volatile access to physical memory, little-endian.
///
/// Accesses are done in program order and with exactly the width asked for.
/// An address that is null or not aligned to the width reads as all ones and
/// is not written.
pub trait PhysIo: Clone {
    /// Reads a word.
    fn read<W: Word>(&self, address: u64) -> W;
    /// Writes a word.
    fn write<W: Word>(&self, address: u64, value: W);
    /// Has what was written at `address` (a cache line) arrive in memory before
    /// anything that is written later, for readers that look past the caches.
    fn write_back(&self, address: u64);
}

/// Physical memory through the hypervisor's identity map.
#[derive(Clone, Copy, Debug)]
pub struct Identity(());

impl Identity {
    /// Access to all of physical memory.
    ///
    /// # Safety
    ///
    /// RAM and MMIO must be mapped at their physical addresses for as long as
    /// the value or a copy of it lives, and it may be handed only to code that
    /// touches device registers, firmware tables and frames that were given to
    /// it, never memory that Rust objects live in.
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// The pointer for an access to a `T` at `address`.
    fn at<T>(address: u64) -> Option<*mut T> {
        let pointer = with_exposed_provenance_mut::<T>(usize::try_from(address).ok()?);
        (!pointer.is_null() && pointer.is_aligned()).then_some(pointer)
    }
}

impl PhysIo for Identity {
    fn read<W: Word>(&self, address: u64) -> W {
        match Self::at(address) {
            // SAFETY: aligned and not null; mapped and not a Rust object's, as
            // promised to `new`. All bit patterns of the integers are valid.
            Some(pointer) => unsafe { core::ptr::read_volatile(pointer) },
            None => !W::default(),
        }
    }

    fn write<W: Word>(&self, address: u64, value: W) {
        if let Some(pointer) = Self::at(address) {
            // SAFETY: as for `read`.
            unsafe { core::ptr::write_volatile(pointer, value) }
        }
    }

    fn write_back(&self, address: u64) {
        if let Some(line) = Self::at::<u8>(address) {
            // SAFETY: mapped, as promised to `new`; flushing changes no content.
            unsafe {
                core::arch::x86_64::_mm_clflush(line);
                core::arch::x86_64::_mm_mfence();
            }
        }
    }
}
