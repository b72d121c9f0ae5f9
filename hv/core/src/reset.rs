//! How hard the devices of a domain are reset for its next life, and the pace
//! of a reset.
//!
//! A driver resets its device itself (rung [`Reset::Driver`]). If its life ends
//! before it got its device to work, the hypervisor resets the functions for
//! the next one ([`Reset::Function`]), then the bus behind their port
//! ([`Reset::Bus`]). Rungs that the machine lacks are left out. There is none
//! after the last: the domain's restart budget decides when it is held. A life
//! that works begins the ladder anew.

use ring_proto::{
    crash::{Reason, Reset},
    event,
};

/// How long requests under way may take to end before a function is reset all
/// the same.
pub const DRAIN: u64 = 100_000_000;
/// How long a bus is held in reset: at least 1 ms (PCI Express Base
/// Specification 5.0, 7.5.1.3.13, T_rst).
pub const ASSERT: u64 = 2_000_000;
/// How long nobody may touch a function after its reset (6.6.1 and 6.6.2).
pub const SETTLE: u64 = 100_000_000;
/// How long it may take further to answer requests for its configuration (6.6.1).
pub const ANSWER: u64 = 1_000_000_000;
/// How often is looked whether it does.
const LOOK: u64 = 10_000_000;

/// What the hypervisor is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Begin the reset, then ask again.
    Begin(Reset),
    /// End the bus's reset, then ask again.
    Release,
    /// Ask again at this time, ns.
    Wait(u64),
    /// The functions answer: configure them; the life may begin.
    Done,
    /// They do not: there is no next life.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No reset is under way.
    Idle,
    Draining(u64),
    Asserted(u64),
    Settling(u64),
    Answering(u64),
}

/// The ladder of one domain. All times are ns.
#[derive(Clone, Copy, Debug)]
pub struct Ladder {
    rung: Reset,
    phase: Phase,
    /// The present life let a device at memory.
    enabled: bool,
}

impl Default for Ladder {
    fn default() -> Self {
        Self { rung: Reset::Driver, phase: Phase::Idle, enabled: false }
    }
}

impl Ladder {
    /// What the next life begins with, or the present one began with.
    pub fn rung(&self) -> Reset {
        self.rung
    }

    /// The driver let its device at memory: it takes it for reset.
    pub fn enabled(&mut self) {
        self.enabled = true;
    }

    /// A life ended that had come as far as `ready` ([`event::READY`]).
    ///
    /// It failed over its device if it died with that enabled and not ready, or
    /// says itself that it cannot work, and had completed no request.
    pub fn ended(&mut self, ready: u32, reason: Reason, has: impl Fn(Reset) -> bool) {
        let enabled = core::mem::take(&mut self.enabled);
        let failed = match reason {
            Reason::Operator => return,
            Reason::Stalled => ready < event::SERVED,
            _ => enabled && ready < event::READY,
        };
        let harder = match self.rung {
            _ if !failed => Some(Reset::Driver),
            Reset::Driver => [Reset::Function, Reset::Bus].into_iter().find(|&r| has(r)),
            Reset::Function => Some(Reset::Bus).filter(|&r| has(r)),
            Reset::Bus | Reset::Gone => None,
        };
        // Unless it died before it came to its device: nothing is known then.
        if failed || ready >= event::READY {
            self.rung = harder.unwrap_or(self.rung);
        }
    }

    /// The operator released the domain: a device that was gone may be back.
    pub fn released(&mut self) {
        if self.phase == Phase::Idle {
            self.rung = Reset::Driver;
        }
    }

    /// What answers is not what was there at boot.
    pub fn lost(&mut self) -> Act {
        self.rung = Reset::Gone;
        Act::Gone
    }

    /// How the reset goes on. `idle`: no request of the functions is under way;
    /// `answers`: all of them answer as they did at boot.
    pub fn step(&mut self, now: u64, idle: impl Fn() -> bool, answers: impl Fn() -> bool) -> Act {
        let until = |ns| now.saturating_add(ns);
        let (phase, act) = match self.phase {
            Phase::Idle if self.rung == Reset::Function => {
                let end = until(DRAIN);
                (Phase::Draining(end), Act::Wait(now))
            }
            Phase::Idle if self.rung == Reset::Bus => {
                (Phase::Asserted(until(ASSERT)), Act::Begin(Reset::Bus))
            }
            Phase::Draining(end) if now < end && !idle() => {
                (self.phase, Act::Wait(end.min(until(LOOK))))
            }
            Phase::Draining(_) => (Phase::Settling(until(SETTLE)), Act::Begin(Reset::Function)),
            Phase::Asserted(end) | Phase::Settling(end) if now < end => {
                (self.phase, Act::Wait(end))
            }
            Phase::Asserted(_) => (Phase::Settling(until(SETTLE)), Act::Release),
            Phase::Settling(_) => (Phase::Answering(until(ANSWER)), Act::Wait(now)),
            _ if answers() => (Phase::Idle, Act::Done),
            Phase::Answering(end) if now < end => (self.phase, Act::Wait(end.min(until(LOOK)))),
            Phase::Idle | Phase::Answering(_) => (Phase::Idle, self.lost()),
        };
        self.phase = phase;
        act
    }
}
