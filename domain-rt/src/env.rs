#![allow(unsafe_code)]
//! Sharing memory with other domains: the own grant table, the window into
//! which grants of others are mapped, and the environment that the state
//! machines of `ring-ends` run in.

use alloc::alloc::{Layout, alloc_zeroed};
use core::sync::atomic::{AtomicU64, Ordering};

use ring_proto::{
    DomainId, GrantRef, PAGE_SIZE, Port,
    grant::GrantEntry,
    hypercall::{Error, MAX_GRANT_BATCH},
    layout,
    shm::SharedMem,
};

use crate::{hypercall, ranges::Ranges, single::Single, start::boot, time};

static GREFS: Single<Option<Ranges>> = Single::new(None);
static WINDOW: Single<Option<Ranges>> = Single::new(None);

/// Zeroed memory for rings and buffer pools, page aligned. It is never given
/// back: peers hold grants of it for as long as this domain lives.
pub fn alloc_shared(pages: usize) -> Option<SharedMem> {
    let layout = Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()?;
    if layout.size() == 0 {
        return None;
    }
    // SAFETY: the size is not 0.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: allocated with this size, never freed, and no reference exists.
    Some(unsafe { SharedMem::new(memory, layout.size()) })
}

/// `count` consecutive grant references. Reference 0 is never handed out, so a
/// zeroed field names no grant.
pub fn alloc_grefs(count: u32) -> Option<GrantRef> {
    GREFS.with(|grefs| {
        grefs.get_or_insert_with(|| Ranges::new(1..boot().grant_entries)).alloc(count)
    })
}

/// Gives references back. Their grants must be revoked.
pub fn free_grefs(first: GrantRef, count: u32) {
    GREFS.with(|grefs| {
        if let Some(grefs) = grefs {
            grefs.free(first..first.saturating_add(count));
        }
    });
}

/// `count` consecutive pages of the grant window.
pub fn alloc_window(count: u32) -> Option<u32> {
    WINDOW.with(|window| {
        window.get_or_insert_with(|| Ranges::new(0..boot().grant_window_pages)).alloc(count)
    })
}

/// Gives pages of the window back. They must be unmapped.
pub fn free_window(first: u32, count: u32) {
    WINDOW.with(|window| {
        if let Some(window) = window {
            window.free(first..first.saturating_add(count));
        }
    });
}

/// Address of a page of the window.
fn window_address(page: u32) -> u64 {
    layout::GRANT_WINDOW.saturating_add(u64::from(page).saturating_mul(PAGE_SIZE as u64))
}

/// Splits a range into batches that one hypercall takes.
fn batches(first: u32, count: u32) -> impl Iterator<Item = (u32, u32)> {
    let batch = u32::try_from(MAX_GRANT_BATCH).unwrap_or(u32::MAX);
    (0..count).step_by(batch as usize).map(move |done| {
        // No caller's range ends beyond the numbers there are.
        (first.saturating_add(done), batch.min(count.saturating_sub(done)))
    })
}

fn entry(gref: GrantRef) -> Option<&'static AtomicU64> {
    if gref >= boot().grant_entries {
        return None;
    }
    let address = layout::GRANT_TABLE.saturating_add(u64::from(gref).saturating_mul(8));
    // SAFETY: within the grant table, which is mapped for the domain's whole
    // life and only ever accessed by atomics.
    Some(unsafe { AtomicU64::from_ptr(address as *mut u64) })
}

/// This domain as the environment of `ring-ends`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DomainEnv;

impl ring_ends::Env for DomainEnv {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn notify(&mut self, port: Port) {
        // It fails only if the peer is not alive, which its page tells too.
        let _ = hypercall::notify(port);
    }

    fn complain(&mut self, port: Port) {
        // Too soon after the last one, or the backend is not alive: the node knows.
        let _ = hypercall::complain(port);
    }

    fn grant(&mut self, gref: GrantRef, address: u64, grantee: DomainId, flags: u64) {
        match entry(gref) {
            Some(entry) => {
                entry.store(GrantEntry::new(address, grantee, flags).0, Ordering::Release)
            }
            None => log::error!("grant reference {gref} is out of the table"),
        }
    }

    fn revoke(&mut self, first: GrantRef, count: u32) -> Result<(), Error> {
        for (first, count) in batches(first, count) {
            hypercall::grant_revoke(first, count)?;
        }
        Ok(())
    }

    fn map(
        &mut self,
        granter: DomainId,
        first: GrantRef,
        count: u32,
        window_page: u32,
        flags: u64,
    ) -> Result<SharedMem, Error> {
        // The peer chose `first` and `count`.
        let end = first.checked_add(count).ok_or(Error::PeerGrant)?;
        let window_end = window_page.checked_add(count).ok_or(Error::BadArgument)?;
        if window_end > boot().grant_window_pages || count == 0 {
            return Err(Error::BadArgument);
        }
        for (gref, n) in batches(first, end.saturating_sub(first)) {
            let done = gref.saturating_sub(first);
            let target = window_address(window_page.saturating_add(done));
            if let Err(error) = hypercall::grant_map(granter, gref, n, target, flags) {
                if done > 0 {
                    self.unmap(window_page, done)?;
                }
                return Err(error);
            }
        }
        let len = (count as usize).saturating_mul(PAGE_SIZE);
        // SAFETY: just mapped. A mapping whose grant is revoked is backed by a
        // scratch page, so the bytes stay accessible until `unmap`; from then
        // on the caller no longer uses the view.
        Ok(unsafe { SharedMem::new(window_address(window_page) as *mut u8, len) })
    }

    fn unmap(&mut self, window_page: u32, count: u32) -> Result<(), Error> {
        for (page, count) in batches(window_page, count) {
            hypercall::grant_unmap(window_address(page), count)?;
        }
        Ok(())
    }
}
