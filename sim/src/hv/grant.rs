//! Grants, in the order of `hv/src/kernel/grant.rs`.

use std::ops::Range;

use hv_core::grants::{self, Mapping, Source};
use ring_proto::DomainId;
use ring_proto::grant::{GrantEntry, IN_USE};
use ring_proto::hypercall::{Error, MAP_DMA, MAP_WRITE};

use super::{Answer, Hv};

impl Hv {
    /// Machine address of the word of a granter's grant table.
    fn grant_word(&self, granter: DomainId, gref: u32) -> Result<u64, Error> {
        if gref >= self.domains[granter].table.len() {
            return Err(Error::NotFound);
        }
        Ok(self.guests[granter].grant_table + u64::from(gref) * 8)
    }

    /// A domain writes a word of its own table.
    pub(crate) fn write_grant(&self, granter: DomainId, gref: u32, entry: GrantEntry) {
        if let Ok(word) = self.grant_word(granter, gref) {
            self.ram.write64(word, entry.0);
        }
    }

    /// `grant_map`. Returns the frame of the first page.
    pub(crate) fn grant_map(
        &mut self,
        caller: DomainId,
        granter: DomainId,
        first: u32,
        pages: Range<u32>,
        flags: u64,
    ) -> Answer {
        if flags & !(MAP_WRITE | MAP_DMA) != 0 || granter == caller {
            return Err(Error::BadArgument);
        }
        let granter = self.checked(granter)?;
        if !self.is_running(granter) {
            return Err(Error::PeerDead);
        }
        self.domains[caller].window.check_free(pages.clone())?;
        let (write, dma) = (flags & MAP_WRITE != 0, flags & MAP_DMA != 0);
        let mut mapped = Ok(0);
        for (page, gref) in pages.clone().zip(first..) {
            mapped = mapped.and_then(|_| self.map_one(caller, granter, gref, page, write, dma));
        }
        if mapped.is_err() {
            // All or nothing: the pages were free before.
            self.unmap(caller, pages.clone());
        }
        mapped.map(|_| self.domains[caller].window.get(pages.start).map_or(0, |m| m.frame))
    }

    fn map_one(
        &mut self,
        caller: DomainId,
        granter: DomainId,
        gref: u32,
        page: u32,
        write: bool,
        dma: bool,
    ) -> Answer {
        if self.domains[granter].table.get(gref).is_some() {
            return Err(Error::Busy);
        }
        let word = self.grant_word(granter, gref)?;
        let seen = self.ram.read64(word);
        grants::check_map(GrantEntry(seen), caller, write, dma)?;
        let address = GrantEntry(seen).address();
        let frame = self.domains[granter].space.grantable_page(address).ok_or(Error::PeerGrant)?;
        self.ram.write64(word, seen | IN_USE);
        self.domains[granter].table.insert(gref, [Ok((caller, page))])?;
        let mapping = Mapping { source: Some(Source { granter, gref }), frame, write, dma };
        self.domains[caller].window.insert(page, [Ok(mapping)])?;
        let slot = self.guests[caller].nested.get_mut(page as usize).ok_or(Error::Exhausted)?;
        *slot = Some((frame, write));
        if dma && !self.set_dma(caller, page, Some((frame, write))) {
            return Err(Error::Exhausted);
        }
        self.view_mapped(caller, frame);
        Ok(0)
    }

    fn unmap(&mut self, caller: DomainId, pages: Range<u32>) {
        for page in pages.clone() {
            let Some(mapping) = self.domains[caller].window.get(page) else { continue };
            let (dma, frame) = (mapping.dma, mapping.frame);
            if let Some(slot) = self.guests[caller].nested.get_mut(page as usize) {
                *slot = None;
            }
            if dma {
                self.set_dma(caller, page, None);
            }
            self.view_unmapped(caller, page, frame);
        }
        for page in pages {
            let mapping = self.domains[caller].window.remove(page);
            let Some(Source { granter, gref, .. }) = mapping.and_then(|m| m.source) else {
                continue;
            };
            self.domains[granter].table.remove(gref);
            if let Ok(word) = self.grant_word(granter, gref) {
                self.ram.write64(word, self.ram.read64(word) & !IN_USE);
            }
        }
    }

    /// `grant_unmap`.
    pub(crate) fn grant_unmap(&mut self, caller: DomainId, pages: Range<u32>) -> Answer {
        if pages.end > self.domains[caller].window.len() {
            return Err(Error::BadArgument);
        }
        self.unmap(caller, pages);
        Ok(0)
    }

    /// `grant_revoke`.
    pub(crate) fn grant_revoke(&mut self, caller: DomainId, grefs: Range<u32>) -> Answer {
        if grefs.end > self.domains[caller].table.len() {
            return Err(Error::BadArgument);
        }
        self.withdraw(caller, grefs);
        Ok(0)
    }

    fn withdraw(&mut self, granter: DomainId, grefs: Range<u32>) {
        let scratch = self.domains[granter].space.scratch;
        for gref in grefs {
            if let Ok(word) = self.grant_word(granter, gref) {
                self.ram.write64(word, 0);
            }
            let Some((grantee, page)) = self.domains[granter].table.remove(gref) else { continue };
            let window = &mut self.domains[grantee].window;
            let was = window.get(page).map(|m| m.frame);
            let Some(now) = window.revoke(page, scratch) else { continue };
            if let Some(slot) = self.guests[grantee].nested.get_mut(page as usize) {
                *slot = Some((scratch, true));
            }
            if now.dma {
                self.set_dma(grantee, page, Some((scratch, true)));
            }
            self.view_revoked(grantee, page, was.unwrap_or(scratch), scratch);
        }
    }

    pub(super) fn unmap_everything(&mut self, domain: DomainId) {
        self.unmap(domain, 0..self.domains[domain].window.len());
        // The program and its views end, too.
        self.guests[domain].views.clear();
    }

    pub(super) fn withdraw_everything(&mut self, domain: DomainId) {
        self.withdraw(domain, 0..self.domains[domain].table.len());
    }
}
