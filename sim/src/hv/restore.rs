//! Restoring a domain's memory, in the order of `hv/src/kernel/restore.rs`.

use hv_core::domain::Life;
use ring_proto::hypercall::Error;
use ring_proto::{DomainId, PAGE_SIZE};

use super::{Hv, PAGE};
use crate::report::{rule, trace};

/// Bytes restored in one step. Domains are small here, so steps are, too.
const STEP: u64 = 32 << 10;

impl Hv {
    /// Begins a domain's next generation.
    pub(super) fn begin(&mut self, domain: DomainId) -> Result<(), Error> {
        self.stamp(domain, |t| &mut t.decided);
        if self.domains[domain].may_begin()
            && let Some(spare) = self.spare_of(domain)
        {
            self.take_over(domain, spare);
            return Ok(());
        }
        self.domains[domain].begin_build()?;
        Ok(())
    }

    /// Restores a piece of one of this core's domains. Returns whether there
    /// was anything to do.
    pub(crate) fn restore_step(&mut self, core: u16) -> bool {
        let next = self.domains.iter().find_map(|d| match d.life {
            Life::Building(done) if d.info.core == core => Some((d.info.id, done)),
            _ => None,
        });
        let Some((domain, done)) = next else { return false };
        let (base, len) = (self.domains[domain].space.base, self.domains[domain].space.len);
        let step = STEP.min(len - done);
        if step > 0 {
            self.ram.clear(base + done, step);
            self.domains[domain].life = Life::Building(done + step);
        } else {
            self.birth(domain);
        }
        true
    }

    fn birth(&mut self, domain: DomainId) {
        let dirty = self.leftovers(domain, self.domains[domain].space.scratch);
        rule!(dirty == 0, "{dirty} pages of domain {domain} are not as its life is to find them");
        self.guests[domain].leftovers += dirty;
        let d = &mut self.domains[domain];
        d.born(self.now);
        trace!("{}: generation {} begins", d.config.name, d.info.generation);
        self.guests[domain].asleep = false;
        self.sched.start(domain, self.now);
        self.stamp(domain, |t| &mut t.restored);
        self.stamp(domain, |t| &mut t.entered);
        self.tell_supervisor();
    }

    /// Pages that are not zero, but for the scratch page and one more: images
    /// are empty here. Of each page one word is looked at, the next one each time.
    pub(super) fn leftovers(&self, domain: DomainId, except: u64) -> u64 {
        let d = &self.domains[domain];
        let salts = u64::from(d.info.generation).wrapping_mul(17)..;
        let pages = (d.space.base..d.space.base + d.space.len).step_by(PAGE_SIZE);
        let dirty = pages.zip(salts).filter(|&(page, salt)| {
            page != d.space.scratch
                && page != except
                && self.ram.read64(page + salt % (PAGE / 8) * 8) != 0
        });
        dirty.count() as u64
    }
}
