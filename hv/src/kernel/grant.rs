//! Carrying out grant hypercalls on the hardware's tables.
//!
//! # Why nobody reaches a page that he lost
//!
//! Every removal, whoever asks for it ([`Node::unmap`] by the grantee or at
//! its death, [`Node::withdraw`] by the granter or at its), runs under the
//! node's lock in this order:
//!
//! 1. The grantee's nested and IOMMU entries go (after a withdrawal, they lead
//!    to the granter's scratch page), so no new translation of the page can be made. A
//!    withdrawn grant's word is zeroed before that, so nobody can map it anew;
//!    the lock keeps a `grant_map` out meanwhile.
//! 2. The grantee's core forgets old translations: its vCPU does not enter
//!    guest mode before a flush of its ASID, and if it is in guest mode now,
//!    it is made to leave and the removal waits for that (`shoot_down`).
//! 3. Its devices forget theirs: an IOTLB invalidation, and the wait for its
//!    completion, after which DMA that was under way is done, too.
//! 4. Only now is the page said to be free: records go, `IN_USE` is cleared in
//!    the granter's table, the hypercall returns, or at a death the next
//!    generation's memory is restored.
//!
//! The CPU comes before the device since a domain that still ran could tell
//! its device to go on, but a device cannot wake a translation in a CPU.
//!
//! A dead granter's pages are withdrawn before its generation counts as ended,
//! so no mapping outlives the generation that granted it, and a grant word of
//! the next generation starts from zeroed memory. A dead grantee's window is
//! empty before its next generation runs.
//!
//! # Limits
//!
//! A domain maps as many pages as its own window has, and offers as many as
//! its own table has; both, and every table frame that they can need, are set
//! aside when the node is built. So a domain that uses up what it has meets
//! [`Error::Exhausted`] or [`Error::Busy`] itself, and takes nothing from
//! another: a granter chooses whom it grants to, and each of its references is
//! mapped at most once.

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use hv_core::{
    grants::{self, Mapping, Source},
    memory::Region,
};
use ring_proto::{
    DomainId,
    grant::{COPY, GrantEntry, IN_USE, VALID, WRITE},
    hypercall::{Error, GrantCopyOp, MAP_DMA, MAP_WRITE, MAX_GRANT_BATCH},
    layout,
};

use super::{Answer, Node, PAGE};
use crate::vt::npt::Rights;

/// What a revoked window page shows: memory of the grantee's own.
const SCRATCH: Rights = Rights { write: true, execute: false, device: false };

const fn window_address(page: u32) -> u64 {
    layout::GRANT_WINDOW.saturating_add((page as u64).saturating_mul(PAGE))
}

/// The window pages of a hypercall's `(target, count)`.
fn window_range(target: u64, count: u64) -> Result<Range<u32>, Error> {
    let offset = target.checked_sub(layout::GRANT_WINDOW).ok_or(Error::BadArgument)?;
    if offset % PAGE != 0 || count == 0 || count > MAX_GRANT_BATCH {
        return Err(Error::BadArgument);
    }
    let page = |n: u64| u32::try_from(n).map_err(|_| Error::BadArgument);
    Ok(page(offset / PAGE)?..page((offset / PAGE).saturating_add(count))?)
}

impl Node {
    /// The words of a granter's grant table, by reference.
    fn grant_words(&self, granter: DomainId) -> Result<&'static [AtomicU64], Error> {
        let d = &self.domains[granter];
        let len = u64::from(d.table.len()).saturating_mul(8);
        let at = d.space.translate(layout::GRANT_TABLE, len, true).ok_or(Error::NotFound)?;
        self.ram.words64(at, d.table.len())
    }

    /// The granter that a caller named, if it can be one.
    fn granter(&self, number: u64) -> Result<DomainId, Error> {
        let granter = self.checked(number)?;
        if self.domains[granter].is_peer() { Ok(granter) } else { Err(Error::PeerDead) }
    }

    pub(super) fn grant_map(&mut self, caller: DomainId, args: [u64; 5]) -> Answer {
        let [granter, first, count, target, flags] = args;
        let pages = window_range(target, count)?;
        let first = u32::try_from(first).map_err(|_| Error::NotFound)?;
        if flags & !(MAP_WRITE | MAP_DMA) != 0 || granter == u64::from(caller) {
            return Err(Error::BadArgument);
        }
        let granter = self.granter(granter)?;
        self.domains[caller].window.check_free(pages.clone())?;
        let size = u32::try_from(pages.len()).map_err(|_| Error::BadArgument)?;
        let grefs = first..first.checked_add(size).ok_or(Error::NotFound)?;
        let words = self.grant_words(granter)?;
        let words = words.get(grefs.start as usize..grefs.end as usize).ok_or(Error::NotFound)?;
        self.domains[granter].table.check_free(grefs)?;
        let claimed =
            self.claim(caller, pages.clone(), Source { granter, gref: first }, words, flags);
        let mapped = claimed.and_then(|()| self.show(caller, pages.clone(), flags));
        if mapped.is_err() {
            // All or nothing: the pages and references were free before.
            self.unmap(caller, pages);
        }
        mapped.map(|()| 0)
    }

    /// Checks grants and records that they are mapped. After an error some are;
    /// [`Node::unmap`] takes them back.
    #[inline(never)] // With registers of its own a page takes half as long.
    fn claim(
        &mut self,
        caller: DomainId,
        pages: Range<u32>,
        first: Source,
        words: &[AtomicU64],
        flags: u64,
    ) -> Result<(), Error> {
        let (write, dma) = (flags & MAP_WRITE != 0, flags & MAP_DMA != 0);
        let (granter, nested) = (first.granter, &self.guests[first.granter].nested);
        let Some((of, to)) = self.domains.pair(granter, caller) else {
            return Err(Error::BadArgument);
        };
        // What the grantee and its devices write leaves no mark of its own.
        let mark = |run: &Range<u64>| {
            if write {
                nested.mark(run.start, run.end.saturating_sub(run.start));
            }
        };
        // Pages that are granted together lie side by side, as a rule.
        let (mut region, mut run): (Option<&Region>, Range<u64>) = (None, 0..0);
        let mappings = words.iter().zip(first.gref..).map(|(word, gref)| {
            let seen = word.load(Ordering::Acquire);
            grants::check_map(GrantEntry(seen), caller, write, dma)?;
            let address = GrantEntry(seen).address();
            let mut frame = region.and_then(|region| region.grantable_page(address));
            if frame.is_none() {
                region = of.space.region(address);
                frame = region.and_then(|region| region.grantable_page(address));
            }
            let frame = frame.ok_or(Error::PeerGrant)?;
            if address != run.end {
                mark(&run);
                run.start = address;
            }
            run.end = address.saturating_add(PAGE);
            // If the granter changed its mind meanwhile, this grant is not valid.
            word.compare_exchange(seen, seen | IN_USE, Ordering::SeqCst, Ordering::Relaxed)
                .map_err(|_| Error::PeerGrant)?;
            Ok(Mapping { source: Some(Source { granter, gref }), frame, write, dma })
        });
        to.window.insert(pages.start, mappings)?;
        mark(&run);
        of.table.insert(first.gref, pages.map(|page| Ok((caller, page))))
    }

    /// Has the grantee and its devices reach recorded mappings.
    #[inline(never)]
    fn show(&mut self, caller: DomainId, pages: Range<u32>, flags: u64) -> Result<(), Error> {
        let (write, at) = (flags & MAP_WRITE != 0, window_address(pages.start));
        let window = &self.domains[caller].window;
        let frames = || window.taken(pages.clone()).map(|(_, mapping)| mapping.frame);
        let rights = Rights { write, ..SCRATCH }.bits();
        let leaves = frames().map(|frame| frame | rights);
        self.guests[caller].nested.set_run(at, leaves).ok_or(Error::Exhausted)?;
        if flags & MAP_DMA == 0 {
            return Ok(());
        }
        let table = self.devices.dma_table(caller).ok_or(Error::Exhausted)?;
        let rights = table.format().device(write);
        table.set_run(at, frames().map(|frame| frame | rights)).ok_or(Error::Exhausted)?;
        self.devices.dma_added(caller)
    }

    /// Removes mappings from tables, then from caches, then from the records.
    fn unmap(&mut self, caller: DomainId, pages: Range<u32>) {
        let (mut span, mut dma) = (None, false);
        for (page, mapping) in self.domains[caller].window.taken(pages) {
            span = Some((span.map_or(page, |(first, _)| first), page));
            dma |= mapping.dma;
        }
        let Some((first, last)) = span else { return };
        // What is free between them is clear already.
        let clear = || (first..=last).map(|_| 0);
        self.guests[caller].nested.set_run(window_address(first), clear());
        if dma && let Some(table) = self.devices.dma_table(caller) {
            table.set_run(window_address(first), clear());
        }
        self.flush_mappings(caller, dma);
        let mut rest = first..last.saturating_add(1);
        while let Some((run, source)) = self.domains[caller].window.remove_run(rest.clone()) {
            rest.start = run.end;
            let Some(Source { granter, gref }) = source else { continue };
            let grefs = gref..gref.saturating_add(run.end.saturating_sub(run.start));
            self.domains[granter].table.clear(grefs.clone());
            let words = self.grant_words(granter).unwrap_or_default();
            for word in words.get(grefs.start as usize..grefs.end as usize).unwrap_or_default() {
                word.fetch_and(!IN_USE, Ordering::SeqCst);
            }
        }
    }

    fn flush_mappings(&mut self, domain: DomainId, dma: bool) {
        self.shoot_down(domain);
        if dma {
            self.devices.flush_dma(domain);
        }
    }

    pub(super) fn grant_unmap(&mut self, caller: DomainId, target: u64, count: u64) -> Answer {
        let pages = window_range(target, count)?;
        if pages.end > self.domains[caller].window.len() {
            return Err(Error::BadArgument);
        }
        self.unmap(caller, pages);
        Ok(0)
    }

    pub(super) fn grant_revoke(&mut self, caller: DomainId, first: u64, count: u64) -> Answer {
        let end = first.checked_add(count).ok_or(Error::BadArgument)?;
        let (Ok(first), Ok(end)) = (u32::try_from(first), u32::try_from(end)) else {
            return Err(Error::BadArgument);
        };
        if count > MAX_GRANT_BATCH || end > self.domains[caller].table.len() {
            return Err(Error::BadArgument);
        }
        self.withdraw(caller, first..end);
        Ok(0)
    }

    /// Clears grant entries and turns their mappings into the granter's
    /// scratch page.
    fn withdraw(&mut self, granter: DomainId, grefs: Range<u32>) {
        let scratch = self.domains[granter].space.scratch;
        // Every domain has a table of its own: it was laid out with one.
        let words = self.grant_words(granter).unwrap_or_default();
        for gref in grefs {
            if let Some(word) = words.get(gref as usize) {
                word.store(0, Ordering::SeqCst);
            }
            let Some((grantee, page)) = self.domains[granter].table.remove(gref) else { continue };
            let Some(now) = self.domains[grantee].window.revoke(page, scratch) else { continue };
            let guest = &mut self.guests[grantee];
            guest.nested.set(window_address(page), scratch | SCRATCH.bits());
            guest.stale = Some(now.dma || guest.stale == Some(true));
            if now.dma
                && let Some(table) = self.devices.dma_table(grantee)
            {
                // The device may be at work there: it must not fault over the granter's decision.
                table.set(window_address(page), scratch | table.format().device(true));
            }
        }
        for domain in self.domains.ids() {
            if let Some(dma) = self.guests[domain].stale.take() {
                self.flush_mappings(domain, dma);
            }
        }
    }

    /// Unmaps all that a domain had mapped.
    pub(super) fn unmap_everything(&mut self, domain: DomainId) {
        self.unmap(domain, 0..self.domains[domain].window.len());
    }

    /// Withdraws all that a domain had granted.
    pub(super) fn withdraw_everything(&mut self, domain: DomainId) {
        if self.domains[domain].table.used() == 0 {
            // What it offers beyond that nobody may map any more: it has ended.
            return;
        }
        self.withdraw(domain, 0..self.domains[domain].table.len());
    }

    /// One operation of `grant_copy`.
    pub(super) fn grant_copy_one(&self, caller: DomainId, op: &GrantCopyOp) -> Result<(), Error> {
        let (to_grant, len) = (op.to_grant != 0, u64::from(op.len));
        let in_page = op.offset.checked_add(op.len).is_some_and(|end| u64::from(end) <= PAGE);
        if !in_page || op.to_grant > 1 {
            return Err(Error::BadArgument);
        }
        let own = match to_grant {
            true => self.domains[caller].space.translate(op.local, len, false),
            false => self.writable(caller, op.local, len),
        };
        let own = own.ok_or(Error::BadAddress)?;
        let granter = self.granter(op.peer.into())?;
        let word = self.grant_words(granter)?.get(op.gref as usize).ok_or(Error::NotFound)?;
        let entry = GrantEntry(word.load(Ordering::Acquire));
        let need = VALID | COPY | if to_grant { WRITE } else { 0 };
        if !entry.has(need) || entry.grantee() != caller {
            return Err(Error::PeerGrant);
        }
        let page = self.domains[granter].space.grantable_page(entry.address());
        let theirs = page.ok_or(Error::PeerGrant)?.saturating_add(op.offset.into());
        if to_grant {
            self.guests[granter].nested.mark(entry.address(), PAGE);
        }
        let (from, to) = if to_grant { (own, theirs) } else { (theirs, own) };
        self.ram.copy(from, to, len)
    }
}
