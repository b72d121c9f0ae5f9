//! Ends of a connection that keep no rule unless they want to.
//!
//! [`front`] is a guest's end, [`back`] a driver's. What they write goes
//! straight into the shared pages; the state machines of `ring-ends`, which the
//! honest side runs, have no part in it.

pub mod acts;
pub mod back;
pub mod blk;
pub mod front;
pub mod net;
pub mod parts;
mod raw;

pub use raw::{own_page, touch};

use domain_rt::{
    events,
    time::{MS, now_ns},
};
use ring_proto::{
    conn::HELLO_MAX,
    ring::{Direction, Layout, Requests, Responses, Slot},
    shm::SharedMem,
};

use core::sync::atomic::Ordering::{Acquire, Release, SeqCst};

/// How long the other end may take for anything that it must do.
pub const LIMIT: u64 = 20_000 * MS;
/// How long it is watched for what it must not do.
pub const WATCH: u64 = 60 * MS;

/// Words of an end's page (SPEC.md, CONN).
pub mod word {
    /// What the end says about itself.
    pub const STATE: usize = 0;
    /// The end's life, as the hypervisor wrote it; the end can write over it.
    pub const GENERATION: usize = 4;
    /// Number of its hello.
    pub const EPOCH: usize = 8;
    /// The hello that it answers: generation.
    pub const PEER_GENERATION: usize = 12;
    /// The hello that it answers: epoch.
    pub const PEER_EPOCH: usize = 16;
    /// Bytes of its hello.
    pub const HELLO_LEN: usize = 20;
    /// The hello.
    pub const HELLO: usize = 64;
}

/// Waits until `done`, looking again at every event and every millisecond;
/// false after `limit`.
pub fn until(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = now_ns().saturating_add(limit);
    loop {
        let _ = events::take_all();
        if done() {
            return true;
        }
        let now = now_ns();
        if now >= end {
            return false;
        }
        events::wait(end.min(now + MS));
    }
}

/// Writes the words and bytes of a hello as they are given, and then `state`.
pub fn publish(
    page: SharedMem,
    bytes: &[u8],
    len: u32,
    epoch: u32,
    answers: (u32, u32),
    state: u32,
) {
    page.write_u32(word::STATE, 3, SeqCst);
    let part = &bytes[..bytes.len().min(HELLO_MAX)];
    page.copy_to(word::HELLO, part).expect("within the page");
    page.write_u32(word::HELLO_LEN, len, Release);
    page.write_u32(word::PEER_GENERATION, answers.0, Release);
    page.write_u32(word::PEER_EPOCH, answers.1, Release);
    page.write_u32(word::EPOCH, epoch, Release);
    page.write_u32(word::STATE, state, SeqCst);
}

/// A queue's memory, for either end.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    mem: SharedMem,
    layout: Layout,
    /// What this end published.
    pub produced: u32,
    /// What this end took.
    pub consumed: u32,
}

impl Queue {
    /// A queue at its beginning.
    pub fn new(mem: SharedMem, layout: Layout) -> Self {
        Self { mem, layout, produced: 0, consumed: 0 }
    }

    /// Slots of each ring.
    pub fn slots(&self) -> u32 {
        self.layout.slots
    }

    /// All of the memory.
    pub fn mem(&self) -> SharedMem {
        self.mem
    }

    fn place<T>(&self, start: usize, index: u32) -> usize {
        start + (index % self.layout.slots) as usize * size_of::<T>()
    }

    /// Where request slot `index` is in the queue's memory.
    pub fn request_at<Q: Slot>(&self, index: u32) -> usize {
        self.place::<Q>(self.layout.requests, index)
    }

    /// Frontend: writes the next request; [`Self::show_requests`] publishes it.
    pub fn put_request<Q: Slot>(&mut self, request: &Q) {
        self.mem.write(self.request_at::<Q>(self.produced), request).expect("within the ring");
        self.produced = self.produced.wrapping_add(1);
    }

    /// Frontend: publishes what was put, and asks to be told of answers.
    pub fn show_requests(&self) {
        self.mem.write_u32(Responses::EVENT, self.consumed.wrapping_add(1), SeqCst);
        self.set_requests(self.produced);
    }

    /// Frontend: publishes any index.
    pub fn set_requests(&self, index: u32) {
        self.mem.write_u32(Requests::PROD, index, SeqCst);
    }

    /// Frontend: the next response, if there is one.
    pub fn response<S: Slot>(&mut self) -> Option<S> {
        if self.mem.read_u32(Responses::PROD, Acquire) == self.consumed {
            return None;
        }
        let at = self.place::<S>(self.layout.responses, self.consumed);
        self.consumed = self.consumed.wrapping_add(1);
        self.mem.read(at).ok()
    }

    /// Backend: the next request, if there is one.
    pub fn request<Q: Slot>(&mut self) -> Option<Q> {
        self.mem.write_u32(Requests::EVENT, self.consumed.wrapping_add(1), SeqCst);
        if self.mem.read_u32(Requests::PROD, Acquire) == self.consumed {
            return None;
        }
        let at = self.request_at::<Q>(self.consumed);
        self.consumed = self.consumed.wrapping_add(1);
        self.mem.read(at).ok()
    }

    /// Backend: how many requests the frontend has published.
    pub fn requests_shown(&self) -> u32 {
        self.mem.read_u32(Requests::PROD, Acquire)
    }

    /// Backend: writes and publishes a response.
    pub fn respond<S: Slot>(&mut self, response: &S) {
        let at = self.place::<S>(self.layout.responses, self.produced);
        self.mem.write(at, response).expect("within the ring");
        self.produced = self.produced.wrapping_add(1);
        self.set_responses(self.produced);
    }

    /// Backend: publishes any index.
    pub fn set_responses(&self, index: u32) {
        self.mem.write_u32(Responses::PROD, index, SeqCst);
    }
}
