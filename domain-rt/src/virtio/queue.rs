//! A split virtqueue (virtio 1.2, section 2.7).
//!
//! Buffers are device addresses and lengths. The driver's state is private:
//! nothing is read back from the shared tables but the used ring, and what
//! stands there is checked: a device that names a chain that is not in flight
//! gets [`Misbehaved`], and its owner resets it.
//!
//! Chains go through indirect tables where the device takes them, so a request
//! of any length costs one slot. There is a table for each slot.

mod layout;

use alloc::{boxed::Box, vec};
use core::sync::atomic::{Ordering, fence};

use ring_proto::shm::SharedMem;
use zerocopy::{Immutable, IntoBytes};

pub use layout::Layout;

/// Most buffers of one chain.
pub const MAX_CHAIN: usize = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u32 = 1;
const NO_NOTIFY: u32 = 1;
/// Bytes of a descriptor, and of an indirect table.
const DESCRIPTOR: usize = 16;
const TABLE: usize = MAX_CHAIN * DESCRIPTOR;
/// Length of a chain that is not in flight.
const FREE: u8 = 0;

/// A buffer for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Device address, in the DMA pool or the grant window.
    pub address: u64,
    /// Bytes, not 0.
    pub len: u32,
    /// The device writes it (else it reads).
    pub device_writes: bool,
}

/// The queue has no room for a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The device broke the rules of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misbehaved;

/// What the device finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`Queue::add`] returned.
    pub token: u16,
    /// Bytes that the device says it wrote. Check before use.
    pub len: u32,
}

#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The driver's side of a queue.
#[derive(Debug)]
pub struct Queue {
    memory: SharedMem,
    layout: Layout,
    event_idx: bool,
    indirect: bool,
    /// Next free descriptor after each; private copy of the chains.
    next: Box<[u16]>,
    /// Descriptors of the chain that begins here; [`FREE`] = no chain does.
    chains: Box<[u8]>,
    free_head: u16,
    free_count: u16,
    /// Chains in flight.
    in_flight: u16,
    /// Chains added.
    added: u16,
    /// Chains that the device was shown.
    published: u16,
    /// Chains taken back.
    taken: u16,
    interrupts: bool,
}

impl Queue {
    /// Over zeroed `memory` of at least `layout.len()` bytes; `None` if it is
    /// too short. [`Self::agree`] comes before the first [`Self::publish`].
    pub fn new(memory: SharedMem, layout: Layout) -> Option<Self> {
        let memory = memory.sub(0, layout.len)?;
        let size = usize::from(layout.size);
        Some(Self {
            memory,
            layout,
            event_idx: false,
            indirect: false,
            next: (1..=layout.size).collect(),
            chains: vec![FREE; size].into(),
            free_head: 0,
            free_count: layout.size,
            in_flight: 0,
            added: 0,
            published: 0,
            taken: 0,
            interrupts: true,
        })
    }

    /// Before the device learns of it: whether it offers event indices and takes
    /// indirect tables. Chains that were added before stay as they are.
    pub fn agree(&mut self, event_idx: bool, indirect: bool) {
        (self.event_idx, self.indirect) = (event_idx, indirect);
        self.set_interrupts(true);
    }

    /// Device addresses of descriptor table, available ring and used ring.
    pub fn areas(&self) -> [u64; 3] {
        self.layout.areas().map(|offset| self.memory.address().saturating_add(offset as u64))
    }

    /// Slots.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Chains in flight.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Whether a chain of `len` buffers fits.
    pub fn fits(&self, len: usize) -> bool {
        len <= MAX_CHAIN && usize::from(self.free_count) >= if self.indirect { 1 } else { len }
    }

    /// Adds a chain; the device sees it after [`Self::publish`]. The buffers
    /// stay the device's until [`Self::pop`] returns the token.
    ///
    /// Buffers that the device writes come last. An empty chain is [`Full`].
    pub fn add(&mut self, buffers: &[Buffer]) -> Result<u16, Full> {
        if buffers.is_empty() || !self.fits(buffers.len()) {
            return Err(Full);
        }
        let head = self.free_head;
        let count = if self.indirect && buffers.len() > 1 {
            self.write_table(head, buffers);
            self.free_head = self.next_of(head);
            1
        } else {
            self.write_chain(buffers);
            // At most MAX_CHAIN.
            u8::try_from(buffers.len()).map_err(|_| Full)?
        };
        self.free_count = self.free_count.wrapping_sub(u16::from(count));
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = count;
        }
        self.put(self.layout.avail(self.added), &head);
        self.added = self.added.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_add(1);
        Ok(head)
    }

    /// The descriptor after `at` in a chain or among the free ones; the table
    /// is private and whole, so that there is one.
    fn next_of(&self, at: u16) -> u16 {
        self.next.get(usize::from(at)).copied().unwrap_or_default()
    }

    fn write_table(&mut self, head: u16, buffers: &[Buffer]) {
        let table = self.layout.table(head);
        let (mut at, mut len) = (table, 0u32);
        for (next, buffer) in (1u16..).zip(buffers) {
            let last = usize::from(next) == buffers.len();
            self.put(at, &describe(buffer, (!last).then_some(next)));
            at = at.wrapping_add(DESCRIPTOR);
            len = len.wrapping_add(16);
        }
        let address = self.memory.address().wrapping_add(table as u64);
        let descriptor = Descriptor { address, len, flags: INDIRECT, next: 0 };
        self.put(Layout::descriptor(head), &descriptor);
    }

    fn write_chain(&mut self, buffers: &[Buffer]) {
        let mut at = self.free_head;
        for (number, buffer) in (1usize..).zip(buffers) {
            let next = self.next_of(at);
            let last = number == buffers.len();
            self.put(Layout::descriptor(at), &describe(buffer, (!last).then_some(next)));
            at = next;
        }
        self.free_head = at;
    }

    /// Shows the device what was added; returns whether it wants a notification.
    ///
    /// Not inlined: where it returns, fault campaigns change what was shown.
    #[must_use]
    #[inline(never)]
    pub fn publish(&mut self) -> bool {
        if self.added == self.published {
            return false;
        }
        let old = core::mem::replace(&mut self.published, self.added);
        self.write_avail();
        // The device's wish must be read after the index is visible.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let word = self.memory.read_u32(self.layout.avail_event(), Ordering::Acquire);
            let [low, high, ..] = word.to_le_bytes();
            crossed(u16::from_le_bytes([low, high]), old, self.added)
        } else {
            self.memory.read_u32(self.layout.used, Ordering::Acquire) & NO_NOTIFY == 0
        }
    }

    /// Flags and index are neighbours and go out in one store.
    fn write_avail(&self) {
        let flags = if self.interrupts || self.event_idx { 0 } else { NO_INTERRUPT };
        self.memory.write_u32(
            self.layout.avail,
            flags | u32::from(self.published) << 16,
            Ordering::Release,
        );
    }

    fn used_index(&self) -> u16 {
        (self.memory.read_u32(self.layout.used, Ordering::Acquire) >> 16) as u16
    }

    /// Whether [`Self::pop`] would return something.
    pub fn has_used(&self) -> bool {
        self.used_index() != self.taken
    }

    /// Takes back a chain that the device finished.
    pub fn pop(&mut self) -> Result<Option<Used>, Misbehaved> {
        let ready = self.used_index().wrapping_sub(self.taken);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.in_flight {
            return Err(Misbehaved);
        }
        let offset = self.layout.used(self.taken);
        let token = self.memory.read_u32(offset, Ordering::Relaxed);
        let len = self.memory.read_u32(offset.wrapping_add(4), Ordering::Relaxed);
        let token = u16::try_from(token).map_err(|_| Misbehaved)?;
        let chain = self.chains.get_mut(usize::from(token)).ok_or(Misbehaved)?;
        let count = core::mem::replace(chain, FREE);
        if count == FREE {
            return Err(Misbehaved);
        }
        self.free_chain(token, count);
        self.in_flight = self.in_flight.wrapping_sub(1);
        self.taken = self.taken.wrapping_add(1);
        if self.interrupts {
            self.write_used_event(self.taken);
        }
        Ok(Some(Used { token, len }))
    }

    fn free_chain(&mut self, head: u16, count: u8) {
        let mut last = head;
        for _ in 1..count {
            last = self.next_of(last);
        }
        if let Some(next) = self.next.get_mut(usize::from(last)) {
            *next = self.free_head;
        }
        self.free_head = head;
        self.free_count = self.free_count.wrapping_add(u16::from(count));
    }

    fn write_used_event(&self, index: u16) {
        if self.event_idx {
            let place = self.layout.used_event();
            self.memory.write_u32(place, u32::from(index), Ordering::Release);
        }
    }

    /// Asks for interrupts or for none. Returns whether something was used
    /// already, in which case no interrupt may come for it.
    pub fn set_interrupts(&mut self, on: bool) -> bool {
        self.interrupts = on;
        // An index that the device reaches only after a full round.
        self.write_used_event(if on { self.taken } else { self.taken.wrapping_sub(1) });
        self.write_avail();
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for one interrupt once `count` of the chains in flight are used,
    /// where the device can do that; else for one as soon as any is. Returns
    /// whether so many are used already.
    pub fn interrupt_after(&mut self, count: u16) -> bool {
        if !self.event_idx || count == 0 {
            return self.set_interrupts(true);
        }
        self.interrupts = false;
        self.write_used_event(self.taken.wrapping_add(count.wrapping_sub(1)));
        fence(Ordering::SeqCst);
        self.used_index().wrapping_sub(self.taken) >= count
    }

    fn put<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        // Offsets are computed from the layout and the memory was cut to it.
        let written = self.memory.write(offset, value);
        debug_assert!(written.is_ok());
    }
}

fn describe(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    Descriptor {
        address: buffer.address,
        len: buffer.len,
        flags: if buffer.device_writes { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 },
        next: next.unwrap_or(0),
    }
}

/// Whether an index that moved from `old` to `new` passed `event`.
fn crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    fn memory(len: usize) -> SharedMem {
        let words: &'static mut [u64] = Vec::leak(vec![0u64; len.div_ceil(8)]);
        #[allow(unsafe_code)]
        // SAFETY: leaked, and used through the view only.
        unsafe {
            SharedMem::new(words.as_mut_ptr().cast(), len)
        }
    }

    fn queue(size: u16, event_idx: bool, indirect: bool) -> Queue {
        let layout = Layout::new(size);
        let mut queue = Queue::new(memory(layout.len()), layout).unwrap();
        queue.agree(event_idx, indirect);
        queue
    }

    fn buffers(n: usize) -> Vec<Buffer> {
        (0..n)
            .map(|i| Buffer {
                address: 0x1000 * (i as u64 + 1),
                len: 512,
                device_writes: i + 1 == n,
            })
            .collect()
    }

    /// Plays the device: uses chain `token`.
    fn finish(q: &Queue, index: &mut u16, token: u32, len: u32) {
        let slot = usize::from(*index % q.size());
        let at = q.layout.used + 4 + 8 * slot;
        q.memory.write_u32(at, token, Ordering::Relaxed);
        q.memory.write_u32(at + 4, len, Ordering::Relaxed);
        *index = index.wrapping_add(1);
        q.memory.write_u32(q.layout.used, u32::from(*index) << 16, Ordering::Release);
    }

    /// Plays the device: the chain that begins at `head`, as (address, len, write).
    fn chain(q: &Queue, head: u16) -> Vec<(u64, u32, bool)> {
        let mut at = 16 * usize::from(head);
        let mut table = 0;
        let mut out = Vec::new();
        loop {
            let address = q.memory.read::<u64>(at).unwrap();
            let len = q.memory.read_u32(at + 8, Ordering::Relaxed);
            let word = q.memory.read_u32(at + 12, Ordering::Relaxed);
            let (flags, next) = (word as u16, (word >> 16) as usize);
            if flags & INDIRECT != 0 {
                assert_eq!(len % 16, 0);
                table = (address - q.memory.address()) as usize;
                at = table;
                continue;
            }
            out.push((address, len, flags & WRITE != 0));
            if flags & NEXT == 0 {
                return out;
            }
            at = table + 16 * next;
        }
    }

    #[test]
    fn chains_come_out_as_they_went_in_and_slots_come_back() {
        for indirect in [false, true] {
            for event_idx in [false, true] {
                let mut q = queue(16, event_idx, indirect);
                let mut index = 0;
                // Far beyond the wrap of the 16-bit indices.
                for round in 0..30_000usize {
                    let n = round % 5 + 1;
                    let a = q.add(&buffers(n)).unwrap();
                    let b = q.add(&buffers(2)).unwrap();
                    let c = q.add(&buffers(1)).unwrap();
                    let _ = q.publish();
                    for (token, n) in [(a, n), (b, 2), (c, 1)] {
                        let want: Vec<_> = buffers(n)
                            .iter()
                            .map(|b| (b.address, b.len, b.device_writes))
                            .collect();
                        assert_eq!(chain(&q, token), want);
                    }
                    for token in [b, a, c] {
                        finish(&q, &mut index, token.into(), 7);
                        assert_eq!(q.pop(), Ok(Some(Used { token, len: 7 })));
                    }
                    assert_eq!(q.pop(), Ok(None));
                    assert_eq!(q.free_count, 16);
                    assert_eq!(q.in_flight(), 0);
                }
            }
        }
    }

    #[test]
    fn chains_may_be_there_before_the_device_is() {
        for event_idx in [false, true] {
            let layout = Layout::new(4);
            let mut q = Queue::new(memory(layout.len()), layout).unwrap();
            let tokens = [1, 1].map(|n| q.add(&buffers(n)).unwrap());
            q.agree(event_idx, true);
            // Nothing is shown before it is published, then all of it.
            let avail = |q: &Queue| q.memory.read_u32(q.layout.avail, Ordering::Relaxed) >> 16;
            assert_eq!(avail(&q), 0);
            assert!(q.publish());
            assert_eq!(avail(&q), 2);
            let late = q.add(&buffers(3)).unwrap();
            let mut index = 0;
            for (token, n) in [(tokens[1], 1), (late, 3), (tokens[0], 1)] {
                assert_eq!(chain(&q, token).len(), n);
                finish(&q, &mut index, token.into(), 0);
                assert_eq!(q.pop(), Ok(Some(Used { token, len: 0 })));
            }
            assert_eq!(q.free_count, 4);
        }
    }

    #[test]
    fn a_full_queue_says_so() {
        let mut q = queue(8, false, false);
        for _ in 0..4 {
            q.add(&buffers(2)).unwrap();
        }
        assert_eq!(q.add(&buffers(1)), Err(Full));
        let mut q = queue(8, false, true);
        for _ in 0..8 {
            q.add(&buffers(MAX_CHAIN)).unwrap();
        }
        assert_eq!(q.add(&buffers(1)), Err(Full));
        assert_eq!(q.add(&[]), Err(Full));
    }

    #[test]
    fn a_lying_device_is_found_out() {
        let mut q = queue(8, true, false);
        let token = q.add(&buffers(3)).unwrap();
        let _ = q.publish();
        let mut index = 0;
        // A descriptor inside of the chain, one that is free, one that is not there.
        for lie in [u32::from(token) + 1, 5, 8, 0x1_0000, u32::MAX] {
            let mut copy = index;
            finish(&q, &mut copy, lie, 0);
            assert_eq!(q.pop(), Err(Misbehaved));
        }
        finish(&q, &mut index, token.into(), 0);
        assert!(q.pop().unwrap().is_some());
        // The same again, though nothing is in flight.
        finish(&q, &mut index, token.into(), 0);
        assert_eq!(q.pop(), Err(Misbehaved));
        // An index from nowhere.
        q.memory.write_u32(q.layout.used, 0x7fff << 16, Ordering::Release);
        assert_eq!(q.pop(), Err(Misbehaved));
    }

    #[test]
    fn notifications_follow_the_event_index_over_the_wrap() {
        let mut q = queue(4, true, false);
        let event = q.layout.used + 4 + 8 * 4;
        let mut index = 0;
        for i in 0..70_000u32 {
            let now = i as u16;
            // Wants one at the next chain, or only at the one after.
            let next = i % 3 != 0;
            let at = if next { now } else { now.wrapping_add(1) };
            q.memory.write_u32(event, at.into(), Ordering::Relaxed);
            let token = q.add(&buffers(1)).unwrap();
            assert_eq!(q.publish(), next, "{i}");
            finish(&q, &mut index, token.into(), 0);
            q.pop().unwrap().unwrap();
        }
    }

    #[test]
    fn an_interrupt_can_wait_for_several_chains() {
        let mut q = queue(8, true, true);
        let tokens: Vec<u16> = (0..3).map(|_| q.add(&buffers(1)).unwrap()).collect();
        let _ = q.publish();
        let event = q.layout.avail + 4 + 2 * 8;
        let mut index = 0;
        assert!(!q.interrupt_after(2));
        assert_eq!(q.memory.read_u32(event, Ordering::Relaxed), 1);
        finish(&q, &mut index, tokens[0].into(), 0);
        assert!(!q.interrupt_after(2));
        finish(&q, &mut index, tokens[1].into(), 0);
        assert!(q.interrupt_after(2));
        q.pop().unwrap().unwrap();
        assert_eq!(q.memory.read_u32(event, Ordering::Relaxed), 1);
    }

    #[test]
    fn interrupts_can_be_switched() {
        let mut q = queue(4, false, false);
        let token = q.add(&buffers(1)).unwrap();
        let _ = q.publish();
        assert!(!q.set_interrupts(false));
        assert_eq!(q.memory.read_u32(q.layout.avail, Ordering::Relaxed), 1 << 16 | 1);
        let mut index = 0;
        finish(&q, &mut index, token.into(), 0);
        assert!(q.set_interrupts(true));
        assert_eq!(q.memory.read_u32(q.layout.avail, Ordering::Relaxed), 1 << 16);
    }
}
