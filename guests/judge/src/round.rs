//! A round: what was ordered, and what was seen so far.

use domain_rt::time::{NEVER, now_ns};
use judge_orders::{Orders, Outcome, Wrong, state, wrong};
use ring_ends::Counters;

use crate::outside::JUDGE;

pub(crate) struct Round {
    pub(crate) orders: Orders,
    pub(crate) seen: Outcome,
    /// Counts of the frontend when the round began.
    before: Counters,
    /// This round's requests in flight.
    in_flight: u64,
    /// From when on an answer is waited for: the latest one, or the first request without.
    waiting_from: Option<u64>,
    /// Not to submit before this time.
    next_ns: u64,
    /// Nothing was completed since the latest reconnect.
    reconnected: bool,
    moment_due: bool,
}

impl Round {
    /// Begins one. `orders` are valid.
    pub(crate) fn begin(orders: Orders, counters: Counters) -> Self {
        let seen = Outcome {
            round: orders.round,
            state: state::RUNNING,
            begun_ns: now_ns(),
            ..Outcome::default()
        };
        JUDGE.tell(&seen);
        Self {
            orders,
            seen,
            before: counters,
            in_flight: 0,
            waiting_from: None,
            next_ns: 0,
            reconnected: false,
            moment_due: true,
        }
    }

    /// When the round is given up.
    pub(crate) fn give_up_ns(&self) -> u64 {
        self.seen.begun_ns.saturating_add(self.orders.limit_ns)
    }

    /// After each poll of the frontend.
    pub(crate) fn look(&mut self, counters: Counters) {
        let connects = counters.connects - self.before.connects;
        if connects != self.seen.connects {
            self.reconnected = true;
        }
        self.seen.connects = connects;
        self.seen.disconnects = counters.disconnects - self.before.disconnects;
        self.seen.replayed = counters.replayed - self.before.replayed;
        self.seen.complaints = counters.complaints - self.before.complaints;
        self.seen.misbehaviours = counters.misbehaviours - self.before.misbehaviours;
    }

    /// Whether a request may be submitted now, if `window` may be in flight.
    pub(crate) fn may_submit(&self, window: u64) -> bool {
        self.wants_more(window) && now_ns() >= self.next_ns
    }

    /// When the next request may be submitted, if it is only time that is missing.
    pub(crate) fn next_ns(&self, window: u64) -> u64 {
        if self.wants_more(window) { self.next_ns } else { NEVER }
    }

    /// Whether another request is due. For one that was lost, it is.
    fn wants_more(&self, window: u64) -> bool {
        let not_lost = self.seen.submitted.saturating_sub(self.seen.lost);
        let held = if self.is_held() { self.orders.hold } else { 0 };
        not_lost < self.orders.requests - held && self.in_flight < window
    }

    /// Whether the last requests wait for the host.
    pub(crate) fn is_held(&self) -> bool {
        self.orders.hold > 0 && !JUDGE.lets_go(self.orders.round)
    }

    /// A request was submitted.
    pub(crate) fn submitted(&mut self) {
        let now = now_ns();
        self.waiting_from.get_or_insert(now);
        self.in_flight += 1;
        self.seen.submitted += 1;
        self.next_ns = now.saturating_add(self.orders.pace_ns);
    }

    /// A request of this round was completed.
    pub(crate) fn completed(&mut self) {
        let now = now_ns();
        self.waited_until(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.waiting_from = (self.in_flight > 0).then_some(now);
        self.seen.completed += 1;
        if self.reconnected {
            self.reconnected = false;
            self.seen.first_after_ns = now;
        }
        self.reach_moment();
    }

    /// A request is not in flight any more, and not completed either.
    pub(crate) fn gave_up(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.seen.lost += 1;
    }

    /// One that was given up is completed after all.
    pub(crate) fn completed_after_all(&mut self) {
        self.seen.lost = self.seen.lost.saturating_sub(1);
        // It is not among those in flight.
        self.in_flight += 1;
        self.completed();
    }

    /// Tells of the moment, once, when as many requests are completed as ordered.
    pub(crate) fn reach_moment(&mut self) {
        if self.moment_due && self.seen.completed >= self.orders.moment {
            self.moment_due = false;
            self.seen.moment_ns = now_ns();
            JUDGE.tell(&self.seen);
        }
    }

    /// Something was not as it must be.
    pub(crate) fn wrong(&mut self, what: Wrong) {
        match what.what {
            wrong::STALE => self.seen.stale += 1,
            _ => self.seen.wrong += 1,
        }
        if self.seen.first_wrong.what == wrong::NOTHING {
            self.seen.first_wrong = what;
        }
    }

    /// Whether as many requests were completed as ordered, and none is in flight.
    pub(crate) fn is_worked_off(&self) -> bool {
        self.seen.completed >= self.orders.requests && self.in_flight == 0
    }

    fn waited_until(&mut self, now: u64) {
        let waited = self.waiting_from.map_or(0, |from| now.saturating_sub(from));
        self.seen.longest_ns = self.seen.longest_ns.max(waited);
    }

    /// Shows what was seen so far; with a state, the round is over.
    pub(crate) fn tell(&mut self, over: Option<u64>) {
        if let Some(state) = over {
            let now = now_ns();
            self.waited_until(now);
            self.seen.ended_ns = now;
            self.seen.state = state;
        }
        JUDGE.tell(&self.seen);
    }
}
