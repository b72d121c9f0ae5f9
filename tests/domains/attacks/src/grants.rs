#![allow(unsafe_code)]
//! The own grant table, pages to grant, and pages of others in the window.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use domain_rt::{hypercall as rt, time};
use ring_proto::{
    DomainId, GrantRef, PAGE_SIZE,
    grant::GrantEntry,
    hypercall::{Error, GrantCopyOp},
    layout,
};

/// 64-bit words of a page.
pub const WORDS: usize = PAGE_SIZE / 8;

/// A page of memory that others may change at any time.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page(pub [AtomicU64; WORDS]);

impl Page {
    /// A page of the heap that is never given back.
    pub fn new(fill: u64) -> &'static Self {
        Box::leak(Box::new(Self([const { AtomicU64::new(0) }; WORDS]))).filled(fill)
    }

    /// The same page with `fill` in all words.
    pub fn filled(&self, fill: u64) -> &Self {
        self.0.iter().for_each(|word| word.store(fill, Ordering::SeqCst));
        self
    }

    /// Whether any word is `value`.
    pub fn has(&self, value: u64) -> bool {
        self.0.iter().any(|word| word.load(Ordering::SeqCst) == value)
    }

    /// Whether all words are `value`.
    pub fn is(&self, value: u64) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == value)
    }

    /// Its guest-physical address.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}

/// Writes an entry of the own grant table.
///
/// # Panics
///
/// If there is none of that number.
pub fn offer(gref: GrantRef, entry: GrantEntry) {
    assert!(gref < domain_rt::boot().grant_entries, "no entry {gref}");
    let word = (layout::GRANT_TABLE + u64::from(gref) * 8) as *mut u64;
    // SAFETY: in the grant table, which is mapped for the domain's whole life
    // and accessed by atomics only.
    unsafe { AtomicU64::from_ptr(word) }.store(entry.0, Ordering::SeqCst);
}

/// Address of a page of the grant window.
pub fn window_address(page: u32) -> u64 {
    layout::GRANT_WINDOW + u64::from(page) * PAGE_SIZE as u64
}

/// A page of the window.
///
/// # Safety
///
/// A grant was mapped there and not unmapped since; writable if it is written.
pub unsafe fn window(page: u32) -> &'static Page {
    // SAFETY: mapped, as the caller vouches for; a page of atomics.
    unsafe { &*(window_address(page) as *const Page) }
}

/// Maps one grant.
pub fn map(granter: DomainId, gref: GrantRef, page: u32, flags: u64) -> Result<(), Error> {
    rt::grant_map(granter, gref, 1, window_address(page), flags)
}

/// Copies eight bytes between `word` and a copy grant.
pub fn copy(peer: DomainId, gref: GrantRef, word: &AtomicU64, to_grant: bool) -> Result<(), Error> {
    let operation = GrantCopyOp {
        peer,
        to_grant: to_grant.into(),
        gref,
        offset: 0,
        len: 8,
        local: word.as_ptr() as u64,
    };
    // SAFETY: what may be overwritten is an atomic.
    unsafe { rt::grant_copy(&[operation]) }.map(drop)
}

/// Waits until `done`, and looks every millisecond; panics after `seconds`.
pub fn wait_for(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let deadline = time::now_ns() + seconds * 1000 * time::MS;
    while !done() {
        assert!(time::now_ns() < deadline, "waited in vain for {what}");
        pause();
    }
}

/// Sleeps for a millisecond.
pub fn pause() {
    let _ = domain_rt::events::take_all();
    domain_rt::events::wait(time::now_ns() + time::MS);
}
