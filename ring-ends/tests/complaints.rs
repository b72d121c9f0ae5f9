//! When a frontend complains of a backend that breaks the protocol, or cuts it off.
//!
//! (Of one that completes nothing: see the tests in blk.rs.) The backend is made
//! by hand; the one that replaces it is the real one.
#![allow(missing_docs)]

mod sim;

use std::cell::Cell;

use ring_ends::conn::CUTS_MOST;
use ring_ends::{Counters, Env, Progress};
use ring_proto::blk::{Request, Response};
use ring_proto::conn::{BackBody, BackHello, State, VERSION};
use ring_proto::hypercall::Error;
use ring_proto::net::{RxRequest, RxResponse, TxRequest, TxResponse};
use ring_proto::ring::BackRing;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, GrantRef, Port};
use sim::rng::Rng;
use sim::{BACK, FRONT, Sim, SimEnv, blk, net};

/// So long that no complaint here is about a backend that completes nothing, ns.
const BOUND: u64 = 1_000_000_000_000;

const DISK: BackBody = BackBody::Blk { sectors: blk::SECTORS, block_size: 512, read_only: false };
const VIF: BackBody = BackBody::Net { mac: net::MAC, mtu: 1500 };

/// How a backend breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It answers what it was not asked.
    Ring,
    /// The same, when it has said that it leaves.
    Leaving,
    /// Its hello is of another version.
    Version,
    /// Its hello is of the other protocol.
    Body,
}

const WAYS: [Way; 4] = [Way::Ring, Way::Leaving, Way::Version, Way::Body];

/// How a backend that breaks no rule cuts its frontend off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It closes the connection.
    Closes,
    /// It takes the frontend for gone, and waits for another.
    Resets,
    /// It refuses the hello.
    Refuses,
}

const CUTS: [Cut; 3] = [Cut::Closes, Cut::Resets, Cut::Refuses];

/// A frontend with work for its backend.
trait Guest {
    /// What an honest backend answers, and one of the other protocol.
    const BODIES: [BackBody; 2];
    /// There is a backend, made by hand.
    fn new(complains_after: u64) -> Self;
    fn sim(&self) -> Sim;
    fn poll(&mut self, env: &mut impl Env) -> Progress;
    /// Gives the frontend something to do, while it is connected.
    fn ask(&mut self);
    fn counters(&self) -> Counters;
    /// Answers what was not asked.
    fn break_ring(&self);
    /// Answers what was asked.
    fn complete(&self);
    /// The hypervisor ends the backend's generation.
    fn end(&mut self);
    /// Connects it with an honest backend, which gets nothing to do.
    fn connect(&mut self);
    /// Has that backend finish its work and leave.
    fn drain(&mut self);
    /// Runs with an honest backend until all work is done.
    fn settle(&mut self);
}

impl Guest for blk::World {
    const BODIES: [BackBody; 2] = [DISK, VIF];

    fn new(complains_after: u64) -> Self {
        let mut world = Self::new(Rng::new(1));
        world.back = None;
        world.front.complain_after(complains_after);
        world
    }

    fn sim(&self) -> Sim {
        self.sim.clone()
    }

    fn poll(&mut self, env: &mut impl Env) -> Progress {
        self.front.poll(env)
    }

    fn ask(&mut self) {
        assert!(self.submit());
        self.front.kick(&mut self.sim.env(FRONT));
    }

    fn counters(&self) -> Counters {
        self.front.counters()
    }

    fn break_ring(&self) {
        let ring = self.sim.frame(blk::RING);
        let mut ring = BackRing::<Request, Response>::attach(ring, blk::SLOTS).unwrap();
        let id = ring.pop().unwrap().expect("a request is out").id ^ 1 << 16;
        ring.push(&Response { id, status: 0, reserved: [0; 3] }).unwrap();
        let _ = ring.publish();
    }

    fn complete(&self) {
        let ring = self.sim.frame(blk::RING);
        let mut ring = BackRing::<Request, Response>::attach(ring, blk::SLOTS).unwrap();
        let id = ring.pop().unwrap().expect("a request is out").id;
        ring.push(&Response { id, status: 0, reserved: [0; 3] }).unwrap();
        let _ = ring.publish();
    }

    fn end(&mut self) {
        self.end_backend();
    }

    fn connect(&mut self) {
        self.start_backend();
        for _ in 0..10 {
            self.run_back();
            self.run_front();
        }
        assert!(self.front.is_connected());
    }

    fn drain(&mut self) {
        assert!(self.back.as_mut().unwrap().leave());
        for _ in 0..10 {
            self.run_back();
            self.run_front();
        }
        assert!(self.back.as_ref().unwrap().has_left());
    }

    fn settle(&mut self) {
        self.settle();
        assert_eq!(self.outstanding(), 0);
    }
}

impl Guest for net::World {
    const BODIES: [BackBody; 2] = [VIF, DISK];

    fn new(complains_after: u64) -> Self {
        let mut world = Self::new(Rng::new(1));
        world.back = None;
        world.front.complain_after(complains_after);
        world
    }

    fn sim(&self) -> Sim {
        self.sim.clone()
    }

    fn poll(&mut self, env: &mut impl Env) -> Progress {
        self.front.poll(env)
    }

    fn ask(&mut self) {
        assert!(self.send());
    }

    fn counters(&self) -> Counters {
        self.front.counters()
    }

    fn break_ring(&self) {
        let ring = self.sim.frame(net::TX_RING);
        let mut ring = BackRing::<TxRequest, TxResponse>::attach(ring, net::SLOTS).unwrap();
        let id = ring.pop().unwrap().expect("a request is out").id ^ 1 << 16;
        ring.push(&TxResponse { id, status: 0, reserved: [0; 3] }).unwrap();
        let _ = ring.publish();
    }

    fn complete(&self) {
        let ring = self.sim.frame(net::TX_RING);
        let mut ring = BackRing::<TxRequest, TxResponse>::attach(ring, net::SLOTS).unwrap();
        let id = ring.pop().unwrap().expect("a request is out").id;
        ring.push(&TxResponse { id, status: 0, reserved: [0; 3] }).unwrap();
        let _ = ring.publish();
    }

    fn end(&mut self) {
        self.end_backend();
    }

    fn connect(&mut self) {
        self.start_backend();
        for _ in 0..10 {
            self.run_back();
            self.run_front();
        }
        assert!(self.front.is_connected());
    }

    fn drain(&mut self) {
        assert!(self.back.as_mut().unwrap().leave());
        for _ in 0..10 {
            self.run_back();
            self.run_front();
        }
        assert!(self.back.as_ref().unwrap().has_left());
    }

    fn settle(&mut self) {
        self.settle();
        assert_eq!(self.front.tx_room(), net::SLOTS as usize);
    }
}

/// Polls until the frontend has made an offer, which takes as long as its pause.
fn offer(guest: &mut impl Guest) {
    let sim = guest.sim();
    for _ in 0..10 {
        let progress = guest.poll(&mut sim.env(FRONT));
        if sim.pages(BACK).peer.glance().is(State::Initialising) {
            return;
        }
        let next = if progress.again { sim.now() } else { progress.deadline.unwrap() };
        sim.advance(next - sim.now());
    }
    panic!("no offer");
}

/// Answers the frontend's offer by hand. A volume can do all there is.
fn answer(sim: &Sim, version: u16, body: BackBody) {
    let pages = sim.pages(BACK);
    let seen = pages.peer.glance().pair;
    let features = if matches!(body, BackBody::Blk { .. }) { blk::volume().features } else { 0 };
    let hello = BackHello { version, features, body };
    pages.own.publish(&hello, seen.epoch, seen, State::Initialising, State::Connected).unwrap();
}

/// Has the backend break the protocol, up to where the frontend has to see it.
fn violate<G: Guest>(guest: &mut G, way: Way) {
    let sim = guest.sim();
    let [own, other] = G::BODIES;
    offer(guest);
    match way {
        Way::Version => return answer(&sim, VERSION + 1, own),
        Way::Body => return answer(&sim, VERSION, other),
        Way::Ring | Way::Leaving => answer(&sim, VERSION, own),
    }
    let _ = guest.poll(&mut sim.env(FRONT));
    guest.ask();
    guest.break_ring();
    if way == Way::Leaving {
        sim.pages(BACK).own.set_state(State::Closing);
    }
}

fn each_violation_is_complained_of<G: Guest>() {
    for way in WAYS {
        let mut guest = G::new(BOUND);
        let sim = guest.sim();
        for n in 0..8 {
            violate(&mut guest, way);
            assert_eq!(sim.complaints(), n, "{way:?}: for nothing");
            let _ = guest.poll(&mut sim.env(FRONT));
            assert_eq!(sim.complaints(), n + 1, "{way:?}: at once");
            let counters = guest.counters();
            assert_eq!((counters.misbehaviours, counters.complaints), (n + 1, n + 1), "{way:?}");
        }
        assert!(sim.now() < BOUND, "none of them was over a stall");
        // Replaced by one that is well, it is complained of no more.
        guest.end();
        guest.settle();
        for _ in 0..100 {
            guest.ask();
            guest.settle();
        }
        assert_eq!((sim.complaints(), guest.counters().complaints), (8, 8), "{way:?}");
    }
}

#[test]
fn conn_16_a_blk_backend_that_breaks_the_protocol_is_complained_of_each_time() {
    each_violation_is_complained_of::<blk::World>();
}

#[test]
fn conn_16_a_net_backend_that_breaks_the_protocol_is_complained_of_each_time() {
    each_violation_is_complained_of::<net::World>();
}

fn who_is_not_to_complain_does_not<G: Guest>() {
    for way in WAYS {
        let mut guest = G::new(0);
        let sim = guest.sim();
        violate(&mut guest, way);
        let _ = guest.poll(&mut sim.env(FRONT));
        assert_eq!((guest.counters().misbehaviours, sim.complaints()), (1, 0), "{way:?}");
    }
}

#[test]
fn a_frontend_that_is_not_to_complain_does_not() {
    who_is_not_to_complain_does_not::<blk::World>();
    who_is_not_to_complain_does_not::<net::World>();
}

#[test]
fn a_guest_complains_of_a_net_backend_that_is_there_and_of_no_other() {
    let mut world = net::World::new(Rng::new(1));
    let sim = world.sim();
    world.settle();
    world.front.complain(&mut sim.env(FRONT));
    assert_eq!((sim.complaints(), world.front.counters().complaints), (1, 1));
    world.end_backend();
    let _ = world.front.poll(&mut sim.env(FRONT));
    world.front.complain(&mut sim.env(FRONT));
    assert_eq!((sim.complaints(), world.front.counters().complaints), (1, 1), "it is gone");
}

/// The backend's generation ends while the frontend looks at the clock: after it
/// saw what was wrong, and before it can complain.
struct Ends {
    env: SimEnv,
    sim: Sim,
    ended: Cell<bool>,
}

impl Env for Ends {
    fn now_ns(&self) -> u64 {
        if !self.ended.replace(true) {
            self.sim.end_generation(BACK);
        }
        self.env.now_ns()
    }

    fn notify(&mut self, port: Port) {
        self.env.notify(port);
    }

    fn complain(&mut self, port: Port) {
        self.env.complain(port);
    }

    fn grant(&mut self, gref: GrantRef, address: u64, grantee: DomainId, flags: u64) {
        self.env.grant(gref, address, grantee, flags);
    }

    fn revoke(&mut self, first: GrantRef, count: u32) -> Result<(), Error> {
        self.env.revoke(first, count)
    }

    fn map(
        &mut self,
        granter: DomainId,
        first: GrantRef,
        count: u32,
        window_page: u32,
        flags: u64,
    ) -> Result<SharedMem, Error> {
        self.env.map(granter, first, count, window_page, flags)
    }

    fn unmap(&mut self, window_page: u32, count: u32) -> Result<(), Error> {
        self.env.unmap(window_page, count)
    }
}

fn the_next_generation_is_not_blamed<G: Guest>() {
    // Of a hello that is wrong, the generation is not known: it was not connected.
    for way in [Way::Ring, Way::Leaving] {
        let mut guest = G::new(BOUND);
        let sim = guest.sim();
        violate(&mut guest, way);
        let mut env = Ends { env: sim.env(FRONT), sim: sim.clone(), ended: Cell::new(false) };
        let _ = guest.poll(&mut env);
        assert!(env.ended.get());
        assert_eq!((guest.counters().misbehaviours, sim.complaints()), (1, 0), "{way:?}");
        guest.settle();
        assert_eq!(sim.complaints(), 0, "{way:?}");
    }
}

#[test]
fn conn_16_a_new_generation_is_not_blamed_for_the_one_before() {
    the_next_generation_is_not_blamed::<blk::World>();
    the_next_generation_is_not_blamed::<net::World>();
}

/// Has the backend cut the frontend off, which has work, up to where that has to see it.
fn cut<G: Guest>(guest: &mut G, how: Cut) {
    let sim = guest.sim();
    offer(guest);
    let page = sim.pages(BACK).own;
    if how == Cut::Refuses {
        let seen = sim.pages(BACK).peer.glance().pair;
        let body = BackBody::Refused { why: "it is Monday".try_into().unwrap() };
        let hello = BackHello { version: VERSION, features: 0, body };
        page.publish(&hello, seen.epoch, seen, State::Initialising, State::Closing).unwrap();
        return;
    }
    let [own, _] = G::BODIES;
    answer(&sim, VERSION, own);
    let _ = guest.poll(&mut sim.env(FRONT));
    guest.ask();
    page.set_state(if how == Cut::Closes { State::Closing } else { State::Initialising });
}

/// The same, and the frontend sees it.
fn cut_off(guest: &mut impl Guest, how: Cut) {
    cut(guest, how);
    let _ = guest.poll(&mut guest.sim().env(FRONT));
}

fn cutting_off_again_and_again_is_complained_of<G: Guest>() {
    for how in CUTS {
        let mut guest = G::new(BOUND);
        let sim = guest.sim();
        for n in 1..=8 {
            cut_off(&mut guest, how);
            let due = (n + 1u64).saturating_sub(u64::from(CUTS_MOST));
            assert_eq!((sim.complaints(), guest.counters().complaints), (due, due), "{how:?} {n}");
        }
        assert!(sim.now() < BOUND, "none of them was over a stall");
        assert_eq!(guest.counters().misbehaviours, 0, "{how:?}");
        // It waits for an answer when the backend is replaced. The next one is another: it is
        // not blamed for its first.
        offer(&mut guest);
        guest.end();
        for _ in 1..CUTS_MOST {
            cut_off(&mut guest, how);
        }
        assert_eq!(sim.complaints(), 6, "{how:?}");
        cut_off(&mut guest, how);
        assert_eq!(sim.complaints(), 7, "{how:?}");
        guest.end();
        guest.settle();
        for _ in 0..100 {
            guest.ask();
            guest.settle();
        }
        assert_eq!((sim.complaints(), guest.counters().complaints), (7, 7), "{how:?}");
    }
}

#[test]
fn conn_17_a_blk_backend_that_cuts_off_again_and_again_is_complained_of() {
    cutting_off_again_and_again_is_complained_of::<blk::World>();
}

#[test]
fn conn_17_a_net_backend_that_cuts_off_again_and_again_is_complained_of() {
    cutting_off_again_and_again_is_complained_of::<net::World>();
}

fn a_completion_between_begins_anew<G: Guest>() {
    for how in CUTS {
        let mut guest = G::new(BOUND);
        let sim = guest.sim();
        for _ in 0..4 {
            // It does one thing before it closes; the frontend finds the answer in the ring.
            cut(&mut guest, Cut::Closes);
            guest.complete();
            let _ = guest.poll(&mut sim.env(FRONT));
            for _ in 2..CUTS_MOST {
                cut_off(&mut guest, how);
            }
            assert_eq!(sim.complaints(), 0, "{how:?}");
        }
        cut_off(&mut guest, how);
        assert_eq!((sim.complaints(), guest.counters().complaints), (1, 1), "{how:?}");
    }
}

#[test]
fn conn_17_a_backend_that_completes_something_between_is_not_complained_of() {
    a_completion_between_begins_anew::<blk::World>();
    a_completion_between_begins_anew::<net::World>();
}

#[test]
fn conn_17_a_net_backend_that_only_brings_frames_is_complained_of() {
    let mut world = <net::World as Guest>::new(BOUND);
    let sim = world.sim();
    for n in 1..=8 {
        cut(&mut world, Cut::Closes);
        let ring = sim.frame(net::RX_RING);
        let mut ring = BackRing::<RxRequest, RxResponse>::attach(ring, net::SLOTS).unwrap();
        let id = ring.pop().unwrap().expect("a buffer is posted").id;
        ring.push(&RxResponse { id, len: 60, status: 0, flags: 0, reserved: [0; 6] }).unwrap();
        let _ = ring.publish();
        let _ = world.poll(&mut sim.env(FRONT));
        assert_eq!(world.front.rx_ready(), n);
        assert_eq!(sim.complaints(), (n as u64 + 1).saturating_sub(CUTS_MOST.into()));
    }
}

fn the_ends_of_generations_do_not_count<G: Guest>() {
    let mut guest = G::new(BOUND);
    let sim = guest.sim();
    for _ in 0..8 {
        guest.connect();
        guest.drain();
        guest.end();
        guest.connect();
        guest.end();
        let _ = guest.poll(&mut sim.env(FRONT));
    }
    assert_eq!((guest.counters().disconnects, guest.counters().requests), (16, 0));
    assert_eq!(sim.complaints(), 0);
    // The end is seen before the next generation's number is.
    for _ in 0..8 {
        offer(&mut guest);
        let [own, _] = G::BODIES;
        answer(&sim, VERSION, own);
        let _ = guest.poll(&mut sim.env(FRONT));
        sim.pages(BACK).own.set_state(State::Closed);
        let _ = guest.poll(&mut sim.env(FRONT));
    }
    assert_eq!(sim.complaints(), 0);
}

#[test]
fn conn_17_drains_and_deaths_of_backends_are_not_complained_of() {
    the_ends_of_generations_do_not_count::<blk::World>();
    the_ends_of_generations_do_not_count::<net::World>();
}

#[test]
fn who_is_not_to_complain_does_not_of_one_that_cuts_it_off() {
    let mut world = <net::World as Guest>::new(0);
    for _ in 0..8 {
        cut_off(&mut world, Cut::Closes);
    }
    assert_eq!((world.sim.complaints(), world.counters().complaints), (0, 0));
}
