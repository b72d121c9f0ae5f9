//! Grants: who may map whose page, and who does.
//!
//! The truth is here, in [`Window`] (what a grantee has mapped, by window
//! page) and [`Table`] (which window page maps a granter's reference). A
//! granter's own table in its memory says only what it *offers*; its `IN_USE`
//! flag is a courtesy to the granter.
//!
//! Each reference is mapped at most once at a time. That keeps revocation
//! O(1) a page and makes the reverse map one word a reference.

use alloc::{vec, vec::Vec};
use core::ops::Range;

use ring_proto::{
    DomainId, GrantRef,
    grant::{DMA, GrantEntry, MAP, VALID, WRITE},
    hypercall::Error,
};

/// One mapped grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Whose page it is; `None` once it was revoked.
    pub source: Option<Source>,
    /// Machine address of the page; once it was revoked, of the granter's
    /// scratch page, so that the devices of two granters never meet in one.
    pub frame: u64,
    /// Mapped writable.
    pub write: bool,
    /// Reachable by the grantee's devices.
    pub dma: bool,
}

/// The page behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Owner of the page.
    pub granter: DomainId,
    /// Its reference.
    pub gref: GrantRef,
}

/// What a domain has mapped, by page of its grant window.
#[derive(Debug)]
pub struct Window {
    slots: Vec<Option<Mapping>>,
}

/// Where a domain's grants are mapped, by reference.
#[derive(Debug)]
pub struct Table {
    active: Vec<Option<(DomainId, u32)>>,
}

impl Window {
    /// A window of `pages` free pages.
    pub fn new(pages: u32) -> Self {
        Self { slots: vec![None; pages as usize] }
    }

    /// The mapping at window page `page`.
    pub fn get(&self, page: u32) -> Option<&Mapping> {
        self.slots.get(page as usize)?.as_ref()
    }

    /// Pages of the window.
    pub fn len(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// Whether it has no pages.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether `pages` exist and are free.
    ///
    /// # Errors
    /// [`Error::Exhausted`] past the window's end, [`Error::Busy`] if some page
    /// is in use.
    pub fn check_free(&self, pages: Range<u32>) -> Result<(), Error> {
        let slots = self.slots.get(pages.start as usize..pages.end as usize);
        let free = slots.ok_or(Error::Exhausted)?.iter().all(Option::is_none);
        if free { Ok(()) } else { Err(Error::Busy) }
    }

    /// Records a mapping at a free page.
    pub fn insert(&mut self, page: u32, mapping: Mapping) -> Result<(), Error> {
        let slot = self.slots.get_mut(page as usize).ok_or(Error::BadArgument)?;
        if slot.is_some() {
            return Err(Error::Busy);
        }
        *slot = Some(mapping);
        Ok(())
    }

    /// Forgets the mapping at `page` and returns it.
    pub fn remove(&mut self, page: u32) -> Option<Mapping> {
        self.slots.get_mut(page as usize)?.take()
    }

    /// Marks the mapping at `page` as revoked: it leads to `scratch`, writable,
    /// from now on. It stays one for DMA: the device, too, finds the scratch
    /// page there. Returns what it is now.
    pub fn revoke(&mut self, page: u32, scratch: u64) -> Option<Mapping> {
        let mapping = self.slots.get_mut(page as usize)?.as_mut()?;
        *mapping = Mapping { source: None, frame: scratch, write: true, ..*mapping };
        Some(*mapping)
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.slots.iter().filter(|s| s.is_some()).count()
    }
}

impl Table {
    /// A table of `entries` references, none mapped.
    pub fn new(entries: u32) -> Self {
        Self { active: vec![None; entries as usize] }
    }

    /// References of the table.
    pub fn len(&self) -> u32 {
        u32::try_from(self.active.len()).unwrap_or(u32::MAX)
    }

    /// Whether it has no references.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Who has `gref` mapped, and at which window page.
    pub fn get(&self, gref: GrantRef) -> Option<(DomainId, u32)> {
        *self.active.get(gref as usize)?
    }

    /// Records that `grantee` mapped `gref` at `page`.
    pub fn insert(&mut self, gref: GrantRef, grantee: DomainId, page: u32) -> Result<(), Error> {
        let slot = self.active.get_mut(gref as usize).ok_or(Error::NotFound)?;
        if slot.is_some() {
            return Err(Error::Busy);
        }
        *slot = Some((grantee, page));
        Ok(())
    }

    /// Forgets that `gref` is mapped.
    pub fn remove(&mut self, gref: GrantRef) -> Option<(DomainId, u32)> {
        self.active.get_mut(gref as usize)?.take()
    }
}

/// Whether `entry` allows `grantee` to map the page so.
///
/// # Errors
/// [`Error::PeerGrant`] if not.
pub fn check_map(
    entry: GrantEntry,
    grantee: DomainId,
    write: bool,
    dma: bool,
) -> Result<(), Error> {
    let mut need = VALID | MAP;
    if write {
        need |= WRITE;
    }
    if dma {
        need |= DMA;
    }
    if entry.has(need) && entry.grantee() == grantee { Ok(()) } else { Err(Error::PeerGrant) }
}
