//! The ladder of resets.

use std::cell::Cell;

use hv_core::reset::{ANSWER, ASSERT, Act, DRAIN, Ladder, SETTLE};
use proptest::prelude::*;
use ring_proto::{
    crash::{Reason, Reset},
    event::{READY, SERVED},
};

const ALL: fn(Reset) -> bool = |_| true;

/// A ladder after lives that could not work.
fn after(failures: usize, has: fn(Reset) -> bool) -> Ladder {
    let mut ladder = Ladder::default();
    (0..failures).for_each(|_| ladder.ended(0, Reason::Stalled, has));
    ladder
}

#[test]
fn each_failure_climbs_and_the_last_rung_stays() {
    let rungs = |has| [0, 1, 2, 3, 9].map(|failures| after(failures, has).rung());
    use Reset::{Bus, Driver, Function};
    assert_eq!(rungs(ALL), [Driver, Function, Bus, Bus, Bus]);
    assert_eq!(rungs(|r| r == Bus), [Driver, Bus, Bus, Bus, Bus]);
    assert_eq!(rungs(|r| r == Function), [Driver, Function, Function, Function, Function]);
    assert_eq!(rungs(|_| false), [Driver; 5]);
}

#[test]
fn only_a_death_over_the_device_climbs() {
    for (enabled, ready, reason, rung) in [
        (true, 0, Reason::Panic, Reset::Bus),
        (true, 0, Reason::Watchdog, Reset::Bus),
        (false, 0, Reason::Stalled, Reset::Bus),
        (true, READY, Reason::Stalled, Reset::Bus),
        // It never came to its device: nothing is known.
        (false, 0, Reason::Panic, Reset::Function),
        (true, 0, Reason::Operator, Reset::Function),
        // The device worked.
        (true, READY, Reason::Panic, Reset::Driver),
        (true, SERVED, Reason::Stalled, Reset::Driver),
        (true, SERVED, Reason::Exit, Reset::Driver),
    ] {
        let mut ladder = after(1, ALL);
        if enabled {
            ladder.enabled();
        }
        ladder.ended(ready, reason, ALL);
        assert_eq!(ladder.rung(), rung, "{enabled} {ready} {reason:?}");
        // What one life did is not held against the next.
        ladder.ended(0, Reason::Panic, ALL);
        assert_eq!(ladder.rung(), rung, "{enabled} {ready} {reason:?}");
    }
}

#[test]
fn without_a_reset_nothing_waits() {
    assert_eq!(Ladder::default().step(0, || false, || true), Act::Done);
    let mut gone = Ladder::default();
    assert_eq!(gone.step(0, || true, || false), Act::Gone);
    assert_eq!(gone.rung(), Reset::Gone);
    gone.released();
    assert_eq!(gone.rung(), Reset::Driver);
    assert_eq!(gone.step(0, || true, || true), Act::Done);
}

/// What is done, and when, until the end. `back`: when the device answers.
fn run(mut ladder: Ladder, idle_at: u64, back: u64) -> Vec<(u64, Act)> {
    let now = Cell::new(0);
    let mut done = Vec::new();
    for _ in 0..1000 {
        let touched = Cell::new(false);
        let answers = || {
            touched.set(true);
            now.get() >= back
        };
        let act = ladder.step(now.get(), || now.get() >= idle_at, answers);
        match act {
            Act::Wait(until) => now.set(until),
            _ => done.push((now.get(), act)),
        }
        if matches!(act, Act::Done | Act::Gone) {
            return done;
        }
    }
    panic!("it has no end: {done:?}");
}

#[test]
fn a_function_has_its_time() {
    let flr = Act::Begin(Reset::Function);
    assert_eq!(run(after(1, ALL), 0, 0), [(0, flr), (SETTLE, Act::Done)]);
    // Requests under way delay it, but not for ever.
    let delayed = run(after(1, ALL), u64::MAX, 0);
    assert_eq!(delayed, [(DRAIN, flr), (DRAIN + SETTLE, Act::Done)]);
    let late = run(after(1, ALL), 0, SETTLE + ANSWER);
    assert_eq!(late, [(0, flr), (SETTLE + ANSWER, Act::Done)]);
    let never = run(after(1, ALL), 0, u64::MAX);
    assert_eq!(never, [(0, flr), (SETTLE + ANSWER, Act::Gone)]);
}

#[test]
fn a_bus_has_its_time() {
    let begin = (0, Act::Begin(Reset::Bus));
    let release = (ASSERT, Act::Release);
    let end = ASSERT + SETTLE;
    assert_eq!(run(after(2, ALL), 0, 0), [begin, release, (end, Act::Done)]);
    let never = run(after(2, ALL), 0, u64::MAX);
    assert_eq!(never, [begin, release, (end + ANSWER, Act::Gone)]);
}

#[test]
fn a_release_does_not_leave_a_bus_in_reset() {
    let mut ladder = after(2, ALL);
    assert_eq!(ladder.step(0, || true, || true), Act::Begin(Reset::Bus));
    ladder.released();
    assert_eq!(ladder.step(ASSERT, || true, || true), Act::Release);
}

proptest! {
    /// However late it is asked, a device is not looked at before its time, a
    /// bus is let go of, and there is an end.
    #[test]
    fn the_times_are_kept_by_who_comes_late(delays in prop::collection::vec(0..SETTLE * 2, 0..50), bus: bool) {
        let mut ladder = after(1 + usize::from(bus), ALL);
        let (mut now, mut quiet, mut held) = (0, 0, false);
        let mut delays = delays.into_iter();
        for _ in 0..500 {
            let looked = Cell::new(false);
            let act = ladder.step(now, || true, || { looked.set(true); false });
            prop_assert!(!looked.get() || (now >= quiet && !held));
            match act {
                Act::Begin(rung) => {
                    held = rung == Reset::Bus;
                    quiet = now + if held { ASSERT } else { SETTLE };
                }
                Act::Release => {
                    prop_assert!(held && now >= quiet);
                    (held, quiet) = (false, now + SETTLE);
                }
                Act::Wait(until) => now = until.max(now) + delays.next().unwrap_or(0),
                Act::Gone => return Ok(()),
                Act::Done => prop_assert!(false, "it never answered"),
            }
        }
        prop_assert!(false, "it has no end");
    }
}
