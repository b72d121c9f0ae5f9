//! A warm spare takes the place of its principal, in the order of
//! `hv/src/kernel/takeover.rs`.

use hv_core::domain;
use ring_proto::crash::Rebuild;
use ring_proto::{DomainId, event};

use super::Hv;
use crate::report::{rule, trace};

impl Hv {
    /// The spare of a domain, if it stands by.
    pub(super) fn spare_of(&self, principal: DomainId) -> Option<DomainId> {
        let mut all = self.domains.iter();
        let spare = all.find(|d| d.config.spare_of == Some(principal) && d.stands_by())?.info.id;
        self.guests[spare].orders.end.is_none().then_some(spare)
    }

    pub(super) fn take_over(&mut self, principal: DomainId, spare: DomainId) {
        // In its event page it said that it stands by.
        let dirty = self.leftovers(spare, self.guests[spare].event_page);
        rule!(dirty == 0, "{dirty} pages of the body of domain {spare} are not pristine");
        // A body holds nothing of anybody else's when it changes hands.
        self.audit_dead(principal);
        self.audit_dead(spare);
        let bodies = (self.guests.pair(principal, spare), self.domains.pair(principal, spare));
        let (Some((p, s)), Some((pd, sd))) = bodies else { return };
        std::mem::swap(&mut p.nested, &mut s.nested);
        std::mem::swap(&mut p.iommu, &mut s.iommu);
        std::mem::swap(&mut p.asleep, &mut s.asleep);
        std::mem::swap(&mut p.event_page, &mut s.event_page);
        std::mem::swap(&mut p.grant_table, &mut s.grant_table);
        domain::take_over(pd, sd, self.now);
        self.takeovers += 1;
        let generation = pd.info.generation;
        trace!("{}: generation {generation} begins with the spare's body", pd.config.name);
        if let Some(record) = self.deaths.before(principal, generation) {
            record.rebuild = Rebuild::Spare as u16;
        }
        self.sched.start(principal, self.now);
        self.sched.stop(spare);
        self.raise(principal, event::PORT_TAKEOVER);
        self.stamp(principal, |t| &mut t.restored);
        self.stamp(principal, |t| &mut t.entered);
        self.tell_supervisor();
    }
}
