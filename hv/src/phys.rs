//! Physical memory and device registers.
//!
//! Everything that drives the platform's devices (ACPI, PCI, IOMMU, I/O APIC)
//! reaches memory through [`PhysIo`] only, by physical address. On the machine
//! that is [`Identity`]; host tests put a simulated machine in its place, so
//! those modules need no unsafe code and run on the host.
#![allow(unsafe_code)]

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// Volatile access to physical memory, little-endian.
///
/// Accesses are done in program order and with exactly the width asked for.
/// An address that is null or not aligned to the width reads as all ones and
/// is not written.
pub trait PhysIo: Clone {
    /// Reads a byte.
    fn read8(&self, address: u64) -> u8;
    /// Reads 16 bits.
    fn read16(&self, address: u64) -> u16;
    /// Reads 32 bits.
    fn read32(&self, address: u64) -> u32;
    /// Reads 64 bits.
    fn read64(&self, address: u64) -> u64;
    /// Writes a byte.
    fn write8(&self, address: u64, value: u8);
    /// Writes 16 bits.
    fn write16(&self, address: u64, value: u16);
    /// Writes 32 bits.
    fn write32(&self, address: u64, value: u32);
    /// Writes 64 bits.
    fn write64(&self, address: u64, value: u64);
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
    fn at<T>(address: u64) -> Option<*const T> {
        let pointer = with_exposed_provenance::<T>(usize::try_from(address).ok()?);
        (!pointer.is_null() && pointer.is_aligned()).then_some(pointer)
    }

    /// The pointer for a write of a `T` at `address`.
    fn at_mut<T>(address: u64) -> Option<*mut T> {
        let pointer = with_exposed_provenance_mut::<T>(usize::try_from(address).ok()?);
        (!pointer.is_null() && pointer.is_aligned()).then_some(pointer)
    }

    fn read<T: Copy>(address: u64, absent: T) -> T {
        match Self::at(address) {
            // SAFETY: aligned and not null; mapped and not a Rust object's, as
            // promised to `new`. All bit patterns of the integers are valid.
            Some(pointer) => unsafe { core::ptr::read_volatile(pointer) },
            None => absent,
        }
    }

    fn write<T: Copy>(address: u64, value: T) {
        if let Some(pointer) = Self::at_mut(address) {
            // SAFETY: as for `read`.
            unsafe { core::ptr::write_volatile(pointer, value) }
        }
    }
}

macro_rules! accesses {
    ($($read:ident $write:ident $word:ident),*) => {
        $(fn $read(&self, address: u64) -> $word {
            Self::read(address, $word::MAX)
        }
        fn $write(&self, address: u64, value: $word) {
            Self::write(address, value);
        })*
    };
}

impl PhysIo for Identity {
    accesses!(read8 write8 u8, read16 write16 u16, read32 write32 u32, read64 write64 u64);

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
