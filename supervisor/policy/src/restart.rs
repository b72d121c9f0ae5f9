//! When a dead domain is started again, and when it is held (guarantee G6).
//!
//! Three figures of the manifest bound the restarts of a domain:
//!
//! - the *floor*: least time between two starts;
//! - the *backoff*: with each further death within the window the floor grows
//!   by this factor, up to [`MAX_DELAY_NS`];
//! - the *budget*: at so many deaths within the window the domain is held.
//!
//! Only *unplanned* deaths count. A death that an operator ordered (`restart`,
//! `crash`) says nothing about the health of the driver: it neither uses up
//! the budget nor makes the backoff grow, but the floor applies to it too.
//!
//! What counts stands in the crash records, which outlive the supervisor: a
//! crasher does not get a fresh budget from the supervisor's own death.

use heapless::Deque;
use ring_proto::{
    crash::{CrashRecord, Reason},
    hypercall::{DomainInfo, DomainState},
};

/// Longest wait before a restart, whatever the backoff says: 60 s.
pub const MAX_DELAY_NS: u64 = 60_000_000_000;
/// Deaths that are remembered for each domain; larger budgets count as this.
pub const MAX_BUDGET: usize = 128;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// Unplanned deaths of one domain, the newest [`MAX_BUDGET`].
#[derive(Debug, Default)]
pub struct History {
    deaths: Deque<u64, MAX_BUDGET>,
}

impl History {
    /// No deaths.
    pub const fn new() -> Self {
        Self { deaths: Deque::new() }
    }

    /// Remembers an unplanned death at `ns`.
    pub fn record(&mut self, ns: u64) {
        if self.deaths.is_full() {
            self.deaths.pop_front();
        }
        // There is room now.
        let _ = self.deaths.push_back(ns);
    }

    /// Forgets all deaths: an operator released the domain.
    pub fn clear(&mut self) {
        self.deaths.clear();
    }

    /// Deaths in the last `window_ns` before `now`.
    pub fn within(&self, now: u64, window_ns: u64) -> u32 {
        let from = now.saturating_sub(window_ns);
        let count = self.deaths.iter().filter(|&&at| at >= from).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// Whether a death counts for the budget of its domain.
pub fn is_unplanned(record: &CrashRecord) -> bool {
    record.ordered == 0 && record.report.reason != Reason::Operator as u32
}

/// What to do about a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is not dead, or not to be restarted.
    Leave,
    /// Start it at this time (ns), or now if that is past.
    StartAt(u64),
    /// Hold it: so many deaths within its window used up its budget.
    Hold(u32),
}

/// Decides about `domain` at `now`.
pub fn decide(domain: &DomainInfo, history: &History, now: u64) -> Decision {
    if DomainState::from_raw(domain.state) != Some(DomainState::Dead)
        || domain.restart_automatic == 0
    {
        return Decision::Leave;
    }
    let window = u64::from(domain.restart_window_s).saturating_mul(SECOND);
    let deaths = history.within(now, window);
    let budget = domain.restart_budget.min(u32::try_from(MAX_BUDGET).unwrap_or(u32::MAX));
    if budget > 0 && deaths >= budget {
        return Decision::Hold(deaths);
    }
    Decision::StartAt(domain.started_ns.saturating_add(delay(domain, deaths)))
}

/// Least time between two starts after so many deaths within the window.
fn delay(domain: &DomainInfo, deaths: u32) -> u64 {
    let mut delay = u64::from(domain.restart_floor_ms).saturating_mul(MS);
    // A factor below 100 % would let the floor sink.
    let percent = u64::from(domain.restart_backoff_percent.max(100));
    for _ in 1..deaths {
        if delay >= MAX_DELAY_NS {
            break;
        }
        delay = delay.saturating_mul(percent) / 100;
    }
    delay.min(MAX_DELAY_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead() -> DomainInfo {
        DomainInfo {
            state: DomainState::Dead as u32,
            started_ns: 1_000 * SECOND,
            restart_floor_ms: 5,
            restart_backoff_percent: 200,
            restart_budget: 5,
            restart_window_s: 10,
            restart_automatic: 1,
            ..DomainInfo::default()
        }
    }

    fn history(deaths: &[u64]) -> History {
        let mut history = History::new();
        deaths.iter().for_each(|&at| history.record(at));
        history
    }

    #[test]
    fn g6_the_floor_is_kept_between_two_starts() {
        let domain = dead();
        let at = domain.started_ns + MS;
        let decision = decide(&domain, &history(&[at]), at);
        assert_eq!(decision, Decision::StartAt(domain.started_ns + 5 * MS));
    }

    #[test]
    fn g6_each_further_death_doubles_the_floor_and_the_budget_ends_in_a_hold() {
        let domain = dead();
        let now = domain.started_ns + MS;
        let mut past = History::new();
        for (deaths, ms) in [(1, 5), (2, 10), (3, 20), (4, 40)] {
            past.record(now);
            let expected = Decision::StartAt(domain.started_ns + ms * MS);
            assert_eq!(decide(&domain, &past, now), expected, "{deaths} deaths");
        }
        past.record(now);
        assert_eq!(decide(&domain, &past, now), Decision::Hold(5));
        past.clear();
        assert!(matches!(decide(&domain, &past, now), Decision::StartAt(_)));
    }

    #[test]
    fn g6_deaths_outside_the_window_do_not_count() {
        let domain = dead();
        let now = domain.started_ns;
        let old = now - 11 * SECOND;
        let past = history(&[old, old, old, old, old, now]);
        assert_eq!(decide(&domain, &past, now), Decision::StartAt(now + 5 * MS));
    }

    #[test]
    fn the_backoff_has_an_end_and_no_figure_overflows() {
        let mut domain = dead();
        domain.restart_budget = 0;
        domain.restart_floor_ms = u32::MAX;
        domain.restart_backoff_percent = u32::MAX;
        domain.restart_window_s = u32::MAX;
        let past = history(&[domain.started_ns; 100]);
        assert_eq!(
            decide(&domain, &past, domain.started_ns),
            Decision::StartAt(domain.started_ns + MAX_DELAY_NS)
        );
        domain.started_ns = u64::MAX;
        assert_eq!(decide(&domain, &past, u64::MAX), Decision::StartAt(u64::MAX));
    }

    #[test]
    fn only_dead_domains_with_automatic_restart_are_started() {
        let mut domain = dead();
        domain.restart_automatic = 0;
        assert_eq!(decide(&domain, &History::new(), 0), Decision::Leave);
        for state in [DomainState::Stopped, DomainState::Running, DomainState::Held] {
            let domain = DomainInfo { state: state as u32, ..dead() };
            assert_eq!(decide(&domain, &History::new(), 0), Decision::Leave);
        }
    }
}
