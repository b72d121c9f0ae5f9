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

/// Numbered places, each of which is free or taken.
#[derive(Debug)]
pub struct Places<T> {
    places: Vec<Option<T>>,
    used: u32,
}

/// What a domain has mapped, by page of its grant window.
pub type Window = Places<Mapping>;

/// Where a domain's grants are mapped, by reference: by whom, and at which page
/// of its window.
pub type Table = Places<(DomainId, u32)>;

impl<T: Clone> Places<T> {
    /// So many free places.
    pub fn new(count: u32) -> Self {
        Self { places: vec![None; count as usize], used: 0 }
    }

    /// What is at a place.
    pub fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    /// Number of places, free or not.
    #[expect(clippy::len_without_is_empty, reason = "the manifest has none without places")]
    pub fn len(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    /// Whether `places` exist and are free.
    ///
    /// # Errors
    /// [`Error::Exhausted`] past the last place, [`Error::Busy`] if one is taken.
    pub fn check_free(&self, places: Range<u32>) -> Result<(), Error> {
        let slots = self.places.get(places.start as usize..places.end as usize);
        let free = slots.ok_or(Error::Exhausted)?.iter().all(Option::is_none);
        if free { Ok(()) } else { Err(Error::Busy) }
    }

    /// Takes free places from `first` on, one for each item.
    ///
    /// # Errors
    /// The first one among `items`, [`Error::Exhausted`] past the last place,
    /// [`Error::Busy`] if one is taken. Those before it are taken then.
    pub fn insert(
        &mut self,
        first: u32,
        items: impl IntoIterator<Item = Result<T, Error>>,
    ) -> Result<(), Error> {
        let mut slots = self.places.iter_mut().skip(first as usize);
        for item in items {
            let slot = slots.next().ok_or(Error::Exhausted)?;
            if slot.is_some() {
                return Err(Error::Busy);
            }
            *slot = Some(item?);
            self.used = self.used.saturating_add(1);
        }
        Ok(())
    }

    /// Frees a place and returns what was there.
    pub fn remove(&mut self, place: u32) -> Option<T> {
        let item = self.places.get_mut(place as usize)?.take()?;
        self.used = self.used.saturating_sub(1);
        Some(item)
    }

    /// Frees those of a range that are taken.
    pub fn clear(&mut self, range: Range<u32>) {
        let places = self.places.get_mut(range.start as usize..range.end as usize);
        for place in places.unwrap_or_default() {
            self.used = self.used.saturating_sub(place.take().is_some().into());
        }
    }

    /// Places of a range that are taken, and what is there; ends with the last
    /// one that is taken at all.
    pub fn taken(&self, range: Range<u32>) -> impl Iterator<Item = (u32, &T)> {
        let places = self.places.get(range.start as usize..range.end as usize);
        let taken = range.zip(places.unwrap_or_default());
        taken.filter_map(|(place, item)| Some((place, item.as_ref()?))).take(self.used as usize)
    }

    /// Places that are taken.
    pub fn used(&self) -> u32 {
        self.used
    }
}

impl Window {
    /// Frees the first of `pages` that is taken, and those that follow it and its
    /// reference. Returns how far it came, and what the first one's source was.
    pub fn remove_run(&mut self, pages: Range<u32>) -> Option<(Range<u32>, Option<Source>)> {
        let slots = self.places.get_mut(pages.start as usize..pages.end as usize)?;
        let free = slots.iter().take_while(|slot| slot.is_none()).count();
        let mut slots = slots.iter_mut().skip(free);
        let slot = slots.next()?;
        let source = slot.take()?.source;
        let (mut next, mut count) = (source, 1u32);
        for slot in slots {
            next = next.map(|s| Source { gref: s.gref.wrapping_add(1), ..s });
            if slot.as_ref().is_none_or(|mapping| mapping.source != next) {
                break;
            }
            *slot = None;
            count = count.saturating_add(1);
        }
        self.used = self.used.saturating_sub(count);
        let first = pages.start.saturating_add(u32::try_from(free).ok()?);
        Some((first..first.saturating_add(count), source))
    }

    /// Marks the mapping at `page` as revoked: it leads to `scratch`, writable,
    /// from now on. It stays one for DMA: the device, too, finds the scratch
    /// page there. Returns what it is now.
    pub fn revoke(&mut self, page: u32, scratch: u64) -> Option<Mapping> {
        let mapping = self.places.get_mut(page as usize)?.as_mut()?;
        *mapping = Mapping { source: None, frame: scratch, write: true, ..*mapping };
        Some(*mapping)
    }

    /// Mappings that were not revoked.
    pub fn live(&self) -> usize {
        self.places.iter().flatten().filter(|mapping| mapping.source.is_some()).count()
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
    let need = VALID | MAP | if write { WRITE } else { 0 } | if dma { DMA } else { 0 };
    if entry.has(need) && entry.grantee() == grantee { Ok(()) } else { Err(Error::PeerGrant) }
}
