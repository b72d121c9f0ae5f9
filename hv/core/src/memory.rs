//! Where each page of a domain lies: guest-physical and machine addresses.
//!
//! A domain's memory is one machine extent, cut into regions in an order that
//! keeps the heap 2 MiB aligned. Connection pages and BARs are regions too,
//! whose frames belong to the hypervisor or the device.

use alloc::vec::Vec;

use ring_proto::{
    MAX_DOMAIN_CONNECTIONS, MAX_DOMAIN_DEVICES, PAGE_SIZE,
    bundle::{Domain, Image, MAX_SEGMENTS},
    layout,
};

use crate::bundle::{Problem, demand};

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages that every domain has beside image, heap and DMA pool: boot
/// information, event page, two page-table pages, scratch page.
const FIXED_PAGES: u64 = 5;
/// Most regions: own ones, connection pages, pieces of BARs around withheld pages.
const REGIONS: usize = 6 + MAX_SEGMENTS + 2 * MAX_DOMAIN_CONNECTIONS + MAX_DOMAIN_DEVICES * 6 * 3;
/// Least heap.
const LEAST_HEAP: u64 = 64 << 10;

/// What a region is for; decides who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A segment of the image, by index.
    Image(usize),
    /// [`layout::HEAP`].
    Heap,
    /// [`layout::DMA_POOL`].
    DmaPool,
    /// [`layout::BOOT_INFO`].
    BootInfo,
    /// [`layout::EVENT_PAGE`].
    Event,
    /// [`layout::PAGE_TABLES`].
    PageTables,
    /// [`layout::GRANT_TABLE`].
    GrantTable,
    /// A page of a connection; not the domain's memory.
    Connection,
    /// A device's registers; not memory at all.
    Bar,
}

/// A run of pages with one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub gpa: u64,
    /// Machine address.
    pub hpa: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// The domain may write.
    pub write: bool,
    /// The domain may execute.
    pub execute: bool,
    /// Purpose.
    pub kind: Kind,
}

impl Region {
    /// Whether the frames belong to the domain, so that the hypervisor may
    /// follow the domain's pointers into them.
    pub fn is_own_memory(&self) -> bool {
        !matches!(self.kind, Kind::Connection | Kind::Bar)
    }

    /// Whether everybody who writes there leaves a mark in the nested table:
    /// not the domain's device, and not the hypervisor where it writes often.
    pub fn is_marked(&self) -> bool {
        !matches!(self.kind, Kind::DmaPool | Kind::BootInfo | Kind::Event | Kind::PageTables)
    }

    /// Whether pages of it may be granted.
    pub fn is_grantable(&self) -> bool {
        match self.kind {
            Kind::Heap | Kind::DmaPool => true,
            Kind::Image(_) => self.write,
            _ => false,
        }
    }

    /// Machine address of the page at `gpa`, if it is one of these and may be granted.
    #[inline]
    pub fn grantable_page(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.checked_sub(self.gpa).filter(|offset| *offset < self.len)?;
        let fits = self.is_grantable() && gpa.is_multiple_of(PAGE);
        fits.then_some(self.hpa.saturating_add(offset))
    }
}

/// Bytes of a grant table with `entries` words.
pub const fn grant_table_bytes(entries: u32) -> u64 {
    (entries as u64).saturating_mul(8).next_multiple_of(PAGE)
}

/// Least memory for `domain` with `image`; `None` on overflow.
pub fn least_memory(domain: &Domain, image: &Image) -> Option<u64> {
    fixed_bytes(domain, image)?.checked_add(LEAST_HEAP)
}

fn fixed_bytes(domain: &Domain, image: &Image) -> Option<u64> {
    let mut sum = (FIXED_PAGES * PAGE).checked_add(grant_table_bytes(domain.grant_entries))?;
    sum = sum.checked_add(image_room(domain, image)?)?;
    sum.checked_add(domain.dma_pool)
}

/// Memory set aside for a domain's image: whichever it runs, all else stays where it is.
fn image_room(domain: &Domain, image: &Image) -> Option<u64> {
    let mut lens = image.segments.iter().map(|s| s.memory_len);
    Some(lens.try_fold(0, u64::checked_add)?.max(domain.update_space))
}

/// Whether an image fits into the space for updates, if there is one.
pub(crate) fn check_room(domain: &Domain, image: &Image) -> Result<(), Problem> {
    let fits = image_room(domain, image) == Some(domain.update_space);
    demand(fits || domain.update_space == 0, "the image takes more than the space for updates")
}

/// The memory of one domain.
#[derive(Clone, Debug)]
pub struct Space {
    /// Sorted by guest-physical address.
    regions: Vec<Region>,
    /// Machine address of the whole extent.
    pub base: u64,
    /// Bytes of the whole extent.
    pub len: u64,
    /// Machine address of the scratch page that mappings of its pages point at
    /// once it revoked them. No address of its own leads there.
    pub scratch: u64,
    /// Bytes of heap.
    pub heap_len: u64,
    /// Machine address of the image's room.
    image_at: u64,
}

#[expect(clippy::arithmetic_side_effects, reason = "an address in a region is not below its start")]
impl Space {
    /// Lays out `domain` in the extent at machine address `base`, which must be
    /// 2 MiB aligned. `None` if the manifest was not validated.
    pub fn new(domain: &Domain, image: &Image, base: u64) -> Option<Self> {
        let heap_len = domain.memory.checked_sub(fixed_bytes(domain, image)?)?;
        let mut regions = Vec::with_capacity(REGIONS);
        let mut next = base;
        let image_at = base + heap_len + domain.dma_pool;
        let grants = grant_table_bytes(domain.grant_entries);
        for (kind, gpa, len) in [
            (Kind::Heap, layout::HEAP, heap_len),
            (Kind::DmaPool, layout::DMA_POOL, domain.dma_pool),
            // Not a region as a whole: its segments are.
            (Kind::Image(0), 0, image_room(domain, image)?),
            (Kind::BootInfo, layout::BOOT_INFO, PAGE),
            (Kind::Event, layout::EVENT_PAGE, PAGE),
            (Kind::PageTables, layout::PAGE_TABLES, 2 * PAGE),
            (Kind::GrantTable, layout::GRANT_TABLE, grants),
        ] {
            let write = kind != Kind::BootInfo;
            if len > 0 {
                regions.push(Region { gpa, hpa: next, len, write, execute: false, kind });
            }
            next += len;
        }
        let scratch = next;
        let mut this = Self { regions, base, len: domain.memory, scratch, heap_len, image_at };
        this.set_image(image);
        Some(this)
    }

    /// Lays out a validated image in the room for it, in place of the one before.
    /// Allocates nothing.
    pub fn set_image(&mut self, image: &Image) {
        self.regions.retain(|r| !matches!(r.kind, Kind::Image(_)));
        let mut hpa = self.image_at;
        for (i, s) in image.segments.iter().enumerate() {
            let (gpa, len, write, execute) = (s.address, s.memory_len, s.write, s.execute);
            self.regions.push(Region { gpa, hpa, len, write, execute, kind: Kind::Image(i) });
            hpa += len;
        }
        self.regions.sort_unstable_by_key(|r| r.gpa);
    }

    /// Adds a region of foreign frames (connection page, BAR), never to be
    /// executed, while the node is being built. It becomes part of one that it
    /// continues.
    pub fn add_foreign(&mut self, gpa: u64, hpa: u64, len: u64, write: bool, kind: Kind) {
        let at = self.regions.partition_point(|r| r.gpa < gpa);
        let new = Region { gpa, hpa, len, write, execute: false, kind };
        match at.checked_sub(1).and_then(|before| self.regions.get_mut(before)) {
            Some(r) if (Region { gpa: r.gpa + r.len, hpa: r.hpa + r.len, len, ..*r }) == new => {
                r.len += len;
            }
            _ => self.regions.insert(at, new),
        }
    }

    /// Hands its foreign regions to a space that has none. Allocates nothing.
    pub fn give_foreign(&mut self, to: &mut Self) {
        for r in self.regions.iter().filter(|r| !r.is_own_memory()) {
            to.add_foreign(r.gpa, r.hpa, r.len, r.write, r.kind);
        }
        self.regions.retain(Region::is_own_memory);
    }

    /// All regions in order of guest-physical address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region that holds `gpa`.
    pub fn region(&self, gpa: u64) -> Option<&Region> {
        let at = self.regions.partition_point(|r| r.gpa <= gpa);
        let r = self.regions.get(at.checked_sub(1)?)?;
        (gpa - r.gpa < r.len).then_some(r)
    }

    /// The region of the domain's own memory that holds `gpa`, or the next one.
    pub fn own_from(&self, gpa: u64) -> Option<&Region> {
        self.regions.iter().find(|r| r.is_own_memory() && gpa < r.gpa + r.len)
    }

    /// Machine address of `len` bytes at `gpa`, if they lie in one region of
    /// the domain's own memory, writable where `write` is asked for.
    pub fn translate(&self, gpa: u64, len: u64, write: bool) -> Option<u64> {
        let r = self.region(gpa)?;
        let offset = gpa - r.gpa;
        let fits = len <= r.len - offset;
        (fits && r.is_own_memory() && (r.write || !write)).then_some(r.hpa + offset)
    }

    /// Machine address of the grantable page at `gpa`.
    pub fn grantable_page(&self, gpa: u64) -> Option<u64> {
        self.region(gpa)?.grantable_page(gpa)
    }

    /// The region of a given purpose.
    pub fn find(&self, kind: Kind) -> Option<&Region> {
        self.regions.iter().find(|r| r.kind == kind)
    }
}
