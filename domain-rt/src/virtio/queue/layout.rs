//! Where the parts of a split virtqueue lie (virtio 1.2, section 2.7).

use super::{DESCRIPTOR, TABLE};

/// Where the parts of a queue lie within its memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub(super) size: u16,
    pub(super) avail: usize,
    pub(super) used: usize,
    tables: usize,
    pub(super) len: usize,
}

impl Layout {
    /// For `size` slots (a power of two), each with an indirect table.
    pub fn new(size: u16) -> Self {
        let n = usize::from(size);
        let avail = n.wrapping_mul(DESCRIPTOR);
        // Two bytes more than the specification's, so that the event words can
        // be accessed as aligned 32-bit words.
        let end = avail.wrapping_add(n.wrapping_mul(2)).wrapping_add(8);
        let used = end.next_multiple_of(64);
        let end = used.wrapping_add(n.wrapping_mul(8)).wrapping_add(8);
        let tables = end.next_multiple_of(64);
        let len = tables.wrapping_add(n.wrapping_mul(TABLE));
        Self { size, avail, used, tables, len }
    }

    // None of these sums comes near a wrap: a queue has at most 2^15 slots. What
    // they address is checked against the queue's memory at each access.

    /// Place of descriptor `index`.
    pub(super) fn descriptor(index: u16) -> usize {
        usize::from(index).wrapping_mul(DESCRIPTOR)
    }

    /// Place of the indirect table of descriptor `index`.
    pub(super) fn table(&self, index: u16) -> usize {
        self.tables.wrapping_add(usize::from(index).wrapping_mul(TABLE))
    }

    /// Slot of a free-running index; the size is a power of two.
    pub(super) fn slot(&self, index: u16) -> usize {
        usize::from(index & self.size.wrapping_sub(1))
    }

    /// Place in the available ring of the chain with free-running number `index`.
    pub(super) fn avail(&self, index: u16) -> usize {
        self.avail.wrapping_add(4).wrapping_add(self.slot(index).wrapping_mul(2))
    }

    /// The same in the used ring.
    pub(super) fn used(&self, index: u16) -> usize {
        self.used.wrapping_add(4).wrapping_add(self.slot(index).wrapping_mul(8))
    }

    /// Place of `used_event`, behind the available ring.
    pub(super) fn used_event(&self) -> usize {
        self.avail.wrapping_add(4).wrapping_add(usize::from(self.size).wrapping_mul(2))
    }

    /// Place of `avail_event`, behind the used ring.
    pub(super) fn avail_event(&self) -> usize {
        self.used.wrapping_add(4).wrapping_add(usize::from(self.size).wrapping_mul(8))
    }

    /// Bytes of memory that the queue needs.
    #[allow(clippy::len_without_is_empty, reason = "a length in memory")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Offsets of descriptor table, available ring and used ring.
    pub(super) fn areas(&self) -> [usize; 3] {
        [0, self.avail, self.used]
    }
}
