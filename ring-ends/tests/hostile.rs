//! CONN-13, RING-4, BLK-4, NET-2: a peer that writes anything into any page
//! it shares makes an end neither panic nor hang nor leak, and an honest peer
//! that follows is served in full.
//!
//! Ten million random steps over the four ends by default; a step is one act
//! of the hostile peer or one call of the end. `BULKHEAD_HOSTILE_STEPS` sets
//! the total, `BULKHEAD_SEED` repeats a run.
#![allow(missing_docs)]

mod sim;

use ring_ends::{Counters, blk, net};
use ring_proto::blk::{Op, Segment, Status};
use sim::honest::{
    check_frame, check_request, honest_blk_backend, honest_blk_frontend, honest_net_backend,
    honest_net_frontend,
};
use sim::hostile::{BLK, NET, backend_step, frontend_step, grant_all};
use sim::rng::{Rng, count};
use sim::{BACK, FRONT, Sim};

/// Steps between two visits of an honest peer.
const VISIT: u64 = 20_000;
/// An hour, ns.
const HOUR: u64 = 3_600_000_000_000;
/// More environment calls than any one call of an end makes.
const MOST_CALLS: u64 = 16;

fn steps() -> u64 {
    count("BULKHEAD_HOSTILE_STEPS", 10_000_000) / 4
}

fn report(name: &str, steps: u64, c: &Counters, extra: u64) {
    eprintln!("{name}: {steps} steps, {extra} results, {c:?}");
}

/// The attack got somewhere: the end was up, worked, and saw nonsense.
fn assert_deep(steps: u64, c: &Counters, results: u64) {
    if steps >= 100_000 {
        assert!(c.connects > steps / 20_000, "{c:?}");
        assert!(c.misbehaviours > steps / 20_000, "{c:?}");
        assert!(c.requests > steps / 500, "{c:?}");
        assert!(results > steps / 500, "{results} results");
    }
}

#[test]
fn conn_13_hostile_backend_against_blk_frontend() {
    let mut rng = Rng::from_env("blk frontend");
    let steps = steps();
    let sim = Sim::new();
    let mut front = blk::Frontend::new(sim::blk::front_config(&sim)).unwrap();
    let mut env = sim.env(FRONT);
    let (mut token, mut done) = (0, 0);
    for step in 0..steps {
        let calls = sim.calls(FRONT);
        match rng.below(16) {
            0..8 => backend_step(&sim, &BLK, &mut rng),
            8..11 => drop(front.poll(&mut env)),
            11 => {
                sim.take_event(FRONT);
                let most = *rng.pick(&[1_000, 1_000_000, 1_000_000_000]);
                sim.advance(rng.below(most));
            }
            12 => front.kick(&mut env),
            13 | 14 => {
                let sectors = 1 + rng.below(4) as u32;
                let segments = [Segment { offset: rng.below(8) as u32 * 2048, len: sectors * 512 }];
                let op = *rng.pick(&[Op::Read, Op::Write]);
                let sector = rng.below(190);
                let io = blk::Io { op, sector, sectors: 0, segments: &segments };
                token += u64::from(front.submit(io, token).is_ok());
            }
            _ => {
                while let Some(completion) = front.next_completion() {
                    assert!(completion.token < token);
                    done += 1;
                }
            }
        }
        assert!(sim.calls(FRONT) - calls <= MOST_CALLS);
        assert_eq!(front.in_flight() + front.room(), sim::blk::SLOTS as usize);
        assert_eq!(done + front.in_flight() as u64, token);
        if step % VISIT == VISIT - 1 {
            done += honest_blk_backend(&sim, &mut front);
            assert_eq!(done, token);
        }
    }
    let c = front.counters();
    report("blk frontend", steps, &c, done);
    assert_deep(steps, &c, done);
}

#[test]
fn conn_13_hostile_backend_against_net_frontend() {
    let mut rng = Rng::from_env("net frontend");
    let steps = steps();
    let sim = Sim::new();
    let mut front = net::Frontend::new(sim::net::front_config(&sim)).unwrap();
    let mut env = sim.env(FRONT);
    let mut received = 0;
    let mut to = [0; 1514];
    for step in 0..steps {
        let calls = sim.calls(FRONT);
        match rng.below(16) {
            0..8 => backend_step(&sim, &NET, &mut rng),
            8..11 => drop(front.poll(&mut env)),
            11 => {
                sim.take_event(FRONT);
                let most = *rng.pick(&[1_000, 1_000_000, 1_000_000_000]);
                sim.advance(rng.below(most));
            }
            12 => front.kick(&mut env),
            13 => {
                let len = 14 + rng.below(1500) as usize;
                let _ = front.transmit(&to[..len], None);
            }
            14 => {
                if let Some(buffer) = front.tx_buffer() {
                    front.cancel(buffer);
                }
            }
            _ => {
                if let Some(got) = front.receive(&mut to) {
                    assert!(got.len >= 14 && got.len <= to.len());
                    received += 1;
                }
            }
        }
        assert!(sim.calls(FRONT) - calls <= MOST_CALLS);
        assert!(front.rx_ready() <= sim::net::SLOTS as usize);
        if step % VISIT == VISIT - 1 {
            honest_net_backend(&sim, &mut front);
        }
    }
    let c = front.counters();
    report("net frontend", steps, &c, received);
    assert_deep(steps, &c, received);
}

#[test]
fn conn_13_hostile_frontend_against_blk_backend() {
    let mut rng = Rng::from_env("blk backend");
    let steps = steps();
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = blk::Backend::new(sim::blk::back_config(&sim), sim::blk::volume());
    let mut env = sim.env(BACK);
    let mut device = Vec::new();
    let mut done = 0;
    for step in 0..steps {
        let calls = sim.calls(BACK);
        match rng.below(16) {
            0..8 => frontend_step(&sim, &BLK, &mut rng),
            8 | 9 => drop(back.poll(&mut env)),
            // CONN-14 makes it wait; so that it comes far, time flies.
            10 if rng.one_in(10) => sim.advance(rng.below(HOUR)),
            10 => sim.advance(rng.below(3_000_000)),
            11..14 => {
                if let Some(request) = back.next_request() {
                    check_request(&sim, &request);
                    device.push(request.tag);
                }
            }
            14 => back.push_responses(&mut env),
            _ => {
                for _ in 0..rng.below(4) {
                    if !device.is_empty() {
                        let n = rng.below(device.len() as u64) as usize;
                        back.complete(device.swap_remove(n), Status::Ok);
                        done += 1;
                    }
                }
            }
        }
        assert!(sim.calls(BACK) - calls <= MOST_CALLS);
        assert_eq!(back.in_flight() as usize, device.len());
        assert!(device.len() <= blk::MAX_SLOTS as usize, "BLK-4");
        assert!(sim.mapped_pages() <= 20);
        if step % VISIT == VISIT - 1 {
            for tag in device.drain(..) {
                back.complete(tag, Status::Ok);
            }
            honest_blk_frontend(&sim, &mut back);
            grant_all(&sim, &BLK);
        }
    }
    let c = back.counters();
    report("blk backend", steps, &c, done);
    assert!(c.invalid > steps / 2_000);
    assert_deep(steps, &c, done);
}

#[test]
fn conn_13_hostile_frontend_against_net_backend() {
    let mut rng = Rng::from_env("net backend");
    let steps = steps();
    let sim = Sim::new();
    grant_all(&sim, &NET);
    let mut back = net::Backend::new(sim::net::back_config(&sim), sim::net::vif());
    let mut env = sim.env(BACK);
    let mut device = Vec::new();
    let (mut done, mut delivered) = (0, 0);
    let mut bytes = [0; 1514];
    for step in 0..steps {
        let calls = sim.calls(BACK);
        match rng.below(16) {
            0..8 => frontend_step(&sim, &NET, &mut rng),
            8 | 9 => drop(back.poll(&mut env)),
            // CONN-14 makes it wait; so that it comes far, time flies.
            10 if rng.one_in(10) => sim.advance(rng.below(HOUR)),
            10 => sim.advance(rng.below(3_000_000)),
            11 | 12 => {
                if let Some(frame) = back.next_tx() {
                    check_frame(&sim, &frame);
                    assert_eq!(back.copy_head(&frame, &mut bytes), frame.len as usize);
                    device.push(frame.tag);
                }
            }
            13 => {
                let len = 14 + rng.below(1501) as usize;
                delivered += u64::from(back.deliver(&bytes[..len], true).is_ok());
            }
            14 => back.push_responses(&mut env),
            _ => {
                for _ in 0..rng.below(4) {
                    if !device.is_empty() {
                        let n = rng.below(device.len() as u64) as usize;
                        back.complete_tx(device.swap_remove(n), ring_proto::net::Status::Ok);
                        done += 1;
                    }
                }
            }
        }
        assert!(sim.calls(BACK) - calls <= MOST_CALLS);
        assert_eq!(back.in_flight() as usize, device.len());
        assert!(device.len() <= net::MAX_SLOTS as usize);
        assert!(sim.mapped_pages() <= 20);
        if step % VISIT == VISIT - 1 {
            for tag in device.drain(..) {
                back.complete_tx(tag, ring_proto::net::Status::Ok);
            }
            honest_net_frontend(&sim, &mut back);
            grant_all(&sim, &NET);
        }
    }
    let c = back.counters();
    report("net backend", steps, &c, done + delivered);
    assert!(c.invalid > steps / 2_000 && delivered > steps / 2_000);
    assert_deep(steps, &c, done);
}
