//! Machine memory.
//!
//! All of it is one allocation. Like any shared memory it is touched by way of
//! [`SharedMem`] only. A thread keeps its allocation from run to run: fresh
//! pages of the host would cost more than a run.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;

use ring_proto::{PAGE_SIZE, shm::SharedMem};

use crate::report::rule;

/// Machine address of the first byte. Not 0, so that an offset that is taken
/// for an address is noticed.
pub(crate) const BASE: u64 = 0x4000_0000;
/// What memory holds before anybody wrote it.
const JUNK: u8 = 0xa5;

thread_local! {
    static SPARE: RefCell<Option<Memory>> = const { RefCell::new(None) };
}

struct Memory {
    start: *mut u8,
    layout: Layout,
}

impl Drop for Memory {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `Ram::new`.
        unsafe { dealloc(self.start, self.layout) }
    }
}

/// The memory of a node.
pub(crate) struct Ram {
    /// `None` only while it is being dropped.
    memory: Option<Memory>,
    all: SharedMem,
}

impl Drop for Ram {
    fn drop(&mut self) {
        let memory = self.memory.take();
        // No spare is kept by a thread that is about to end.
        let _ = SPARE.try_with(|spare| spare.replace(memory));
    }
}

/// Fills memory with copies of a page. (`SharedMem::clear` is for small pieces.)
fn fill(mem: SharedMem, with: &[u8; PAGE_SIZE]) {
    for page in (0..mem.len()).step_by(PAGE_SIZE) {
        let written = mem.copy_to(page, with);
        debug_assert!(written.is_ok());
    }
}

impl Ram {
    /// Memory of so many pages, full of junk that is always the same.
    #[allow(unsafe_code)]
    pub(crate) fn new(pages: usize) -> Self {
        let size = pages * PAGE_SIZE;
        let kept = SPARE.with_borrow_mut(Option::take).filter(|m| m.layout.size() >= size);
        let memory = kept.unwrap_or_else(|| {
            let Ok(layout) = Layout::from_size_align(size.max(PAGE_SIZE), PAGE_SIZE) else {
                panic!("a node of {pages} pages")
            };
            // SAFETY: the size is not 0.
            let start = unsafe { alloc_zeroed(layout) };
            if start.is_null() {
                handle_alloc_error(layout);
            }
            Memory { start, layout }
        });
        // SAFETY: `size` bytes of an allocation that this object owns; no view of a former run is
        // used any more, for a run keeps its views to itself.
        let all = unsafe { SharedMem::new(memory.start, size) };
        let this = Self { memory: Some(memory), all };
        this.forget();
        this
    }

    /// All memory is junk again.
    pub(crate) fn forget(&self) {
        fill(self.all, &[JUNK; PAGE_SIZE]);
    }

    /// Zeroes whole pages.
    pub(crate) fn clear(&self, hpa: u64, len: u64) {
        fill(self.at(hpa, len), &[0; PAGE_SIZE]);
    }

    /// The memory at a machine address.
    pub(crate) fn at(&self, hpa: u64, len: u64) -> SharedMem {
        let part = hpa.checked_sub(BASE).and_then(|at| self.all.sub(at as usize, len as usize));
        rule!(part.is_some(), "{len} bytes at machine address {hpa:#x} are not there");
        part.unwrap_or(self.all)
    }

    pub(crate) fn read64(&self, hpa: u64) -> u64 {
        self.at(hpa, 8).read(0).unwrap_or_default()
    }

    pub(crate) fn write64(&self, hpa: u64, value: u64) {
        let written = self.at(hpa, 8).write(0, &value);
        debug_assert!(written.is_ok());
    }
}
