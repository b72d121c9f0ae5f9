//! Resets of a domain's devices between its lives.

use hv_core::reset::Act;
use ring_proto::{
    DomainId,
    crash::{Reason, Reset},
};

use super::Devices;
use crate::pci::Function;

impl Devices {
    fn functions(&self, domain: DomainId) -> impl Iterator<Item = &Function> {
        let ours = self.owned.iter().filter(move |o| o.domain == domain);
        ours.filter_map(|o| self.pci.function(o.bdf))
    }

    /// Whether all functions of a domain can be reset so, and nothing of
    /// anybody else's with them.
    fn has(&self, domain: DomainId, rung: Reset) -> bool {
        let own = |f: &Function| self.functions(domain).any(|o| o.bdf == f.bdf);
        let alone = |f: &Function| self.pci.port(f).is_some_and(|p| self.pci.behind(p).all(own));
        self.functions(domain).next().is_some()
            && self.functions(domain).all(|f| match rung {
                Reset::Driver | Reset::Gone => true,
                Reset::Function => f.express.is_some_and(|e| e.flr),
                Reset::Bus => alone(f),
            })
    }

    /// A life ended for `reason`, as far along as `ready`.
    pub fn life_ended(&mut self, domain: DomainId, ready: u32, reason: Reason) {
        let mut ladder = self.ladders[domain];
        ladder.ended(ready, reason, |rung| self.has(domain, rung));
        self.ladders[domain] = ladder;
    }

    /// Nothing is to be done before the next life.
    pub fn at_rest(&self, domain: DomainId) -> bool {
        self.ladders[domain].rung() == Reset::Driver
            && self.functions(domain).all(|f| self.pci.answers(f) && self.pci.is_configured(f))
    }

    /// Goes on with the reset before a life, as far as it gets without
    /// waiting: until when to wait, that the life may begin, or that a device
    /// does not answer. Called with the devices quiesced.
    pub fn reset(&mut self, domain: DomainId, now: u64) -> Act {
        let mut ladder = self.ladders[domain];
        let mut act = loop {
            let idle = || self.functions(domain).all(|f| self.pci.is_idle(f));
            let answers = || self.functions(domain).all(|f| self.pci.answers(f));
            let act = ladder.step(now, idle, answers);
            match act {
                Act::Begin(Reset::Function) => {
                    self.functions(domain).for_each(|f| self.pci.reset_function(f));
                }
                Act::Begin(_) | Act::Release => {
                    let ports = self.functions(domain).filter_map(|f| self.pci.port(f));
                    ports.for_each(|p| self.pci.hold_bus(p, act != Act::Release));
                }
                Act::Wait(until) if until <= now => {}
                Act::Wait(_) | Act::Done | Act::Gone => break act,
            }
        };
        let configure = |f| self.pci.is_configured(f) || self.pci.configure(f);
        if act == Act::Done && !self.functions(domain).all(configure) {
            act = ladder.lost();
        }
        self.ladders[domain] = ladder;
        act
    }

    /// The first function of a domain that is not there as it was at boot.
    pub fn gone(&self, domain: DomainId) -> Option<&Function> {
        self.functions(domain).find(|f| !self.pci.answers(f) || !self.pci.is_configured(f))
    }
}
