//! The one place that chooses between the real memory and a model's.
//!
//! `--cfg loom` replaces fences and the memory behind a
//! [`SharedMem`](crate::shm::SharedMem) with loom's model, so that
//! `tests/loom.rs` explores the very code that runs in a domain.
//! `--cfg stepped` hands every access to [`stepped::Memory`], so that a model
//! checker can stop an end between any two of them (`ring-ends/tests/model`).
#![allow(unexpected_cfgs)]

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::fence;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::fence;

#[cfg(loom)]
pub(crate) use model::Raw;

#[cfg(stepped)]
pub(crate) use stepped::Raw;

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

/// Memory that a model checker keeps. Accesses are sequentially consistent.
#[cfg(stepped)]
#[allow(missing_docs)]
pub mod stepped {
    use core::cell::RefCell;
    use core::sync::atomic::Ordering;

    use std::rc::Rc;
    use std::thread_local;

    /// What the model checker does at an access; `at` is in bytes.
    pub trait Memory {
        fn load(&self, region: u32, at: usize) -> u32;
        fn store(&self, region: u32, at: usize, value: u32);
        fn get(&self, region: u32, at: usize, to: &mut [u8]);
        fn put(&self, region: u32, at: usize, from: &[u8]);
    }

    thread_local! {
        static MEMORY: RefCell<Option<Rc<dyn Memory>>> = const { RefCell::new(None) };
    }

    /// Makes `memory` what all views on this thread refer to.
    pub fn install(memory: Rc<dyn Memory>) {
        MEMORY.with(|current| *current.borrow_mut() = Some(memory));
    }

    fn memory() -> Rc<dyn Memory> {
        MEMORY.with(|current| current.borrow().clone()).expect("no memory was installed")
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    pub(crate) struct Raw {
        region: u32,
        start: usize,
    }

    impl Raw {
        pub(crate) const fn new(region: u32) -> Self {
            Self { region, start: 0 }
        }

        pub(crate) fn at(self, offset: usize) -> Self {
            Self { start: self.start + offset, ..self }
        }

        pub(crate) const fn as_ptr(self) -> *mut u8 {
            core::ptr::without_provenance_mut((self.region as usize) << 32 | self.start)
        }

        pub(crate) fn aligned(self, offset: usize, to: usize) -> bool {
            (self.start + offset).is_multiple_of(to)
        }

        pub(crate) fn load(self, offset: usize, _: Ordering) -> u32 {
            memory().load(self.region, self.start + offset)
        }

        pub(crate) fn store(self, offset: usize, value: u32, _: Ordering) {
            memory().store(self.region, self.start + offset, value);
        }

        pub(crate) fn get(self, offset: usize, to: &mut [u8]) {
            memory().get(self.region, self.start + offset, to);
        }

        pub(crate) fn put(self, offset: usize, from: &[u8]) {
            memory().put(self.region, self.start + offset, from);
        }
    }
}
