//! What a program sees at a window address.
//!
//! A program of the simulation has no page table between itself and memory:
//! the view that it got of a mapped page is a pointer to the granter's frame.
//! While the mapping stands that is what it is to see. A page that was revoked
//! or unmapped meanwhile is put right for as long as the program runs: its
//! frame's bytes are put aside, and the scratch page's bytes, or poison, take
//! their place. Only one program runs at a time, so nobody else can tell. Real
//! page tables (as in `ring-ends/tests/sim`) cost two system calls for every
//! mapping, which is more than a whole run here.

use ring_proto::{DomainId, PAGE_SIZE};

use super::{Hv, PAGE};
use crate::report::rule;

/// What an unmapped page shows; nothing takes it for good data.
const POISON: u8 = 0xdb;
/// Times that a program runs until nothing is expected to look at a page that
/// it unmapped.
const ATTENTION: u32 = 4;

/// A page that a program may still look at.
#[derive(Debug)]
pub(crate) struct View {
    /// What its pointer leads to.
    frame: u64,
    /// Its page of the window.
    page: u32,
    shows: Shows,
    /// The frame's own bytes while the program runs.
    aside: Box<[u8; PAGE_SIZE]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// The granter's scratch page.
    Scratch(u64),
    /// Nothing: the page is not mapped. Runs left to look out for it.
    Nothing(u32),
}

impl Hv {
    fn add_view(&mut self, domain: DomainId, page: u32, frame: u64, shows: Shows) {
        debug_assert!(!self.guests[domain].entered);
        let views = &mut self.guests[domain].views;
        // An earlier view of the page or the frame is over.
        views.retain(|view| view.frame != frame && view.page != page);
        views.push(View { frame, page, shows, aside: Box::new([0; PAGE_SIZE]) });
    }

    pub(super) fn view_mapped(&mut self, domain: DomainId, frame: u64) {
        debug_assert!(!self.guests[domain].entered);
        self.guests[domain].views.retain(|view| view.frame != frame);
    }

    pub(super) fn view_revoked(&mut self, domain: DomainId, page: u32, frame: u64, scratch: u64) {
        self.add_view(domain, page, frame, Shows::Scratch(scratch));
    }

    pub(super) fn view_unmapped(&mut self, domain: DomainId, page: u32, frame: u64) {
        // Of a revoked page the view has another frame than the mapping.
        let views = &self.guests[domain].views;
        let frame = views.iter().find(|view| view.page == page).map_or(frame, |view| view.frame);
        self.add_view(domain, page, frame, Shows::Nothing(ATTENTION));
    }

    /// The domain's program is about to run.
    pub(crate) fn enter(&mut self, domain: DomainId) {
        let (guests, ram) = (&mut self.guests, &self.ram);
        let guest = &mut guests[domain];
        debug_assert!(!guest.entered);
        guest.entered = true;
        for view in &mut guest.views {
            let frame = ram.at(view.frame, PAGE);
            let mut shown = [POISON; PAGE_SIZE];
            let mut copied = frame.copy_from(0, &mut view.aside[..]);
            if let Shows::Scratch(scratch) = view.shows {
                copied = copied.and(ram.at(scratch, PAGE).copy_from(0, &mut shown));
            }
            copied = copied.and(frame.copy_to(0, &shown));
            debug_assert!(copied.is_ok());
        }
    }

    /// The domain's program stands still; others may run.
    pub(crate) fn leave(&mut self, domain: DomainId) {
        let (guests, ram) = (&mut self.guests, &self.ram);
        let guest = &mut guests[domain];
        if !std::mem::take(&mut guest.entered) {
            return;
        }
        for view in guest.views.iter_mut().rev() {
            let frame = ram.at(view.frame, PAGE);
            let mut shown = [0; PAGE_SIZE];
            let mut copied = frame.copy_from(0, &mut shown);
            match &mut view.shows {
                Shows::Scratch(scratch) => {
                    copied = copied.and(ram.at(*scratch, PAGE).copy_to(0, &shown));
                }
                Shows::Nothing(left) => {
                    let intact = shown.iter().all(|&byte| byte == POISON);
                    rule!(intact, "domain {domain} wrote to a page that it has not mapped");
                    *left -= 1;
                }
            }
            copied = copied.and(frame.copy_to(0, &view.aside[..]));
            debug_assert!(copied.is_ok());
        }
        guest.views.retain(|view| view.shows != Shows::Nothing(0));
    }
}
