//! What a guest notices of its driver's deaths: one line for each.
//!
//! The load is requests in flight without end. From one completion before a
//! death to the first one after the reconnect nothing is served; the hypervisor
//! knows when the death was, so this side only says when that first completion
//! came, and what the death cost beside time.

use domain_rt::time::{NEVER, now_ns};
use ring_ends::Counters;

use crate::record;

#[derive(Clone, Copy)]
enum State {
    /// Requests are answered.
    Steady,
    /// The connection went down.
    Down { replayed: u64 },
    /// The next driver answered.
    Served { replayed: u64, first_ns: u64, until: u64 },
}

/// Watches a connection.
pub(crate) struct Outages {
    load: &'static str,
    /// How long after the first completion the line is written, ns: what was in
    /// flight comes back by then, or it is lost.
    settle: u64,
    state: State,
    last: Counters,
    count: u64,
}

impl Outages {
    pub(crate) fn new(load: &'static str, settle: u64) -> Self {
        Self { load, settle, state: State::Steady, last: Counters::default(), count: 0 }
    }

    /// After each poll of the frontend. Returns whether the connection just
    /// came back.
    pub(crate) fn look(&mut self, counters: Counters) -> bool {
        let last = core::mem::replace(&mut self.last, counters);
        if counters.disconnects != last.disconnects {
            let before = match self.state {
                State::Steady => last.replayed,
                // It died again before that was over.
                State::Down { replayed } | State::Served { replayed, .. } => replayed,
            };
            self.state = State::Down { replayed: before };
        }
        counters.connects != last.connects && counters.connects > 1
    }

    /// A request was answered while the connection is up.
    pub(crate) fn completed(&mut self) {
        if let State::Down { replayed } = self.state {
            let now = now_ns();
            let until = now.saturating_add(self.settle);
            self.state = State::Served { replayed, first_ns: now, until };
        }
    }

    /// Whether an outage is over and what was lost can be said.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.state, State::Served { until, .. } if now_ns() >= until)
    }

    /// When that will be.
    pub(crate) fn deadline(&self) -> u64 {
        match self.state {
            State::Served { until, .. } => until,
            _ => NEVER,
        }
    }

    /// Writes the line of an outage that is settled.
    pub(crate) fn tell(&mut self, lost: u64) {
        let State::Served { replayed, first_ns, .. } = self.state else { return };
        self.state = State::Steady;
        self.count += 1;
        let replayed = self.last.replayed.saturating_sub(replayed);
        record::outage(self.load, self.count, first_ns, replayed, lost);
    }
}
