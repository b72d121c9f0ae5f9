use std::{collections::VecDeque, vec, vec::Vec};

use ring_proto::boot::Limits;

use super::*;

const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;
/// As the blk driver has it.
const QUANTUM: u64 = MIB;
const COST: u64 = 4096;

/// Random numbers that repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn limits(ops: u32, bandwidth: u64) -> Limits {
    Limits { ops, bandwidth, refill_ms: 100, ..Limits::default() }
}

#[test]
fn a_bucket_gives_its_rate_its_size_and_its_burst_and_no_more() {
    let mut bucket = Bucket::new(100, 10, 5);
    let passed = |bucket: &mut Bucket, at| (0..1000).filter(|_| bucket.take(at, 1)).count();
    assert_eq!(passed(&mut bucket, 5), 15);
    assert_eq!(passed(&mut bucket, 5 + SECOND / 20), 5);
    assert_eq!(passed(&mut bucket, 3600 * SECOND), 10);
    assert_eq!(passed(&mut bucket, 0), 0, "a clock that goes back");
    assert_eq!(passed(&mut bucket, u64::MAX), 10);
}

#[test]
fn an_overdraft_is_paid_before_the_next() {
    let mut bucket = Bucket::new(1000, 100, 0);
    assert!(bucket.take(0, 5100));
    assert_eq!(bucket.ready_at(), 5 * SECOND + SECOND / 1000);
    assert!(!bucket.take(5 * SECOND, 1));
    assert!(bucket.take(5 * SECOND + SECOND / 1000, 1));
}

#[test]
fn extreme_numbers_do_no_harm() {
    let extremes = [1, 2, 3000, u64::from(u32::MAX), u64::MAX / 3, u64::MAX];
    for rate in extremes {
        for size in extremes {
            let mut bucket = Bucket::new(rate, size, u64::MAX);
            for at in [0, 1, SECOND, u64::MAX, 5, u64::MAX] {
                bucket.ready(at);
                bucket.spend(u64::MAX);
                bucket.ready_at();
            }
        }
    }
    let mut limiter = Limiter::new(&Limits {
        bandwidth: u64::MAX,
        bandwidth_burst: u64::MAX,
        ops: u32::MAX,
        ops_burst: u32::MAX,
        refill_ms: u32::MAX,
        reserved: 0,
    });
    for at in [0, u64::MAX] {
        assert!(limiter.take(at, u64::MAX));
        limiter.wake_at();
    }
}

/// A guest that always wants more.
#[derive(Clone, Copy)]
struct Guest {
    weight: u32,
    /// Sizes of its requests: from, to.
    bytes: (u64, u64),
    /// Requests that it has in its ring and with the device at a time.
    depth: usize,
    limits: Limits,
}

const GREEDY: Guest = Guest {
    weight: 256,
    bytes: (4096, 4096),
    depth: 64,
    limits: Limits {
        bandwidth: 0,
        bandwidth_burst: 0,
        ops: 0,
        ops_burst: 0,
        refill_ms: 0,
        reserved: 0,
    },
};

/// What a guest got.
#[derive(Clone, Copy, Debug, Default)]
struct Got {
    ops: u64,
    bytes: u64,
}

impl Got {
    fn work(self) -> f64 {
        (self.bytes + self.ops * COST) as f64
    }
}

/// The loop of a driver with a device that does `bandwidth` bytes a second, in
/// virtual time, for `ns`.
fn run(guests: &[Guest], bandwidth: u64, window: u64, ns: u64) -> Vec<Got> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut turns = Turns::new(QUANTUM, window);
    for guest in guests {
        turns.add(guest.weight, Limiter::new(&guest.limits)).unwrap();
    }
    let mut got = vec![Got::default(); guests.len()];
    let mut waiting: Vec<usize> = guests.iter().map(|guest| guest.depth).collect();
    // In order; the device works on the first.
    let mut device: VecDeque<(usize, u64)> = VecDeque::new();
    let mut now = 0;
    let mut first_ends = u64::MAX;
    while now < ns {
        turns.begin_round();
        while device.len() < 128
            && let Some(i) = turns.pick(now)
        {
            if waiting[i] == 0 {
                turns.empty(i);
                continue;
            }
            waiting[i] -= 1;
            let (least, most) = guests[i].bytes;
            let bytes = least + random.below(most - least + 1) / 512 * 512;
            turns.started(i, bytes + COST, 1, bytes);
            device.push_back((i, bytes));
        }
        let service = |bytes| (bytes + COST) * SECOND / bandwidth;
        if first_ends == u64::MAX
            && let Some(&(_, bytes)) = device.front()
        {
            first_ends = now + service(bytes);
        }
        if turns.wants_round() && device.len() < 128 {
            continue;
        }
        let wake = turns.deadline().unwrap_or(u64::MAX).min(first_ends);
        assert!(wake < u64::MAX, "everybody sleeps for ever");
        // A wakeup comes late.
        now = wake.max(now) + random.below(20_000);
        while first_ends <= now
            && let Some((i, bytes)) = device.pop_front()
        {
            turns.finished(i, bytes + COST);
            got[i].ops += 1;
            got[i].bytes += bytes;
            waiting[i] += 1;
            turns.wake(i);
            first_ends = device.front().map_or(u64::MAX, |&(_, next)| first_ends + service(next));
        }
    }
    got
}

fn near(got: f64, want: f64, percent: f64) {
    let off = (got - want).abs() * 100.0 / want;
    assert!(off <= percent, "{got} instead of {want}: {off:.2} % off");
}

/// The rate that is set is the rate that is had, within 1 %.
#[test]
fn g5_limits_are_kept_and_reached_within_one_percent() {
    const SECONDS: u64 = 20;
    for ops in [7, 100, 3000, 20_000] {
        let guest = Guest { limits: limits(ops, 0), ..GREEDY };
        let [got] = run(&[guest], 4000 * MIB, 2 * MIB, SECONDS * SECOND)[..] else { panic!() };
        // What the bucket holds at the beginning comes on top.
        let full = (u64::from(ops) / 10).max(1);
        near(got.ops as f64, (u64::from(ops) * SECONDS + full) as f64, 1.0);
    }
    for bandwidth in [MIB, 10 * MIB, 200 * MIB] {
        for bytes in [(4096, 4096), (512, MIB), (MIB, MIB)] {
            let guest = Guest { limits: limits(0, bandwidth), bytes, ..GREEDY };
            let got = run(&[guest], 4000 * MIB, 2 * MIB, SECONDS * SECOND);
            let full = bandwidth / 10;
            // The last request may overdraw.
            let want = (bandwidth * SECONDS + full) as f64;
            let off = got[0].bytes as f64 - want;
            assert!(
                off.abs() <= want * 0.01 + MIB as f64,
                "{bandwidth} B/s in requests of {bytes:?}: {off} bytes off"
            );
        }
    }
}

#[test]
fn both_limits_hold_at_the_same_time() {
    let guest = Guest { limits: limits(1000, 100 * MIB), ..GREEDY };
    let small = run(&[guest], 4000 * MIB, 2 * MIB, 10 * SECOND)[0];
    near(small.ops as f64, 10_100.0, 1.0);
    let large = run(&[Guest { bytes: (MIB, MIB), ..guest }], 4000 * MIB, 2 * MIB, 10 * SECOND)[0];
    near(large.bytes as f64, (1010 * MIB) as f64, 1.0);
}

#[test]
fn a_one_time_burst_comes_once() {
    let burst = Limits { ops_burst: 5000, ..limits(1000, 0) };
    let guest = Guest { limits: burst, ..GREEDY };
    let got = run(&[guest], 4000 * MIB, 2 * MIB, 10 * SECOND)[0];
    near(got.ops as f64, 10_000.0 + 100.0 + 5000.0, 1.0);
}

/// Work is shared by weight, whatever the sizes of the requests.
#[test]
fn g5_weights_are_the_shares() {
    let small = Guest { bytes: (4096, 4096), ..GREEDY };
    let large = Guest { bytes: (MIB, MIB), ..GREEDY };
    let mixed = Guest { bytes: (512, 256 << 10), ..GREEDY };
    for guests in [
        [large, large, large],
        [mixed, large, mixed],
        // Enough small ones to fill their share of the window.
        [Guest { depth: 256, ..small }, large, mixed],
    ] {
        for weights in [[256, 256, 256], [128, 256, 512], [64, 64, 256]] {
            let mut guests = guests;
            for (guest, weight) in guests.iter_mut().zip(weights) {
                guest.weight = weight;
            }
            let got = run(&guests, 500 * MIB, 2 * MIB, 20 * SECOND);
            let all: f64 = got.iter().map(|got| got.work()).sum();
            let weights_sum: u32 = weights.iter().sum();
            for (got, weight) in got.iter().zip(weights) {
                near(got.work() / all, f64::from(weight) / f64::from(weights_sum), 6.0);
            }
        }
    }
}

/// Without a bound on what the device holds, weights would decide nothing.
#[test]
fn without_the_window_weights_are_worth_nothing() {
    let large = Guest { bytes: (MIB, MIB), ..GREEDY };
    let guests = [Guest { weight: 64, ..large }, Guest { weight: 256, ..large }];
    let share = |window| {
        let got = run(&guests, 500 * MIB, window, 20 * SECOND);
        got[1].work() / got[0].work()
    };
    near(share(2 * MIB), 4.0, 6.0);
    assert!(share(u64::MAX) < 1.1);
}

#[test]
fn a_guest_alone_has_everything_and_the_window_does_not_hold_it_up() {
    let got = run(&[GREEDY, Guest { depth: 0, ..GREEDY }], 500 * MIB, 2 * MIB, 5 * SECOND);
    near(got[0].work(), (5 * 500 * MIB) as f64, 1.0);
    assert_eq!(got[1].ops, 0);
}

#[test]
fn a_guest_at_its_limit_leaves_the_rest_to_the_others() {
    let limited = Guest { limits: limits(0, 50 * MIB), bytes: (MIB, MIB), ..GREEDY };
    let other = Guest { bytes: (MIB, MIB), ..GREEDY };
    let got = run(&[limited, other], 500 * MIB, 2 * MIB, 20 * SECOND);
    near(got[0].bytes as f64, (50 * 20 * MIB + 5 * MIB) as f64, 1.0);
    near(got[0].work() + got[1].work(), (500 * 20 * MIB) as f64, 1.0);
}

#[test]
fn what_a_guest_does_not_use_it_does_not_save() {
    let mut turns = Turns::new(QUANTUM, u64::MAX);
    for _ in 0..2 {
        turns.add(256, Limiter::default()).unwrap();
    }
    for _ in 0..100 {
        turns.begin_round();
        while let Some(client) = turns.pick(0) {
            turns.empty(client);
        }
        turns.wake(0);
    }
    turns.wake(1);
    turns.begin_round();
    let mut taken = [0u64; 2];
    while let Some(client) = turns.pick(0) {
        taken[client] += 1;
        turns.charge(client, 4096, 1, 4096);
    }
    assert_eq!(taken, [256, 256]);
}

#[test]
fn a_turn_cut_short_goes_on() {
    let mut turns = Turns::new(8, u64::MAX);
    for _ in 0..2 {
        turns.add(256, Limiter::default()).unwrap();
    }
    // The device takes three at a time.
    let mut order = Vec::new();
    for _ in 0..16 {
        turns.begin_round();
        for _ in 0..3 {
            if let Some(client) = turns.pick(0) {
                turns.charge(client, 1, 1, 1);
                order.push(client);
            }
        }
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for client in order {
        match runs.last_mut() {
            Some((last, n)) if *last == client => *n += 1,
            _ => runs.push((client, 1)),
        }
    }
    runs.pop();
    assert!(runs.iter().all(|&(_, n)| n == 8), "{runs:?}");
}
