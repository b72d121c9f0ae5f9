//! Access to memory that a peer can change at any moment.
//!
//! All unsafe code of shared memory is in this file. The rules that make it sound:
//!
//! - No Rust reference to the bytes ever exists. They are read and written by
//!   relaxed (or stronger) atomics, or by string instructions in inline
//!   assembly, so a peer that writes at the same time is no data race.
//! - Every access is checked against the length of the view.
//! - What is read is a copy in private memory; validate the copy.
#![allow(unsafe_code)]
#![allow(unexpected_cfgs)]

use core::fmt;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

#[cfg(any(loom, stepped))]
use crate::sync::Raw;

/// A range that does not lie within a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("range outside of the shared memory")
    }
}

impl core::error::Error for OutOfRange {}

/// A view of memory that is shared with a peer (or a device).
///
/// It is a pointer and a length; copies refer to the same bytes.
#[derive(Clone, Copy)]
#[cfg_attr(stepped, derive(PartialEq, Eq, Hash))]
pub struct SharedMem {
    raw: Raw,
    len: usize,
}

impl fmt::Debug for SharedMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedMem({:p}, {:#x})", self.as_ptr(), self.len)
    }
}

impl SharedMem {
    /// A view of `len` bytes at `ptr`.
    ///
    /// # Safety
    ///
    /// For as long as the view or a copy of it is used, all `len` bytes must
    /// be mapped readable and writable (readable suffices if nothing is
    /// written through it), and no Rust reference to any of them may be used.
    #[cfg(not(any(loom, stepped)))]
    pub const unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { raw: Raw(ptr), len }
    }

    /// A view of modelled memory.
    #[cfg(loom)]
    pub const fn model(words: &'static [loom::sync::atomic::AtomicU32]) -> Self {
        Self { raw: Raw::new(words), len: words.len() * 4 }
    }

    /// A view of `len` bytes of a region of the model checker's memory.
    #[cfg(stepped)]
    pub const fn stepped(region: u32, len: usize) -> Self {
        Self { raw: Raw::new(region), len }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the view has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins. For handing to a device; not for dereferencing.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.raw.as_ptr()
    }

    /// Whether it begins at a multiple of `to` bytes.
    pub fn is_aligned(&self, to: usize) -> bool {
        self.raw.aligned(0, to)
    }

    /// Where it begins, as a number: within a domain the guest-physical
    /// address, which is the device's address too.
    pub fn address(&self) -> u64 {
        self.as_ptr() as u64
    }

    /// The part from `offset` on of `len` bytes.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        self.check(offset, len).ok()?;
        Some(Self { raw: self.raw.at(offset), len })
    }

    /// Copies `to.len()` bytes from `offset` on into private memory.
    #[inline]
    pub fn copy_from(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(offset, to.len())?;
        self.raw.get(offset, to);
        Ok(())
    }

    /// Copies private memory to `offset`.
    #[inline]
    pub fn copy_to(&self, offset: usize, from: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset, from.len())?;
        self.raw.put(offset, from);
        Ok(())
    }

    /// A copy of the value at `offset`.
    #[inline]
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, OutOfRange> {
        let mut value = T::new_zeroed();
        self.copy_from(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes `value` to `offset`.
    #[inline]
    pub fn write<T: IntoBytes + Immutable>(
        &self,
        offset: usize,
        value: &T,
    ) -> Result<(), OutOfRange> {
        self.copy_to(offset, value.as_bytes())
    }

    /// Sets all bytes to zero.
    pub fn clear(&self) {
        const ZEROES: [u8; 256] = [0; 256];
        let mut at = 0;
        while let Some(zeroes) = ZEROES.get(..self.len.saturating_sub(at).min(ZEROES.len()))
            && !zeroes.is_empty()
        {
            self.raw.put(at, zeroes);
            at = at.saturating_add(zeroes.len());
        }
    }

    /// Loads the word at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is misaligned or out of range: it is the program's own
    /// constant, never a value that a peer chose.
    #[track_caller]
    #[inline]
    pub fn read_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.assert_word(offset);
        self.raw.load(offset, order)
    }

    /// Stores the word at `offset`.
    ///
    /// # Panics
    ///
    /// As [`Self::read_u32`].
    #[track_caller]
    #[inline]
    pub fn write_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.assert_word(offset);
        self.raw.store(offset, value, order);
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(OutOfRange),
        }
    }

    #[track_caller]
    fn assert_word(&self, offset: usize) {
        assert!(
            self.check(offset, 4).is_ok() && self.raw.aligned(offset, 4),
            "bad word offset {offset:#x} in shared memory"
        );
    }
}

/// A pointer into shared memory. Its methods do not check ranges: only
/// [`SharedMem`], which does, calls them.
#[cfg(not(any(loom, stepped)))]
#[derive(Clone, Copy)]
struct Raw(*mut u8);

// SAFETY: a view owns nothing and all accesses are atomic or in assembly, so
// using it from several threads at once is no data race.
#[cfg(not(any(loom, stepped)))]
unsafe impl Send for Raw {}
// SAFETY: as for Send.
#[cfg(not(any(loom, stepped)))]
unsafe impl Sync for Raw {}

#[cfg(not(any(loom, stepped)))]
impl Raw {
    const fn as_ptr(self) -> *mut u8 {
        self.0
    }

    fn at(self, offset: usize) -> Self {
        Self(self.0.wrapping_add(offset))
    }

    fn aligned(self, offset: usize, to: usize) -> bool {
        self.0.wrapping_add(offset).addr().is_multiple_of(to)
    }

    fn load(self, offset: usize, order: Ordering) -> u32 {
        // SAFETY: the caller checked range and alignment; only atomics and
        // assembly touch the bytes (contract of `SharedMem::new`).
        unsafe { core::sync::atomic::AtomicU32::from_ptr(self.0.add(offset).cast()).load(order) }
    }

    fn store(self, offset: usize, value: u32, order: Ordering) {
        // SAFETY: as in `load`.
        unsafe {
            core::sync::atomic::AtomicU32::from_ptr(self.0.add(offset).cast()).store(value, order);
        }
    }

    #[inline]
    fn get(self, offset: usize, to: &mut [u8]) {
        let shared = self.0.wrapping_add(offset);
        if to.len() >= copy::LONG {
            // SAFETY: the caller checked the range; `to` is private.
            unsafe { copy::long(shared, to.as_mut_ptr(), to.len()) };
            return;
        }
        // Whole words, as slots and descriptors are: with a length that the
        // compiler knows, a few loads in a row.
        if let (words, []) = to.as_chunks_mut::<8>()
            && shared.addr().is_multiple_of(8)
        {
            for (i, to) in words.iter_mut().enumerate() {
                // SAFETY: in range, as the whole is, and aligned.
                let word = unsafe { copy::word(shared.wrapping_add(i.wrapping_mul(8))) };
                *to = word.load(Ordering::Relaxed).to_ne_bytes();
            }
            return;
        }
        let (mut at, mut to) = (shared, to);
        while !to.is_empty() {
            let n = copy::step(at, to.len());
            let (now, rest) = to.split_at_mut(n);
            // SAFETY: `n` bytes at `at` are in range (sum of `n` is `to.len()`)
            // and aligned for the word that `step` chose.
            unsafe {
                match <&mut [u8; 8]>::try_from(&mut *now) {
                    Ok(word) => *word = copy::word(at).load(Ordering::Relaxed).to_ne_bytes(),
                    Err(_) => now.fill(copy::byte(at).load(Ordering::Relaxed)),
                }
            }
            at = at.wrapping_add(n);
            to = rest;
        }
    }

    #[inline]
    fn put(self, offset: usize, from: &[u8]) {
        let shared = self.0.wrapping_add(offset);
        if from.len() >= copy::LONG {
            // SAFETY: the caller checked the range; `from` is private.
            unsafe { copy::long(from.as_ptr(), shared, from.len()) };
            return;
        }
        if let (words, []) = from.as_chunks::<8>()
            && shared.addr().is_multiple_of(8)
        {
            for (i, from) in words.iter().enumerate() {
                // SAFETY: as in `get`.
                let word = unsafe { copy::word(shared.wrapping_add(i.wrapping_mul(8))) };
                word.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
            }
            return;
        }
        let (mut at, mut from) = (shared, from);
        while !from.is_empty() {
            let n = copy::step(at, from.len());
            let (now, rest) = from.split_at(n);
            // SAFETY: as in `get`.
            unsafe {
                match <[u8; 8]>::try_from(now) {
                    Ok(word) => {
                        copy::word(at).store(u64::from_ne_bytes(word), Ordering::Relaxed);
                    }
                    Err(_) => {
                        for byte in now {
                            copy::byte(at).store(*byte, Ordering::Relaxed);
                        }
                    }
                }
            }
            at = at.wrapping_add(n);
            from = rest;
        }
    }
}

/// How bytes move: short runs by words, long ones by string instructions.
#[cfg(not(any(loom, stepped)))]
mod copy {
    use core::sync::atomic::{AtomicU8, AtomicU64};

    /// From this length on [`long`] is used.
    pub(super) const LONG: usize =
        if cfg!(all(target_arch = "x86_64", not(miri))) { 256 } else { usize::MAX };

    /// Bytes of the next step at `at`: a word where aligned, else one byte.
    pub(super) fn step(at: *mut u8, left: usize) -> usize {
        if left >= 8 && at.addr().is_multiple_of(8) { 8 } else { 1 }
    }

    /// # Safety
    /// `at` is valid for 8 bytes of shared memory and aligned to 8.
    pub(super) unsafe fn word<'a>(at: *mut u8) -> &'a AtomicU64 {
        // SAFETY: by contract.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// # Safety
    /// `at` is valid for one byte of shared memory.
    pub(super) unsafe fn byte<'a>(at: *mut u8) -> &'a AtomicU8 {
        // SAFETY: by contract.
        unsafe { AtomicU8::from_ptr(at) }
    }

    /// # Safety
    /// Both ranges are valid and do not overlap; one of them is private.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(super) unsafe fn long(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: ranges are valid by contract; DF is clear in Rust code.
        // Assembly, so that the compiler assumes nothing of the shared side.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                "mov ecx, {tail:e}",
                "rep movsb",
                tail = in(reg) len & 7,
                inout("rcx") len >> 3 => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags)
            );
        }
    }

    /// # Safety
    /// Never called: `LONG` is out of reach.
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    pub(super) unsafe fn long(_: *const u8, _: *mut u8, _: usize) {}
}

#[cfg(all(test, not(any(loom, stepped))))]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn memory(len: usize) -> SharedMem {
        let words: &'static mut [u64] = Vec::leak(std::vec![0u64; len.div_ceil(8)]);
        // SAFETY: leaked, and used only through the view.
        unsafe { SharedMem::new(words.as_mut_ptr().cast(), len) }
    }

    #[test]
    fn copies_are_exact_at_every_alignment_and_length() {
        let mem = memory(1024);
        for offset in 0..17 {
            for len in (0..40).chain([255, 256, 257, 263, 600]) {
                mem.clear();
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + offset + 1) as u8).collect();
                mem.copy_to(offset, &data).unwrap();
                let mut all = std::vec![0u8; 1024];
                mem.copy_from(0, &mut all).unwrap();
                assert_eq!(&all[offset..offset + len], &data[..], "{offset} {len}");
                assert!(all[..offset].iter().all(|&b| b == 0));
                assert!(all[offset + len..].iter().all(|&b| b == 0));
                let mut part = std::vec![0u8; len];
                mem.copy_from(offset, &mut part).unwrap();
                assert_eq!(part, data);
            }
        }
    }

    #[test]
    fn ranges_outside_are_refused() {
        let mem = memory(64);
        assert_eq!(mem.copy_to(64, &[1]), Err(OutOfRange));
        assert_eq!(mem.copy_to(usize::MAX, &[1]), Err(OutOfRange));
        assert_eq!(mem.copy_from(60, &mut [0; 5]), Err(OutOfRange));
        assert_eq!(mem.read::<u64>(57), Err(OutOfRange));
        assert!(mem.sub(60, 5).is_none());
        assert!(mem.sub(usize::MAX, 2).is_none());
        assert_eq!(mem.sub(60, 4).unwrap().len(), 4);
        assert_eq!(mem.sub(60, 4).unwrap().copy_to(1, &[0; 4]), Err(OutOfRange));
        assert!(mem.copy_to(64, &[]).is_ok());
    }

    #[test]
    #[should_panic(expected = "bad word offset")]
    fn misaligned_words_are_a_bug_of_the_caller() {
        memory(64).read_u32(2, Ordering::Relaxed);
    }
}
