#![allow(unsafe_code)]
//! The heap.
//!
//! `talc` was chosen over `linked_list_allocator`: both are small and run
//! without an operating system, but the latter's free list makes allocation
//! linear in the number of holes, and a driver that lives for months must not
//! get slower by fragmentation.

use core::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicBool, Ordering},
};

use talc::{TalcLock, lock_api, source::Manual};

/// A lock without waiting: in a domain nobody else can hold it, so finding it
/// held is a bug (an allocation from within the allocator) and panics.
struct NoWait(AtomicBool);

// SAFETY: `lock` returns only after it has moved the flag from false to true,
// so there is at most one holder.
unsafe impl lock_api::RawMutex for NoWait {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "the trait asks for an initial value as a constant"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        assert!(self.try_lock(), "the heap was entered twice");
    }

    fn try_lock(&self) -> bool {
        // A load and a store suffice: there is one thread.
        !self.0.load(Ordering::Relaxed) && {
            self.0.store(true, Ordering::Relaxed);
            true
        }
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The global allocator of a domain; [`crate::entry!`] makes it one.
pub struct Heap(TalcLock<NoWait, Manual>);

impl Heap {
    /// An empty heap.
    #[allow(clippy::new_without_default, reason = "only for a static")]
    pub const fn new() -> Self {
        Self(TalcLock::new(Manual))
    }

    pub(crate) fn init(&self, base: u64, len: u64) {
        let size = usize::try_from(len).unwrap_or(0);
        // SAFETY: the hypervisor gives [HEAP, HEAP + heap_len) to this domain
        // and nothing but this allocator uses it.
        let claimed = unsafe { self.0.lock().claim(base as *mut u8, size) };
        assert!(claimed.is_some(), "a heap of {len} bytes is too small");
    }
}

/// Whether the last allocation failed. Whoever panics now most likely does over
/// that.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

/// Whether the heap had no room when it was last asked for some.
pub(crate) fn is_exhausted() -> bool {
    EXHAUSTED.load(Ordering::Relaxed)
}

fn note(pointer: *mut u8) -> *mut u8 {
    EXHAUSTED.store(pointer.is_null(), Ordering::Relaxed);
    pointer
}

// SAFETY: passes everything on to the allocator of `talc`.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: same contract.
        note(unsafe { self.0.alloc(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: same contract.
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: same contract.
        note(unsafe { self.0.realloc(pointer, layout, new_size) })
    }
}
