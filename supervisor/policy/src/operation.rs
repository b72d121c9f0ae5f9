//! Commands that end when a next generation serves.
//!
//! Such a command is answered once the domain has declared itself ready and
//! all its connections to live peers are connected at both ends, or when its
//! time is up, with the reason why it does not serve.

use ring_proto::{
    DomainId, Generation,
    bundle::Name,
    conn::State,
    control::{Answer, Failure, FailureKind, Recovery, Times},
    crash::CrashRecord,
    event::{Inject, STUCK},
    hypercall::{ConnectionInfo, DomainInfo, DomainState},
};

use crate::status;

/// What was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Misbehave in this way; the supervisor's policy starts the next generation.
    Crash(Inject),
    /// End and start again; first let it finish its work, for so long (ms).
    Restart {
        /// 0 = not at all.
        drain_ms: u32,
    },
    /// Start after a hold.
    Release,
    /// End, and do not start again until released.
    Hold,
}

/// A command under way.
#[derive(Debug)]
pub struct Operation {
    /// The request's number.
    pub seq: u32,
    /// Which domain.
    pub domain: DomainId,
    /// Its name.
    pub name: Name,
    /// What was ordered.
    pub order: Order,
    /// The generation that ran and is to end; `None` if none did.
    pub ends: Option<Generation>,
    /// When the order came.
    pub ordered_ns: u64,
    /// When to give up.
    pub deadline_ns: u64,
    /// Sequence number of the record of that end, once it is there.
    pub record: Option<u64>,
    /// It was told to finish its work and has not said that it did.
    pub drain: Option<Drain>,
    /// It said so.
    pub drained: bool,
}

/// A domain that is to finish its work before its end.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Number of its answer.
    pub number: u32,
    /// When it is ended all the same.
    pub until_ns: u64,
}

impl Drain {
    /// Whether the domain answered, or had its time.
    pub fn is_over(&self, info: &DomainInfo, now: u64) -> bool {
        info.health & !STUCK == self.number || now >= self.until_ns
    }
}

/// How far a command is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not there yet; this is missing.
    Waiting(Missing),
    /// It cannot succeed any more.
    Failed(Failure),
    /// The domain is where it was ordered to be.
    Done,
}

/// What a domain lacks to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The old generation is still alive.
    Death,
    /// No new generation runs.
    Start,
    /// It did not declare itself ready.
    Ready,
    /// A connection is not connected at both ends.
    Connection(Ends),
}

/// What the ends of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Number.
    pub id: u16,
    /// Frontend's domain and state.
    pub frontend: (DomainId, u32),
    /// Backend's domain and state.
    pub backend: (DomainId, u32),
}

impl Operation {
    /// Whether the death of `generation` of `domain` is what was ordered.
    pub fn explains(&self, domain: DomainId, generation: Generation) -> bool {
        self.domain == domain && self.ends == Some(generation)
    }

    /// The domain, if it had its time to finish its work: it is to be ended now.
    pub fn drained<'a>(&mut self, domains: &'a [DomainInfo], now: u64) -> Option<&'a DomainInfo> {
        let drain = self.drain?;
        let info = domains.iter().find(|d| d.id == self.domain);
        let alive = info.filter(|info| {
            DomainState::from_raw(info.state) == Some(DomainState::Running)
                && self.ends == Some(info.generation)
        });
        // One that died meanwhile is the policy's.
        let Some(info) = alive else {
            self.drain = None;
            return None;
        };
        self.drained = info.health == drain.number;
        let over = drain.is_over(info, now);
        if over {
            self.drain = None;
        }
        over.then_some(info)
    }

    /// How far it is.
    pub fn progress(&self, domains: &[DomainInfo], connections: &[ConnectionInfo]) -> Progress {
        let Some(info) = domains.iter().find(|d| d.id == self.domain) else {
            return self.failed(format_args!("the domain is gone"));
        };
        let state = DomainState::from_raw(info.state);
        let old_is_over = self.ends.is_none_or(|old| info.generation != old)
            || state != Some(DomainState::Running);
        if self.order == Order::Hold && state == Some(DomainState::Held) {
            return Progress::Done;
        }
        if !old_is_over {
            return Progress::Waiting(Missing::Death);
        }
        match state {
            Some(DomainState::Running) => {}
            Some(DomainState::Held) => {
                return self.failed(format_args!("{} is held; `release` it", self.name));
            }
            Some(DomainState::Stopped) if matches!(self.order, Order::Crash(_)) => {
                return self
                    .failed(format_args!("{} ended in good order and is stopped", self.name));
            }
            // What was started before may die again, and then it depends on the policy.
            Some(DomainState::Dead) if self.needs_policy() && info.restart_automatic == 0 => {
                return self.failed(format_args!(
                    "{} died; its manifest says not to restart it",
                    self.name
                ));
            }
            _ => return Progress::Waiting(Missing::Start),
        }
        if info.ready == 0 {
            return Progress::Waiting(Missing::Ready);
        }
        for connection in connections {
            if !self.wants(connection, domains) {
                continue;
            }
            let connected = State::Connected as u32;
            if connection.frontend_state != connected || connection.backend_state != connected {
                return Progress::Waiting(Missing::Connection(Ends {
                    id: connection.id,
                    frontend: (connection.frontend, connection.frontend_state),
                    backend: (connection.backend, connection.backend_state),
                }));
            }
        }
        Progress::Done
    }

    /// Whether it is the policy that starts the next generation.
    fn needs_policy(&self) -> bool {
        !matches!(self.order, Order::Restart { .. })
    }

    /// Whether the domain serves only once `connection` is connected: it is
    /// one of its own, and the peer lives or will be started again.
    fn wants(&self, connection: &ConnectionInfo, domains: &[DomainInfo]) -> bool {
        let peer = match self.domain {
            d if d == connection.frontend => connection.backend,
            d if d == connection.backend => connection.frontend,
            _ => return false,
        };
        domains.iter().find(|d| d.id == peer).is_some_and(|peer| {
            match DomainState::from_raw(peer.state) {
                Some(DomainState::Running) => true,
                Some(DomainState::Dead) => peer.restart_automatic != 0,
                _ => false,
            }
        })
    }

    /// The answer of success.
    pub fn answer(&self, domains: &[DomainInfo], record: Option<&CrashRecord>, now: u64) -> Answer {
        if self.order == Order::Hold {
            return Answer::Done;
        }
        let info = domains.iter().find(|d| d.id == self.domain);
        let mut times = Times { ordered: self.ordered_ns, connected: now, ..Times::default() };
        let mut reason = 0;
        if let Some(record) = record {
            times.detected = record.times.detected;
            times.quiesced = record.times.quiesced;
            times.restarted = record.times.entered;
            times.ready = record.times.ready;
            reason = record.report.reason;
        }
        if times.restarted == 0 {
            times.restarted = info.map_or(0, |d| d.started_ns);
        }
        Answer::Serving(Recovery {
            domain: self.name.clone(),
            generation: info.map_or(0, |d| d.generation),
            ended: self.ends.unwrap_or(0),
            reason,
            drained: self.drained,
            times,
        })
    }

    /// The answer when time is up.
    pub fn timed_out(&self, missing: Missing, domains: &[DomainInfo]) -> Failure {
        let name = &self.name;
        let ms = self.deadline_ns.saturating_sub(self.ordered_ns) / 1_000_000;
        let timeout = |text| Failure::new(FailureKind::Timeout, text);
        match missing {
            Missing::Death => timeout(format_args!("after {ms} ms {name} is still alive")),
            Missing::Start => {
                timeout(format_args!("after {ms} ms {name} is dead and was not started"))
            }
            Missing::Ready => timeout(format_args!("after {ms} ms {name} runs but is not ready")),
            Missing::Connection(ends) => {
                let name_of = |id| {
                    let info = domains.iter().find(|d| d.id == id);
                    info.map(status::name).unwrap_or_default()
                };
                timeout(format_args!(
                    "after {ms} ms {name} is ready, but connection {} is not up: frontend {} {}, backend {} {}",
                    ends.id,
                    name_of(ends.frontend.0),
                    state_name(ends.frontend.1),
                    name_of(ends.backend.0),
                    state_name(ends.backend.1),
                ))
            }
        }
    }

    fn failed(&self, text: core::fmt::Arguments<'_>) -> Progress {
        Progress::Failed(Failure::new(FailureKind::BadState, text))
    }
}

/// A connection state for people.
fn state_name(state: u32) -> &'static str {
    match State::from_raw(state) {
        Some(State::Closed) => "closed",
        Some(State::Initialising) => "initialising",
        Some(State::Connected) => "connected",
        Some(State::Closing) => "closing",
        None => "in an unknown state",
    }
}
