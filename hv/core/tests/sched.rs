//! Shares, caps, sleepers and the watchdog of the scheduler.

use hv_core::sched::{Decision, SLICE, Scheduler};

fn two(w0: u16, w1: u16, cap1: u16) -> Scheduler {
    let mut s = Scheduler::new();
    s.add(0, w0, 100, 1000);
    s.add(0, w1, cap1, 1000);
    s.start(0, 0);
    s.start(1, 0);
    s
}

/// Runs core 0 for `total` ns, feeding the watchdogs; returns CPU time by domain.
fn run(s: &mut Scheduler, total: u64) -> (u64, u64) {
    run_from(s, 0, total)
}

fn run_from(s: &mut Scheduler, start: u64, ns: u64) -> (u64, u64) {
    let (mut now, total) = (start, start + ns);
    while now < total {
        match s.pick(0, now) {
            Decision::Run(d, until) => {
                let ran = until.min(now + SLICE) - now;
                now += ran.max(1);
                s.charge(d, ran.max(1), now);
                s.fed(d, now);
            }
            Decision::Idle(until) => now = until.min(total),
        }
    }
    cpu(s)
}

fn cpu(s: &Scheduler) -> (u64, u64) {
    (s.get(0).cpu_ns, s.get(1).cpu_ns)
}

#[test]
fn weights_share_the_core() {
    let (a, b) = run(&mut two(256, 512, 100), 3_000_000_000);
    let ratio = b as f64 / a as f64;
    assert!((1.95..2.05).contains(&ratio), "{ratio}");
}

#[test]
fn caps_hold_even_when_the_core_is_free() {
    let mut s = two(256, 256, 20);
    s.stop(0);
    let (_, b) = run(&mut s, 1_000_000_000);
    assert!((195_000_000..=210_000_000).contains(&b), "{b}");
}

#[test]
fn a_sleeper_gets_no_hoard_but_runs_first() {
    let mut s = two(256, 256, 100);
    s.sleep(1, u64::MAX);
    run_from(&mut s, 0, 500_000_000);
    assert_eq!(s.wake(1), Some(0));
    assert!(matches!(s.pick(0, 500_000_000), Decision::Run(1, _)), "who slept answers at once");
    // What it may catch up is bounded: soon it must share again.
    let (before, _) = cpu(&s);
    let (a, b) = run_from(&mut s, 500_000_000, 40_000_000);
    assert!(a - before > 15_000_000, "the sleeper starved the other: {a} {b}");
}

#[test]
fn deadlines_wake_and_bound_the_idle_time() {
    let mut s = two(256, 256, 100);
    s.sleep(0, 700);
    s.sleep(1, 900);
    assert_eq!(s.pick(0, 100), Decision::Idle(700));
    assert!(matches!(s.pick(0, 700), Decision::Run(0, 900)));
    assert_eq!(s.wake(0), None, "already awake");
}

#[test]
fn the_watchdog_counts_cpu_time_without_wait() {
    let mut s = two(256, 256, 100);
    s.charge(0, 999_999_999, 1);
    assert!(!s.is_hung(0));
    s.charge(0, 2, 2);
    assert!(s.is_hung(0));
    s.fed(0, 2);
    s.charge(0, 2, 3);
    assert!(!s.is_hung(0));
}

#[test]
fn a_sleeper_gets_no_hoard_even_when_it_wakes_alone() {
    let mut s = two(256, 256, 100);
    s.sleep(1, u64::MAX);
    let (a, _) = run_from(&mut s, 0, 1_000_000_000);
    assert_eq!(a, 1_000_000_000);
    // Both sleep; the one that slept all along wakes first and never stops.
    s.sleep(0, u64::MAX);
    s.wake(1);
    run_from(&mut s, 1_000_000_000, 1_000_000);
    s.wake(0);
    let (before, _) = cpu(&s);
    let (after, _) = run_from(&mut s, 1_001_000_000, 40_000_000);
    assert!(after - before > 15_000_000, "starved: {} ns of 40 ms", after - before);
}
