//! Carrying out grant hypercalls on the hardware's tables.
//!
//! Order in every removal: first the table entries, then the flushes (CPU,
//! then device), and only then is the page anybody else's concern.

use core::sync::atomic::Ordering;

use hv_core::grants::{self, Mapping, Source};
use ring_proto::{
    DomainId, PAGE_SIZE,
    grant::{COPY, GrantEntry, IN_USE, VALID, WRITE},
    hypercall::{Error, GrantCopyOp, MAP_DMA, MAP_WRITE, MAX_GRANT_BATCH},
    layout,
};

use super::Node;
use crate::vt::npt::Rights;

const PAGE: u64 = PAGE_SIZE as u64;

fn window_address(page: u32) -> u64 {
    layout::GRANT_WINDOW + u64::from(page) * PAGE
}

/// Window page and count of a hypercall's `(target, count)`.
fn window_range(target: u64, count: u64) -> Result<(u32, u32), Error> {
    let offset = target.checked_sub(layout::GRANT_WINDOW).ok_or(Error::BadArgument)?;
    if offset % PAGE != 0 || count == 0 || count > MAX_GRANT_BATCH {
        return Err(Error::BadArgument);
    }
    let page = u32::try_from(offset / PAGE).map_err(|_| Error::BadArgument)?;
    Ok((page, count as u32))
}

impl Node {
    /// The word of a granter's grant table.
    fn grant_word(
        &self,
        granter: DomainId,
        gref: u32,
    ) -> Result<&core::sync::atomic::AtomicU64, Error> {
        let d = self.domains.get(usize::from(granter)).ok_or(Error::NotFound)?;
        if gref >= d.table.len() {
            return Err(Error::NotFound);
        }
        let at = d
            .space
            .translate(layout::GRANT_TABLE + u64::from(gref) * 8, 8, true)
            .ok_or(Error::NotFound)?;
        self.ram.word64(at)
    }

    pub(super) fn grant_map(&mut self, caller: DomainId, args: [u64; 5]) -> Result<u64, Error> {
        let [granter, first, count, target, flags] = args;
        let (page, count) = window_range(target, count)?;
        let granter = DomainId::try_from(granter).map_err(|_| Error::NotFound)?;
        let first = u32::try_from(first).map_err(|_| Error::NotFound)?;
        first.checked_add(count).ok_or(Error::NotFound)?;
        if flags & !(MAP_WRITE | MAP_DMA) != 0 {
            return Err(Error::BadArgument);
        }
        let (write, dma) = (flags & MAP_WRITE != 0, flags & MAP_DMA != 0);
        if granter == caller {
            return Err(Error::BadArgument);
        }
        let source = self.domains.get(usize::from(granter)).ok_or(Error::NotFound)?;
        if !source.is_alive() {
            return Err(Error::PeerDead);
        }
        self.domains[usize::from(caller)].window.check_free(page, count)?;
        for i in 0..count {
            if let Err(e) = self.map_one(caller, granter, first + i, page + i, write, dma) {
                for done in 0..i {
                    self.unmap_one(caller, page + done);
                }
                self.flush_mappings(caller, dma && i > 0);
                return Err(e);
            }
        }
        if dma {
            self.devices.dma_added(caller, target, count.into())?;
        }
        Ok(0)
    }

    fn map_one(
        &mut self,
        caller: DomainId,
        granter: DomainId,
        gref: u32,
        page: u32,
        write: bool,
        dma: bool,
    ) -> Result<(), Error> {
        if self.domains[usize::from(granter)].table.get(gref).is_some() {
            return Err(Error::Busy);
        }
        let word = self.grant_word(granter, gref)?;
        let seen = word.load(Ordering::Acquire);
        grants::check_map(GrantEntry(seen), caller, write, dma)?;
        let granting = &mut self.domains[usize::from(granter)];
        let address = GrantEntry(seen).address();
        let frame = granting.space.grantable_page(address).ok_or(Error::PeerGrant)?;
        granting.table.insert(gref, caller, page)?;
        // The granter may have changed its mind meanwhile; then this grant is not valid.
        let word = self.grant_word(granter, gref)?;
        let taken = word.compare_exchange(seen, seen | IN_USE, Ordering::SeqCst, Ordering::Relaxed);
        if taken.is_err() {
            self.domains[usize::from(granter)].table.remove(gref);
            return Err(Error::PeerGrant);
        }
        let mapping = Mapping { source: Some(Source { granter, gref, frame }), write, dma };
        self.domains[usize::from(caller)].window.insert(page, mapping)?;
        let address = window_address(page);
        let rights = Rights { write, execute: false, device: false };
        if !self.nested[usize::from(caller)].set_page(address, Some((frame, rights))) {
            self.unmap_one(caller, page);
            return Err(Error::Exhausted);
        }
        if dma && !self.devices.map_dma(caller, address, frame, write) {
            self.unmap_one(caller, page);
            return Err(Error::Exhausted);
        }
        Ok(())
    }

    /// Removes one mapping from tables and records. The caller flushes.
    /// Returns whether a device could reach it.
    fn unmap_one(&mut self, caller: DomainId, page: u32) -> bool {
        let Some(mapping) = self.domains[usize::from(caller)].window.remove(page) else {
            return false;
        };
        let address = window_address(page);
        self.nested[usize::from(caller)].set_page(address, None);
        if mapping.dma {
            self.devices.unmap_dma(caller, address);
        }
        if let Some(source) = mapping.source {
            if let Some(granter) = self.domains.get_mut(usize::from(source.granter)) {
                granter.table.remove(source.gref);
            }
            if let Ok(word) = self.grant_word(source.granter, source.gref) {
                word.fetch_and(!IN_USE, Ordering::SeqCst);
            }
        }
        mapping.dma
    }

    fn flush_mappings(&mut self, domain: DomainId, dma: bool) {
        self.shoot_down(domain);
        if dma {
            self.devices.flush_dma(domain);
        }
    }

    pub(super) fn grant_unmap(
        &mut self,
        caller: DomainId,
        target: u64,
        count: u64,
    ) -> Result<u64, Error> {
        let (page, count) = window_range(target, count)?;
        self.domains[usize::from(caller)].window.check_range(page, count)?;
        let mut dma = false;
        for i in 0..count {
            dma |= self.unmap_one(caller, page + i);
        }
        self.flush_mappings(caller, dma);
        Ok(0)
    }

    pub(super) fn grant_revoke(
        &mut self,
        caller: DomainId,
        first: u64,
        count: u64,
    ) -> Result<u64, Error> {
        let len = self.domains[usize::from(caller)].table.len();
        let end = first.checked_add(count).ok_or(Error::BadArgument)?;
        if count > MAX_GRANT_BATCH || end > u64::from(len) {
            return Err(Error::BadArgument);
        }
        self.withdraw(caller, first as u32, end as u32);
        Ok(0)
    }

    /// Clears grant entries and turns their mappings into scratch pages of
    /// the grantees.
    fn withdraw(&mut self, granter: DomainId, first: u32, end: u32) {
        // One bit a domain: who needs its CPU, and who its device, flushed.
        let (mut cpu, mut dma) = (0u64, 0u64);
        for gref in first..end {
            if let Ok(word) = self.grant_word(granter, gref) {
                word.store(0, Ordering::SeqCst);
            }
            let Some((grantee, page)) = self.domains[usize::from(granter)].table.remove(gref)
            else {
                continue;
            };
            let g = usize::from(grantee);
            let Some(was) = self.domains.get_mut(g).and_then(|d| d.window.revoke(page)) else {
                continue;
            };
            let scratch = self.domains[g].space.scratch;
            let rights = Rights { write: true, execute: false, device: false };
            self.nested[g].set_page(window_address(page), Some((scratch, rights)));
            cpu |= 1 << grantee;
            if was.dma {
                // The device may be at work there: it must not fault over the granter's decision.
                self.devices.redirect_dma(grantee, window_address(page), scratch);
                dma |= 1 << grantee;
            }
        }
        for domain in 0..self.domains.len() as DomainId {
            if (cpu | dma) >> domain & 1 != 0 {
                self.flush_mappings(domain, dma >> domain & 1 != 0);
            }
        }
    }

    /// Unmaps all that a domain had mapped.
    pub(super) fn unmap_everything(&mut self, domain: DomainId) {
        let pages = self.domains[usize::from(domain)].window.len();
        let mut dma = false;
        for page in 0..pages {
            dma |= self.unmap_one(domain, page);
        }
        self.flush_mappings(domain, dma);
    }

    /// Withdraws all that a domain had granted.
    pub(super) fn withdraw_everything(&mut self, domain: DomainId) {
        let entries = self.domains[usize::from(domain)].table.len();
        self.withdraw(domain, 0, entries);
    }

    /// One operation of `grant_copy`.
    pub(super) fn grant_copy_one(&self, caller: DomainId, op: &GrantCopyOp) -> Result<(), Error> {
        let to_grant = op.to_grant != 0;
        let in_page = op.offset.checked_add(op.len).is_some_and(|end| u64::from(end) <= PAGE);
        if !in_page || op.to_grant > 1 {
            return Err(Error::BadArgument);
        }
        let own = self.domains[usize::from(caller)]
            .space
            .translate(op.local, op.len.into(), !to_grant)
            .ok_or(Error::BadAddress)?;
        let granter = self.domains.get(usize::from(op.peer)).ok_or(Error::NotFound)?;
        if !granter.is_alive() {
            return Err(Error::PeerDead);
        }
        let entry = GrantEntry(self.grant_word(op.peer, op.gref)?.load(Ordering::Acquire));
        let need = VALID | COPY | if to_grant { WRITE } else { 0 };
        if !entry.has(need) || entry.grantee() != caller {
            return Err(Error::PeerGrant);
        }
        let page = granter.space.grantable_page(entry.address()).ok_or(Error::PeerGrant)?;
        let theirs = page + u64::from(op.offset);
        if to_grant {
            self.ram.copy(own, theirs, op.len.into())
        } else {
            self.ram.copy(theirs, own, op.len.into())
        }
    }
}
