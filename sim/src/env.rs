//! What a domain's program asks of the hypervisor. Every call is a point at
//! which the domain may die, and at which others may run.

use std::panic;

use ring_ends::{Env, Region};
use ring_proto::conn::{Pages, Role};
use ring_proto::grant::GrantEntry;
use ring_proto::hypercall::Error;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Generation, GrantRef, PAGE_SIZE, Port, layout};

use crate::hv::{Connection, PAGE};
use crate::report::trace;
use crate::world::World;

/// A domain's generation ended: thrown through its program.
pub(crate) struct Ended;

/// The node as one domain's program sees it.
pub(crate) struct DomainEnv<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) me: DomainId,
    /// The generation whose program it is. Its spare may take over at once.
    pub(crate) generation: Generation,
}

impl DomainEnv<'_> {
    /// A point at which the hypervisor has the core.
    pub(crate) fn point(&mut self) {
        let (world, me) = (&mut *self.world, self.me);
        world.hv.leave(me);
        world.between(me);
        let d = &world.hv.domains[me];
        if !d.is_alive() || d.info.generation != self.generation {
            // Not `panic!`: nothing went wrong with the program.
            panic::resume_unwind(Box::new(Ended));
        }
        world.hv.enter(me);
    }

    /// The domain ends itself.
    pub(crate) fn end(&mut self, reason: ring_proto::crash::Reason) -> ! {
        self.world.hv.leave(self.me);
        self.world.hv.end(self.me, reason);
        panic::resume_unwind(Box::new(Ended))
    }

    /// Pages of the own heap, with the grants that are numbered like them.
    pub(crate) fn region(&self, first: u32, pages: u32) -> Region {
        let mem = self.world.heap(self.me, first, pages);
        // Reference 0 names no grant.
        Region { mem, first: first + 1 }
    }

    /// Both pages of a connection.
    pub(crate) fn pages(&self, connection: &Connection, role: Role) -> Pages {
        let (own, peer) = connection.end(role);
        let ram = &self.world.hv.ram;
        match Pages::new(ram.at(own.page, PAGE), ram.at(peer.page, PAGE)) {
            Some(pages) => pages,
            None => unreachable!("pages of pages' size"),
        }
    }
}

impl Env for DomainEnv<'_> {
    fn now_ns(&self) -> u64 {
        self.world.hv.now
    }

    fn notify(&mut self, port: Port) {
        self.point();
        trace!("domain {}: notify {port}", self.me);
        let _ = self.world.hv.notify(self.me, port);
        self.point();
    }

    fn complain(&mut self, _port: Port) {
        // No frontend of the simulation is told to complain.
    }

    fn grant(&mut self, gref: GrantRef, address: u64, grantee: DomainId, flags: u64) {
        self.point();
        // What the program knows is where its memory lies in the host's.
        let base = self.world.heap(self.me, 0, 1).address();
        let gpa = layout::HEAP + address.wrapping_sub(base);
        let entry = GrantEntry::new(gpa, grantee, flags);
        self.world.hv.write_grant(self.me, gref, entry);
    }

    fn revoke(&mut self, first: GrantRef, count: u32) -> Result<(), Error> {
        self.point();
        trace!("domain {}: revoke {first}+{count}", self.me);
        self.world.hv.grant_revoke(self.me, first..first + count)?;
        self.point();
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
        self.point();
        let hv = &mut self.world.hv;
        first.checked_add(count).ok_or(Error::PeerGrant)?;
        let pages = window_page..window_page + count;
        hv.leave(self.me);
        let mapped = hv.grant_map(self.me, granter, first, pages.clone(), flags);
        hv.enter(self.me);
        trace!("domain {}: map {granter}'s {first}+{count} at {pages:?}: {mapped:x?}", self.me);
        let frame = mapped?;
        // The view is one piece, so the frames must be.
        let window = &hv.domains[self.me].window;
        let frames = pages.clone().zip((frame..).step_by(PAGE_SIZE));
        let whole = frames.into_iter().all(|(p, f)| window.get(p).is_some_and(|m| m.frame == f));
        assert!(whole, "frontends of the simulation grant memory that is in one piece");
        let mem = hv.ram.at(frame, u64::from(count) * PAGE);
        self.point();
        Ok(mem)
    }

    fn unmap(&mut self, window_page: u32, count: u32) -> Result<(), Error> {
        self.point();
        trace!("domain {}: unmap {window_page}+{count}", self.me);
        self.world.hv.leave(self.me);
        let unmapped = self.world.hv.grant_unmap(self.me, window_page..window_page + count);
        self.world.hv.enter(self.me);
        unmapped.map(|_| ())
    }
}
