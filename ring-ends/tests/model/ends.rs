//! The two domains: real links, driven as `ring_ends::blk` drives them, with
//! one request a connection.
//!
//! A domain sleeps until it has an event or its deadline has come, then polls
//! until a poll finds nothing to do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Release};

use ring_ends::conn::{BackLink, BackStep, FrontLink, FrontStep, QueueKind, Region, Rules, Window};
use ring_ends::{Counters, Env};
use ring_proto::PAGE_SIZE;
use ring_proto::conn::{BackBody, Pair, Protocol};
use ring_proto::shm::SharedMem;

use crate::machine::{
    BACK, FRONT, Grain, JUNK, Machine, POOL, PORT, REQUEST, RESPONSE, RING, RING_WINDOW, Seen,
    StepOver, World, pages,
};

/// Where in its loop a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Nothing to do before an event, or this time.
    Asleep(Option<u64>),
    /// In `step` of its link.
    Step,
    /// Frontend: clears its ring and offers.
    Offer,
    /// Frontend: puts its request into the ring.
    Post,
    /// Frontend: looks for the response. Backend: for the request.
    Look,
    /// Backend: answers the offer.
    Answer,
    /// Backend: puts the response into the ring.
    Respond,
    /// Disconnects its peer over misbehaviour.
    Complain,
}

/// What a domain runs.
pub trait Program: Clone {
    /// Which end it is.
    const ME: usize;
    /// Makes the call that `at` names; returns where it leads.
    fn call(&mut self, at: At, env: &mut Machine) -> At;
}

/// A living domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Domain<P> {
    pub program: P,
    pub at: At,
    /// What it got to know within the call that `at` names.
    pub seen: Vec<Seen>,
}

impl<P: Program> Domain<P> {
    /// At its first instruction.
    pub fn new(program: P) -> Self {
        Self { program, at: At::Step, seen: Vec::new() }
    }

    /// One step, unless it is a hypercall and the hypervisor is busy.
    pub fn step(&self, machine: &Machine, world: World, grain: Grain) -> Option<(Self, World)> {
        machine.begin(world, grain, P::ME, self.seen.clone());
        let mut program = self.program.clone();
        let mut env = machine.clone();
        let ended = catch_unwind(AssertUnwindSafe(|| program.call(self.at, &mut env)));
        let (mut world, seen, taken) = machine.finish();
        if !taken {
            return None;
        }
        let next = match ended {
            Ok(at) => Self { program, at, seen: Vec::new() },
            Err(thrown) => {
                if !thrown.is::<StepOver>() {
                    world.wrong = Some("an end panics");
                }
                Self { program: self.program.clone(), at: self.at, seen }
            }
        };
        Some((next, world))
    }
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Front {
    link: FrontLink,
    generation: u32,
    /// The request of this connection was answered.
    pub served: bool,
}

/// A driver domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Back {
    pub link: BackLink,
    generation: u32,
    /// Features of the hello that it serves, while attached to the ring.
    session: Option<u32>,
    /// The request of this session, once taken.
    taken: Option<u32>,
    /// Requests that the device works on, or finished unnoticed.
    in_flight: u32,
    /// The ring is not what it was.
    broken: bool,
}

const QUEUES: &[QueueKind] = &[QueueKind { request: 64, response: 8 }];

/// A generation as a feature bit: so a hello tells whose it is.
fn feature(generation: u32) -> u32 {
    1 << (generation % 32)
}

/// Of whose hello an answer was made, and by whom.
fn sectors(features: u32, back: u32) -> u64 {
    u64::from(features) << 32 | u64::from(back)
}

impl Front {
    pub fn new(generation: u32) -> Self {
        let mem = |region| SharedMem::stepped(region, PAGE_SIZE);
        let mut rings = heapless::Vec::new();
        assert!(rings.push((Region { mem: mem(RING), first: 0 }, 4)).is_ok());
        let pool = Region { mem: mem(POOL), first: 1 };
        let features = feature(generation);
        let link = FrontLink::new(pages(FRONT), PORT, 2, Protocol::Blk, features, rings, pool);
        Self { link, generation, served: false }
    }

    /// The own hello that was answered, and the backend's that answers it.
    pub fn joined(&self) -> Option<(Pair, Pair)> {
        let (epoch, peer) = self.link.joined()?;
        Some((Pair { generation: self.generation, epoch }, peer))
    }

    fn up(&self) -> (Pair, Pair) {
        self.joined().expect("it is up")
    }
}

impl Program for Front {
    const ME: usize = FRONT;

    fn call(&mut self, at: At, env: &mut Machine) -> At {
        let ring = SharedMem::stepped(RING, PAGE_SIZE);
        let mut counters = Counters::default();
        match at {
            At::Asleep(_) => At::Step,
            At::Step => match self.link.step(env, &mut counters) {
                FrontStep::Waiting => At::Asleep(self.link.deadline()),
                FrontStep::Prepare => At::Offer,
                FrontStep::Answered(hello) => {
                    self.served = false;
                    let (own, peer) = self.up();
                    let told = sectors(feature(own.generation), peer.generation);
                    if !matches!(hello.body, BackBody::Blk { sectors, .. } if sectors == told) {
                        env.wrong("an answer that is not the peer's to this hello is taken");
                    }
                    At::Post
                }
                FrontStep::Up => At::Look,
                FrontStep::Left => {
                    self.link.let_go(env, &mut counters);
                    At::Step
                }
                FrontStep::Lost => At::Step,
            },
            At::Offer => {
                ring.write_u32(REQUEST, 0, Release);
                ring.write_u32(RESPONSE, 0, Release);
                self.link.offer(env);
                At::Asleep(self.link.deadline())
            }
            At::Post => {
                let (own, _) = self.up();
                ring.write_u32(REQUEST, World::mark(own), Release);
                env.notify(PORT);
                At::Step
            }
            At::Look => {
                let response = ring.read_u32(RESPONSE, Acquire);
                if response == 0 || self.served {
                    return At::Asleep(self.link.deadline());
                }
                let (own, _) = self.up();
                if response != World::mark(own) {
                    env.wrong("a response of another connection is taken");
                }
                self.served = true;
                At::Step
            }
            At::Complain => {
                self.link.misbehaved(env, &mut counters);
                At::Step
            }
            At::Answer | At::Respond => unreachable!("a backend's place"),
        }
    }
}

impl Back {
    pub fn new(generation: u32) -> Self {
        let window = Window { ring_page: 0, ring_pages: 1, pool_page: 1, pool_pages: 1 };
        let rules = Rules { protocol: Protocol::Blk, queues: QUEUES, max_slots: 4 };
        let link = BackLink::new(pages(BACK), PORT, 1, window, rules);
        Self { link, generation, session: None, taken: None, in_flight: 0, broken: false }
    }

    /// The own hello, and the frontend's that it answers.
    pub fn joined(&self) -> Option<(Pair, Pair)> {
        let (epoch, peer) = self.link.joined()?;
        Some((Pair { generation: self.generation, epoch }, peer))
    }

    fn forget(&mut self) {
        (self.session, self.broken) = (None, false);
    }
}

impl Program for Back {
    const ME: usize = BACK;

    fn call(&mut self, at: At, env: &mut Machine) -> At {
        let ring = SharedMem::stepped(RING_WINDOW, PAGE_SIZE);
        let mut counters = Counters::default();
        match at {
            // The driver takes what its device finished, then polls.
            At::Asleep(_) if self.in_flight > 0 && !env.dma() => {
                self.in_flight = 0;
                if self.session.is_some() { At::Respond } else { At::Step }
            }
            At::Asleep(_) => At::Step,
            At::Respond => {
                ring.write_u32(RESPONSE, self.taken.expect("a request was taken"), Release);
                env.notify(PORT);
                At::Step
            }
            At::Step => match self.link.step(env, &mut counters, self.in_flight) {
                BackStep::Waiting | BackStep::Draining => At::Asleep(self.link.deadline()),
                BackStep::Offered(mapped) => {
                    (self.session, self.taken) = (Some(mapped.features), None);
                    At::Answer
                }
                BackStep::Up if self.broken => At::Complain,
                BackStep::Up => At::Look,
                BackStep::Lost => {
                    self.forget();
                    At::Step
                }
            },
            At::Answer => {
                let features = self.session.expect("it has just begun");
                let body = BackBody::Blk {
                    sectors: sectors(features, self.generation),
                    block_size: 512,
                    read_only: false,
                };
                self.link.answer(env, &mut counters, 0, body);
                At::Step
            }
            At::Look => {
                let request = ring.read_u32(REQUEST, Acquire);
                if request == 0 || self.taken.is_some() {
                    return At::Asleep(self.link.deadline());
                }
                if !self.link.still() {
                    self.broken = true;
                    return At::Step;
                }
                let (_, pair) = self.joined().expect("it is up");
                if request == JUNK {
                    env.wrong("junk of a revoked page is served (CONN-8)");
                } else if request != World::mark(pair) {
                    env.wrong("a request of another connection is served");
                }
                if self.session != Some(feature(pair.generation)) {
                    env.wrong("a hello is served under the name of another");
                }
                env.start_dma();
                (self.taken, self.in_flight) = (Some(request), 1);
                At::Asleep(self.link.deadline())
            }
            At::Complain => {
                self.link.misbehaved(env, &mut counters, "planned");
                self.forget();
                At::Step
            }
            At::Offer | At::Post => unreachable!("a frontend's place"),
        }
    }
}
