//! The audit of what lets devices through, against who owns what and which
//! interrupts are bound: IOMMU tables, interrupt tables, MSI-X tables.
#![expect(clippy::arithmetic_side_effects, reason = "counts")]

use core::fmt::Arguments;

use super::{Devices, PAGE, cpu_apic_id, iommu_domain};
use crate::{iommu::Opening, table::PageTable};
use ring_proto::DomainId;

impl Devices {
    /// Complains of everything that is not as it should be. `core_of` tells on
    /// which core a domain lives; for one that does not, nothing is let through.
    pub fn audit(
        &self,
        core_of: impl Fn(DomainId) -> Option<u16>,
        complain: &mut dyn FnMut(Arguments<'_>),
    ) {
        let attached = |o: &&super::Owned| o.attached;
        let (mut memory, mut interrupts) = (0, 0);
        let mut check = |opening| {
            let expected = match opening {
                Opening::Memory { bdf, domain_id, root } => {
                    memory += 1;
                    self.owned.iter().filter(attached).any(|o| {
                        o.bdf == bdf
                            && core_of(o.domain).is_some()
                            && iommu_domain(o.domain) == domain_id
                            && self.tables[o.domain].as_ref().is_some_and(|t| t.root() == root)
                    })
                }
                Opening::Interrupt { bdf, index, vector, apic_id } => {
                    interrupts += 1;
                    let binding = self.bindings.iter().find(|b| b.vector == vector);
                    binding.is_some_and(|b| {
                        let right = match b.source {
                            Some(source) => source == (bdf, index),
                            // An I/O APIC's entries are counted by vectors.
                            None => self.pci.function(bdf).is_none() && index == u16::from(vector),
                        };
                        right && core_of(b.domain).map(cpu_apic_id) == Some(u32::from(apic_id))
                    })
                }
                Opening::Odd(_) => false,
            };
            if !expected {
                complain(format_args!("the IOMMU lets through {opening:x?}"));
            }
        };
        let Some(iommu) = &self.iommu else { return };
        iommu.openings(&mut check);
        let (owners, bound) = (self.owned.iter().filter(attached).count(), self.bindings.len());
        if (memory, interrupts) != (owners, bound) {
            complain(format_args!(
                "{memory} functions and {interrupts} interrupts are let through, not {owners} and {bound}"
            ));
        }
        for function in self.pci.functions() {
            let bdf = function.bdf;
            let owner = self.owned.iter().find(|o| o.bdf == bdf);
            let (masters, sends) = self.pci.reaches_out(function);
            if (masters || sends) && function.assignable() && owner.is_none_or(|o| !o.attached) {
                complain(format_args!("{bdf} has no owner and is not off the bus"));
            }
            for (entry, message) in self.pci.msix_unmasked(function).filter(|_| sends) {
                let binding = self.bindings.iter().find(|b| b.source == Some((bdf, entry)));
                if binding.is_none_or(|b| b.message != Some(message) || !b.open || b.throttled) {
                    complain(format_args!("MSI-X entry {entry} of {bdf} sends {message:x?}"));
                }
            }
        }
    }

    /// Memory that no device or domain may reach: (address, bytes) of all tables
    /// and queues of the IOMMU.
    pub fn table_memory(&self) -> impl Iterator<Item = (u64, u64)> {
        let tables = self.tables.iter().flatten().flat_map(PageTable::tables);
        self.iommu_memory.iter().copied().chain(tables.map(|&table| (table, PAGE)))
    }
}
