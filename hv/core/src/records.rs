//! What outlives a domain: death records and the console log.

use alloc::{collections::VecDeque, vec, vec::Vec};

use ring_proto::{DomainId, Generation, crash::CrashRecord, hypercall::LogHeader};
use zerocopy::{FromBytes, IntoBytes};

/// Death records of the node, the newest ones up to a bound.
#[derive(Debug)]
pub struct Deaths {
    kept: VecDeque<CrashRecord>,
    capacity: usize,
    next: u64,
}

impl Deaths {
    /// Room for `capacity` records.
    pub fn new(capacity: usize) -> Self {
        Self { kept: VecDeque::with_capacity(capacity), capacity: capacity.max(1), next: 0 }
    }

    /// Sequence number of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Keeps `record` under the next sequence number; drops the oldest if full.
    pub fn push(&mut self, mut record: CrashRecord) -> u64 {
        record.sequence = self.next;
        self.next = self.next.wrapping_add(1);
        if self.kept.len() >= self.capacity {
            self.kept.pop_front();
        }
        self.kept.push_back(record);
        record.sequence
    }

    /// The oldest kept record whose sequence number is at least `from`.
    pub fn at_least(&self, from: u64) -> Option<&CrashRecord> {
        self.kept.iter().find(|r| r.sequence >= from)
    }

    /// The record of the death that made way for `generation` of `domain`, to
    /// be completed as recovery goes on.
    pub fn before(&mut self, domain: DomainId, generation: Generation) -> Option<&mut CrashRecord> {
        let newest = self.kept.iter_mut().rev().find(|r| r.domain == domain);
        newest.filter(|r| r.generation.wrapping_add(1) == generation)
    }
}

/// What a domain may put on the serial line, which all share and which is
/// slow: a token bucket of bytes.
#[derive(Clone, Copy, Debug)]
pub struct LineQuota {
    left: u64,
    since: u64,
    dropped: u64,
}

impl LineQuota {
    /// Bytes that a domain may write at once.
    pub const BURST: u64 = 16 << 10;
    /// ns after which it may write one more: about 4 KiB a second.
    pub const NS_PER_BYTE: u64 = 250_000;

    /// A quota of which nothing is used at time `now`.
    pub fn new(now: u64) -> Self {
        Self { left: Self::BURST, since: now, dropped: 0 }
    }

    /// Takes `bytes` at time `now` (ns). `None` if they are too many: they are
    /// not to be written. Otherwise how many bytes were refused before.
    pub fn take(&mut self, bytes: u64, now: u64) -> Option<u64> {
        let earned = now.saturating_sub(self.since) / Self::NS_PER_BYTE;
        self.since = self.since.saturating_add(earned.saturating_mul(Self::NS_PER_BYTE));
        self.left = self.left.saturating_add(earned).min(Self::BURST);
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Some(core::mem::take(&mut self.dropped))
            }
            None => {
                self.dropped = self.dropped.saturating_add(bytes);
                None
            }
        }
    }
}

/// A byte ring of console entries. Cursors count bytes ever written, so a
/// reader that fell behind sees where the oldest kept entry begins.
#[derive(Debug)]
pub struct Console {
    bytes: Vec<u8>,
    head: u64,
    tail: u64,
}

const HEADER: usize = size_of::<LogHeader>();

#[expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "cursors count bytes ever written, in 64 bits; entries fit in half the ring"
)]
impl Console {
    /// A ring of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity.max(2 * HEADER)], head: 0, tail: 0 }
    }

    /// Appends one entry, dropping the oldest entries as needed. Text beyond
    /// half the ring is cut.
    pub fn push(&mut self, domain: DomainId, generation: Generation, time_ns: u64, text: &[u8]) {
        let text = text.get(..self.bytes.len() / 2 - HEADER).unwrap_or(text);
        let need = (HEADER + text.len()) as u64;
        while self.tail + need - self.head > self.bytes.len() as u64 {
            match self.header(self.head) {
                Some(h) => self.head += HEADER as u64 + u64::from(h.len),
                None => self.head = self.tail,
            }
        }
        let header = LogHeader { domain, len: text.len() as u16, generation, time_ns };
        self.write(header.as_bytes());
        self.write(text);
    }

    fn write(&mut self, data: &[u8]) {
        let size = self.bytes.len() as u64;
        for &b in data {
            let at = (self.tail % size) as usize;
            if let Some(slot) = self.bytes.get_mut(at) {
                *slot = b;
            }
            self.tail += 1;
        }
    }

    fn read(&self, from: u64, out: &mut [u8]) {
        let size = self.bytes.len() as u64;
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = self.bytes.get(((from + i as u64) % size) as usize).copied().unwrap_or(0);
        }
    }

    fn header(&self, at: u64) -> Option<LogHeader> {
        let mut raw = [0; HEADER];
        if at + HEADER as u64 > self.tail {
            return None;
        }
        self.read(at, &mut raw);
        LogHeader::read_from_bytes(&raw).ok()
    }

    /// Copies whole entries from `cursor` on into `out`. Returns the bytes
    /// copied and the new cursor. A cursor before the oldest entry, or one
    /// that is not at an entry's beginning, reads from the oldest.
    pub fn copy_out(&self, cursor: u64, out: &mut [u8]) -> (usize, u64) {
        let mut at = if cursor == self.tail { self.tail } else { self.head };
        while at < cursor && at < self.tail {
            match self.header(at) {
                Some(h) => at += HEADER as u64 + u64::from(h.len),
                None => break,
            }
        }
        if at != cursor && cursor <= self.tail && cursor >= self.head {
            at = self.head;
        }
        let mut done = 0;
        while let Some(h) = self.header(at) {
            let len = HEADER + usize::from(h.len);
            let Some(slot) = out.get_mut(done..done + len) else { break };
            self.read(at, slot);
            done += len;
            at += len as u64;
        }
        (done, at)
    }
}
