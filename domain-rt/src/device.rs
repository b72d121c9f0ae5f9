#![allow(unsafe_code)]
//! A PCI function that this domain owns, for drivers of what is not virtio: registers,
//! interrupts, and the leave to reach memory.

use core::ptr::NonNull;

use ring_proto::{Port, boot::DeviceBoot, event::PORT_IRQ};

use crate::{hypercall, start::boot};

/// Ports that each device slot may bind.
const PORTS_PER_SLOT: u16 = 16;

/// A function at one of this domain's device slots.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    pub(crate) slot: usize,
    pub(crate) boot: &'static DeviceBoot,
}

impl Function {
    /// The function at `slot`; `None`: this domain owns none there.
    pub fn at(slot: usize) -> Option<Self> {
        let boot = boot();
        let devices = boot.devices.get(..boot.device_count as usize)?;
        devices.get(slot).map(|boot| Self { slot, boot })
    }

    /// The registers of memory BAR `index`; `None`: it has no such BAR.
    pub fn bar(&self, index: usize) -> Option<Bar> {
        let bar = self.boot.bars.get(index)?;
        let base = NonNull::new(bar.address as *mut u8)?;
        Some(Bar { base, len: usize::try_from(bar.len).ok()? })
    }

    /// Lets the device reach memory: the DMA pool, and what is granted for it. Reset it first:
    /// it may still hold addresses of an earlier generation.
    ///
    /// # Errors
    ///
    /// The hypervisor refuses it.
    pub fn enable(&self) -> Result<(), hypercall::Error> {
        hypercall::device_enable(self.slot, true)
    }

    /// Routes MSI-X entry `vector` to a port of this domain, still masked:
    /// [`hypercall::irq_unmask`] lets it through.
    ///
    /// # Errors
    ///
    /// The device has no such entry, or the hypervisor refuses it.
    pub fn bind(&self, vector: u16) -> Result<Port, hypercall::Error> {
        let most = self.boot.msix_entries.min(PORTS_PER_SLOT);
        let first = u16::try_from(self.slot).ok().and_then(|slot| slot.checked_mul(PORTS_PER_SLOT));
        let port = first
            .filter(|_| vector < most)
            .and_then(|first| first.checked_add(vector)?.checked_add(PORT_IRQ))
            .ok_or(hypercall::Error::BadArgument)?;
        hypercall::irq_bind(self.slot, vector, port)?;
        Ok(port)
    }
}

/// The registers behind a memory BAR.
///
/// The pages with the MSI-X table are the hypervisor's and not mapped: whoever touches them has
/// its generation ended.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    base: NonNull<u8>,
    len: usize,
}

impl Bar {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes of it from `offset` on; `None`: they are not all there.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: within the BAR's window, or at its end.
        Some(Self { base: unsafe { self.base.add(offset) }, len })
    }

    /// The register at `offset`; `None`: it is out of the BAR or not aligned.
    pub(crate) fn register<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let size = size_of::<T>();
        if offset.checked_add(size)? > self.len || !offset.is_multiple_of(size) {
            return None;
        }
        // SAFETY: within the BAR's window, which is the domain's and no memory of Rust's.
        Some(unsafe { self.base.add(offset) }.cast())
    }

    fn read<T>(&self, offset: usize, gone: T) -> T {
        match self.register(offset) {
            // SAFETY: an aligned register of this domain's own device.
            Some(register) => unsafe { register.read_volatile() },
            None => gone,
        }
    }

    fn write<T>(&self, offset: usize, value: T) {
        if let Some(register) = self.register(offset) {
            // SAFETY: an aligned register of this domain's own device. What the device then does
            // to memory the IOMMU bounds.
            unsafe { register.write_volatile(value) };
        }
    }

    /// Reads a register of 16 bits; all ones, as of a device that is gone, if it is out of the
    /// BAR or not aligned.
    pub fn read16(&self, offset: usize) -> u16 {
        self.read(offset, u16::MAX)
    }

    /// Writes a register of 16 bits; nothing happens if it is out of the BAR or not aligned.
    pub fn write16(&self, offset: usize, value: u16) {
        self.write(offset, value);
    }

    /// Reads a register of 32 bits, likewise.
    pub fn read32(&self, offset: usize) -> u32 {
        self.read(offset, u32::MAX)
    }

    /// Writes a register of 32 bits, likewise.
    pub fn write32(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }

    /// Reads a register of 64 bits by its halves, the lower one first.
    pub fn read64(&self, offset: usize) -> u64 {
        let low = self.read32(offset);
        u64::from(low) | u64::from(self.read32(offset.saturating_add(4))) << 32
    }

    /// Writes a register of 64 bits by its halves, the lower one first.
    pub fn write64(&self, offset: usize, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.write32(offset, u32::from_le_bytes([a, b, c, d]));
        self.write32(offset.saturating_add(4), u32::from_le_bytes([e, f, g, h]));
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::*;

    #[test]
    fn registers_are_aligned_and_within_the_bar() {
        let memory: &'static mut [u64; 4] = Box::leak(Box::new([0; 4]));
        // Its last word is behind the BAR.
        let bar = Bar { base: NonNull::from(&mut *memory).cast(), len: 24 };
        bar.write64(8, 0x0123_4567_89ab_cdef);
        assert_eq!((bar.read32(8), bar.read64(8)), (0x89ab_cdef, 0x0123_4567_89ab_cdef));
        for wrong in [10, 21, 24, usize::MAX - 3] {
            bar.write32(wrong, 1);
            assert_eq!(bar.read32(wrong), u32::MAX, "{wrong}");
        }
        assert_eq!((bar.read32(20), bar.read32(28)), (0, u32::MAX));
        bar.write16(2, 0xfedc);
        assert_eq!((bar.read16(2), bar.read16(3), bar.read32(0)), (0xfedc, u16::MAX, 0xfedc_0000));
        let part = bar.part(8, 4).unwrap();
        assert_eq!((part.read32(0), part.read32(4)), (0x89ab_cdef, u32::MAX));
        assert!(bar.part(24, 0).is_some() && bar.part(24, 1).is_none());
        assert!(bar.part(u64::MAX, 2).is_none());
        // The upper half is not there.
        bar.write64(20, u64::MAX);
        assert_eq!((bar.read32(20), memory[3]), (u32::MAX, 0));
    }
}
