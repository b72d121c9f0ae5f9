//! The boot-time heap: `alloc` for as long as the node is being set up.
//!
//! Memory is taken from the frame allocator and only the latest allocation is
//! ever given back: what is allocated at boot lives for ever. After [`seal`]
//! every allocation is a panic, so that none hides on the exit path.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "boot only: addresses of a chunk of RAM that was just taken"
)]

use core::alloc::{GlobalAlloc, Layout};

use spin::Mutex;

use crate::memmap;

/// Frames taken at a time.
const CHUNK: usize = 16;
const PAGE: usize = ring_proto::PAGE_SIZE;

struct Bump {
    next: usize,
    end: usize,
    sealed: bool,
}

struct BootHeap(Mutex<Bump>);

#[global_allocator]
static HEAP: BootHeap = BootHeap(Mutex::new(Bump { next: 0, end: 0, sealed: false }));

// SAFETY: `alloc` hands out bytes `start..start + size` of frames that it owns
// and moves `next` past them under a lock, so no two allocations overlap; a
// step back in `dealloc` only undoes the latest one.
unsafe impl GlobalAlloc for BootHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut bump = self.0.lock();
        assert!(!bump.sealed, "no allocation on the exit path");
        let fit = |bump: &Bump| {
            let start = bump.next.checked_next_multiple_of(layout.align())?;
            (bump.next != 0 && start.checked_add(layout.size())? <= bump.end).then_some(start)
        };
        if let Some(start) = fit(&bump) {
            bump.next = start + layout.size();
            return start as *mut u8;
        }
        let frames = layout.size().div_ceil(PAGE).max(CHUNK);
        let Some(start) = memmap::alloc_frames(frames, layout.align() as u64) else {
            return core::ptr::null_mut();
        };
        let start = start as usize;
        let end = start + frames * PAGE;
        // Go on in whichever chunk has more room left.
        if end - (start + layout.size()) >= bump.end - bump.next {
            (bump.next, bump.end) = (start + layout.size(), end);
        }
        start as *mut u8
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let mut bump = self.0.lock();
        if ptr as usize + layout.size() == bump.next {
            bump.next = ptr as usize;
        }
    }
}

/// From now on an allocation is a panic. Freeing stays harmless.
pub(crate) fn seal() {
    HEAP.0.lock().sealed = true;
}
