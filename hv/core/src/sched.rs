//! Which vCPU runs next on a core, and until when.
//!
//! Weighted fair scheduling by virtual run time: the runnable domain that has
//! had the least CPU time for its weight runs. A domain that slept does not
//! save up time: it re-enters at most [`SLEEPER_CREDIT`] behind the others,
//! which is what lets a driver domain answer at once.

use alloc::vec::Vec;

use ring_proto::DomainId;

use crate::domain::ByDomain;

/// Longest uninterrupted run while another domain is runnable, ns.
pub const SLICE: u64 = 1_000_000;
/// How far behind the others a sleeper may re-enter, ns of weight 256.
pub const SLEEPER_CREDIT: u64 = 2_000_000;
/// Period over which a cap is enforced, ns.
pub const CAP_PERIOD: u64 = 10_000_000;

/// What a domain does as far as the scheduler knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Not alive.
    Off,
    /// Can run.
    Runnable,
    /// In `wait` until an event or the deadline (ns; `u64::MAX` = none).
    Waiting(u64),
}

/// One domain's vCPU.
#[derive(Clone, Debug)]
pub struct Entity {
    /// Core it is bound to.
    pub core: u16,
    /// What it does.
    pub activity: Activity,
    /// CPU time in all, ns.
    pub cpu_ns: u64,
    /// CPU time since its last `wait`, ns.
    pub since_wait: u64,
    /// When that was, or when it was started, ns.
    pub fed_ns: u64,
    /// Bound on `since_wait`, ns.
    pub watchdog: u64,
    weight: u64,
    vruntime: u64,
    cap_ns: u64,
    period: u64,
    used: u64,
}

/// What a core does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run a domain, and look again at this time.
    Run(DomainId, u64),
    /// Nothing to run until this time (`u64::MAX` = until an interrupt).
    Idle(u64),
}

/// All run queues of the node.
#[derive(Debug, Default)]
pub struct Scheduler {
    entities: ByDomain<Entity>,
    /// For each core the virtual time it has come to: the greatest that a
    /// domain had when it was picked. Who sleeps falls behind it only so far.
    clocks: Vec<u64>,
}

impl Scheduler {
    /// No domains yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next domain while the node is being built.
    pub fn add(&mut self, core: u16, weight: u16, cap: u16, watchdog_ms: u32) {
        self.entities.push(Entity {
            core,
            activity: Activity::Off,
            cpu_ns: 0,
            since_wait: 0,
            fed_ns: 0,
            watchdog: u64::from(watchdog_ms) * 1_000_000,
            weight: u64::from(weight.max(1)),
            vruntime: 0,
            cap_ns: CAP_PERIOD / 100 * u64::from(cap.clamp(1, 100)),
            period: 0,
            used: 0,
        });
        if self.clocks.len() <= usize::from(core) {
            self.clocks.resize(usize::from(core) + 1, 0);
        }
    }

    /// A domain's entity.
    pub fn get(&self, domain: DomainId) -> &Entity {
        &self.entities[domain]
    }

    /// Makes a domain runnable as if new-born.
    pub fn start(&mut self, domain: DomainId, now: u64) {
        self.resume(domain);
        self.fed(domain, now);
    }

    /// Takes a domain off its core for good.
    pub fn stop(&mut self, domain: DomainId) {
        self.entities[domain].activity = Activity::Off;
    }

    /// A domain called `wait`, whether or not it will sleep.
    pub fn fed(&mut self, domain: DomainId, now: u64) {
        let e = &mut self.entities[domain];
        (e.since_wait, e.fed_ns) = (0, now);
    }

    /// Puts a domain to sleep.
    pub fn sleep(&mut self, domain: DomainId, deadline: u64) {
        self.entities[domain].activity = Activity::Waiting(deadline);
    }

    /// Wakes a domain if it sleeps. Returns its core if it did.
    pub fn wake(&mut self, domain: DomainId) -> Option<u16> {
        let asleep = matches!(self.entities[domain].activity, Activity::Waiting(_));
        asleep.then(|| self.resume(domain))
    }

    fn resume(&mut self, domain: DomainId) -> u16 {
        let e = &mut self.entities[domain];
        let clock = self.clocks.get(usize::from(e.core)).copied().unwrap_or(0);
        e.activity = Activity::Runnable;
        e.vruntime = e.vruntime.max(clock.saturating_sub(SLEEPER_CREDIT));
        e.core
    }

    /// Charges CPU time.
    pub fn charge(&mut self, domain: DomainId, ns: u64, now: u64) {
        let e = &mut self.entities[domain];
        e.cpu_ns = e.cpu_ns.saturating_add(ns);
        e.since_wait = e.since_wait.saturating_add(ns);
        e.vruntime =
            e.vruntime.saturating_add(ns.saturating_mul(256).checked_div(e.weight).unwrap_or(ns));
        let period = now / CAP_PERIOD;
        if period != e.period {
            e.period = period;
            e.used = 0;
        }
        e.used = e.used.saturating_add(ns);
    }

    /// Whether a domain runs longer without `wait` than it may.
    pub fn is_hung(&self, domain: DomainId) -> bool {
        let e = &self.entities[domain];
        e.since_wait > e.watchdog
    }

    /// Picks what `core` does at time `now`. Sleepers whose deadline has
    /// passed become runnable.
    pub fn pick(&mut self, core: u16, now: u64) -> Decision {
        let mut next_event = u64::MAX;
        let mut best: Option<(DomainId, u64)> = None;
        let mut rivals = 0;
        for id in self.entities.ids() {
            let e = &self.entities[id];
            if e.core != core {
                continue;
            }
            if let Activity::Waiting(deadline) = e.activity {
                if deadline > now {
                    next_event = next_event.min(deadline);
                    continue;
                }
                self.resume(id);
            }
            let e = &self.entities[id];
            if e.activity != Activity::Runnable {
                continue;
            }
            let period = now / CAP_PERIOD;
            if e.cap_ns < CAP_PERIOD && e.period == period && e.used >= e.cap_ns {
                next_event = next_event.min(period.saturating_add(1).saturating_mul(CAP_PERIOD));
                continue;
            }
            rivals = 1u32.saturating_add(rivals);
            if best.is_none_or(|(_, v)| e.vruntime < v) {
                best = Some((id, e.vruntime));
            }
        }
        let Some((id, vruntime)) = best else { return Decision::Idle(next_event) };
        if let Some(clock) = self.clocks.get_mut(usize::from(core)) {
            *clock = vruntime.max(*clock);
        }
        let e = &self.entities[id];
        let left = e.watchdog.saturating_sub(e.since_wait).saturating_add(1000);
        let mut until = next_event.min(now.saturating_add(left));
        if e.cap_ns < CAP_PERIOD {
            let used = if e.period == now / CAP_PERIOD { e.used } else { 0 };
            until = until.min(now.saturating_add(e.cap_ns.saturating_sub(used)));
        }
        if rivals > 1 {
            until = until.min(now.saturating_add(SLICE));
        }
        Decision::Run(id, until)
    }
}
