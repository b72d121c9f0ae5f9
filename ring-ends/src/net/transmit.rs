//! The frontend's tx queue: buffers, and frames in flight.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ring_proto::net::{
    FLAG_NEEDS_CSUM, MAX_FRAME, MAX_SEGMENTS, MIN_FRAME, Segment, TxRequest, TxResponse,
};
use ring_proto::ring::{FrontRing, PeerMisbehaved};
use ring_proto::shm::SharedMem;

use super::Checksum;
use crate::{Counters, count, index_of};

/// An empty tx buffer. Give it back with `send` or `cancel`: dropped, it is
/// lost to the frontend.
#[derive(Debug)]
#[must_use]
pub struct TxBuffer {
    pub(super) index: u16,
}

/// Why a frame was not sent. The buffer is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Shorter than an Ethernet header or longer than a frame.
    Length,
    /// No buffer is free, or no backend is there.
    NoBuffer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    /// With the user.
    Taken,
    /// Not in the ring.
    Waiting,
    /// In the ring.
    Sent,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stage: Stage,
    sequence: u64,
    /// Already sent to an earlier backend: not sent a third time.
    resent: bool,
    request: TxRequest,
}

#[derive(Debug)]
pub(super) struct Transmit {
    /// Its part of the pool, from offset 0.
    mem: SharedMem,
    pub(super) ring: Option<FrontRing<TxRequest, TxResponse>>,
    entries: Vec<Entry>,
    free: Vec<u16>,
    waiting: VecDeque<u16>,
    sequence: u64,
}

impl Transmit {
    pub(super) fn new(mem: SharedMem) -> Self {
        let count = super::buffers(&mem);
        let request = TxRequest {
            id: 0,
            flags: 0,
            gso_type: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
            segment_count: 1,
            reserved: [0; 3],
            segments: [Segment::default(); MAX_SEGMENTS],
        };
        Self {
            mem,
            ring: None,
            entries: alloc::vec![
                Entry { stage: Stage::Free, sequence: 0, resent: false, request };
                count.into()
            ],
            free: (0..count).rev().collect(),
            waiting: VecDeque::with_capacity(count.into()),
            sequence: 0,
        }
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Frames that are not sent, as far as is known.
    pub(super) fn pending(&self) -> usize {
        let out = self.ring.as_ref().map_or(0, |ring| ring.outstanding() as usize);
        self.waiting.len().saturating_add(out)
    }

    pub(super) fn take(&mut self) -> Option<TxBuffer> {
        let index = self.free.pop()?;
        self.entries.get_mut(usize::from(index))?.stage = Stage::Taken;
        Some(TxBuffer { index })
    }

    pub(super) fn cancel(&mut self, buffer: TxBuffer) {
        if let Some(entry) = self.entries.get_mut(usize::from(buffer.index))
            && entry.stage == Stage::Taken
        {
            entry.stage = Stage::Free;
            self.free.push(buffer.index);
        }
    }

    pub(super) fn write(&self, buffer: &TxBuffer, offset: usize, data: &[u8]) -> bool {
        super::buffer(&self.mem, buffer.index)
            .is_some_and(|part| part.copy_to(offset, data).is_ok())
    }

    pub(super) fn send(
        &mut self,
        buffer: TxBuffer,
        len: u32,
        checksum: Option<Checksum>,
    ) -> Result<(), SendError> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            self.cancel(buffer);
            return Err(SendError::Length);
        }
        let index = buffer.index;
        let Some(entry) = self.entries.get_mut(usize::from(index)) else {
            return Err(SendError::NoBuffer);
        };
        let uses = (entry.request.id >> 16).wrapping_add(1);
        let request = &mut entry.request;
        request.id = (uses << 16) | u32::from(index);
        request.flags = if checksum.is_some() { FLAG_NEEDS_CSUM } else { 0 };
        request.csum_start = checksum.map_or(0, |c| c.start);
        request.csum_offset = checksum.map_or(0, |c| c.offset);
        let [segment, ..] = &mut request.segments;
        *segment = Segment { offset: super::buffer_offset(index), len };
        entry.stage = Stage::Waiting;
        entry.resent = false;
        self.sequence = self.sequence.saturating_add(1);
        entry.sequence = self.sequence;
        self.waiting.push_back(index);
        Ok(())
    }

    /// Puts waiting frames into the ring.
    pub(super) fn push(&mut self, counters: &mut Counters) {
        let Some(ring) = &mut self.ring else { return };
        while let Some(&index) = self.waiting.front() {
            let Some(entry) = self.entries.get_mut(usize::from(index)) else { break };
            if ring.push(&entry.request).is_err() {
                break;
            }
            entry.stage = Stage::Sent;
            count(&mut counters.requests);
            self.waiting.pop_front();
        }
    }

    /// Takes responses, at most as many as there are buffers. Returns whether
    /// there may be more. Asks for a notification only if buffers are short.
    pub(super) fn reap(&mut self) -> Result<bool, PeerMisbehaved> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let mut taken = false;
        for _ in 0..self.entries.len() {
            let Some(response) = ring.pop()? else { break };
            taken = true;
            let index = index_of(response.id);
            let entry = self.entries.get_mut(usize::from(index)).ok_or(PeerMisbehaved)?;
            if entry.stage != Stage::Sent || entry.request.id != response.id {
                return Err(PeerMisbehaved);
            }
            // Whatever the status: a frame is sent or it is lost.
            entry.stage = Stage::Free;
            self.free.push(index);
        }
        if taken {
            return Ok(true);
        }
        if self.free.len() <= self.entries.len() / 4 {
            ring.arm()
        } else {
            ring.disarm();
            Ok(false)
        }
    }

    /// The connection is down: frames in flight are sent again, once; those
    /// that are known not to have been `taken` do not count as sent.
    pub(super) fn forget_ring(&mut self, counters: &mut Counters, taken: bool) {
        self.ring = None;
        self.waiting.clear();
        for (index, entry) in (0u16..).zip(&mut self.entries) {
            if entry.stage == Stage::Sent {
                if !taken {
                    entry.stage = Stage::Waiting;
                } else if entry.resent {
                    entry.stage = Stage::Free;
                    self.free.push(index);
                } else {
                    entry.stage = Stage::Waiting;
                    entry.resent = true;
                    count(&mut counters.replayed);
                }
            }
            if entry.stage == Stage::Waiting {
                self.waiting.push_back(index);
            }
        }
        let entries = &self.entries;
        let order = |i: &u16| entries.get(usize::from(*i)).map(|e| e.sequence);
        self.waiting.make_contiguous().sort_unstable_by_key(order);
    }
}
