//! The frontend's side of the handshake, and its grants.

use ring_proto::conn::{
    BackBody, BackHello, FrontHello, HelloError, Pages, Pair, Protocol, QueueHello, State, VERSION,
};
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Generation, GrantRef, PAGE_SIZE, Port, conn::GrantRange, grant};

use super::{BACKOFF_FIRST_NS, BACKOFF_MOST_NS, CUTS_MOST, RETRY_NS, STABLE_NS, next_epoch};
use crate::{Counters, Env, count};

/// Own memory that is granted page by page with consecutive references.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(stepped, derive(PartialEq, Eq, Hash))]
pub struct Region {
    /// Whole, page-aligned pages.
    pub mem: SharedMem,
    /// Reference of the first page's grant.
    pub first: GrantRef,
}

impl Region {
    /// Number of pages.
    pub fn pages(&self) -> u32 {
        u32::try_from(self.mem.len() / PAGE_SIZE).unwrap_or(u32::MAX)
    }

    /// Whether it is whole pages.
    pub fn is_whole(&self) -> bool {
        !self.mem.is_empty()
            && self.mem.len().is_multiple_of(PAGE_SIZE)
            && self.mem.is_aligned(PAGE_SIZE)
    }

    fn range(&self) -> GrantRange {
        GrantRange { first: self.first, pages: self.pages() }
    }

    fn grant(&self, env: &mut impl Env, grantee: DomainId, flags: u64) {
        for page in 0..self.pages() {
            // Within the region, and references are consecutive.
            let offset = u64::from(page).saturating_mul(PAGE_SIZE as u64);
            let address = self.mem.address().saturating_add(offset);
            env.grant(self.first.saturating_add(page), address, grantee, flags);
        }
    }
}

/// What happened to the connection.
#[derive(Debug)]
pub enum FrontStep {
    /// Nothing to do but wait.
    Waiting,
    /// All grants are withdrawn: make fresh rings and call [`FrontLink::offer`].
    Prepare,
    /// The backend answered: validate the answer, then use the rings; or call
    /// [`FrontLink::misbehaved`].
    Answered(BackHello),
    /// Up and serving.
    Up,
    /// The backend left in good order: take the answers that it left in the
    /// rings, call [`FrontLink::let_go`], and forget them. What is unanswered
    /// then was not carried out (CONN-15).
    Left,
    /// The connection just went down: forget the rings.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Not offered. Waits until `not_before` or for another backend generation.
    Down { not_before: u64, generation: u32 },
    /// Offered, not answered.
    Offered,
    /// Answered by this hello of the backend.
    Up { backend: Pair, since: u64 },
}

/// Handshake machine and grants of a frontend.
#[derive(Debug)]
#[cfg_attr(stepped, derive(Clone, PartialEq, Eq, Hash))]
pub struct FrontLink {
    pages: Pages,
    port: Port,
    peer: DomainId,
    protocol: Protocol,
    features: u32,
    rings: heapless::Vec<(Region, u32), 4>,
    pool: Region,
    phase: Phase,
    epoch: u32,
    granted: bool,
    /// Losses in a row without a new backend generation.
    losses: u32,
    /// The backend generation that cut this end off last, and how often in a
    /// row with nothing completed between, up to `CUTS_MOST`.
    cuts: (Generation, u32),
    refusal: Option<heapless::String<96>>,
    /// Whether somebody is told of a backend that breaks the protocol, or cuts
    /// this end off again and again.
    complains: bool,
}

impl FrontLink {
    /// A frontend that is down. `rings`: the memory and slots of each queue.
    pub fn new(
        pages: Pages,
        port: Port,
        peer: DomainId,
        protocol: Protocol,
        features: u32,
        rings: heapless::Vec<(Region, u32), 4>,
        pool: Region,
    ) -> Self {
        Self {
            pages,
            port,
            peer,
            protocol,
            features,
            rings,
            pool,
            phase: Phase::Down { not_before: 0, generation: 0 },
            epoch: 0,
            granted: false,
            losses: 0,
            cuts: (0, 0),
            refusal: None,
            complains: false,
        }
    }

    /// Whether to complain of a backend that breaks the protocol, or cuts this
    /// end off again and again; no, as at first.
    pub fn set_complains(&mut self, complains: bool) {
        self.complains = complains;
    }

    /// Port of the connection.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Whether the rings may be used.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    /// Whether there is a backend, in whatever state.
    pub fn has_peer(&self) -> bool {
        !self.pages.peer.glance().is(State::Closed)
    }

    /// Why the backend last refused, in its own words (foreign text).
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// When to step again without an event.
    pub fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Down { not_before, .. } => Some(not_before),
            _ => None,
        }
    }

    /// The epoch of the own hello, and the backend's hello that answers it.
    #[cfg(stepped)]
    pub fn joined(&self) -> Option<(u32, Pair)> {
        match self.phase {
            Phase::Up { backend, .. } => Some((self.epoch, backend)),
            _ => None,
        }
    }

    /// Looks at the peer and goes one step.
    pub fn step(&mut self, env: &mut impl Env, counters: &mut Counters) -> FrontStep {
        let seen = self.pages.peer.glance();
        match self.phase {
            Phase::Down { not_before, generation } => {
                let now = env.now_ns();
                if seen.pair.generation != generation {
                    self.losses = 0;
                } else if now < not_before {
                    return FrontStep::Waiting;
                }
                if self.granted {
                    if !self.revoke(env) {
                        self.phase = Phase::Down {
                            not_before: now.saturating_add(RETRY_NS),
                            generation: seen.pair.generation,
                        };
                        return FrontStep::Waiting;
                    }
                    self.granted = false;
                }
                FrontStep::Prepare
            }
            Phase::Offered => {
                if seen.answers != self.own_pair() {
                    return FrontStep::Waiting;
                }
                if seen.is(State::Closing) {
                    self.refusal = match self.pages.peer.hello(&seen) {
                        // An old refusal beside the pair of an answer to come.
                        Err(HelloError::Unsettled) => return FrontStep::Waiting,
                        Ok(BackHello { body: BackBody::Refused { why }, .. }) => Some(why),
                        _ => None,
                    };
                    self.cut_off(env, counters);
                    return FrontStep::Lost;
                }
                if !seen.is(State::Connected) {
                    return FrontStep::Waiting;
                }
                match self.pages.peer.hello::<BackHello>(&seen) {
                    Ok(hello)
                        if hello.version == VERSION && hello.features & !self.features == 0 =>
                    {
                        self.phase = Phase::Up { backend: seen.pair, since: env.now_ns() };
                        self.refusal = None;
                        self.pages.own.set_state(State::Connected);
                        count(&mut counters.connects);
                        FrontStep::Answered(hello)
                    }
                    // It is changing its page and signals when it is done.
                    Err(HelloError::Unsettled) => FrontStep::Waiting,
                    Ok(_) | Err(HelloError::Malformed) => {
                        self.misbehaved(env, counters);
                        FrontStep::Lost
                    }
                }
            }
            Phase::Up { backend, .. } => {
                let same = seen.pair == backend && seen.answers == self.own_pair();
                if same && seen.is(State::Connected) {
                    return FrontStep::Up;
                }
                if same && seen.is(State::Closing) {
                    return FrontStep::Left;
                }
                self.cut_off(env, counters);
                FrontStep::Lost
            }
        }
    }

    /// Grants everything and publishes the hello. The rings are fresh.
    pub fn offer(&mut self, env: &mut impl Env) {
        let mut queues = heapless::Vec::new();
        for (region, slots) in &self.rings {
            region.grant(env, self.peer, grant::MAP | grant::WRITE);
            let pushed = queues.push(QueueHello { ring: region.range(), slots: *slots });
            debug_assert!(pushed.is_ok());
        }
        self.pool.grant(env, self.peer, grant::MAP | grant::WRITE | grant::DMA);
        self.granted = true;
        let hello = FrontHello {
            version: VERSION,
            protocol: self.protocol as u16,
            features: self.features,
            queues,
            pool: self.pool.range(),
        };
        self.epoch = next_epoch(self.epoch, env);
        // A FrontHello is always far shorter than HELLO_MAX.
        let published = self.pages.own.publish(
            &hello,
            self.epoch,
            Pair::default(),
            State::Closing,
            State::Initialising,
        );
        debug_assert!(published.is_ok());
        self.phase = Phase::Offered;
        env.notify(self.port);
    }

    /// Disconnects a backend that broke the protocol, and complains of it if it
    /// is still there (CONN-16). Once is proof: no honest backend ever does, so
    /// there is nothing to wait for.
    pub fn misbehaved(&mut self, env: &mut impl Env, counters: &mut Counters) {
        count(&mut counters.misbehaviours);
        if self.down(env, counters).is_some() {
            self.complain(env, counters);
        }
    }

    /// Gives up the connection to a backend that left.
    pub fn let_go(&mut self, env: &mut impl Env, counters: &mut Counters) {
        self.cut_off(env, counters);
    }

    /// The backend completed a request, so it is not one that only cuts off.
    pub fn worked(&mut self) {
        self.cuts = (0, 0);
    }

    /// The connection or the offer ended, and not over anything that this end
    /// did or saw. If the backend lives that was its own doing. A drain does it
    /// once in a generation's life; one that does it again and again serves
    /// nobody, and while there is no connection no request waits long enough to
    /// be a stall. So it is complained of (CONN-17). Who drives a backend to
    /// it gains nothing: complaints are limited in their rate, and a driver that
    /// is well is restarted on this end's word only so often.
    fn cut_off(&mut self, env: &mut impl Env, counters: &mut Counters) {
        let Some(by) = self.down(env, counters) else { return };
        let before = if self.cuts.0 == by { self.cuts.1 } else { 0 };
        let times = before.saturating_add(1).min(CUTS_MOST);
        self.cuts = (by, times);
        if times == CUTS_MOST {
            self.complain(env, counters);
        }
    }

    fn complain(&self, env: &mut impl Env, counters: &mut Counters) {
        if self.complains {
            count(&mut counters.complaints);
            env.complain(self.port);
        }
    }

    fn own_pair(&self) -> Pair {
        Pair { generation: self.pages.own.generation(), epoch: self.epoch }
    }

    /// First the state, then the revocation: a live backend that reads junk
    /// from a revoked page can see why. Returns the backend's generation, if it
    /// is the one that it was and has not ended.
    fn down(&mut self, env: &mut impl Env, counters: &mut Counters) -> Option<Generation> {
        let now = env.now_ns();
        let seen = self.pages.peer.glance();
        let generation = seen.pair.generation;
        self.pages.own.set_state(State::Closing);
        self.granted = !self.revoke(env);
        let known = match self.phase {
            Phase::Up { backend, since } => {
                count(&mut counters.disconnects);
                if now.saturating_sub(since) >= STABLE_NS {
                    self.losses = 0;
                }
                backend.generation
            }
            _ => generation,
        };
        let not_before = if known == generation {
            // It lives (or its end is not yet recorded, in which case the
            // generation changes soon and cuts the pause short).
            let pause = BACKOFF_FIRST_NS << self.losses.min(10);
            self.losses = self.losses.saturating_add(1);
            now.saturating_add(pause.min(BACKOFF_MOST_NS))
        } else {
            self.losses = 0;
            now
        };
        self.phase = Phase::Down { not_before, generation };
        env.notify(self.port);
        (known == generation && !seen.is(State::Closed)).then_some(generation)
    }

    /// Whether all grants are withdrawn now.
    fn revoke(&self, env: &mut impl Env) -> bool {
        let mut done = true;
        for (region, _) in &self.rings {
            done &= env.revoke(region.first, region.pages()).is_ok();
        }
        done & env.revoke(self.pool.first, self.pool.pages()).is_ok()
    }
}
