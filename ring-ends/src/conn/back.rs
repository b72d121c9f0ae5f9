//! The backend's side of the handshake, and its mappings.

use ring_proto::conn::{
    BackBody, BackHello, FrontHello, GrantRange, HelloError, Pages, Pair, Protocol, State, VERSION,
};
use ring_proto::hypercall::{Error, MAP_DMA, MAP_WRITE};
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Port, ring};

use super::{ANSWER_INTERVAL_NS, RETRY_NS};
use crate::{Counters, Env};

/// The part of the grant window that belongs to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First page for rings.
    pub ring_page: u32,
    /// Pages for rings.
    pub ring_pages: u32,
    /// First page for the pool.
    pub pool_page: u32,
    /// Most pages of a pool.
    pub pool_pages: u32,
}

/// Slot sizes of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueKind {
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of a response.
    pub response: usize,
}

/// What a protocol demands of a hello.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Protocol.
    pub protocol: Protocol,
    /// Queues, in order.
    pub queues: &'static [QueueKind],
    /// Most slots of a queue.
    pub max_slots: u32,
}

/// Memory of a frontend, mapped.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// Each queue's memory and slots.
    pub rings: heapless::Vec<(SharedMem, u32), 4>,
    /// The pool.
    pub pool: SharedMem,
    /// Features that the frontend offered.
    pub features: u32,
}

/// What happened to the connection.
#[derive(Debug)]
pub enum BackStep {
    /// Nobody there.
    Waiting,
    /// A frontend offers and its memory is mapped: attach to the rings and
    /// call [`BackLink::answer`], or [`BackLink::misbehaved`].
    Offered(Mapped),
    /// Up and serving.
    Up,
    /// The connection just went down: forget the rings, finish what is in
    /// flight. Until then the memory stays mapped.
    Lost,
    /// Down, and requests are still in flight.
    Draining,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The own page was not written yet.
    New,
    /// Waits for an offer.
    Idle,
    /// Mapped for this pair; `answer` comes next.
    Mapped(Pair),
    /// Serving this pair.
    Up(Pair),
    /// Not serving; mappings may be in use by the device.
    Draining,
}

/// Handshake machine and mappings of a backend.
#[derive(Debug)]
pub struct BackLink {
    pages: Pages,
    port: Port,
    peer: DomainId,
    window: Window,
    rules: Rules,
    phase: Phase,
    epoch: u32,
    /// Refused or disconnected: not answered again.
    rejected: Option<Pair>,
    /// Window ranges that are mapped: (page, count).
    mapped: heapless::Vec<(u32, u32), 5>,
    /// The last frontend generation whose hello was looked at, and when.
    last: (u32, u64),
    deadline: Option<u64>,
}

impl BackLink {
    /// A backend that waits for its frontend.
    pub fn new(pages: Pages, port: Port, peer: DomainId, window: Window, rules: Rules) -> Self {
        Self {
            pages,
            port,
            peer,
            window,
            rules,
            phase: Phase::New,
            epoch: 0,
            rejected: None,
            mapped: heapless::Vec::new(),
            last: (0, 0),
            deadline: None,
        }
    }

    /// Port of the connection.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Whether the rings may be used.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    /// Down with memory still mapped.
    pub fn is_draining(&self) -> bool {
        self.phase == Phase::Draining
    }

    /// When to step again without an event.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Whether the frontend still stands by the hello that is being served.
    /// After a slot was read and before it is acted on: a frontend that
    /// revokes changes its page first, so what was read is no junk.
    pub fn still(&self) -> bool {
        match self.phase {
            Phase::Up(pair) => {
                self.pages.peer.still(pair, &[State::Initialising, State::Connected])
            }
            _ => false,
        }
    }

    /// Looks at the peer and goes one step. `in_flight`: requests that the
    /// own device may still be working on.
    pub fn step(
        &mut self,
        env: &mut impl Env,
        counters: &mut Counters,
        in_flight: u32,
    ) -> BackStep {
        self.deadline = None;
        match self.phase {
            Phase::New => {
                self.pages.own.set_state(State::Initialising);
                self.phase = Phase::Idle;
                env.notify(self.port);
                self.look(env, counters)
            }
            Phase::Idle => self.look(env, counters),
            Phase::Up(_) if self.still() => BackStep::Up,
            Phase::Up(_) | Phase::Mapped(_) => {
                self.down(env, counters, State::Initialising);
                BackStep::Lost
            }
            Phase::Draining => {
                if in_flight > 0 {
                    return BackStep::Draining;
                }
                if !self.release(env) {
                    self.deadline = Some(env.now_ns().saturating_add(RETRY_NS));
                    return BackStep::Draining;
                }
                self.phase = Phase::Idle;
                self.look(env, counters)
            }
        }
    }

    fn look(&mut self, env: &mut impl Env, counters: &mut Counters) -> BackStep {
        let seen = self.pages.peer.glance();
        if !seen.is(State::Initialising) || self.rejected == Some(seen.pair) {
            return BackStep::Waiting;
        }
        let now = env.now_ns();
        let (generation, when) = self.last;
        let next = when.saturating_add(ANSWER_INTERVAL_NS);
        if generation == seen.pair.generation && now < next {
            self.deadline = Some(next);
            return BackStep::Waiting;
        }
        self.last = (seen.pair.generation, now);
        let hello = match self.pages.peer.hello::<FrontHello>(&seen) {
            Ok(hello) => hello,
            // It is changing its page and signals when it is done.
            Err(HelloError::Unsettled) => return BackStep::Waiting,
            Err(HelloError::Malformed) => {
                counters.misbehaviours += 1;
                self.refuse(env, seen.pair, "the hello does not decode");
                return BackStep::Waiting;
            }
        };
        if let Err(why) = self.check(&hello) {
            counters.misbehaviours += 1;
            self.refuse(env, seen.pair, why);
            return BackStep::Waiting;
        }
        match self.map(env, &hello) {
            Some(mapped) => {
                self.phase = Phase::Mapped(seen.pair);
                BackStep::Offered(mapped)
            }
            None => {
                self.refuse(env, seen.pair, "the grants could not be mapped");
                self.phase = Phase::Draining;
                self.deadline = Some(now);
                BackStep::Waiting
            }
        }
    }

    fn check(&self, hello: &FrontHello) -> Result<(), &'static str> {
        if hello.version != VERSION {
            return Err("another version of the connection protocol");
        }
        if hello.protocol != self.rules.protocol as u16 {
            return Err("another protocol");
        }
        if hello.queues.len() != self.rules.queues.len() {
            return Err("wrong number of queues");
        }
        let mut ring_pages = 0u64;
        for (queue, kind) in hello.queues.iter().zip(self.rules.queues) {
            let layout = ring::layout(queue.slots, kind.request, kind.response)
                .filter(|l| l.slots <= self.rules.max_slots)
                .ok_or("bad number of slots")?;
            if queue.ring.pages < layout.pages() {
                return Err("ring memory too small");
            }
            ring_pages += u64::from(queue.ring.pages);
        }
        let mut ranges = hello.queues.iter().map(|q| q.ring).chain([hello.pool]);
        if ranges.any(|r| r.first.checked_add(r.pages).is_none()) {
            return Err("bad grant range");
        }
        if ring_pages > u64::from(self.window.ring_pages) {
            return Err("too many ring pages");
        }
        if hello.pool.pages == 0 || hello.pool.pages > self.window.pool_pages {
            return Err("bad number of pool pages");
        }
        Ok(())
    }

    fn map(&mut self, env: &mut impl Env, hello: &FrontHello) -> Option<Mapped> {
        let mut rings = heapless::Vec::new();
        let mut page = self.window.ring_page;
        for queue in &hello.queues {
            let mem = self.map_range(env, queue.ring, page, MAP_WRITE)?;
            page += queue.ring.pages;
            rings.push((mem, queue.slots)).ok()?;
        }
        let pool = self.map_range(env, hello.pool, self.window.pool_page, MAP_WRITE | MAP_DMA)?;
        Some(Mapped { rings, pool, features: hello.features })
    }

    fn map_range(
        &mut self,
        env: &mut impl Env,
        range: GrantRange,
        page: u32,
        flags: u64,
    ) -> Option<SharedMem> {
        let mem = env.map(self.peer, range.first, range.pages, page, flags).ok()?;
        // As many as the protocols have queues, and the pool.
        self.mapped.push((page, range.pages)).ok()?;
        Some(mem)
    }

    /// Publishes the answer to the offer that was just mapped.
    pub fn answer(
        &mut self,
        env: &mut impl Env,
        counters: &mut Counters,
        features: u32,
        body: BackBody,
    ) {
        let Phase::Mapped(pair) = self.phase else { return };
        self.publish(pair, features, body, State::Connected);
        self.phase = Phase::Up(pair);
        counters.connects += 1;
        env.notify(self.port);
    }

    /// Disconnects a frontend that broke the protocol; it is served again
    /// when it offers anew.
    pub fn misbehaved(&mut self, env: &mut impl Env, counters: &mut Counters) {
        counters.misbehaviours += 1;
        if let Phase::Up(pair) | Phase::Mapped(pair) = self.phase {
            self.rejected = Some(pair);
            self.down(env, counters, State::Closing);
        }
    }

    fn refuse(&mut self, env: &mut impl Env, pair: Pair, why: &str) {
        self.rejected = Some(pair);
        let why = heapless::String::try_from(why).unwrap_or_default();
        self.publish(pair, 0, BackBody::Refused { why }, State::Closing);
        env.notify(self.port);
    }

    fn publish(&mut self, pair: Pair, features: u32, body: BackBody, state: State) {
        self.epoch = self.epoch.wrapping_add(1);
        let hello = BackHello { version: VERSION, features, body };
        let published =
            self.pages.own.publish(&hello, self.epoch, pair, State::Initialising, state);
        // A BackHello is always far shorter than HELLO_MAX.
        debug_assert!(published.is_ok());
    }

    fn down(&mut self, env: &mut impl Env, counters: &mut Counters, state: State) {
        self.pages.own.set_state(state);
        counters.disconnects += 1;
        self.phase = Phase::Draining;
        self.deadline = Some(env.now_ns());
        env.notify(self.port);
    }

    /// Whether everything is unmapped now. Any other error than `Busy` means
    /// that nothing is there to be unmapped.
    fn release(&mut self, env: &mut impl Env) -> bool {
        self.mapped.retain(|&(page, count)| env.unmap(page, count) == Err(Error::Busy));
        self.mapped.is_empty()
    }
}
