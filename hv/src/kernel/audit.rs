//! The audit: every mapping that the hardware's tables hold, against what
//! `hv-core` says should be there.
#![expect(clippy::arithmetic_side_effects, reason = "counts, and addresses within regions")]

use core::fmt;

use hv_core::audit::{self, Leaf};
use ring_proto::{DomainId, PAGE_SIZE};

use super::Node;
use crate::vt::npt::Rights;

/// Violations that are named.
const NAMED: u64 = 8;

impl Node {
    /// Checks one domain, and with the first the machine. Returns the number of
    /// violations; the log names the first few.
    pub(super) fn audit(&mut self, domain: DomainId) -> u64 {
        let target = &self.domains[domain];
        let (space, window, name) = (&target.space, &target.window, &target.config.name);
        let (mut bad, mut pages) = (0, 0);
        let mut complain =
            |what: fmt::Arguments<'_>| name_one(&mut bad, format_args!("{name}: {what}"));
        self.guests[domain].nested.for_each(&mut |gpa, bits, hpa, len| {
            let (write, execute) = Rights::of(bits);
            for offset in (0..len).step_by(PAGE_SIZE) {
                let leaf = Leaf { gpa: gpa + offset, hpa: hpa + offset, write, execute };
                pages += 1;
                if !audit::nested_leaf(space, window, leaf) {
                    complain(format_args!("nested table: {leaf:x?}"));
                }
            }
        });
        let sound = self.devices.for_each_dma(domain, |iova, hpa, write| {
            let leaf = Leaf { gpa: iova, hpa, write, execute: false };
            if !audit::iommu_leaf(space, window, leaf) {
                complain(format_args!("IOMMU table: {leaf:x?}"));
            }
        });
        if !sound {
            complain(format_args!("the IOMMU table is broken"));
        }
        let expected = audit::nested_pages(space, window);
        if pages != expected {
            complain(format_args!("{pages} pages mapped, {expected} expected"));
        }
        let extent = space.base..space.base + space.len;
        for other in self.domains.iter().filter(|other| other.info.id != domain) {
            let end = other.space.base + other.space.len;
            if other.space.base < extent.end && extent.start < end {
                complain(format_args!("its memory and that of {} overlap", other.config.name));
            }
        }
        bad += audit::window_agrees(window, domain, |granter, gref| {
            self.domains.named(granter).and_then(|g| g.table.get(gref).copied())
        });
        bad += self.guests[domain].leftovers;
        if domain == 0 {
            bad += self.audit_machine();
        }
        bad
    }

    /// Checks what is of no single domain.
    fn audit_machine(&self) -> u64 {
        let mut bad = 0;
        let mut complain = |what: fmt::Arguments<'_>| name_one(&mut bad, what);
        // With `window_agrees`, which finds a record for each mapping: and none without one.
        let mapped: usize = self.domains.iter().map(|d| d.window.live()).sum();
        let granted: u32 = self.domains.iter().map(|d| d.table.used()).sum();
        if mapped != granted as usize {
            complain(format_args!("{mapped} grants mapped, {granted} in the granters' books"));
        }
        let alive = |domain| self.domains.named(domain).filter(|d| d.is_alive());
        self.devices.audit(|domain| alive(domain).map(|d| d.info.core), &mut complain);
        let nested =
            self.guests.iter().flat_map(|g| g.nested.tables()).map(|t| (*t, PAGE_SIZE as u64));
        for (base, len) in nested.chain(self.devices.table_memory()) {
            if self.ram.overlaps(base, len) {
                complain(format_args!("the table at {base:#x} lies in a domain's memory"));
            }
        }
        bad
    }
}

/// Counts a violation and says what it is, unless there were many.
fn name_one(bad: &mut u64, what: fmt::Arguments<'_>) {
    *bad += 1;
    if *bad <= NAMED {
        log::error!("audit: {what}");
    }
}
