//! A simulated machine: frames, grants, mappings, revocation, events, time.
//!
//! Frames live in a memfd. A grantee's window is a range of address space in
//! which `map` puts the granter's frames, `revoke` scratch pages full of junk,
//! and `unmap` nothing at all, so that a use after unmapping ends the test.
#![allow(unsafe_code, dead_code, missing_docs)]

pub mod blk;
pub mod honest;
pub mod hostile;
pub mod net;
pub mod rng;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use ring_ends::{Env, Region};
use ring_proto::conn::{self, Pages};
use ring_proto::grant;
use ring_proto::hypercall::{Error, MAP_DMA, MAP_WRITE};
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, GrantRef, PAGE_SIZE, Port};

pub const FRONT: DomainId = 1;
pub const BACK: DomainId = 2;
/// Frames 0 and 1: the end pages.
pub const FRONT_PAGE: usize = 0;
pub const BACK_PAGE: usize = 1;
pub const FRAMES: usize = 64;
pub const WINDOW_PAGES: usize = 1024;
pub const PORT: Port = 16;

/// A domain dies here: thrown through its code by an environment call.
pub struct Crash;

#[derive(Clone, Copy)]
struct Grant {
    frame: usize,
    grantee: DomainId,
    flags: u64,
}

#[derive(Clone, Copy)]
struct Mapping {
    granter: DomainId,
    gref: GrantRef,
    frame: usize,
    dma: bool,
    revoked: bool,
}

struct Machine {
    fd: i32,
    frames: *mut u8,
    window: *mut u8,
    grants: HashMap<(DomainId, GrantRef), Grant>,
    /// Of the backend, by window page.
    mappings: HashMap<u32, Mapping>,
    now: u64,
    /// The hypervisor's truth; what stands in the end pages, their owners can write.
    generations: HashMap<DomainId, u32>,
    events: HashSet<DomainId>,
    /// Environment calls by domain.
    calls: HashMap<DomainId, u64>,
    /// The backend dies at this call.
    crash_at: Option<u64>,
    complaints: u64,
    junk: u64,
}

#[derive(Clone)]
pub struct Sim(Rc<RefCell<Machine>>);

/// The machine as one domain sees it.
#[derive(Clone)]
pub struct SimEnv {
    sim: Sim,
    me: DomainId,
}

fn mmap(at: *mut u8, pages: usize, prot: i32, flags: i32, fd: i32, frame: usize) -> *mut u8 {
    // SAFETY: fresh address space, or MAP_FIXED over a range of our own in
    // which only SharedMem views point.
    let p = unsafe {
        libc::mmap(at.cast(), pages * PAGE_SIZE, prot, flags, fd, (frame * PAGE_SIZE) as i64)
    };
    assert_ne!(p, libc::MAP_FAILED, "mmap");
    p.cast()
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: our own mappings and descriptor; the views end with the test.
        unsafe {
            libc::munmap(self.frames.cast(), FRAMES * PAGE_SIZE);
            libc::munmap(self.window.cast(), WINDOW_PAGES * PAGE_SIZE);
            libc::close(self.fd);
        }
    }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FIXED: i32 = libc::MAP_FIXED;
const ANON: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

impl Sim {
    pub fn new() -> Self {
        // SAFETY: plain system calls with a literal name.
        let fd = unsafe { libc::memfd_create(c"frames".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd_create");
        // SAFETY: our own descriptor.
        assert_eq!(unsafe { libc::ftruncate(fd, (FRAMES * PAGE_SIZE) as i64) }, 0);
        let null = std::ptr::null_mut();
        let frames = mmap(null, FRAMES, RW, libc::MAP_SHARED, fd, 0);
        let window = mmap(null, WINDOW_PAGES, libc::PROT_NONE, ANON, -1, 0);
        let sim = Self(Rc::new(RefCell::new(Machine {
            fd,
            frames,
            window,
            grants: HashMap::new(),
            mappings: HashMap::new(),
            now: 1,
            generations: HashMap::from([(FRONT, 1), (BACK, 1)]),
            events: HashSet::new(),
            calls: HashMap::new(),
            crash_at: None,
            complaints: 0,
            junk: 0x1234_5678_9abc_def1,
        })));
        sim.frame(FRONT_PAGE).write_u32(4, 1, Relaxed);
        sim.frame(BACK_PAGE).write_u32(4, 1, Relaxed);
        sim
    }

    pub fn env(&self, me: DomainId) -> SimEnv {
        SimEnv { sim: self.clone(), me }
    }

    pub fn frames(&self, first: usize, count: usize) -> SharedMem {
        assert!(first + count <= FRAMES);
        // SAFETY: within the frames' mapping, which lives as long as the
        // machine, and only views point there.
        unsafe { SharedMem::new(self.0.borrow().frames.add(first * PAGE_SIZE), count * PAGE_SIZE) }
    }

    pub fn frame(&self, n: usize) -> SharedMem {
        self.frames(n, 1)
    }

    /// Frames with grants numbered like them.
    pub fn region(&self, first: usize, count: usize) -> Region {
        Region { mem: self.frames(first, count), first: first as u32 }
    }

    pub fn pages(&self, me: DomainId) -> Pages {
        let (own, peer) =
            if me == FRONT { (FRONT_PAGE, BACK_PAGE) } else { (BACK_PAGE, FRONT_PAGE) };
        Pages::new(self.frame(own), self.frame(peer)).unwrap()
    }

    pub fn now(&self) -> u64 {
        self.0.borrow().now
    }

    pub fn advance(&self, ns: u64) {
        self.0.borrow_mut().now += ns;
    }

    pub fn take_event(&self, domain: DomainId) -> bool {
        self.0.borrow_mut().events.remove(&domain)
    }

    pub fn has_event(&self, domain: DomainId) -> bool {
        self.0.borrow().events.contains(&domain)
    }

    pub fn calls(&self, domain: DomainId) -> u64 {
        self.0.borrow().calls.get(&domain).copied().unwrap_or(0)
    }

    /// How often the frontend complained.
    pub fn complaints(&self) -> u64 {
        self.0.borrow().complaints
    }

    /// The backend dies at its `n`-th environment call from now.
    pub fn crash_after(&self, n: u64) {
        let at = self.calls(BACK) + n;
        self.0.borrow_mut().crash_at = Some(at);
    }

    pub fn mapped_pages(&self) -> usize {
        self.0.borrow().mappings.len()
    }

    pub fn granted_pages(&self) -> usize {
        self.0.borrow().grants.len()
    }

    /// What the hypervisor does when a generation of `domain` ends: first the
    /// page, then the memory, then the event.
    pub fn end_generation(&self, domain: DomainId) {
        let (page, peer) = if domain == FRONT { (FRONT_PAGE, BACK) } else { (BACK_PAGE, FRONT) };
        let page = self.frame(page);
        let generation = {
            let mut machine = self.0.borrow_mut();
            let generation = machine.generations.entry(domain).or_insert(0);
            *generation += 1;
            *generation
        };
        for (offset, word) in conn::closed(generation) {
            page.write_u32(offset, word, Release);
        }
        if domain == FRONT {
            let grefs: Vec<_> = self.0.borrow().grants.keys().copied().collect();
            for (granter, gref) in grefs {
                assert_eq!(granter, FRONT);
                self.revoke_one(FRONT, gref);
            }
        } else {
            let pages: Vec<_> = self.0.borrow().mappings.keys().copied().collect();
            for page in pages {
                self.unmap_one(page);
            }
        }
        let mut machine = self.0.borrow_mut();
        machine.crash_at = None;
        machine.events.remove(&domain);
        machine.events.insert(peer);
    }

    /// What the backend's device reaches at `address`: the memory, or nothing
    /// where the IOMMU blocks it.
    pub fn dma(&self, address: u64, len: usize) -> Option<SharedMem> {
        let machine = self.0.borrow();
        let at = address.checked_sub(machine.window as u64)? as usize;
        let last = at.checked_add(len.checked_sub(1)?)?;
        for page in at / PAGE_SIZE..=last / PAGE_SIZE {
            let mapping = machine.mappings.get(&(page as u32))?;
            if mapping.revoked || !mapping.dma {
                return None;
            }
        }
        // SAFETY: within mapped pages of the window.
        Some(unsafe { SharedMem::new(machine.window.add(at), len) })
    }

    /// Whether `address..+len` is in pages that are mapped, revoked or not.
    pub fn is_window(&self, address: u64, len: usize) -> bool {
        let machine = self.0.borrow();
        let Some(at) = address.checked_sub(machine.window as u64) else { return false };
        let pages = at as usize / PAGE_SIZE..(at as usize + len).div_ceil(PAGE_SIZE);
        pages.into_iter().all(|p| machine.mappings.contains_key(&(p as u32)))
    }

    /// A grant as a careless or hostile granter writes it.
    pub fn grant_anyhow(&self, granter: DomainId, gref: GrantRef, frame: usize, flags: u64) {
        let grantee = if granter == FRONT { BACK } else { FRONT };
        self.0.borrow_mut().grants.insert((granter, gref), Grant { frame, grantee, flags });
    }

    fn revoke_one(&self, granter: DomainId, gref: GrantRef) {
        let mut machine = self.0.borrow_mut();
        machine.grants.remove(&(granter, gref));
        let window = machine.window;
        let mut junk = machine.junk;
        for (page, mapping) in &mut machine.mappings {
            if mapping.granter == granter && mapping.gref == gref && !mapping.revoked {
                mapping.revoked = true;
                let at = window.wrapping_add(*page as usize * PAGE_SIZE);
                mmap(at, 1, RW, ANON | FIXED, -1, 0);
                // SAFETY: just mapped.
                let scratch = unsafe { SharedMem::new(at, PAGE_SIZE) };
                for word in (0..PAGE_SIZE).step_by(64) {
                    junk = junk.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    scratch.write_u32(word, (junk >> 33) as u32 & 0x3f, Relaxed);
                }
            }
        }
        machine.junk = junk;
    }

    fn unmap_one(&self, page: u32) -> bool {
        let mut machine = self.0.borrow_mut();
        if machine.mappings.remove(&page).is_none() {
            return false;
        }
        let at = machine.window.wrapping_add(page as usize * PAGE_SIZE);
        mmap(at, 1, libc::PROT_NONE, ANON | FIXED, -1, 0);
        true
    }
}

impl SimEnv {
    fn call(&self) {
        let mut machine = self.sim.0.borrow_mut();
        let calls = machine.calls.entry(self.me).or_insert(0);
        *calls += 1;
        let calls = *calls;
        if self.me == BACK && machine.crash_at.is_some_and(|at| calls > at) {
            drop(machine);
            // Not `panic!`: nothing went wrong, so nothing is printed.
            std::panic::resume_unwind(Box::new(Crash));
        }
    }
}

impl Env for SimEnv {
    fn now_ns(&self) -> u64 {
        self.sim.now()
    }

    fn notify(&mut self, port: Port) {
        self.call();
        assert_eq!(port, PORT);
        let peer = if self.me == FRONT { BACK } else { FRONT };
        self.sim.0.borrow_mut().events.insert(peer);
    }

    fn complain(&mut self, port: Port) {
        assert_eq!((self.me, port), (FRONT, PORT));
        self.sim.0.borrow_mut().complaints += 1;
    }

    fn grant(&mut self, gref: GrantRef, address: u64, grantee: DomainId, flags: u64) {
        let mut machine = self.sim.0.borrow_mut();
        let at = address.checked_sub(machine.frames as u64).unwrap() as usize;
        assert!(at.is_multiple_of(PAGE_SIZE) && at < FRAMES * PAGE_SIZE);
        let grant = Grant { frame: at / PAGE_SIZE, grantee, flags };
        let old = machine.grants.insert((self.me, gref), grant);
        assert!(old.is_none(), "GRANT-4: entry {gref} rewritten without revocation");
    }

    fn revoke(&mut self, first: GrantRef, count: u32) -> Result<(), Error> {
        self.call();
        for gref in first..first + count {
            self.sim.revoke_one(self.me, gref);
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
        self.call();
        let end = first.checked_add(count).ok_or(Error::PeerGrant)?;
        assert!(count > 0 && (window_page + count) as usize <= WINDOW_PAGES);
        let mut machine = self.sim.0.borrow_mut();
        let needs = grant::MAP
            | if flags & MAP_WRITE != 0 { grant::WRITE } else { 0 }
            | if flags & MAP_DMA != 0 { grant::DMA } else { 0 };
        for (gref, page) in (first..end).zip(window_page..) {
            let grant = machine.grants.get(&(granter, gref)).ok_or(Error::PeerGrant)?;
            if grant.grantee != self.me || grant.flags & needs != needs {
                return Err(Error::PeerGrant);
            }
            assert!(!machine.mappings.contains_key(&page), "window page {page} is in use");
        }
        for (gref, page) in (first..end).zip(window_page..) {
            let frame = machine.grants[&(granter, gref)].frame;
            let at = machine.window.wrapping_add(page as usize * PAGE_SIZE);
            mmap(at, 1, RW, libc::MAP_SHARED | FIXED, machine.fd, frame);
            let dma = flags & MAP_DMA != 0;
            let mapping = Mapping { granter, gref, frame, dma, revoked: false };
            machine.mappings.insert(page, mapping);
        }
        let at = machine.window.wrapping_add(window_page as usize * PAGE_SIZE);
        // SAFETY: just mapped; ends are to drop the view before they unmap.
        Ok(unsafe { SharedMem::new(at, count as usize * PAGE_SIZE) })
    }

    fn unmap(&mut self, window_page: u32, count: u32) -> Result<(), Error> {
        self.call();
        for page in window_page..window_page + count {
            assert!(self.sim.unmap_one(page), "window page {page} is not mapped");
        }
        Ok(())
    }
}
