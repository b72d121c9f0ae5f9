//! Whether a mapping that was found in a table is one that should be there.
//!
//! The hypervisor walks the hardware's tables and shows every leaf to these
//! functions; they compare it with regions and grants.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "addresses within regions, and counts of pages"
)]

use ring_proto::{DomainId, GrantRef, PAGE_SIZE, layout};

use crate::{
    grants::Window,
    memory::{Kind, Space},
};

const PAGE: u64 = PAGE_SIZE as u64;

/// A leaf of a nested or IOMMU table, one page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Guest-physical or I/O virtual address.
    pub gpa: u64,
    /// Machine address.
    pub hpa: u64,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
}

/// The window page that `gpa` is, if it is one.
fn window_page(window: &Window, gpa: u64) -> Option<u32> {
    let page = u32::try_from(gpa.checked_sub(layout::GRANT_WINDOW)? / PAGE).ok()?;
    (page < window.len()).then_some(page)
}

/// Whether a leaf of a domain's nested table is right.
pub fn nested_leaf(space: &Space, window: &Window, leaf: Leaf) -> bool {
    let right = match window_page(window, leaf.gpa) {
        Some(page) => window.get(page).map(|m| (m.frame, m.write, false)),
        None => space.region(leaf.gpa).map(|r| (r.hpa + (leaf.gpa - r.gpa), r.write, r.execute)),
    };
    right == Some((leaf.hpa, leaf.write, leaf.execute)) && !(leaf.write && leaf.execute)
}

/// Whether a leaf of a domain's IOMMU table is right: DMA pool, a live DMA grant, or the
/// granter's scratch page in the place of a revoked one.
pub fn iommu_leaf(space: &Space, window: &Window, leaf: Leaf) -> bool {
    let reached = match window_page(window, leaf.gpa) {
        Some(page) => window.get(page).filter(|m| m.dma).map(|m| (m.frame, m.write)),
        None => {
            let pool = space.region(leaf.gpa).filter(|r| r.kind == Kind::DmaPool);
            pool.map(|r| (r.hpa + (leaf.gpa - r.gpa), true))
        }
    };
    reached.is_some_and(|(hpa, write)| leaf.hpa == hpa && (write || !leaf.write))
}

/// Pages that a domain's nested table should have.
pub fn nested_pages(space: &Space, window: &Window) -> u64 {
    space.regions().iter().map(|r| r.len / PAGE).sum::<u64>() + u64::from(window.used())
}

/// Whether the window agrees with the granters' tables: `mapped_at` answers
/// who has a reference mapped and at which page.
pub fn window_agrees(
    window: &Window,
    grantee: DomainId,
    mapped_at: impl Fn(DomainId, GrantRef) -> Option<(DomainId, u32)>,
) -> u64 {
    (0..window.len())
        .filter(|&page| {
            let source = window.get(page).and_then(|m| m.source);
            source.is_some_and(|s| mapped_at(s.granter, s.gref) != Some((grantee, page)))
        })
        .count() as u64
}
