//! A domain's device: what it may reach.

use ring_proto::{DomainId, event, layout, shm::SharedMem};

use super::{Hv, PAGE};
use crate::report::{trace, violated};

/// Why a device's access came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked;

impl Hv {
    /// `device_enable`: IOMMU context and bus mastering.
    pub(crate) fn device_enable(&mut self, domain: DomainId) {
        self.guests[domain].attached = true;
        self.stamp(domain, |t| &mut t.enabled);
    }

    /// Bus mastering off, IOMMU context emptied, interrupts off.
    pub(super) fn quiesce(&mut self, domain: DomainId) {
        self.guests[domain].attached = false;
    }

    /// Has a page of a domain's IOMMU table lead to a frame, or nowhere.
    /// False if it has none.
    pub(super) fn set_dma(&mut self, domain: DomainId, page: u32, leaf: super::Leaf) -> bool {
        let slot = self.guests[domain].iommu.get_mut(page as usize);
        slot.map(|slot| *slot = leaf).is_some()
    }

    /// What a domain's device reaches at an I/O address within one page. An
    /// access that the IOMMU refuses while the domain lives is its driver's
    /// mistake, and no honest driver makes one.
    pub(crate) fn dma(
        &self,
        domain: DomainId,
        iova: u64,
        len: u64,
        write: bool,
    ) -> Result<SharedMem, Blocked> {
        let guest = &self.guests[domain];
        if !guest.attached {
            trace!("device of domain {domain}: blocked at {iova:#x}");
            return Err(Blocked);
        }
        let offset = iova.wrapping_sub(layout::GRANT_WINDOW);
        let leaf = guest.iommu.get((offset / PAGE) as usize).copied().flatten();
        match leaf {
            Some((frame, writable)) if writable || !write => {
                Ok(self.ram.at(frame + offset % PAGE, len))
            }
            _ => violated(format_args!(
                "the device of domain {domain} reaches for {iova:#x} (write: {write}): {leaf:x?}"
            )),
        }
    }

    /// The interrupt of a domain's device.
    pub(crate) fn interrupt(&mut self, domain: DomainId) {
        if self.guests[domain].attached {
            self.raise(domain, event::PORT_IRQ);
        }
    }
}
