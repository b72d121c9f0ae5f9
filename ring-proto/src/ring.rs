//! Rings in shared memory.
//!
//! A queue is one contiguous region: a header of four words, each in a cache
//! line of its own, then the request slots, then the response slots.
//!
//! | offset | word | written by |
//! |---|---|---|
//! | 0 | `req_prod` | frontend |
//! | 64 | `req_event` | backend |
//! | 128 | `rsp_prod` | backend |
//! | 192 | `rsp_event` | frontend |
//!
//! Indices run freely through 32 bits; slot `i` of a ring is `i % slots`. A
//! frontend has at most `slots` requests out, each gets exactly one response,
//! so neither ring can overflow and no consumer index is shared.
//!
//! Both ends keep private shadows of what they wrote and never read it back.
//! The peer's index is checked before use, and a slot is copied once.
//!
//! The roles are types: [`FrontRing`] joins a [`RequestProducer`] and a
//! [`ResponseConsumer`], [`BackRing`] the other two.
//!
//! # Sleep and wake
//!
//! The producer publishes its index, then reads the consumer's event index;
//! the consumer writes its event index, then reads the producer's index. A
//! sequentially consistent fence stands between the two steps on either side,
//! so at least one of them sees the other: the producer notifies or the
//! consumer finds the work. `tests/loom.rs` checks this.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::shm::SharedMem;
use crate::sync::fence;

/// Bytes of the header.
pub const HEADER: usize = 256;
/// Most slots of a queue.
pub const MAX_SLOTS: u32 = 1024;

/// The peer broke the rules of the ring. Apart from "empty" and "full", which
/// are normal; the answer is to disconnect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerMisbehaved;

impl fmt::Display for PeerMisbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the peer's ring index is out of bounds")
    }
}

impl core::error::Error for PeerMisbehaved {}

/// The ring has no room: as many requests are out as it has slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The memory of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Slots of each ring, a power of two.
    pub slots: u32,
    /// Offset of the request slots.
    pub requests: usize,
    /// Offset of the response slots.
    pub responses: usize,
    /// Bytes of the whole.
    pub total: usize,
}

impl Layout {
    /// Pages of the whole.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`layout` admits 1024 slots of 4096 bytes at most: some thousand pages"
    )]
    pub const fn pages(&self) -> u32 {
        self.total.div_ceil(crate::PAGE_SIZE) as u32
    }
}

/// Lays out a queue. `None` if `slots` is not a power of two up to
/// [`MAX_SLOTS`] or a slot is empty or larger than a page.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "slots and sizes were bounded just before: the sum is below 2^24"
)]
pub const fn layout(slots: u32, request_size: usize, response_size: usize) -> Option<Layout> {
    if !slots.is_power_of_two()
        || slots > MAX_SLOTS
        || request_size == 0
        || response_size == 0
        || request_size > crate::PAGE_SIZE
        || response_size > crate::PAGE_SIZE
    {
        return None;
    }
    let requests = HEADER;
    let responses = (requests + slots as usize * request_size).next_multiple_of(64);
    let total = responses + slots as usize * response_size;
    Some(Layout { slots, requests, responses, total })
}

/// What travels in slots: plain bytes of a fixed layout.
pub trait Slot: FromBytes + IntoBytes + Immutable + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + Copy> Slot for T {}

/// Requests or responses: where the words of a ring are.
pub trait Direction: sealed::Sealed {
    /// Offset of the producer index.
    const PROD: usize;
    /// Offset of the event index.
    const EVENT: usize;
}

/// From frontend to backend.
#[derive(Debug)]
pub struct Requests;
/// From backend to frontend.
#[derive(Debug)]
pub struct Responses;

impl Direction for Requests {
    const PROD: usize = 0;
    const EVENT: usize = 64;
}
impl Direction for Responses {
    const PROD: usize = 128;
    const EVENT: usize = 192;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Requests {}
    impl Sealed for super::Responses {}
}

/// The frontend's end of the request ring.
pub type RequestProducer<T> = Producer<T, Requests>;
/// The backend's end of the request ring.
pub type RequestConsumer<T> = Consumer<T, Requests>;
/// The backend's end of the response ring.
pub type ResponseProducer<T> = Producer<T, Responses>;
/// The frontend's end of the response ring.
pub type ResponseConsumer<T> = Consumer<T, Responses>;

/// Where slot `index` begins. What would not fit is outside of any view.
fn slot<T>(index: u32) -> usize {
    (index as usize).saturating_mul(size_of::<T>())
}

/// The writing end of a ring. Room is the business of [`FrontRing`] and
/// [`BackRing`], which see both directions.
#[derive(Debug)]
pub struct Producer<T, D> {
    header: SharedMem,
    slots: SharedMem,
    mask: u32,
    /// Next index to write; private.
    next: u32,
    /// What the peer was told last; private.
    published: u32,
    kind: PhantomData<(T, D)>,
}

impl<T: Slot, D: Direction> Producer<T, D> {
    fn new(header: SharedMem, slots: SharedMem, count: u32) -> Self {
        header.write_u32(D::PROD, 0, Relaxed);
        let mask = count.wrapping_sub(1);
        Self { header, slots, mask, next: 0, published: 0, kind: PhantomData }
    }

    fn push(&mut self, item: &T) {
        let at = slot::<T>(self.next & self.mask);
        // The mask keeps `at` within the slots.
        let written = self.slots.write(at, item);
        debug_assert!(written.is_ok());
        self.next = self.next.wrapping_add(1);
    }

    /// Makes what was pushed visible to the peer. True if the peer asked to
    /// be notified of it.
    #[must_use = "the peer may sleep until it is notified"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next);
        if old == new {
            return false;
        }
        self.header.write_u32(D::PROD, new, Release);
        self.published = new;
        // Between publishing and reading the event: see the module's head.
        fence(SeqCst);
        let event = self.header.read_u32(D::EVENT, Relaxed);
        // Crossed if old < event <= new, in wrapping order. A hostile value
        // costs the peer its notifications and nobody else anything.
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Items pushed and not yet published.
    pub fn unpublished(&self) -> u32 {
        self.next.wrapping_sub(self.published)
    }
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct Consumer<T, D> {
    header: SharedMem,
    slots: SharedMem,
    mask: u32,
    /// Next index to read; private.
    next: u32,
    /// The peer's index when last looked at and found valid; private.
    seen: u32,
    kind: PhantomData<(T, D)>,
}

impl<T: Slot, D: Direction> Consumer<T, D> {
    fn new(header: SharedMem, slots: SharedMem, count: u32) -> Self {
        header.write_u32(D::EVENT, 1, Relaxed);
        let mask = count.wrapping_sub(1);
        Self { header, slots, mask, next: 0, seen: 0, kind: PhantomData }
    }

    /// Looks at the peer's index: `limit` items at most may be there.
    fn refresh(&mut self, limit: u32) -> Result<u32, PeerMisbehaved> {
        let prod = self.header.read_u32(D::PROD, Acquire);
        let available = prod.wrapping_sub(self.next);
        // The second comparison catches an index that moved backwards.
        if available > limit || available < self.seen.wrapping_sub(self.next) {
            return Err(PeerMisbehaved);
        }
        self.seen = prod;
        Ok(available)
    }

    fn pop(&mut self, limit: u32) -> Result<Option<T>, PeerMisbehaved> {
        if self.seen == self.next && self.refresh(limit)? == 0 {
            return Ok(None);
        }
        let at = slot::<T>(self.next & self.mask);
        // The mask keeps `at` within the slots. The one copy of this slot:
        let item = self.slots.read(at).map_err(|_| PeerMisbehaved)?;
        self.next = self.next.wrapping_add(1);
        Ok(Some(item))
    }

    fn arm(&mut self, limit: u32) -> Result<bool, PeerMisbehaved> {
        self.header.write_u32(D::EVENT, self.next.wrapping_add(1), Relaxed);
        // Between asking for an event and the last look: see the module's head.
        fence(SeqCst);
        Ok(self.refresh(limit)? != 0)
    }

    /// Asks for no notifications until armed again.
    pub fn disarm(&mut self) {
        // As far ahead as an index can be; it is crossed once in 2^31 items.
        self.header.write_u32(D::EVENT, self.next.wrapping_add(1 << 31), Relaxed);
    }
}

fn split<Q, S>(mem: SharedMem, slots: u32) -> Option<(SharedMem, SharedMem, SharedMem)> {
    let layout = layout(slots, size_of::<Q>(), size_of::<S>())?;
    // Words are accessed as words.
    if !mem.is_aligned(64) {
        return None;
    }
    Some((
        mem.sub(0, HEADER)?,
        mem.sub(layout.requests, layout.responses.checked_sub(layout.requests)?)?,
        mem.sub(layout.responses, layout.total.checked_sub(layout.responses)?)?,
    ))
}

/// A frontend's view of a queue: requests of type `Q`, responses of type `S`.
#[derive(Debug)]
pub struct FrontRing<Q, S> {
    requests: RequestProducer<Q>,
    responses: ResponseConsumer<S>,
    slots: u32,
    outstanding: u32,
}

impl<Q: Slot, S: Slot> FrontRing<Q, S> {
    /// Clears `mem` and makes a fresh queue of it. `None` if `slots` is not
    /// valid, `mem` too small or not aligned to 64 bytes.
    pub fn new(mem: SharedMem, slots: u32) -> Option<Self> {
        let (header, requests, responses) = split::<Q, S>(mem, slots)?;
        mem.clear();
        // The backend's words are its own business once it attaches; until
        // then they hold what it will write.
        header.write_u32(Requests::EVENT, 1, Relaxed);
        Some(Self {
            requests: Producer::new(header, requests, slots),
            responses: Consumer::new(header, responses, slots),
            slots,
            outstanding: 0,
        })
    }

    /// Requests without a response so far.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// How many more requests fit.
    pub fn room(&self) -> u32 {
        self.slots.saturating_sub(self.outstanding)
    }

    /// Adds a request; [`Self::publish`] shows it to the backend.
    pub fn push(&mut self, request: &Q) -> Result<(), Full> {
        if self.outstanding >= self.slots {
            return Err(Full);
        }
        self.requests.push(request);
        // Below the number of slots, as was just seen.
        self.outstanding = self.outstanding.saturating_add(1);
        Ok(())
    }

    /// Shows pushed requests to the backend. True if it is to be notified.
    #[must_use = "the peer may sleep until it is notified"]
    pub fn publish(&mut self) -> bool {
        self.requests.publish()
    }

    /// Requests pushed and not yet published.
    pub fn unpublished(&self) -> u32 {
        self.requests.unpublished()
    }

    /// Takes a response.
    pub fn pop(&mut self) -> Result<Option<S>, PeerMisbehaved> {
        let item = self.responses.pop(self.published_outstanding())?;
        if item.is_some() {
            // No underflow: `pop` admits no more responses than that.
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        Ok(item)
    }

    /// Asks for a notification of the next response. True if one is there
    /// already, in which case do not sleep.
    #[must_use = "do not sleep if there is work"]
    pub fn arm(&mut self) -> Result<bool, PeerMisbehaved> {
        self.responses.arm(self.published_outstanding())
    }

    /// Asks for no notifications of responses until armed.
    pub fn disarm(&mut self) {
        self.responses.disarm();
    }

    /// No more responses than that may be waiting.
    fn published_outstanding(&self) -> u32 {
        self.outstanding.saturating_sub(self.requests.unpublished())
    }
}

/// A backend's view of a queue.
#[derive(Debug)]
pub struct BackRing<Q, S> {
    requests: RequestConsumer<Q>,
    responses: ResponseProducer<S>,
    slots: u32,
    /// Requests taken and not yet answered.
    unanswered: u32,
}

impl<Q: Slot, S: Slot> BackRing<Q, S> {
    /// Attaches to a fresh queue: writes the backend's own words. `None` as
    /// in [`FrontRing::new`].
    pub fn attach(mem: SharedMem, slots: u32) -> Option<Self> {
        let (header, requests, responses) = split::<Q, S>(mem, slots)?;
        Some(Self {
            requests: Consumer::new(header, requests, slots),
            responses: Producer::new(header, responses, slots),
            slots,
            unanswered: 0,
        })
    }

    /// Requests taken and not yet answered.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Takes a request.
    pub fn pop(&mut self) -> Result<Option<Q>, PeerMisbehaved> {
        let item = self.requests.pop(self.limit())?;
        if item.is_some() {
            // At most as many as there are slots: `pop` admits no more.
            self.unanswered = self.unanswered.saturating_add(1);
        }
        Ok(item)
    }

    /// No more requests than that may be waiting.
    fn limit(&self) -> u32 {
        self.slots.saturating_sub(self.unanswered)
    }

    /// Slots of each ring.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Asks for a notification of the next request. True if one is there
    /// already, in which case do not sleep.
    #[must_use = "do not sleep if there is work"]
    pub fn arm(&mut self) -> Result<bool, PeerMisbehaved> {
        self.requests.arm(self.limit())
    }

    /// Whether a request is there; only if not, asks for a notification of it.
    #[must_use = "do not sleep if there is work"]
    pub fn look_or_arm(&mut self) -> Result<bool, PeerMisbehaved> {
        let limit = self.limit();
        Ok(self.requests.refresh(limit)? != 0 || self.requests.arm(limit)?)
    }

    /// Asks for no notifications of requests until armed.
    pub fn disarm(&mut self) {
        self.requests.disarm();
    }

    /// Answers a request; [`Self::publish`] shows it to the frontend. `Full`
    /// if no request is without an answer: a bug of the caller.
    pub fn push(&mut self, response: &S) -> Result<(), Full> {
        self.unanswered = self.unanswered.checked_sub(1).ok_or(Full)?;
        self.responses.push(response);
        Ok(())
    }

    /// Shows pushed responses to the frontend. True if it is to be notified.
    #[must_use = "the peer may sleep until it is notified"]
    pub fn publish(&mut self) -> bool {
        self.responses.publish()
    }

    /// Responses pushed and not yet published.
    pub fn unpublished(&self) -> u32 {
        self.responses.unpublished()
    }
}

#[cfg(test)]
mod tests;
