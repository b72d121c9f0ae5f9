//! The hypervisor's only way to touch memory that belongs to domains.
//!
//! Every access is checked against the list of extents that were handed to
//! domains when the node was built. The hypervisor's own memory is in none of
//! them, so no address that a domain can bring about reaches it. Bytes are
//! copied once, in a way that the compiler cannot repeat ([`SharedMem`]); no
//! reference to memory that a domain or device can change is made, except to
//! atomics.

#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64};

use ring_proto::{event::EventPage, hypercall::Error, shm::SharedMem};

use crate::memmap;

/// Machine memory that belongs to domains.
#[derive(Debug, Default)]
pub struct Ram {
    extents: Vec<(u64, u64)>,
}

impl Ram {
    /// Takes an extent of `pages` frames, not zeroed, while the node is being
    /// built.
    pub fn alloc(&mut self, pages: usize, align: u64) -> Option<u64> {
        let base = memmap::alloc_frames_dirty(pages, align)?;
        self.extents.push((base, (pages as u64).saturating_mul(4096)));
        Some(base)
    }

    /// Whether a byte of `base..base + len` belongs to a domain.
    pub fn overlaps(&self, base: u64, len: u64) -> bool {
        let end = base.saturating_add(len);
        self.extents.iter().any(|&(start, size)| start < end && base < start.saturating_add(size))
    }

    fn check(&self, hpa: u64, len: u64) -> Result<*mut u8, Error> {
        let inside = |&(base, size): &(u64, u64)| {
            hpa.checked_sub(base)
                .is_some_and(|offset| size.checked_sub(offset).is_some_and(|room| len <= room))
        };
        if self.extents.iter().any(inside) { Ok(hpa as *mut u8) } else { Err(Error::BadAddress) }
    }

    /// Copies out of domain memory.
    pub fn read(&self, hpa: u64, out: &mut [u8]) -> Result<(), Error> {
        let from = self.check(hpa, out.len() as u64)?;
        // SAFETY: the range is identity-mapped RAM of a domain, disjoint from
        // every Rust object; a racing writer yields arbitrary bytes only.
        let shared = unsafe { SharedMem::new(from, out.len()) };
        shared.copy_from(0, out).map_err(|_| Error::BadAddress)
    }

    /// Whether `N` bytes are those of `expected`, and zero beyond.
    pub fn holds<const N: usize>(&self, hpa: u64, expected: &[u8]) -> bool {
        let (mut is, mut should) = ([0; N], [0; N]);
        should.iter_mut().zip(expected).for_each(|(to, from)| *to = *from);
        self.read(hpa, &mut is).is_ok() && is == should
    }

    /// Copies into domain memory.
    pub fn write(&self, hpa: u64, data: &[u8]) -> Result<(), Error> {
        let to = self.check(hpa, data.len() as u64)?;
        // SAFETY: as for `read`.
        unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        Ok(())
    }

    /// Copies between two places of domain memory, which may overlap.
    pub fn copy(&self, from: u64, to: u64, len: u64) -> Result<(), Error> {
        let from = self.check(from, len)?;
        let to = self.check(to, len)?;
        let bytes = usize::try_from(len).map_err(|_| Error::BadAddress)?;
        // SAFETY: as for `read`, for both ranges.
        unsafe { core::ptr::copy(from, to, bytes) };
        Ok(())
    }

    /// Zeroes a range.
    pub fn zero(&self, hpa: u64, len: u64) -> Result<(), Error> {
        let to = self.check(hpa, len)?;
        let bytes = usize::try_from(len).map_err(|_| Error::BadAddress)?;
        // SAFETY: as for `read`.
        unsafe { core::ptr::write_bytes(to, 0, bytes) };
        Ok(())
    }

    /// Where `count` values of a type lie, if they do so aligned.
    fn values<T>(&self, hpa: u64, count: u32) -> Result<*const T, Error> {
        let len = u64::from(count).saturating_mul(size_of::<T>() as u64);
        let at = self.check(hpa, len)?.cast::<T>();
        if at.is_aligned() { Ok(at) } else { Err(Error::BadAddress) }
    }

    /// So many 64-bit words that domain and hypervisor share.
    pub fn words64(&self, hpa: u64, count: u32) -> Result<&'static [AtomicU64], Error> {
        let at = self.values(hpa, count)?;
        // SAFETY: aligned, in RAM that is never given back; all access from
        // Rust is atomic or a raw copy.
        Ok(unsafe { core::slice::from_raw_parts(at, count as usize) })
    }

    /// A 32-bit word that domain and hypervisor share.
    pub fn word32(&self, hpa: u64) -> Result<&'static AtomicU32, Error> {
        // SAFETY: as for `words64`.
        self.values(hpa, 1).map(|at| unsafe { &*at })
    }

    /// The event page at `hpa`.
    pub fn events(&self, hpa: u64) -> Result<&'static EventPage, Error> {
        // SAFETY: as for `words64`, for it consists of atomics.
        self.values(hpa, 1).map(|at| unsafe { &*at })
    }
}
