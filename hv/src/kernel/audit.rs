//! The audit: every mapping that the hardware's tables hold, against what
//! `hv-core` says should be there.

use hv_core::audit::{self, Leaf};
use ring_proto::{DomainId, PAGE_SIZE};

use super::Node;
use crate::vt::npt::Rights;

impl Node {
    /// Checks one domain. Returns the number of violations; the log names the
    /// first few.
    pub(super) fn audit(&mut self, domain: DomainId) -> u64 {
        /// Violations that are named.
        const NAMED: u64 = 8;
        let target = &self.domains[domain];
        let (space, window) = (&target.space, &target.window);
        let mut bad = 0;
        let mut pages = 0;
        let mut complain = |what: &str, leaf: Leaf| {
            bad += 1;
            if bad <= NAMED {
                log::error!("audit: {}: {what} {leaf:x?}", target.config.name);
            }
        };
        self.guests[domain].nested.for_each(|gpa, bits, hpa, len| {
            let (write, execute) = Rights::of(bits);
            for offset in (0..len).step_by(PAGE_SIZE) {
                let leaf = Leaf { gpa: gpa + offset, hpa: hpa + offset, write, execute };
                pages += 1;
                if !audit::nested_leaf(space, window, leaf) {
                    complain("nested table:", leaf);
                }
            }
        });
        let walked = self.devices.for_each_dma(domain, |iova, hpa, write| {
            let leaf = Leaf { gpa: iova, hpa, write, execute: false };
            if !audit::iommu_leaf(space, window, leaf) {
                complain("IOMMU table:", leaf);
            }
        });
        if walked.is_err() {
            bad += 1;
            log::error!("audit: {}: the IOMMU table is broken", target.config.name);
        }
        let expected = audit::nested_pages(space, window);
        if pages != expected {
            bad += 1;
            log::error!("audit: {}: {pages} pages mapped, {expected} expected", target.config.name);
        }
        bad += audit::window_agrees(window, domain, |granter, gref| {
            self.domains.get(usize::from(granter)).and_then(|g| g.table.get(gref))
        });
        let extent = space.base..space.base + space.len;
        for other in self.domains.iter() {
            let overlaps =
                other.space.base < extent.end && extent.start < other.space.base + other.space.len;
            if other.id != domain && overlaps {
                bad += 1;
                log::error!("audit: {} and {} overlap", target.config.name, other.config.name);
            }
        }
        for table in self.guests.iter().flat_map(|g| g.nested.tables()) {
            if self
                .domains
                .iter()
                .any(|o| (o.space.base..o.space.base + o.space.len).contains(table))
            {
                bad += 1;
                log::error!("audit: nested table {table:#x} lies in a domain's memory");
            }
        }
        bad
    }
}
