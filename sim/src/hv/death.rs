//! The end of a generation, in the order of `hv/src/kernel/death.rs`.

use std::sync::atomic::Ordering::SeqCst;

use hv_core::domain::Life;
use ring_proto::crash::{CrashRecord, Reason, Timeline};
use ring_proto::hypercall::Error;
use ring_proto::{DomainId, boot, conn};
use zerocopy::FromZeros;

use super::{Answer, Hv, Orders};
use crate::report::trace;

impl Hv {
    /// Ends a running domain's generation.
    pub(crate) fn end(&mut self, domain: DomainId, reason: Reason) {
        if !self.is_running(domain) {
            return;
        }
        let name = self.domains[domain].config.name.clone();
        let died = match reason {
            Reason::Watchdog => self.sched.get(domain).fed_ns,
            _ => self.now,
        };
        self.sched.stop(domain);
        self.guests[domain].orders = Orders::default();
        let ended = self.domains[domain].died(reason, self.now);
        trace!("{name}: generation {ended} ended: {reason:?}");
        self.show_closed(domain);
        self.quiesce(domain);
        self.unmap_everything(domain);
        self.withdraw_everything(domain);
        self.tell_peers(domain);
        self.tell_supervisor();
        let mut record = CrashRecord::new_zeroed();
        (record.domain, record.generation) = (domain, ended);
        let (detected, quiesced, told) = (self.now, self.now, self.now);
        record.times = Timeline { died, detected, quiesced, told, ..Timeline::default() };
        record.report.reason = reason as u32;
        let injected = std::mem::take(&mut self.guests[domain].injected);
        record.ordered = u16::from(injected || reason == Reason::Operator);
        self.deaths.push(record);
        // There is nobody else to restart the supervisor.
        if self.domains[domain].config.capabilities & boot::CAP_SUPERVISOR != 0 {
            let _ = self.begin(domain);
        }
        self.guests[domain].asleep = false;
    }

    pub(super) fn show_closed(&self, domain: DomainId) {
        let generation = self.domains[domain].info.generation;
        for (own, _) in self.connections.iter().filter_map(|c| c.ends(domain)) {
            for (offset, value) in conn::closed(generation) {
                self.ram.at(own.page + offset as u64, 4).write_u32(0, value, SeqCst);
            }
        }
    }

    fn tell_peers(&mut self, domain: DomainId) {
        for i in 0..self.connections.len() {
            if let Some((_, peer)) = self.connections[i].ends(domain) {
                self.raise(peer.domain, peer.port);
            }
        }
    }

    pub(super) fn end_on_order(&mut self, domain: DomainId, reason: Reason) {
        match self.domains[domain].life {
            Life::Running => self.end(domain, reason),
            Life::Building(_) if matches!(reason, Reason::Operator | Reason::Stalled) => {
                self.domains[domain].life = Life::Dead;
            }
            Life::Building(_) | Life::Dead | Life::Stopped => {}
        }
    }

    /// `start`, `stop` and `restart`: has a domain ended and perhaps begun
    /// anew, on its own core.
    pub(crate) fn order(&mut self, domain: DomainId, end: Option<Reason>, start: bool) -> Answer {
        let domain = self.checked(domain)?;
        if start && self.domains[domain].held {
            return Err(Error::BadState);
        }
        let orders = &mut self.guests[domain].orders;
        orders.end = end.or(orders.end);
        orders.start |= start;
        Ok(0)
    }
}
