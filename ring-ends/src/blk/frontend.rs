//! The block frontend: submits, completes, and replays after a crash.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ring_proto::blk::{
    FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_REQUEST_BYTES, MAX_SEGMENTS, Op,
    Request, Response, SECTOR, Segment, Status,
};
use ring_proto::conn::{BackBody, BackHello, Pages, Protocol};
use ring_proto::ring::FrontRing;
use ring_proto::{DomainId, Port};

use super::SECTOR_BYTES;
use crate::conn::{FrontLink, FrontStep, Region};
use crate::stall::Stall;
use crate::{ConfigError, Counters, Env, Progress, count, index_of, pieces};

/// Times that a request that was refused is sent again, before that is its end
/// (BLK-12). Before each there is the pause after a loss, in which a backend that is
/// complained of is replaced; all but the last together are longer than the time for
/// which a complaint is not heard after another one (SPEC.md, CONN-16).
const REFUSALS_MOST: u8 = 5;

/// What a frontend is made of.
#[derive(Clone, Copy, Debug)]
pub struct FrontendConfig {
    /// The connection's pages.
    pub pages: Pages,
    /// The connection's port.
    pub port: Port,
    /// The backend's domain.
    pub peer: DomainId,
    /// Memory of the ring, at least [`super::ring_pages`].
    pub ring: Region,
    /// Memory that segments point into.
    pub pool: Region,
    /// Slots, a power of two up to [`super::MAX_SLOTS`]; also the number of
    /// requests that can be in flight.
    pub slots: u32,
}

/// What the backend said about the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// Start and length of requests must be multiples of this.
    pub block_size: u32,
    /// No writes.
    pub read_only: bool,
    /// `FEATURE_*` bits that may be used.
    pub features: u32,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// Operation.
    pub op: Op,
    /// First sector; without meaning for a flush.
    pub sector: u64,
    /// Discard, write-zeroes: sectors. Otherwise 0.
    pub sectors: u64,
    /// Read, write: where the data is in the pool. They belong to the
    /// request until its completion, over reconnects too.
    pub segments: &'a [Segment],
}

/// Why a submission was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// As many requests as there are slots are in flight: take completions.
    Full,
    /// Malformed: segments, lengths or operation.
    Invalid,
}

/// A request that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to `submit`.
    pub token: u64,
    /// How it ended.
    pub status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    /// Not in the ring.
    Waiting,
    /// In the ring.
    Sent,
    /// Ended, not yet taken.
    Done(Status),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stage: Stage,
    token: u64,
    /// Order of submission.
    sequence: u64,
    /// Times that a backend refused it (BLK-12).
    refused: u8,
    request: Request,
}

/// The block frontend.
#[derive(Debug)]
pub struct Frontend {
    link: FrontLink,
    config: FrontendConfig,
    ring: Option<FrontRing<Request, Response>>,
    geometry: Option<Geometry>,
    entries: Vec<Entry>,
    /// Of each entry, the sectors that it changes while it is in the ring
    /// (first, end); otherwise an empty range.
    changing: Vec<(u64, u64)>,
    free: Vec<u16>,
    /// In order of submission.
    waiting: VecDeque<u16>,
    done: VecDeque<u16>,
    sequence: u64,
    stall: Stall,
    counters: Counters,
}

impl Frontend {
    /// A frontend that connects as soon as it is polled.
    pub fn new(config: FrontendConfig) -> Result<Self, ConfigError> {
        let pages = super::ring_pages(config.slots).ok_or(ConfigError::Slots)?;
        if !config.ring.is_whole() || config.ring.pages() < pages {
            return Err(ConfigError::Ring);
        }
        if !config.pool.is_whole() || u32::try_from(config.pool.mem.len()).is_err() {
            return Err(ConfigError::Pool);
        }
        let mut rings = heapless::Vec::new();
        rings.push((config.ring, config.slots)).map_err(|_| ConfigError::Slots)?;
        let features = FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES;
        let link = FrontLink::new(
            config.pages,
            config.port,
            config.peer,
            Protocol::Blk,
            features,
            rings,
            config.pool,
        );
        let slots = config.slots as usize;
        let request = empty_request(Op::Flush);
        let entry = Entry { stage: Stage::Free, token: 0, sequence: 0, refused: 0, request };
        Ok(Self {
            link,
            config,
            ring: None,
            geometry: None,
            entries: alloc::vec![entry; slots],
            changing: alloc::vec![(0, 0); slots],
            // `MAX_SLOTS` fit.
            free: (0..u16::try_from(config.slots).unwrap_or(u16::MAX)).rev().collect(),
            waiting: VecDeque::with_capacity(slots),
            done: VecDeque::with_capacity(slots),
            sequence: 0,
            stall: Stall::new(),
            counters: Counters::default(),
        })
    }

    /// Has the frontend complain when no request comes to its end for so many
    /// ns, though some wait and there is a backend, and at once of one that breaks
    /// the protocol or cuts it off again and again; 0 = never, as at first.
    pub fn complain_after(&mut self, ns: u64) {
        self.stall.set_bound(ns);
        self.link.set_complains(ns != 0);
    }

    /// Drives the handshake, takes responses, sends what waits. Takes at most
    /// as many responses as there are slots.
    pub fn poll(&mut self, env: &mut impl Env) -> Progress {
        let mut again = false;
        let pending = self.pending();
        match self.link.step(env, &mut self.counters) {
            FrontStep::Waiting => {}
            FrontStep::Prepare => {
                self.ring = FrontRing::new(self.config.ring.mem, self.config.slots);
                self.link.offer(env);
            }
            FrontStep::Answered(hello) => {
                again = true;
                match check_answer(&hello) {
                    Some(geometry) => self.geometry = Some(geometry),
                    None => self.misbehaved(env),
                }
            }
            FrontStep::Up => again = self.take_responses(env),
            FrontStep::Left => {
                again = true;
                // One that breaks the rules even now is gone after this.
                self.take_responses(env);
                if self.link.is_up() {
                    self.link.let_go(env, &mut self.counters);
                    self.forget_ring(false);
                }
            }
            FrontStep::Lost => {
                again = true;
                self.forget_ring(true);
            }
        }
        let progress = self.pending() < pending;
        self.kick(env);
        let waits = self.pending() > 0 && self.link.has_peer();
        if self.stall.look(env.now_ns(), waits, progress) {
            count(&mut self.counters.complaints);
            env.complain(self.link.port());
        }
        Progress { again, deadline: self.link.deadline() }.until(self.stall.deadline())
    }

    /// Takes a request. It is sent by the next `kick` or `poll` while
    /// connected, otherwise after the next connect.
    pub fn submit(&mut self, io: Io<'_>, token: u64) -> Result<(), SubmitError> {
        let request = self.check_io(&io).ok_or(SubmitError::Invalid)?;
        let index = self.free.pop().ok_or(SubmitError::Full)?;
        let Some(entry) = self.entries.get_mut(usize::from(index)) else {
            return Err(SubmitError::Full);
        };
        // The upper half tells uses of an entry apart, so that a repeated
        // response is recognised.
        let uses = (entry.request.id >> 16).wrapping_add(1);
        let id = (uses << 16) | u32::from(index);
        self.sequence = self.sequence.saturating_add(1);
        *entry = Entry {
            stage: Stage::Waiting,
            token,
            sequence: self.sequence,
            refused: 0,
            request: Request { id, ..request },
        };
        self.waiting.push_back(index);
        Ok(())
    }

    /// Sends what was submitted, with at most one notification. Stops at a
    /// request that changes sectors which one in the ring changes (BLK-11):
    /// that one's response comes first.
    pub fn kick(&mut self, env: &mut impl Env) {
        if !self.link.is_up() {
            return;
        }
        let (Some(ring), Some(geometry)) = (&mut self.ring, &self.geometry) else { return };
        while let Some(&index) = self.waiting.front() {
            let Some(entry) = self.entries.get_mut(usize::from(index)) else { break };
            if let Err(status) = check_offer(geometry, &entry.request) {
                entry.stage = Stage::Done(status);
                self.done.push_back(index);
            } else {
                let (first, end) = changed(&entry.request);
                let Some(own) = self.changing.get_mut(usize::from(index)) else { break };
                *own = (0, 0);
                if first != end && self.changing.iter().any(|&(f, e)| f < end && first < e) {
                    break;
                }
                if ring.push(&entry.request).is_err() {
                    break;
                }
                entry.stage = Stage::Sent;
                if let Some(own) = self.changing.get_mut(usize::from(index)) {
                    *own = (first, end);
                }
                count(&mut self.counters.requests);
            }
            self.waiting.pop_front();
        }
        if ring.unpublished() > 0 {
            let notify = ring.publish();
            self.counters.published(env, self.link.port(), notify);
        }
    }

    /// The next request that ended, in the order in which they ended.
    pub fn next_completion(&mut self) -> Option<Completion> {
        let index = self.done.pop_front()?;
        let entry = self.entries.get_mut(usize::from(index))?;
        let Stage::Done(status) = entry.stage else { return None };
        entry.stage = Stage::Free;
        self.free.push(index);
        Some(Completion { token: entry.token, status })
    }

    /// The volume, once a backend has answered for the first time. It stays
    /// while the backend is away, and may be another after a reconnect.
    pub fn geometry(&self) -> Option<Geometry> {
        self.geometry
    }

    /// Whether requests reach a backend at the moment.
    pub fn is_connected(&self) -> bool {
        self.link.is_up()
    }

    /// How many more requests can be submitted.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Requests submitted whose completion was not taken.
    pub fn in_flight(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    /// Why the backend last refused, in its own words (foreign text).
    pub fn refusal(&self) -> Option<&str> {
        self.link.refusal()
    }

    /// Counts since the beginning.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Requests that were not completed.
    fn pending(&self) -> usize {
        self.in_flight().saturating_sub(self.done.len())
    }

    /// Returns whether to poll again before sleeping.
    fn take_responses(&mut self, env: &mut impl Env) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let mut taken = false;
        for _ in 0..self.config.slots {
            let response = match ring.pop() {
                Ok(Some(response)) => response,
                Ok(None) => break,
                Err(_) => {
                    self.misbehaved(env);
                    return true;
                }
            };
            taken = true;
            let index = index_of(response.id);
            let entry = self.entries.get_mut(usize::from(index));
            let status = Status::from_raw(response.status);
            match (entry, status) {
                (Some(entry), Some(status))
                    if entry.stage == Stage::Sent && entry.request.id == response.id =>
                {
                    if is_refusal(entry.request.op, status) && entry.refused < REFUSALS_MOST {
                        entry.refused = entry.refused.saturating_add(1);
                        self.misbehaved(env);
                        return true;
                    }
                    entry.stage = Stage::Done(status);
                    self.done.push_back(index);
                    self.link.worked();
                    if let Some(range) = self.changing.get_mut(usize::from(index)) {
                        *range = (0, 0);
                    }
                }
                _ => {
                    self.misbehaved(env);
                    return true;
                }
            }
        }
        if taken {
            return true;
        }
        match ring.arm() {
            Ok(more) => more,
            Err(_) => {
                self.misbehaved(env);
                true
            }
        }
    }

    fn misbehaved(&mut self, env: &mut impl Env) {
        self.link.misbehaved(env, &mut self.counters);
        self.forget_ring(true);
    }

    /// What was in the ring waits again, in the order of submission. Unless it
    /// is known that it was not `taken`, it may be carried out twice.
    fn forget_ring(&mut self, taken: bool) {
        self.ring = None;
        self.changing.fill((0, 0));
        self.waiting.clear();
        for (index, entry) in (0u16..).zip(&mut self.entries) {
            if entry.stage == Stage::Sent {
                entry.stage = Stage::Waiting;
                if taken {
                    count(&mut self.counters.replayed);
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

    fn check_io(&self, io: &Io<'_>) -> Option<Request> {
        let mut request = empty_request(io.op);
        request.sector = if io.op == Op::Flush { 0 } else { io.sector };
        request.segments.get_mut(..io.segments.len())?.copy_from_slice(io.segments);
        request.segment_count = u8::try_from(io.segments.len()).ok()?;
        let with_data = matches!(io.op, Op::Read | Op::Write);
        let with_range = matches!(io.op, Op::Discard | Op::WriteZeroes);
        if with_data == io.segments.is_empty() || with_range == (io.sectors == 0) {
            return None;
        }
        let pool = &self.config.pool.mem;
        let (_, total) = pieces::validate::<MAX_SEGMENTS>(
            pool,
            &request.segments,
            request.segment_count,
            SECTOR_BYTES,
        )?;
        request.sectors = io.sectors;
        (total <= u64::from(MAX_REQUEST_BYTES)).then_some(request)
    }
}

fn empty_request(op: Op) -> Request {
    Request {
        id: 0,
        op: op as u8,
        segment_count: 0,
        reserved: 0,
        sector: 0,
        sectors: 0,
        segments: [Segment::default(); MAX_SEGMENTS],
    }
}

fn check_answer(hello: &BackHello) -> Option<Geometry> {
    let BackBody::Blk { sectors, block_size, read_only } = hello.body else { return None };
    let plausible = block_size.is_power_of_two()
        && (SECTOR_BYTES..=MAX_REQUEST_BYTES).contains(&block_size)
        && sectors <= u64::MAX / SECTOR;
    plausible.then_some(Geometry { sectors, block_size, read_only, features: hello.features })
}

/// The sector after the request's last one.
fn end_sector(request: &Request) -> Option<u64> {
    let bytes: u64 = request.segments.iter().map(|s| u64::from(s.len)).sum();
    request.sector.checked_add(request.sectors)?.checked_add(bytes / SECTOR)
}

/// Whether a backend that offers this has to carry a request out, whose form was
/// checked when it was submitted; otherwise how the request ends (BLK-10, BLK-12).
fn check_offer(geometry: &Geometry, request: &Request) -> Result<(), Status> {
    let op = Op::from_raw(request.op).ok_or(Status::Invalid)?;
    let (needs, changes) = match op {
        Op::Read => (0, false),
        Op::Write => (0, true),
        Op::Flush => (FEATURE_FLUSH, false),
        Op::Discard => (FEATURE_DISCARD, true),
        Op::WriteZeroes => (FEATURE_WRITE_ZEROES, true),
    };
    if geometry.features & needs != needs || (changes && geometry.read_only) {
        return Err(Status::Unsupported);
    }
    if op == Op::Flush {
        return Ok(());
    }
    let unit = u64::from(geometry.block_size) / SECTOR;
    match end_sector(request) {
        Some(end) if end > geometry.sectors => Err(Status::IoError),
        // `check_answer` let no unit of 0 pass.
        Some(end) if request.sector.is_multiple_of(unit) && end.is_multiple_of(unit) => Ok(()),
        _ => Err(Status::Invalid),
    }
}

/// Whether a backend answers so that must not, as what it said that it offers was
/// checked: only of a discard or of zeroes may the device itself know nothing.
fn is_refusal(op: u8, status: Status) -> bool {
    let may = matches!(Op::from_raw(op), Some(Op::Discard | Op::WriteZeroes));
    status == Status::Invalid || (status == Status::Unsupported && !may)
}

/// The sectors that a request changes: first and end; an empty range if none.
fn changed(request: &Request) -> (u64, u64) {
    match Op::from_raw(request.op) {
        Some(Op::Write | Op::Discard | Op::WriteZeroes) => {
            (request.sector, end_sector(request).unwrap_or(u64::MAX))
        }
        _ => (0, 0),
    }
}
