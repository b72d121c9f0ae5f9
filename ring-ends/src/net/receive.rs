//! The frontend's rx queue: posted buffers and received frames.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ring_proto::net::{
    FLAG_DATA_VALID, MAX_FRAME, MIN_FRAME, RxRequest, RxResponse, Segment, Status,
};
use ring_proto::ring::{FrontRing, PeerMisbehaved};
use ring_proto::shm::SharedMem;

use super::BUFFER;
use crate::index_of;

/// A frame that was copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length.
    pub len: usize,
    /// The backend says that it verified the checksum.
    pub checksum_valid: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be posted.
    Idle,
    /// In the ring.
    Posted,
    /// Holds a frame.
    Ready { len: u32, flags: u8 },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stage: Stage,
    id: u32,
}

#[derive(Debug)]
pub(super) struct Receive {
    /// Its part of the pool.
    mem: SharedMem,
    /// Where that part begins in the pool.
    base: u32,
    pub(super) ring: Option<FrontRing<RxRequest, RxResponse>>,
    entries: Vec<Entry>,
    idle: Vec<u16>,
    ready: VecDeque<u16>,
}

impl Receive {
    pub(super) fn new(mem: SharedMem, base: u32) -> Self {
        let count = super::buffers(&mem);
        Self {
            mem,
            base,
            ring: None,
            entries: (0..count).map(|i| Entry { stage: Stage::Idle, id: i.into() }).collect(),
            idle: (0..count).rev().collect(),
            ready: VecDeque::with_capacity(count.into()),
        }
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Copies the oldest frame into `to`; what does not fit is cut off.
    pub(super) fn receive(&mut self, to: &mut [u8]) -> Option<Received> {
        let index = self.ready.pop_front()?;
        let entry = self.entries.get_mut(usize::from(index))?;
        let Stage::Ready { len, flags } = entry.stage else { return None };
        entry.stage = Stage::Idle;
        self.idle.push(index);
        let len = (len as usize).min(to.len());
        let part = super::buffer(&self.mem, index)?;
        part.copy_from(0, to.get_mut(..len)?).ok()?;
        Some(Received { len, checksum_valid: flags & FLAG_DATA_VALID != 0 })
    }

    /// Posts idle buffers.
    pub(super) fn push(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        while let Some(&index) = self.idle.last() {
            let Some(entry) = self.entries.get_mut(usize::from(index)) else { break };
            entry.id = ((entry.id >> 16).wrapping_add(1) << 16) | u32::from(index);
            let offset = self.base.saturating_add(super::buffer_offset(index));
            let buffer = Segment { offset, len: super::BUFFER_BYTES };
            if ring.push(&RxRequest { id: entry.id, buffer, reserved: 0 }).is_err() {
                break;
            }
            entry.stage = Stage::Posted;
            self.idle.pop();
        }
    }

    /// Takes responses, at most as many as there are buffers. Returns whether
    /// there may be more.
    pub(super) fn reap(&mut self) -> Result<bool, PeerMisbehaved> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let mut taken = false;
        for _ in 0..self.entries.len() {
            let Some(response) = ring.pop()? else { break };
            taken = true;
            let index = index_of(response.id);
            let entry = self.entries.get_mut(usize::from(index)).ok_or(PeerMisbehaved)?;
            if entry.stage != Stage::Posted || entry.id != response.id {
                return Err(PeerMisbehaved);
            }
            match Status::from_raw(response.status) {
                Some(Status::Ok) if (MIN_FRAME..=MAX_FRAME).contains(&response.len) => {
                    entry.stage = Stage::Ready { len: response.len, flags: response.flags };
                    self.ready.push_back(index);
                }
                Some(Status::Dropped | Status::Invalid) => {
                    entry.stage = Stage::Idle;
                    self.idle.push(index);
                }
                _ => return Err(PeerMisbehaved),
            }
        }
        if taken { Ok(true) } else { ring.arm() }
    }

    /// The connection is down: posted buffers come back.
    pub(super) fn forget_ring(&mut self) {
        self.ring = None;
        for (index, entry) in (0u16..).zip(&mut self.entries) {
            if entry.stage == Stage::Posted {
                entry.stage = Stage::Idle;
                self.idle.push(index);
            }
        }
    }
}

const _: () = assert!(MAX_FRAME as usize <= BUFFER);
