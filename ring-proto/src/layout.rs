//! The guest-physical address space of a unikernel domain.
//!
//! A domain runs with an identity mapping (virtual = guest-physical) that the
//! hypervisor builds in [`PAGE_TABLES`] with 1 GiB pages over the whole of
//! [`ADDRESS_SPACE`]. All protection is in the nested page tables, where the
//! domain cannot change it: what is not listed here is not mapped.
//!
//! For a domain with a device the I/O virtual address of DMA memory equals its
//! guest-physical address.

/// First page of the boot information, mapped read-only. See [`crate::boot::BootInfo`].
pub const BOOT_INFO: u64 = 0x10_0000;
/// The event page, read-write. See [`crate::event::EventPage`].
pub const EVENT_PAGE: u64 = 0x10_1000;
/// Two pages of guest page tables (PML4, PDPT), read-write.
pub const PAGE_TABLES: u64 = 0x10_2000;
/// Connection pages: connection slot `i` of a domain has its own end's page
/// (read-write) at `CONNECTIONS + i * 0x2000` and the peer's page (read-only)
/// one page after it.
pub const CONNECTIONS: u64 = 0x12_0000;
/// The domain's grant table, read-write: [`crate::grant::GrantEntry`] words.
pub const GRANT_TABLE: u64 = 0x14_0000;
/// Where images are linked: text first, then read-only data, then data, bss, stack.
pub const IMAGE_BASE: u64 = 0x20_0000;
/// End of the space for images (exclusive).
pub const IMAGE_END: u64 = 0x1000_0000;
/// The heap, read-write, 2 MiB aligned: all memory that the manifest gives the
/// domain and that nothing else uses.
pub const HEAP: u64 = 0x1000_0000;
/// The DMA pool, read-write for CPU and device.
pub const DMA_POOL: u64 = 0x20_0000_0000;
/// Where the BARs of device slot `i` appear: BAR `b` at
/// `BARS + i * BAR_SLOT_STRIDE + b * BAR_STRIDE`. Pages that hold the MSI-X
/// table or PBA are left out.
pub const BARS: u64 = 0x30_0000_0000;
/// Distance between the BAR windows of two device slots.
pub const BAR_SLOT_STRIDE: u64 = 0x1_0000_0000;
/// Distance between two BARs of one device; larger BARs are mapped up to here.
pub const BAR_STRIDE: u64 = 0x1000_0000;
/// Address of BAR `bar` of device slot `slot`.
#[must_use]
pub const fn bar(slot: usize, bar: usize) -> u64 {
    let slot = (slot as u64).saturating_mul(BAR_SLOT_STRIDE);
    BARS.saturating_add(slot).saturating_add((bar as u64).saturating_mul(BAR_STRIDE))
}
/// Where the domain may map grants: pages `0..BootInfo::grant_window_pages`.
pub const GRANT_WINDOW: u64 = 0x40_0000_0000;
/// End of the identity map (exclusive): 512 GiB.
pub const ADDRESS_SPACE: u64 = 0x80_0000_0000;
