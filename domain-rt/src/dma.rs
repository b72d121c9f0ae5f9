#![allow(unsafe_code)]
//! The DMA pool: memory of this domain that its device may reach.
//!
//! Pool memory is only ever touched as [`SharedMem`], never by reference, for
//! the device may write it at any moment. Addresses are the same for the
//! device as for the CPU.

use core::ptr::NonNull;

use ring_proto::{PAGE_SIZE, layout, shm::SharedMem};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::{ranges::Ranges, single::Single, start::boot};

const PAGE: u64 = PAGE_SIZE as u64;

static POOL: Single<Option<Ranges>> = Single::new(None);

fn with_pool<R>(f: impl FnOnce(&mut Ranges) -> R) -> R {
    POOL.with(|pool| {
        f(pool.get_or_insert_with(|| {
            let pages = boot().dma_len / PAGE;
            Ranges::new(0..u32::try_from(pages).unwrap_or(u32::MAX))
        }))
    })
}

/// Address of a page of the pool.
fn page_address(page: u32) -> u64 {
    layout::DMA_POOL.saturating_add(u64::from(page).saturating_mul(PAGE_SIZE as u64))
}

/// Zeroed pool memory of at least `len` bytes, page aligned. A life begins with a
/// zeroed pool, and what comes back is cleared then: a driver that takes over
/// does not spend its time on it.
pub fn alloc(len: usize) -> Option<SharedMem> {
    let pages = u32::try_from(len.div_ceil(PAGE_SIZE)).ok()?;
    let first = with_pool(|pool| pool.alloc(pages))?;
    let address = page_address(first);
    let len = (pages as usize).saturating_mul(PAGE_SIZE);
    // SAFETY: the pool is mapped for the domain's whole life, and no Rust
    // reference is ever made to it.
    Some(unsafe { SharedMem::new(address as *mut u8, len) })
}

/// Gives memory of [`alloc()`] back. The device must be done with it.
pub fn free(memory: SharedMem) {
    let offset = memory.address().wrapping_sub(layout::DMA_POOL);
    let first = u32::try_from(offset / PAGE);
    let pages = u32::try_from(memory.len() / PAGE_SIZE);
    // Both fit: what is given back was in the pool.
    if let (Ok(first), Ok(pages)) = (first, pages) {
        memory.clear();
        with_pool(|pool| pool.free(first..first.saturating_add(pages)));
    }
}

/// Copies between two shared regions, which must not overlap; `false` if a
/// range is out of bounds.
#[must_use]
pub fn copy(from: SharedMem, to: SharedMem) -> bool {
    if from.len() > to.len() {
        return false;
    }
    // SAFETY: both views are valid for the length; in assembly, so that the
    // compiler assumes nothing about bytes that others write meanwhile.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) from.len() & 7,
            inout("rcx") from.len() >> 3 => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_ptr() => _,
            options(nostack, preserves_flags)
        );
    }
    true
}

/// Whether the device reaches `address` as it is: pool or granted memory.
fn reachable(address: u64) -> bool {
    let boot = boot();
    let pool = layout::DMA_POOL..layout::DMA_POOL.saturating_add(boot.dma_len);
    let window = u64::from(boot.grant_window_pages).saturating_mul(PAGE_SIZE as u64);
    let window = layout::GRANT_WINDOW..layout::GRANT_WINDOW.saturating_add(window);
    pool.contains(&address) || window.contains(&address)
}

/// What `virtio-drivers` asks of its platform.
#[derive(Debug)]
pub struct DmaHal;

fn view(buffer: NonNull<[u8]>) -> SharedMem {
    // SAFETY: the callers of `share` and `unshare` vouch for the buffer; the
    // view does not outlive the call.
    unsafe { SharedMem::new(buffer.as_ptr().cast(), buffer.len()) }
}

// SAFETY: memory of the pool is handed out once until it is freed, zeroed and
// page aligned; MMIO addresses lie in BAR windows, which are mapped as they are.
unsafe impl Hal for DmaHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = pages.checked_mul(PAGE_SIZE).and_then(alloc);
        match memory.and_then(|m| Some((m.address(), NonNull::new(m.as_ptr())?))) {
            Some(memory) => memory,
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(address: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        let len = pages.saturating_mul(PAGE_SIZE);
        // SAFETY: the caller got this memory from `dma_alloc`.
        free(unsafe { SharedMem::new(address as *mut u8, len) });
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let own = view(buffer);
        if reachable(own.address()) {
            return own.address();
        }
        let Some(bounce) = alloc(buffer.len()) else {
            // Not an address of the pool, so the device's access fails.
            log::error!("no DMA memory for {} bytes", buffer.len());
            return 0;
        };
        if direction != BufferDirection::DeviceToDriver {
            let _ = copy(own, bounce);
        }
        bounce.address()
    }

    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let own = view(buffer);
        if address == own.address() || address == 0 {
            return;
        }
        let len = own.len().next_multiple_of(PAGE_SIZE);
        // SAFETY: `share` allocated it with this length.
        let bounce = unsafe { SharedMem::new(address as *mut u8, len) };
        if direction != BufferDirection::DriverToDevice
            && let Some(filled) = bounce.sub(0, own.len())
        {
            let _ = copy(filled, own);
        }
        free(bounce);
    }
}
