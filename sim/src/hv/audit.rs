//! The audit: `hv-core`'s judgement of every mapping that the simulated tables
//! hold, as in `hv/src/kernel/audit.rs`, and what must hold beyond it.

use hv_core::audit::{self, Leaf};
use ring_proto::{DomainId, layout};

use super::{Hv, PAGE};
use crate::report::rule;

impl Hv {
    /// Checks one domain.
    pub(crate) fn audit(&self, domain: DomainId) -> u64 {
        let (d, guest) = (&self.domains[domain], &self.guests[domain]);
        let (space, window) = (&d.space, &d.window);
        let mut bad = 0;
        let leaves = |table: &[super::Leaf]| {
            let pages = table.iter().zip(0u64..);
            let leaf = |(leaf, page): (&super::Leaf, u64)| {
                leaf.map(|(hpa, write)| {
                    let gpa = layout::GRANT_WINDOW + page * PAGE;
                    Leaf { gpa, hpa, write, execute: false }
                })
            };
            pages.filter_map(leaf).collect::<Vec<_>>()
        };
        let nested = leaves(&guest.nested);
        bad += nested.iter().filter(|leaf| !audit::nested_leaf(space, window, **leaf)).count();
        let reachable = leaves(&guest.iommu);
        bad += reachable.iter().filter(|leaf| !audit::iommu_leaf(space, window, **leaf)).count();
        bad += usize::from(nested.len() as u32 != window.used());
        let agrees = audit::window_agrees(window, domain, |granter, gref| {
            self.domains.named(granter).and_then(|g| g.table.get(gref).copied())
        });
        bad as u64 + agrees + guest.leftovers
    }

    /// Ends the run if the books and the tables differ.
    pub(crate) fn audit_all(&self) {
        for id in self.domains.ids() {
            let bad = self.audit(id);
            rule!(bad == 0, "audit: {bad} violations in domain {id}");
            for gref in 0..self.domains[id].table.len() {
                let Some(&(grantee, page)) = self.domains[id].table.get(gref) else { continue };
                let source = self.domains[grantee].window.get(page).and_then(|m| m.source);
                let agrees = source.is_some_and(|s| (s.granter, s.gref) == (id, gref));
                rule!(agrees, "domain {id}: grant {gref} counts as mapped by {grantee} at {page}");
            }
        }
    }

    /// Ends the run if a domain that does not live holds anything.
    pub(crate) fn audit_dead(&self, domain: DomainId) {
        let (d, guest) = (&self.domains[domain], &self.guests[domain]);
        let used = d.window.used();
        rule!(used == 0, "domain {domain} is dead and has {used} pages mapped");
        let granted = (0..d.table.len()).filter(|&gref| d.table.get(gref).is_some()).count();
        rule!(granted == 0, "domain {domain} is dead and {granted} of its grants are mapped");
        rule!(!guest.attached, "domain {domain} is dead and its device has a context");
        let tables = guest.nested.iter().chain(&guest.iommu).flatten().count();
        rule!(tables == 0, "domain {domain} is dead and its tables have {tables} leaves");
    }
}
