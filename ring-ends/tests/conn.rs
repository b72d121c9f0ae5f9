//! The handshake, clause by clause.
#![allow(missing_docs)]

mod sim;

use ring_ends::blk::{Backend, Frontend, Io};
use ring_ends::conn::{
    ANSWER_INTERVAL_NS, ANSWER_PAUSE_MOST_NS, FORGIVE_NS, GENERATION_INTERVAL_NS, STRIKES_MOST,
};
use ring_proto::blk::{Op, Segment};
use ring_proto::conn::{
    BackBody, BackHello, FrontHello, GrantRange, Pair, QueueHello, State, VERSION,
};
use sim::blk::{back_config, front_config, volume};
use sim::hostile::{BLK, grant_all};
use sim::{BACK, BACK_PAGE, FRONT, FRONT_PAGE, Sim};
use std::sync::atomic::Ordering::Relaxed;

fn ends(sim: &Sim) -> (Frontend, Backend) {
    (Frontend::new(front_config(sim)).unwrap(), Backend::new(back_config(sim), volume()))
}

fn poll(sim: &Sim, front: &mut Frontend, back: &mut Backend) {
    let _ = front.poll(&mut sim.env(FRONT));
    let _ = back.poll(&mut sim.env(BACK));
    let _ = front.poll(&mut sim.env(FRONT));
}

fn good_hello() -> FrontHello {
    let ring = GrantRange { first: sim::blk::RING as u32, pages: 1 };
    FrontHello {
        version: VERSION,
        protocol: 1,
        features: 0,
        queues: [QueueHello { ring, slots: 16 }].into_iter().collect(),
        pool: GrantRange { first: sim::blk::POOL as u32, pages: 8 },
    }
}

/// Offers `hello` by hand and returns what the backend says.
fn offer(sim: &Sim, back: &mut Backend, epoch: u32, hello: &FrontHello) -> (State, BackHello) {
    let own = sim.pages(FRONT).own;
    own.publish(hello, epoch, Pair::default(), State::Closing, State::Initialising).unwrap();
    for _ in 0..4 {
        let _ = back.poll(&mut sim.env(BACK));
        sim.advance(FORGIVE_NS);
    }
    let peer = sim.pages(FRONT).peer;
    let seen = peer.glance();
    assert_eq!(seen.answers, Pair { generation: 1, epoch }, "CONN-6");
    (State::from_raw(seen.state).unwrap(), peer.hello(&seen).unwrap())
}

#[test]
fn conn_1_either_end_may_start_first() {
    for back_first in [false, true] {
        let sim = Sim::new();
        let (mut front, mut back) = ends(&sim);
        if back_first {
            let _ = back.poll(&mut sim.env(BACK));
        }
        poll(&sim, &mut front, &mut back);
        assert!(front.is_connected() && back.is_connected());
        assert_eq!(front.geometry().unwrap().sectors, sim::blk::SECTORS);
    }
}

#[test]
fn conn_2_an_unknown_state_is_not_connected() {
    let sim = Sim::new();
    let (mut front, mut back) = ends(&sim);
    poll(&sim, &mut front, &mut back);
    assert!(front.is_connected() && back.is_connected());
    for page in [FRONT_PAGE, BACK_PAGE] {
        let sim = Sim::new();
        let (mut front, mut back) = ends(&sim);
        poll(&sim, &mut front, &mut back);
        sim.frame(page).write_u32(0, 4, Relaxed);
        // An end that was connected takes it as a loss, and one that was not waits.
        let _ = (back.poll(&mut sim.env(BACK)), front.poll(&mut sim.env(FRONT)));
        assert!(if page == FRONT_PAGE { !back.is_connected() } else { !front.is_connected() });
    }
    let sim = Sim::new();
    let (mut front, mut back) = ends(&sim);
    let _ = front.poll(&mut sim.env(FRONT));
    for state in [4, u32::MAX, 0x0100_0001] {
        sim.frame(FRONT_PAGE).write_u32(0, state, Relaxed);
        let _ = back.poll(&mut sim.env(BACK));
        assert!(!back.is_connected() && sim.mapped_pages() == 0);
    }
}

#[test]
fn conn_3_every_hello_has_a_pair_of_its_own() {
    let sim = Sim::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..10 {
        let (mut front, mut back) = ends(&sim);
        for _ in 0..5 {
            for _ in 0..3 {
                poll(&sim, &mut front, &mut back);
                sim.advance(ANSWER_PAUSE_MOST_NS);
            }
            assert!(front.is_connected());
            for page in [FRONT_PAGE, BACK_PAGE] {
                let page_mem = sim.frame(page);
                let word = |at| page_mem.read_u32(at, Relaxed);
                assert!(seen.insert((page, word(4), word(8))), "the pair was there before");
            }
            // The ring breaks, so that the frontend offers anew.
            sim.frame(sim::blk::RING).write_u32(128, 99, Relaxed);
        }
        // A frontend's first epoch is no number that the former generation knew.
        sim.end_generation(FRONT);
        sim.end_generation(BACK);
    }
}

#[test]
fn conn_6_an_answer_to_another_pair_is_ignored() {
    let sim = Sim::new();
    let mut front = Frontend::new(front_config(&sim)).unwrap();
    let _ = front.poll(&mut sim.env(FRONT));
    let pair = sim.pages(BACK).peer.glance().pair;
    let body = BackBody::Blk { sectors: 1, block_size: 512, read_only: false };
    let hello = BackHello { version: VERSION, features: 0, body };
    let answer = |answers| {
        sim.pages(BACK)
            .own
            .publish(&hello, 1, answers, State::Initialising, State::Connected)
            .unwrap();
    };
    for stale in [
        Pair::default(),
        Pair { epoch: pair.epoch.wrapping_sub(1), ..pair },
        Pair { generation: pair.generation + 1, ..pair },
    ] {
        answer(stale);
        let _ = front.poll(&mut sim.env(FRONT));
        assert!(!front.is_connected() && front.geometry().is_none());
    }
    answer(pair);
    let _ = front.poll(&mut sim.env(FRONT));
    assert!(front.is_connected());
}

#[test]
fn conn_7_each_sign_of_loss_is_seen_by_the_other_end() {
    for word in [0, 4, 8] {
        // The backend's state, generation or epoch changes.
        let sim = Sim::new();
        let (mut front, mut back) = ends(&sim);
        poll(&sim, &mut front, &mut back);
        let page = sim.frame(BACK_PAGE);
        page.write_u32(word, page.read_u32(word, Relaxed) + 1, Relaxed);
        let _ = front.poll(&mut sim.env(FRONT));
        assert!(!front.is_connected(), "word {word}");
        assert_eq!(front.counters().misbehaviours, 0);
        assert_eq!(sim.granted_pages(), 0, "CONN-8");

        // The frontend's.
        let sim = Sim::new();
        let (mut front, mut back) = ends(&sim);
        poll(&sim, &mut front, &mut back);
        let page = sim.frame(FRONT_PAGE);
        page.write_u32(word, page.read_u32(word, Relaxed) + 1, Relaxed);
        let _ = back.poll(&mut sim.env(BACK));
        assert!(!back.is_connected(), "word {word}");
        let _ = back.poll(&mut sim.env(BACK));
        assert!(sim.mapped_pages() == 0 || back.is_connected());
    }
}

#[test]
fn conn_9_a_live_backend_that_refuses_is_asked_ever_more_rarely() {
    let sim = Sim::new();
    let mut front = Frontend::new(front_config(&sim)).unwrap();
    let mut epochs = Vec::new();
    // 10 s in steps of 1 ms; the backend refuses whatever it sees at once.
    for _ in 0..10_000 {
        let _ = front.poll(&mut sim.env(FRONT));
        let seen = sim.pages(BACK).peer.glance();
        if seen.is(State::Initialising) && epochs.last() != Some(&seen.pair.epoch) {
            epochs.push(seen.pair.epoch);
            let why = heapless::String::try_from("no such volume").unwrap();
            let hello =
                BackHello { version: VERSION, features: 0, body: BackBody::Refused { why } };
            let own = sim.pages(BACK).own;
            own.publish(&hello, 1, seen.pair, State::Initialising, State::Closing).unwrap();
        }
        sim.advance(1_000_000);
    }
    assert_eq!(front.refusal(), Some("no such volume"));
    // 10, 20, … 640 ms, then one each second.
    assert!((10..=20).contains(&epochs.len()), "{}", epochs.len());
    // A new generation is asked at once.
    let _ = front.poll(&mut sim.env(FRONT));
    sim.end_generation(BACK);
    let _ = front.poll(&mut sim.env(FRONT));
    let _ = front.poll(&mut sim.env(FRONT));
    assert!(sim.pages(BACK).peer.glance().is(State::Initialising));
}

#[test]
fn conn_10_a_rejected_hello_is_not_looked_at_again() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    let bad = FrontHello { protocol: 2, ..good_hello() };
    assert_eq!(offer(&sim, &mut back, 1, &bad).0, State::Closing);
    for _ in 0..100 {
        let progress = back.poll(&mut sim.env(BACK));
        assert!(!progress.again && progress.deadline.is_none());
        sim.advance(10_000_000);
    }
    assert_eq!(back.counters().misbehaviours, 1);
    assert_eq!(offer(&sim, &mut back, 2, &good_hello()).0, State::Connected);
}

#[test]
fn conn_10_answers_to_one_generation_keep_their_distance() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    let own = sim.pages(FRONT).own;
    // A frontend that offers a thousand times a millisecond, for 20 ms: it is
    // answered at once, after 2 ms, after 4 ms more and after 8 ms more.
    for epoch in 0..20_000 {
        own.publish(&good_hello(), epoch, Pair::default(), State::Closing, State::Initialising)
            .unwrap();
        let _ = back.poll(&mut sim.env(BACK));
        sim.advance(1_000);
    }
    assert_eq!(back.counters().connects, 4);
    assert_eq!(ANSWER_INTERVAL_NS, 1_000_000);
}

#[test]
fn conn_12_bad_hellos_are_refused_with_a_reason() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    let good = good_hello();
    let with_queue = |ring: GrantRange, slots| FrontHello {
        queues: [QueueHello { ring, slots }].into_iter().collect(),
        ..good.clone()
    };
    let ring = good.queues[0].ring;
    let mut two = good.clone();
    two.queues.push(good.queues[0]).unwrap();
    let pool = |first, pages| FrontHello { pool: GrantRange { first, pages }, ..good.clone() };
    let bad = [
        (FrontHello { version: 2, ..good.clone() }, "another version of the connection protocol"),
        (FrontHello { protocol: 2, ..good.clone() }, "another protocol"),
        (two, "wrong number of queues"),
        (with_queue(ring, 3), "bad number of slots"),
        (with_queue(ring, 0), "bad number of slots"),
        (with_queue(ring, 512), "bad number of slots"),
        (with_queue(ring, 64), "ring memory too small"),
        (with_queue(GrantRange { pages: 5, ..ring }, 16), "too many ring pages"),
        (with_queue(GrantRange { first: u32::MAX, ..ring }, 16), "bad grant range"),
        (pool(8, 0), "bad number of pool pages"),
        (pool(8, 17), "bad number of pool pages"),
        (pool(u32::MAX - 2, 8), "bad grant range"),
        (pool(40, 8), "the grants could not be mapped"),
    ];
    for (epoch, (hello, text)) in (1..).zip(&bad) {
        let (state, answer) = offer(&sim, &mut back, epoch, hello);
        assert_eq!(state, State::Closing, "{text}");
        assert!(matches!(answer.body, BackBody::Refused { why } if why == *text), "{text}");
        assert_eq!(sim.mapped_pages(), 0, "{text}");
    }
    assert_eq!(offer(&sim, &mut back, 100, &good).0, State::Connected);
}

#[test]
fn conn_5_a_hello_that_does_not_decode_is_misbehaviour() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    let page = sim.frame(FRONT_PAGE);
    let own = sim.pages(FRONT).own;
    for (n, (len, byte)) in (1..).zip([(5000, 0), (u32::MAX, 0), (3, 0xff), (0, 0), (60, 1)]) {
        own.publish(&good_hello(), n, Pair::default(), State::Closing, State::Closing).unwrap();
        page.write_u32(20, len, Relaxed);
        page.copy_to(64, &[byte; 64]).unwrap();
        own.set_state(State::Initialising);
        let _ = back.poll(&mut sim.env(BACK));
        sim.advance(ANSWER_PAUSE_MOST_NS);
        assert_eq!(back.counters().misbehaviours, u64::from(n), "{len}");
        assert!(sim.pages(FRONT).peer.glance().is(State::Closing));
    }
}

#[test]
fn conn_8_a_revoked_slot_is_not_served() {
    let sim = Sim::new();
    let (mut front, mut back) = ends(&sim);
    poll(&sim, &mut front, &mut back);
    let segments = [Segment { offset: 0, len: 512 }];
    for token in 0..4 {
        let io = Io { op: Op::Read, sector: 1, sectors: 0, segments: &segments };
        front.submit(io, token).unwrap();
    }
    front.kick(&mut sim.env(FRONT));
    let _ = back.poll(&mut sim.env(BACK));
    let tag = back.next_request().unwrap().tag;
    // The frontend leaves; the backend still believes in its ring.
    sim.pages(FRONT).own.set_state(State::Closing);
    assert!(back.next_request().is_none());
    back.complete(tag, ring_proto::blk::Status::Ok);
    let _ = back.poll(&mut sim.env(BACK));
    assert_eq!((back.counters().misbehaviours, back.counters().requests), (0, 1));
}

/// Offers a good hello again and again and breaks the ring whenever it is
/// taken, for `ns` in steps of 100 us. Returns how often it was taken.
fn break_rings(sim: &Sim, back: &mut Backend, ns: u64) -> u64 {
    let own = sim.pages(FRONT).own;
    let before = back.counters().connects;
    let page = sim.frame(FRONT_PAGE);
    for _ in 0..ns / 100_000 {
        if back.is_connected() {
            // 17 requests in a ring of 16.
            sim.frame(sim::blk::RING).write_u32(0, 17, Relaxed);
        } else {
            sim.frame(sim::blk::RING).write_u32(0, 0, Relaxed);
            let epoch = page.read_u32(8, Relaxed).wrapping_add(1);
            own.publish(&good_hello(), epoch, Pair::default(), State::Closing, State::Initialising)
                .unwrap();
        }
        let _ = back.poll(&mut sim.env(BACK));
        let _ = back.poll(&mut sim.env(BACK));
        sim.advance(100_000);
    }
    back.counters().connects - before
}

#[test]
fn conn_14_a_frontend_that_breaks_the_protocol_again_and_again_is_barred() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    let begin = sim.now();
    // Within 1 + 2 + 4 + … ms, then a second each.
    let mut log = Vec::new();
    let mut taken = 0;
    for _ in 0..12 {
        taken += break_rings(&sim, &mut back, 1_000_000_000);
        log.extend(back.complaint().map(|complaint| complaint.to_string()));
    }
    assert_eq!(taken, u64::from(STRIKES_MOST));
    assert!(sim.now() - begin > 6 * ANSWER_PAUSE_MOST_NS);
    assert_eq!((back.counters().barred, back.barred()), (1, Some(1)));
    let last = "was disconnected too often (its ring index is out of bounds): \
                generation 1 is not served again";
    assert_eq!(log.last().unwrap(), last);
    assert!(log.len() <= 6, "few lines for many strikes: {log:?}");
    // It is told once, and an hour changes nothing.
    let peer = sim.pages(FRONT).peer;
    let answer: BackHello = peer.hello(&peer.glance()).unwrap();
    let BackBody::Refused { why } = answer.body else { panic!("{answer:?}") };
    assert_eq!(why, "disconnected too often");
    let calls = sim.calls(BACK);
    for _ in 0..60 {
        sim.advance(FORGIVE_NS);
        assert_eq!(break_rings(&sim, &mut back, 1_000_000), 0);
    }
    assert_eq!((sim.calls(BACK), back.complaint(), back.counters().barred), (calls, None, 1));
    // Its next life is served in full.
    sim.end_generation(FRONT);
    let mut front = Frontend::new(front_config(&sim)).unwrap();
    for _ in 0..4 {
        poll(&sim, &mut front, &mut back);
        sim.advance(GENERATION_INTERVAL_NS);
    }
    assert!(front.is_connected() && back.barred().is_none());
}

#[test]
fn conn_13_what_a_frontend_does_under_its_successors_number_is_not_held_against_that() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    // Generation 1 says that it is generation 2, and gets that barred.
    sim.frame(FRONT_PAGE).write_u32(4, 2, Relaxed);
    while back.barred() != Some(2) {
        assert!(break_rings(&sim, &mut back, 2_000_000_000) > 0);
    }
    sim.end_generation(FRONT);
    let mut front = Frontend::new(front_config(&sim)).unwrap();
    for _ in 0..4 {
        let _ = back.poll(&mut sim.env(BACK));
        poll(&sim, &mut front, &mut back);
        sim.advance(GENERATION_INTERVAL_NS);
    }
    assert!(front.is_connected() && back.is_connected());
}

#[test]
fn conn_14_hellos_that_are_refused_and_leaving_count_like_broken_rings() {
    for leaves in [false, true] {
        let sim = Sim::new();
        grant_all(&sim, &BLK);
        let mut back = Backend::new(back_config(&sim), volume());
        let own = sim.pages(FRONT).own;
        let hello = FrontHello { protocol: if leaves { 1 } else { 2 }, ..good_hello() };
        for epoch in 0..40 {
            own.publish(&hello, epoch, Pair::default(), State::Closing, State::Initialising)
                .unwrap();
            for _ in 0..2 {
                let _ = back.poll(&mut sim.env(BACK));
                sim.advance(ANSWER_PAUSE_MOST_NS);
            }
            assert_eq!(back.is_connected(), leaves && epoch < STRIKES_MOST);
            own.set_state(State::Closing);
            let _ = back.poll(&mut sim.env(BACK));
        }
        assert_eq!(back.barred(), Some(1), "leaves: {leaves}");
        assert_eq!(sim.mapped_pages(), 0);
    }
}

#[test]
fn conn_14_a_strike_a_minute_is_forgiven() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    for strikes in 1..100 {
        // One connection, and not the time for another.
        assert_eq!(break_rings(&sim, &mut back, 800_000), 1, "{strikes}");
        sim.advance(FORGIVE_NS);
    }
    assert_eq!((back.counters().barred, back.barred()), (0, None));
    assert_eq!(back.counters().misbehaviours, 99);
}

#[test]
fn conn_14_a_frontend_that_claims_a_new_generation_each_time_gains_little() {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = Backend::new(back_config(&sim), volume());
    let page = sim.frame(FRONT_PAGE);
    let mut taken = 0;
    for generation in 0..10_000 {
        page.write_u32(4, generation, Relaxed);
        taken += break_rings(&sim, &mut back, 100_000);
    }
    // A second in all: one in ten milliseconds.
    assert!((50..=101).contains(&taken), "{taken}");
}
