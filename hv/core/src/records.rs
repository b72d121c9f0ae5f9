//! What outlives a domain: death records and the console log.

use alloc::collections::VecDeque;

use ring_proto::{
    DomainId, Generation,
    crash::{CrashRecord, Timeline},
    hypercall::LogHeader,
};
use zerocopy::{FromZeros, IntoBytes};

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

    /// Notes in that record that a step was done at `now`, unless it was before.
    pub fn stamp(
        &mut self,
        domain: DomainId,
        generation: Generation,
        step: fn(&mut Timeline) -> &mut u64,
        now: u64,
    ) {
        if let Some(at) = self.before(domain, generation).map(|r| step(&mut r.times))
            && *at == 0
        {
            *at = now;
        }
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
    /// Whole entries. It never grows.
    bytes: VecDeque<u8>,
    /// Cursor of each entry: a reader's place is found without a walk. It never
    /// grows either.
    begins: VecDeque<u64>,
    capacity: usize,
    /// The cursor behind the newest entry.
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
        let capacity = capacity.max(2 * HEADER);
        let begins = VecDeque::with_capacity(capacity / HEADER);
        Self { bytes: VecDeque::with_capacity(capacity), begins, capacity, tail: 0 }
    }

    /// Appends one entry, dropping the oldest entries as needed. Text beyond
    /// half the ring is cut.
    pub fn push(&mut self, domain: DomainId, generation: Generation, time_ns: u64, text: &[u8]) {
        let text = text.get(..self.capacity / 2 - HEADER).unwrap_or(text);
        while self.bytes.len() + HEADER + text.len() > self.capacity {
            let oldest = self.oldest();
            self.begins.pop_front();
            let next = self.begins.front().unwrap_or(&self.tail);
            self.bytes.drain(..(next - oldest) as usize);
        }
        let header = LogHeader { domain, len: text.len() as u16, generation, time_ns };
        self.begins.push_back(self.tail);
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(text);
        self.tail += (HEADER + text.len()) as u64;
    }

    /// The cursor of the oldest entry.
    fn oldest(&self) -> u64 {
        self.tail - self.bytes.len() as u64
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        out.iter_mut().zip(self.bytes.iter().skip(at)).for_each(|(to, from)| *to = *from);
    }

    /// Copies whole entries that are `wanted`, from `cursor` on, into `out`.
    /// Returns the bytes copied and the new cursor. A cursor before the oldest
    /// entry, or one that is not at an entry's beginning, reads from the oldest.
    pub fn copy_out(
        &self,
        cursor: u64,
        out: &mut [u8],
        wanted: impl Fn(&LogHeader) -> bool,
    ) -> (usize, u64) {
        let first = match cursor < self.tail {
            true => self.begins.binary_search(&cursor).unwrap_or(0),
            false => self.begins.len(),
        };
        let mut done = 0;
        for &begin in self.begins.range(first..) {
            let at = (begin - self.oldest()) as usize;
            let mut header = LogHeader::new_zeroed();
            self.read(at, header.as_mut_bytes());
            if wanted(&header) {
                let len = HEADER + usize::from(header.len);
                let Some(slot) = out.get_mut(done..done + len) else { return (done, begin) };
                self.read(at, slot);
                done += len;
            }
        }
        (done, self.tail)
    }
}
