//! Where each page of a domain lies: guest-physical and machine addresses.
//!
//! A domain's memory is one machine extent, cut into regions in an order that
//! keeps the heap 2 MiB aligned. Connection pages and BARs are regions too,
//! whose frames belong to the hypervisor or the device.

use alloc::vec::Vec;

use ring_proto::{
    PAGE_SIZE,
    bundle::{Domain, Image},
    layout,
};

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages that every domain has beside image, heap and DMA pool: boot
/// information, event page, two page-table pages, scratch page.
const FIXED_PAGES: u64 = 5;
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
    for s in &image.segments {
        sum = sum.checked_add(s.memory_len)?;
    }
    sum.checked_add(domain.dma_pool)
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
}

#[expect(clippy::arithmetic_side_effects, reason = "an address in a region is not below its start")]
impl Space {
    /// Lays out `domain` in the extent at machine address `base`, which must be
    /// 2 MiB aligned. `None` if the manifest was not validated.
    pub fn new(domain: &Domain, image: &Image, base: u64) -> Option<Self> {
        let heap_len = domain.memory.checked_sub(fixed_bytes(domain, image)?)?;
        let mut regions = Vec::with_capacity(16 + 2 * ring_proto::MAX_DOMAIN_CONNECTIONS + 16);
        let mut next = base;
        let mut add = |gpa, len: u64, write, execute, kind| {
            if len > 0 {
                regions.push(Region { gpa, hpa: next, len, write, execute, kind });
                next += len;
            }
        };
        add(layout::HEAP, heap_len, true, false, Kind::Heap);
        add(layout::DMA_POOL, domain.dma_pool, true, false, Kind::DmaPool);
        for (i, s) in image.segments.iter().enumerate() {
            add(s.address, s.memory_len, s.write, s.execute, Kind::Image(i));
        }
        add(layout::BOOT_INFO, PAGE, false, false, Kind::BootInfo);
        add(layout::EVENT_PAGE, PAGE, true, false, Kind::Event);
        add(layout::PAGE_TABLES, 2 * PAGE, true, false, Kind::PageTables);
        add(
            layout::GRANT_TABLE,
            grant_table_bytes(domain.grant_entries),
            true,
            false,
            Kind::GrantTable,
        );
        let scratch = next;
        regions.sort_by_key(|r| r.gpa);
        Some(Self { regions, base, len: domain.memory, scratch, heap_len })
    }

    /// Adds a region of foreign frames (connection page, BAR), never to be
    /// executed, while the node is being built.
    pub fn add_foreign(&mut self, gpa: u64, hpa: u64, len: u64, write: bool, kind: Kind) {
        let at = self.regions.partition_point(|r| r.gpa < gpa);
        self.regions.insert(at, Region { gpa, hpa, len, write, execute: false, kind });
    }

    /// Moves to another extent of the same size: own memory lies there from now
    /// on; foreign frames stay where they are.
    pub fn rebase(&mut self, base: u64) {
        let old = core::mem::replace(&mut self.base, base);
        for r in self.regions.iter_mut().filter(|r| r.is_own_memory()) {
            r.hpa = r.hpa - old + base;
        }
        self.scratch = self.scratch - old + base;
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
        let r = self.region(gpa)?;
        (r.is_grantable() && gpa.is_multiple_of(PAGE)).then_some(r.hpa + (gpa - r.gpa))
    }

    /// The region of a given purpose.
    pub fn find(&self, kind: Kind) -> Option<&Region> {
        self.regions.iter().find(|r| r.kind == kind)
    }
}
