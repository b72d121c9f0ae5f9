//! Block frontend and backend against each other, with crashes anywhere.
//!
//! Tests carry the number of the clause of ring-proto's SPEC.md that they
//! check. `BULKHEAD_SEED` repeats a run.
#![allow(missing_docs)]

mod sim;

use ring_proto::blk::{Op, Segment, Status};
use sim::blk::{World, front_config, volume};
use sim::rng::{Rng, count};
use sim::{BACK, FRONT, Sim};

use ring_ends::blk::{Frontend, Io, SubmitError};

/// A fixed workload: 40 requests, submitted as room allows.
fn workload(world: &mut World, at_step: impl FnMut(&mut World, u64)) -> u64 {
    workload_of(40, world, at_step)
}

fn workload_of(all: u64, world: &mut World, mut at_step: impl FnMut(&mut World, u64)) -> u64 {
    let mut left = all;
    let mut steps = 0;
    while left > 0 || world.outstanding() > 0 {
        if left > 0 && world.submit() {
            left -= 1;
        }
        at_step(world, steps);
        if world.back.is_none() {
            world.start_backend();
        }
        assert!(world.step() || left > 0, "everybody sleeps");
        steps += 1;
        assert!(steps < 100_000, "no progress");
    }
    world.settle();
    assert_eq!(world.completed, all);
    steps
}

#[test]
fn requests_complete_with_their_data() {
    for seed in 0..50 {
        let mut world = World::new(Rng::new(seed));
        workload(&mut world, |_, _| {});
        let front = world.front.counters();
        assert_eq!((front.connects, front.disconnects, front.misbehaviours), (1, 0, 0));
        assert_eq!(world.back.as_ref().unwrap().counters().invalid, 0);
    }
}

#[test]
fn conn_7_blk_9_backend_crash_at_every_step_is_replayed() {
    for seed in 0..4 {
        let steps = workload(&mut World::new(Rng::new(seed)), |_, _| {});
        for k in 0..steps {
            let mut world = World::new(Rng::new(seed));
            workload(&mut world, |world, step| {
                if step == k {
                    world.end_backend();
                }
            });
            assert_eq!(world.front.counters().misbehaviours, 0);
        }
    }
}

#[test]
fn conn_7_blk_9_backend_crash_at_every_environment_call_is_replayed() {
    for seed in 0..4 {
        for k in 0.. {
            let mut world = World::new(Rng::new(seed));
            world.sim.crash_after(k);
            workload(&mut world, |_, _| {});
            if world.backend_lives == 1 {
                assert!(k >= 10, "too few calls to mean anything: {k}");
                break;
            }
        }
    }
}

#[test]
fn blk_9_a_backend_that_crashes_again_and_again_loses_nothing() {
    let mut world = World::new(Rng::from_env("crashes"));
    let mut n = 0;
    workload_of(1000, &mut world, |world, step| {
        if step % 37 == 36 && n < 100 {
            n += 1;
            world.end_backend();
        }
    });
    assert!(n > 50);
}

#[test]
fn conn_8_blk_9_random_interleavings_of_crashes_restarts_and_glitches() {
    let mut rng = Rng::from_env("interleavings");
    let worlds = count("BULKHEAD_WORLDS", 300);
    let (mut completed, mut lives, mut drained) = (0, 0, 0);
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
                7 => {
                    let n = world.rng.below(8);
                    world.sim.crash_after(n);
                }
                8 => world.sim.advance(5_000_000),
                9..60 => {
                    world.submit();
                }
                _ => {
                    world.step();
                }
            }
            drained += u64::from(world.back.as_ref().is_some_and(|b| b.is_draining()));
        }
        world.settle();
        completed += world.completed;
        lives += world.backend_lives;
    }
    eprintln!("{worlds} worlds: {completed} requests, {lives} backend lives, {drained} draining");
    assert!(completed > worlds * 20 && lives > worlds && drained > worlds);
}

#[test]
fn a_backend_that_completes_nothing_is_complained_about_and_one_that_is_away_is_not() {
    const BOUND: u64 = 2_000_000_000;
    let mut world = World::new(Rng::new(9));
    world.front.complain_after(BOUND);
    workload(&mut world, |_, _| {});
    assert_eq!(world.sim.complaints(), 0);
    assert!(world.submit());
    // The backend lives and does nothing: only the frontend's turns happen.
    let begin = world.sim.now();
    let mut turns = 0;
    while world.sim.now() < begin + 10 * BOUND {
        let progress = world.front.poll(&mut world.sim.env(FRONT));
        let next = if progress.again { world.sim.now() + 1 } else { progress.deadline.unwrap() };
        world.sim.advance(next - world.sim.now());
        turns += 1;
    }
    assert_eq!(world.sim.complaints(), 9);
    assert!(turns < 20, "{turns} turns to wait");
    assert_eq!(world.front.counters().complaints, 9);
    // It is gone: there is nobody to complain about, and no reason to wake.
    world.end_backend();
    let mut progress = world.front.poll(&mut world.sim.env(FRONT));
    while progress.again || progress.deadline.is_some_and(|at| at <= world.sim.now()) {
        progress = world.front.poll(&mut world.sim.env(FRONT));
    }
    assert_eq!(progress.deadline, None);
    world.sim.advance(100 * BOUND);
    let _ = world.front.poll(&mut world.sim.env(FRONT));
    assert_eq!(world.sim.complaints(), 9);
    // Back again, it has its whole time.
    world.front_wake = sim::blk::Wake::NOW;
    world.settle();
    assert_eq!(world.sim.complaints(), 9);
}

#[test]
fn conn_15_a_planned_restart_carries_out_no_request_twice() {
    let mut rng = Rng::from_env("planned restarts");
    let (mut restarts, mut waited) = (0, 0);
    for _ in 0..count("BULKHEAD_WORLDS", 300) / 3 {
        let seed = rng.next();
        eprintln!("world BULKHEAD_SEED={seed}");
        let mut world = World::new(Rng::new(seed));
        for _ in 0..2_000 {
            match world.rng.below(100) {
                0 => {
                    waited += u64::from(world.front.in_flight() > 4);
                    world.plan_restart();
                    world.start_backend();
                    restarts += 1;
                }
                1..40 => drop(world.submit()),
                _ => drop(world.step()),
            }
        }
        world.settle();
        assert_eq!(world.front.counters().replayed, 0);
        assert_eq!(world.front.counters().misbehaviours, 0);
        let twice = world.written.iter().find(|&(_, &times)| times != 1);
        assert_eq!(twice, None, "(stamp, times written)");
    }
    assert!(restarts > 1_000 && waited > 100, "{restarts}, {waited} with requests in flight");
}

#[test]
fn conn_15_a_backend_that_left_answers_nobody() {
    let mut world = World::new(Rng::new(3));
    while !world.front.is_connected() {
        assert!(world.step());
    }
    assert!(world.back.as_mut().unwrap().leave());
    world.back_wake.again = true;
    world.submit();
    // The frontend offers anew, and then everybody waits without a deadline.
    let end = world.sim.now() + 60_000_000_000;
    while world.step() {
        assert!(world.sim.now() < end, "somebody keeps asking");
        let back = world.back.as_ref().unwrap();
        assert!(!back.has_left() || !back.is_connected());
    }
    assert!(world.back.as_ref().unwrap().has_left());
    assert_eq!((world.outstanding(), world.sim.mapped_pages()), (1, 0));
    assert!(world.front.counters().connects == 1);
    world.end_backend();
    world.settle();
    assert_eq!(world.completed, 1);
}

#[test]
fn blk_10_a_volume_that_shrank_fails_only_what_is_beyond() {
    for seed in 0..50 {
        let mut world = World::new(Rng::new(seed));
        workload(&mut world, |world, step| {
            if step == 60 {
                world.end_backend();
                world.volume.sectors = 100;
            }
        });
        assert!(world.front.geometry().is_some_and(|g| g.sectors == 100));
        for (at, expect) in world.expect.iter().enumerate().take(100) {
            if let sim::blk::Expect::Stamp(stamp) = expect {
                assert_eq!(world.disk[at], *stamp);
            }
        }
    }
}

#[test]
fn blk_8_requests_are_replayed_in_the_order_of_submission() {
    let mut world = World::new(Rng::new(7));
    while !world.front.is_connected() {
        assert!(world.step());
    }
    // Use the table once, so that its free entries are in no order.
    while world.completed < 30 {
        let asked = world.submit();
        assert!(world.step() || asked);
    }
    world.settle();
    world.order.clear();
    let mut sectors = Vec::new();
    for sector in [50u64, 3, 40, 7, 90, 1] {
        let segments = [Segment { offset: 0, len: 512 }];
        let io = Io { op: Op::Read, sector, sectors: 0, segments: &segments };
        world.front.submit(io, sector).unwrap();
        sectors.push(sector);
    }
    let mut env = world.sim.env(FRONT);
    world.front.kick(&mut env);
    world.run_back();
    assert_eq!(world.order, sectors);
    world.order.clear();
    world.end_backend();
    let segments = [Segment { offset: 0, len: 512 }];
    let io = Io { op: Op::Read, sector: 2, sectors: 0, segments: &segments };
    world.front.submit(io, 2).unwrap();
    sectors.push(2);
    world.start_backend();
    for _ in 0..100 {
        let _ = world.front.poll(&mut env);
        world.run_back();
        world.sim.advance(10_000_000);
    }
    assert_eq!(world.order, sectors);
}

#[test]
fn blk_11_g3_after_an_acknowledged_write_no_older_one_lands() {
    let mut overlapping = 0;
    for seed in 0..3 {
        let dense = |rng| {
            let mut world = World::new(rng);
            world.span = 10;
            world
        };
        let steps = workload(&mut dense(Rng::new(seed)), |_, _| {});
        for k in 0..steps {
            let mut world = dense(Rng::new(seed));
            workload(&mut world, |world, step| {
                if step == k || step == k + 9 {
                    world.end_backend();
                }
            });
            assert!(world.expect.iter().take(10).all(|e| *e != sim::blk::Expect::Unknown));
            overlapping += world.overlapping;
        }
    }
    assert!(overlapping > 1000, "{overlapping}");
}

#[test]
fn blk_11_a_change_waits_for_the_change_that_it_overlaps() {
    let mut world = World::new(Rng::new(11));
    let mut env = world.sim.env(FRONT);
    while !world.front.is_connected() {
        assert!(world.step());
    }
    let segments = [Segment { offset: 0, len: 1024 }];
    let mut submit = |op, sector, sectors, token| {
        let segments = if op == Op::Write { &segments[..] } else { &[] };
        world.front.submit(Io { op, sector, sectors, segments }, token).unwrap();
    };
    // Two sectors each; the third touches the first, the fourth the third, the last none.
    submit(Op::Write, 8, 0, 0);
    submit(Op::Write, 10, 0, 1);
    submit(Op::WriteZeroes, 9, 1, 2);
    submit(Op::Discard, 9, 4, 3);
    submit(Op::Write, 50, 0, 4);
    let mut back = world.back.take().unwrap();
    let mut be = world.sim.env(BACK);
    let mut rounds = Vec::new();
    for _ in 0..4 {
        let _ = world.front.poll(&mut env);
        let _ = back.poll(&mut be);
        let mut round = Vec::new();
        while let Some(request) = back.next_request() {
            round.push(request.sector);
            back.complete(request.tag, Status::Ok);
        }
        back.push_responses(&mut be);
        rounds.push(round);
    }
    assert_eq!(rounds, [vec![8, 10], vec![9], vec![9, 50], vec![]]);
}

#[test]
fn conn_11_memory_stays_mapped_until_device_io_ended() {
    let mut world = World::new(Rng::new(3));
    while world.outstanding() < 3 {
        world.submit();
    }
    while world.back.as_ref().unwrap().in_flight() < 3 {
        world.run_front();
        world.run_back();
    }
    world.restart_frontend();
    let mapped = world.sim.mapped_pages();
    for _ in 0..20 {
        world.run_front();
        world.run_back();
        world.sim.advance(2_000_000);
        assert!(world.back.as_ref().unwrap().is_draining());
        assert_eq!(world.sim.mapped_pages(), mapped);
        assert!(!world.front.is_connected());
    }
    while world.run_device() {}
    for _ in 0..5 {
        world.run_front();
        world.run_back();
        world.sim.advance(2_000_000);
    }
    assert!(world.front.is_connected());
    assert!(!world.back.as_ref().unwrap().is_draining());
}

#[test]
fn ring_10_a_busy_end_is_not_notified() {
    let mut world = World::new(Rng::new(5));
    let mut left = 2_000;
    while left > 0 || world.outstanding() > 0 {
        while left > 0 && world.submit() {
            left -= 1;
        }
        assert!(world.step(), "everybody sleeps");
    }
    let front = world.front.counters();
    assert!(front.notifications_suppressed > front.notifications_sent, "{front:?}");
}

#[test]
fn submissions_are_checked() {
    let sim = Sim::new();
    let mut front = Frontend::new(front_config(&sim)).unwrap();
    let good = [Segment { offset: 0, len: 512 }];
    let io = |op, sectors, segments| Io { op, sector: 0, sectors, segments };
    let bad: [(Op, u64, &[Segment]); 8] = [
        (Op::Read, 0, &[]),
        (Op::Read, 1, &good),
        (Op::Flush, 0, &good),
        (Op::Discard, 0, &[]),
        (Op::Write, 0, &[Segment { offset: 1, len: 512 }]),
        (Op::Write, 0, &[Segment { offset: 0, len: 100 }]),
        (Op::Write, 0, &[Segment { offset: 8 * 4096, len: 512 }]),
        (Op::Write, 0, &[Segment { offset: 0, len: 512 }; 7]),
    ];
    for (op, sectors, segments) in bad {
        assert_eq!(front.submit(io(op, sectors, segments), 0), Err(SubmitError::Invalid));
    }
    for token in 0..16 {
        front.submit(io(Op::Read, 0, &good), token).unwrap();
    }
    assert_eq!(front.submit(io(Op::Read, 0, &good), 16), Err(SubmitError::Full));
    assert_eq!(volume().block_size, 512);
    assert_eq!(Status::from_raw(4), None);
}
