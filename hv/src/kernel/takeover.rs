//! A warm spare takes the place of its principal.
//!
//! The two domains are bound to one core and exchange their *bodies*: vCPU,
//! nested table, IOMMU table, memory. Number, ports, connections, devices,
//! generation and statistics stay. So there is nothing to allocate and nothing
//! to copy, and the dead body is restored as that of the next spare.
//!
//! Neither body has a mapping of the other's or of a peer's when they change
//! places: what the principal had mapped and granted went when it ended, and a
//! spare may not map, grant or have a device ([`Node::dispatch`], `is_peer`).
//! All of it runs under the node's lock on the core of both, so whichever of
//! them dies next finds the change not begun or done. Before it, a death of
//! the spare leaves the principal to be restored; after it, a death of the
//! principal is one of a domain whose spare is being restored.

use hv_core::domain;
use ring_proto::{DomainId, PAGE_SIZE, crash::Rebuild, event};

use super::Node;
use crate::time;

/// How long after a takeover the dead body begins to be restored, ns: on their
/// core the driver goes first, which serves within about half of that.
const HEAD_START: u64 = 2_000_000;

impl Node {
    /// The spare of a domain, if it stands by.
    pub(super) fn spare_of(&self, principal: DomainId) -> Option<DomainId> {
        let mut all = self.domains.iter();
        let spare = all.find(|d| d.config.spare_of == Some(principal) && d.stands_by())?;
        let runs = self.images[principal].may_take_over(spare.info.id, spare.body);
        let spare = spare.info.id;
        // Not if somebody wants its end.
        (self.guests[spare].orders.end.is_none() && runs).then_some(spare)
    }

    /// Has `spare`, which stands by, be `principal`, which may begin a life.
    pub(super) fn take_over(&mut self, principal: DomainId, spare: DomainId) {
        let now = time::now_ns();
        let bodies = self.guests.pair(principal, spare);
        let (Some((p, s)), Some((pd, sd))) = (bodies, self.domains.pair(principal, spare)) else {
            return;
        };
        core::mem::swap(&mut p.vcpu, &mut s.vcpu);
        core::mem::swap(&mut p.nested, &mut s.nested);
        core::mem::swap(&mut p.flush, &mut s.flush);
        core::mem::swap(&mut p.asleep, &mut s.asleep);
        self.devices.swap_tables(principal, spare);
        domain::take_over(pd, sd, now);
        self.images[principal].moved(principal, spare);
        for r in pd.space.regions().iter().filter(|r| !r.is_own_memory()) {
            let frames = || (0..r.len).step_by(PAGE_SIZE);
            let leaf = |offset| super::rights(r).bits() | r.hpa.saturating_add(offset);
            // Both tables were reserved when the node was built. The dead
            // body's vCPU is reset, with a flush, before it runs again.
            s.nested.set_run(r.gpa, frames().map(|_| 0));
            p.nested.set_run(r.gpa, frames().map(leaf));
        }
        let generation = pd.info.generation;
        if let Some(record) = self.deaths.before(principal, generation) {
            record.rebuild = Rebuild::Spare as u16;
        }
        self.sched.start(principal, now);
        self.sched.start(spare, now);
        self.sched.sleep(spare, now.saturating_add(HEAD_START));
        self.raise(principal, event::PORT_TAKEOVER);
        self.stamp(principal, |t| &mut t.restored);
        self.stamp(principal, |t| &mut t.entered);
        // The supervisor, which ordered this, hears of it when the driver serves:
        // here it would only take their core from the driver.
    }
}
