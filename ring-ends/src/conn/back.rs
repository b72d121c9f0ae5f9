//! The backend's side of the handshake, and its mappings.

use ring_proto::conn::{
    BackBody, BackHello, FrontHello, GrantRange, HelloError, Pages, Pair, Protocol, State, VERSION,
};
use ring_proto::hypercall::{Error, MAP_DMA, MAP_WRITE};
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Generation, Port, ring};

use super::conduct::{Complaint, Conduct, Verdict};
use super::{RETRY_NS, next_epoch};
use crate::{Counters, Env, count};

/// The part of the grant window that belongs to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueKind {
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of a response.
    pub response: usize,
}

/// What a protocol demands of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[cfg_attr(stepped, derive(Clone, PartialEq, Eq, Hash))]
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
    conduct: Conduct,
    /// The barred generation was told so.
    told: bool,
    complaint: Option<Complaint>,
    /// `Counters::misbehaviours` at the last strike.
    complained: u64,
    /// Nobody is served any more (CONN-15).
    leaving: bool,
    /// The hello that was served last then.
    left: Pair,
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
            conduct: Conduct::default(),
            told: false,
            complaint: None,
            complained: 0,
            leaving: false,
            left: Pair::default(),
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

    /// The epoch of the own hello, and the frontend's hello that it answers.
    #[cfg(stepped)]
    pub fn joined(&self) -> Option<(u32, Pair)> {
        match self.phase {
            Phase::Up(pair) => Some((self.epoch, pair)),
            _ => None,
        }
    }

    /// Down with memory still mapped.
    pub fn is_draining(&self) -> bool {
        self.phase == Phase::Draining
    }

    /// When to step again without an event.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Strikes of the frontend's generation that was answered last (CONN-14).
    pub fn strikes(&self) -> u32 {
        self.conduct.strikes()
    }

    /// The frontend's generation that is not served any more, if there is one.
    pub fn barred(&self) -> Option<Generation> {
        self.conduct.barred()
    }

    /// Something to log about the frontend, if there is. Not every time: one
    /// that never stops is worth a line at the first, second, fourth, … time.
    pub fn complaint(&mut self) -> Option<Complaint> {
        self.complaint.take()
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
            Phase::Up(pair) | Phase::Mapped(pair) => {
                // A generation that ended is no strike; one that leaves is.
                if !self.has_ended(pair.generation) {
                    self.strike(env, counters, "it left");
                }
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

    /// Closes the connection in good order and serves nobody any more. All
    /// requests that were taken are answered, and the answers shown (CONN-15).
    pub fn leave(&mut self, env: &mut impl Env, counters: &mut Counters) {
        self.leaving = true;
        if let Phase::Up(pair) | Phase::Mapped(pair) = self.phase {
            self.left = pair;
            self.down(env, counters, State::Closing);
        }
    }

    /// Whether it is leaving.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether it left, nothing of the frontend's is mapped any more, and the
    /// frontend has let go: an end of this generation before that would look
    /// like a loss to it.
    pub fn has_left(&self) -> bool {
        let peer = &self.pages.peer;
        self.leaving
            && matches!(self.phase, Phase::New | Phase::Idle)
            && !peer.still(self.left, &[State::Initialising, State::Connected])
    }

    fn look(&mut self, env: &mut impl Env, counters: &mut Counters) -> BackStep {
        if self.leaving {
            return BackStep::Waiting;
        }
        let seen = self.pages.peer.glance();
        if seen.is(State::Closed) {
            self.conduct.ended();
            self.rejected = None;
        }
        if !seen.is(State::Initialising) || self.rejected == Some(seen.pair) {
            return BackStep::Waiting;
        }
        let now = env.now_ns();
        let generation = seen.pair.generation;
        match self.conduct.verdict(generation, now) {
            Verdict::Now => {}
            Verdict::At(next) => {
                self.deadline = Some(next);
                return BackStep::Waiting;
            }
            Verdict::Never => {
                // Once is enough.
                if !self.told {
                    self.told = true;
                    self.publish_refusal(env, seen.pair, "disconnected too often");
                }
                return BackStep::Waiting;
            }
        }
        self.told = false;
        self.conduct.answered(generation, now);
        let hello = match self.pages.peer.hello::<FrontHello>(&seen) {
            Ok(hello) => hello,
            // It is changing its page and signals when it is done.
            Err(HelloError::Unsettled) => return BackStep::Waiting,
            Err(HelloError::Malformed) => {
                count(&mut counters.misbehaviours);
                self.refuse(env, counters, seen.pair, "the hello does not decode");
                return BackStep::Waiting;
            }
        };
        if let Err(why) = self.check(&hello) {
            count(&mut counters.misbehaviours);
            self.refuse(env, counters, seen.pair, why);
            return BackStep::Waiting;
        }
        match self.map(env, &hello) {
            Ok(mapped) => {
                self.phase = Phase::Mapped(seen.pair);
                BackStep::Offered(mapped)
            }
            Err(error) => {
                let why = "the grants could not be mapped";
                match error {
                    // Not of its making.
                    Error::PeerDead | Error::Exhausted | Error::Hardware => {
                        self.publish_refusal(env, seen.pair, why);
                    }
                    // Its successor's grants are not its own.
                    _ if self.has_ended(generation) => {
                        self.publish_refusal(env, seen.pair, why);
                    }
                    _ => self.refuse(env, counters, seen.pair, why),
                }
                self.phase = Phase::Draining;
                self.deadline = Some(now);
                BackStep::Waiting
            }
        }
    }

    /// Whether this generation of the frontend is no more.
    fn has_ended(&self, generation: Generation) -> bool {
        let seen = self.pages.peer.glance();
        seen.pair.generation != generation || seen.is(State::Closed)
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
            ring_pages = ring_pages.saturating_add(u64::from(queue.ring.pages));
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

    fn map(&mut self, env: &mut impl Env, hello: &FrontHello) -> Result<Mapped, Error> {
        let mut rings = heapless::Vec::new();
        let mut page = self.window.ring_page;
        for queue in &hello.queues {
            let mem = self.map_range(env, queue.ring, page, MAP_WRITE)?;
            page = page.saturating_add(queue.ring.pages);
            rings.push((mem, queue.slots)).map_err(|_| Error::Exhausted)?;
        }
        let pool = self.map_range(env, hello.pool, self.window.pool_page, MAP_WRITE | MAP_DMA)?;
        Ok(Mapped { rings, pool, features: hello.features })
    }

    fn map_range(
        &mut self,
        env: &mut impl Env,
        range: GrantRange,
        page: u32,
        flags: u64,
    ) -> Result<SharedMem, Error> {
        let mem = env.map(self.peer, range.first, range.pages, page, flags)?;
        // As many as the protocols have queues, and the pool.
        self.mapped.push((page, range.pages)).map_err(|_| Error::Exhausted)?;
        Ok(mem)
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
        self.publish(env, pair, features, body, State::Connected);
        self.phase = Phase::Up(pair);
        count(&mut counters.connects);
        env.notify(self.port);
    }

    /// Disconnects a frontend that broke the protocol; it is served again
    /// when it offers anew, unless that was once too often.
    pub fn misbehaved(&mut self, env: &mut impl Env, counters: &mut Counters, why: &'static str) {
        count(&mut counters.misbehaviours);
        if let Phase::Up(pair) | Phase::Mapped(pair) = self.phase {
            self.rejected = Some(pair);
            self.strike(env, counters, why);
            self.down(env, counters, State::Closing);
        }
    }

    fn refuse(
        &mut self,
        env: &mut impl Env,
        counters: &mut Counters,
        pair: Pair,
        why: &'static str,
    ) {
        self.strike(env, counters, why);
        self.publish_refusal(env, pair, why);
    }

    fn publish_refusal(&mut self, env: &mut impl Env, pair: Pair, why: &str) {
        self.rejected = Some(pair);
        let why = heapless::String::try_from(why).unwrap_or_default();
        self.publish(env, pair, 0, BackBody::Refused { why }, State::Closing);
        env.notify(self.port);
    }

    fn strike(&mut self, env: &impl Env, counters: &mut Counters, why: &'static str) {
        let times = counters.misbehaviours;
        if self.conduct.strike(env.now_ns()) {
            count(&mut counters.barred);
            if counters.barred.is_power_of_two() {
                self.complaint = Some(Complaint { why, times, barred: self.conduct.barred() });
            }
        } else if times.is_power_of_two() && times != self.complained {
            self.complaint = Some(Complaint { why, times, barred: None });
        }
        self.complained = times;
    }

    fn publish(&mut self, env: &impl Env, pair: Pair, features: u32, body: BackBody, state: State) {
        self.epoch = next_epoch(self.epoch, env);
        let hello = BackHello { version: VERSION, features, body };
        let published =
            self.pages.own.publish(&hello, self.epoch, pair, State::Initialising, state);
        // A BackHello is always far shorter than HELLO_MAX.
        debug_assert!(published.is_ok());
    }

    fn down(&mut self, env: &mut impl Env, counters: &mut Counters, state: State) {
        self.pages.own.set_state(state);
        count(&mut counters.disconnects);
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
