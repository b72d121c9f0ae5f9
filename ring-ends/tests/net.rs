//! Network frontend and backend against each other, with crashes anywhere.
//!
//! Tests carry the number of the clause of ring-proto's SPEC.md that they
//! check. `BULKHEAD_SEED` repeats a run.
#![allow(missing_docs)]

mod sim;

use ring_ends::net::{DeliverError, SendError};
use sim::FRONT;
use sim::net::{SLOTS, World, frame};
use sim::rng::{Rng, count};

#[test]
fn frames_arrive_intact_once_and_in_order() {
    for seed in 0..50 {
        let mut world = World::new(Rng::new(seed));
        let mut tries = 0;
        while world.asked < 500 {
            world.send();
            world.step();
            tries += 1;
            assert!(tries < 100_000);
        }
        world.settle();
        assert_eq!(world.sent.len(), 500);
        assert!(world.sent.values().all(|&n| n == 1));
        assert_eq!(world.out_of_order, 0);
        assert_eq!(world.received.len() as u64 + world.no_buffer, 500);
        assert!(world.received.values().all(|&n| n == 1));
        assert!(world.received.len() > 400);
        let front = world.front.counters();
        assert_eq!((front.connects, front.misbehaviours), (1, 0));
    }
}

#[test]
fn net_6_random_interleavings_of_crashes_restarts_and_glitches() {
    let mut rng = Rng::from_env("net interleavings");
    let worlds = count("BULKHEAD_WORLDS", 300);
    let (mut received, mut lives, mut resent) = (0, 0, 0);
    for _ in 0..worlds {
        let seed = rng.next();
        eprintln!("world BULKHEAD_SEED={seed}");
        let mut world = World::new(Rng::new(seed));
        for _ in 0..2_000 {
            match world.rng.below(200) {
                0 => world.end_backend(),
                1..5 if world.back.is_none() => world.start_backend(),
                5 if world.rng.one_in(4) => world.restart_frontend(),
                6 => world.glitch(),
                8 => world.sim.advance(5_000_000),
                9..80 => {
                    world.send();
                }
                _ => {
                    world.step();
                }
            }
        }
        world.settle();
        // Lost, sent, or sent again once; received no more often than sent.
        assert!(world.sent.values().all(|&n| n <= 2));
        for (number, &n) in &world.received {
            assert!(n <= world.sent.get(number).copied().unwrap_or(0));
        }
        // All buffers are there again, and the path works.
        assert_eq!(world.front.tx_room(), SLOTS as usize);
        let before = world.received.len();
        for _ in 0..SLOTS {
            assert!(world.send());
        }
        world.settle();
        assert_eq!(world.received.len() - before, SLOTS as usize);
        received += world.received.len() as u64;
        lives += world.lives;
        resent += world.front.counters().replayed;
    }
    eprintln!("{worlds} worlds: {received} frames, {lives} backend lives, {resent} resent");
    assert!(received > worlds * 50 && lives > worlds && resent > worlds);
}

#[test]
fn conn_15_no_frame_is_sent_twice_over_a_planned_restart() {
    let mut rng = Rng::from_env("planned net restarts");
    let mut restarts = 0;
    for _ in 0..count("BULKHEAD_WORLDS", 300) / 3 {
        let seed = rng.next();
        eprintln!("world BULKHEAD_SEED={seed}");
        let mut world = World::new(Rng::new(seed));
        for _ in 0..2_000 {
            match world.rng.below(100) {
                0 => {
                    world.plan_restart();
                    restarts += 1;
                }
                1..50 => drop(world.send()),
                _ => drop(world.step()),
            }
        }
        world.settle();
        assert_eq!(world.front.counters().replayed, 0);
        // Nothing that was taken is lost, nothing is sent twice.
        assert_eq!(world.sent.len() as u64, world.asked);
        assert!(world.sent.values().all(|&n| n == 1));
        assert_eq!(world.out_of_order, 0);
    }
    assert!(restarts > 1_000);
}

#[test]
fn net_3_lengths_are_checked_on_both_sides() {
    let mut world = World::new(Rng::new(1));
    assert_eq!(world.front.transmit(&[0; 60], None), Err(SendError::NoBuffer));
    world.settle();
    assert_eq!(world.front.transmit(&[0; 13], None), Err(SendError::Length));
    assert_eq!(world.front.transmit(&[0; 1515], None), Err(SendError::Length));
    assert_eq!(world.front.transmit(&[0; 4096], None), Err(SendError::Length));
    assert_eq!(world.front.tx_room(), SLOTS as usize);
    let back = world.back.as_mut().unwrap();
    assert_eq!(back.deliver(&[0; 13], false), Err(DeliverError::Length));
    assert_eq!(back.deliver(&[0; 1515], false), Err(DeliverError::Length));
    back.deliver(&[0; 1514], false).unwrap();
}

#[test]
fn net_5_without_a_buffer_a_frame_is_refused() {
    let mut world = World::new(Rng::new(2));
    world.settle();
    let bytes = frame(1, &mut world.rng);
    let back = world.back.as_mut().unwrap();
    for _ in 0..SLOTS {
        back.deliver(&bytes, true).unwrap();
    }
    assert_eq!(back.deliver(&bytes, true), Err(DeliverError::NoBuffer));
    back.push_responses(&mut world.sim.env(sim::BACK));
    let _ = world.front.poll(&mut world.sim.env(FRONT));
    assert_eq!(world.front.rx_ready(), SLOTS as usize);
    let mut to = [0; 1514];
    let got = world.front.receive(&mut to).unwrap();
    // The feature was not offered, so the flag is not passed on.
    assert!(got.len == bytes.len() && !got.checksum_valid);
    assert_eq!(to[..got.len], bytes);
}

#[test]
fn ring_8_a_frontend_without_buffers_is_woken_by_tx_responses() {
    let mut world = World::new(Rng::new(4));
    world.reflects = false;
    while world.asked < 1_000 {
        let sent = world.send();
        assert!(world.step() || sent, "everybody sleeps");
    }
    world.settle();
    assert_eq!(world.sent.len(), 1_000);
    let front = world.front.counters();
    assert!(front.notifications_suppressed > 0);
}
