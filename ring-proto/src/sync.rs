//! The one place that chooses between the real atomics and loom's.
//!
//! `--cfg loom` replaces fences and the memory behind a
//! [`SharedMem`](crate::shm::SharedMem) with loom's model, so that
//! `tests/loom.rs` explores the very ring code that runs in a domain.
#![allow(unexpected_cfgs)]

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::fence;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::fence;

#[cfg(loom)]
pub(crate) use model::Raw;

/// Memory made of loom's atomics, one 32-bit word each.
#[cfg(loom)]
mod model {
    use core::sync::atomic::Ordering;

    use loom::sync::atomic::AtomicU32;

    #[derive(Clone, Copy)]
    pub(crate) struct Raw {
        words: &'static [AtomicU32],
        start: usize,
    }

    impl Raw {
        pub(crate) const fn new(words: &'static [AtomicU32]) -> Self {
            Self { words, start: 0 }
        }

        pub(crate) fn at(self, offset: usize) -> Self {
            Self { start: self.start + offset, ..self }
        }

        pub(crate) const fn as_ptr(self) -> *mut u8 {
            self.words.as_ptr().cast_mut().cast()
        }

        pub(crate) fn aligned(self, offset: usize, to: usize) -> bool {
            (self.start + offset).is_multiple_of(to)
        }

        pub(crate) fn load(self, offset: usize, order: Ordering) -> u32 {
            self.words[(self.start + offset) / 4].load(order)
        }

        pub(crate) fn store(self, offset: usize, value: u32, order: Ordering) {
            self.words[(self.start + offset) / 4].store(value, order);
        }

        pub(crate) fn get(self, offset: usize, to: &mut [u8]) {
            for (i, chunk) in to.chunks_mut(4).enumerate() {
                let word = self.load(offset + i * 4, Ordering::Relaxed).to_le_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
        }

        pub(crate) fn put(self, offset: usize, from: &[u8]) {
            for (i, chunk) in from.chunks(4).enumerate() {
                let mut word = [0; 4];
                word[..chunk.len()].copy_from_slice(chunk);
                self.store(offset + i * 4, u32::from_le_bytes(word), Ordering::Relaxed);
            }
        }
    }
}
