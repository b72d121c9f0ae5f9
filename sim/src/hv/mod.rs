//! The hypervisor of the simulated node: `hv-core`, and in the place of
//! `hv/src/kernel`, which needs a machine, what is here.
//!
//! Every decision is `hv-core`'s. What stands here carries it out on simulated
//! tables and memory, in the order of the file of `hv/src/kernel` that has the
//! same name; where the two differ, this one is wrong.
//!
//! | not here | because |
//! |---|---|
//! | translation caches | `hv/core/tests/devices` has the IOMMU's, hardware has the CPU's |
//! | images, boot information | programs are Rust objects, see `crate::program` |
//! | console, crash reports' contents | nothing decides by them |

mod audit;
mod death;
mod device;
mod grant;
mod restore;
mod takeover;
mod view;

use std::mem::offset_of;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;

use hv_core::domain::{ByDomain, Domain, Life};
use hv_core::memory::Space;
use hv_core::records::Deaths;
use hv_core::sched::Scheduler;
use ring_proto::conn::Role;
use ring_proto::crash::{Reason, Timeline};
use ring_proto::event::{self, EventPage, Inject};
use ring_proto::hypercall::{DomainInfo, Error};
use ring_proto::{DomainId, Generation, PAGE_SIZE, Port, boot, bundle, layout};

use crate::ram::{BASE, Ram};
use crate::report::trace;

pub(crate) use view::View;

pub(crate) const PAGE: u64 = PAGE_SIZE as u64;

/// Offsets in the event page.
const INJECT: u64 = offset_of!(EventPage, inject) as u64;
const READY: u64 = offset_of!(EventPage, ready) as u64;
const CHECK: u64 = offset_of!(EventPage, check) as u64;
const HEALTH: u64 = offset_of!(EventPage, health) as u64;
/// Death records kept.
const DEATHS: usize = 64;

/// What a hypercall returns.
pub(crate) type Answer = Result<u64, Error>;

/// What somebody asked a domain's own core to do with it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    pub(crate) end: Option<Reason>,
    pub(crate) start: bool,
}

/// A page that a domain, or its device, reaches: its frame, and whether it may
/// write there.
pub(crate) type Leaf = Option<(u64, bool)>;

/// What the hypervisor holds of a domain beside `hv-core`'s part.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Nested table of the grant window.
    nested: Vec<Leaf>,
    /// IOMMU table of the grant window; empty without a device.
    iommu: Vec<Leaf>,
    /// Its device has an IOMMU context and masters the bus.
    pub(crate) attached: bool,
    /// It sleeps in `wait`.
    pub(crate) asleep: bool,
    /// Some core has it in guest mode.
    pub(crate) in_guest: bool,
    pub(crate) orders: Orders,
    /// It was ordered to misbehave in this generation.
    pub(crate) injected: bool,
    /// Pages that its views still show although they are not mapped any more.
    views: Vec<View>,
    /// Its views are as it is to see them.
    entered: bool,
    /// Pages that a generation found as it should not have.
    leftovers: u64,
    /// Machine addresses of its event page and its grant table.
    event_page: u64,
    grant_table: u64,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) domain: DomainId,
    pub(crate) port: Port,
    /// Machine address of its page.
    pub(crate) page: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) protocol: u16,
    pub(crate) frontend: End,
    pub(crate) backend: End,
}

impl Connection {
    /// A domain's own end and the other, if it has one.
    pub(crate) fn ends(&self, domain: DomainId) -> Option<(End, End)> {
        match (self.frontend, self.backend) {
            (own, peer) | (peer, own) if own.domain == domain => Some((own, peer)),
            _ => None,
        }
    }

    /// The end that has a role.
    pub(crate) fn end(&self, role: Role) -> (End, End) {
        match role {
            Role::Frontend => (self.frontend, self.backend),
            Role::Backend => (self.backend, self.frontend),
        }
    }
}

/// The hypervisor.
pub(crate) struct Hv {
    /// The node's clock, ns.
    pub(crate) now: u64,
    pub(crate) cores: u16,
    pub(crate) domains: ByDomain<Domain>,
    pub(crate) guests: ByDomain<Guest>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) sched: Scheduler,
    pub(crate) deaths: Deaths,
    pub(crate) ram: Rc<Ram>,
    supervisor: Option<DomainId>,
    /// Times that a spare took over.
    pub(crate) takeovers: u64,
}

impl Hv {
    /// Pages of memory that a node needs.
    pub(crate) fn pages(manifest: &bundle::Node) -> usize {
        let domains: u64 = manifest.domains.iter().map(|d| d.memory / PAGE).sum();
        domains as usize + 2 * manifest.connections.len()
    }

    /// Builds all domains; they start as soon as the cores run.
    pub(crate) fn new(manifest: &bundle::Node, ram: Rc<Ram>) -> Self {
        let mut this = Self {
            now: 1,
            cores: manifest.cores,
            domains: ByDomain::default(),
            guests: ByDomain::default(),
            connections: Vec::with_capacity(manifest.connections.len()),
            sched: Scheduler::new(),
            deaths: Deaths::new(DEATHS),
            ram,
            supervisor: None,
            takeovers: 0,
        };
        let mut next = BASE;
        for (id, config) in (0..).zip(&manifest.domains) {
            this.add_domain(id, config, manifest, next);
            next += config.memory;
        }
        for config in &manifest.connections {
            this.add_connection(config, next);
            next += 2 * PAGE;
        }
        for id in this.domains.ids() {
            this.show_closed(id);
            if this.domains[id].config.autostart {
                this.domains[id].life = Life::Building(0);
            }
        }
        this
    }

    fn add_domain(
        &mut self,
        id: DomainId,
        config: &bundle::Domain,
        manifest: &bundle::Node,
        base: u64,
    ) {
        let image = &manifest.images[usize::from(config.image)];
        let Some(space) = Space::new(config, image, base) else {
            panic!("the manifest of the simulated node does not fit")
        };
        let table = u64::from(config.grant_entries) * 8;
        let (Some(event_page), Some(grant_table)) = (
            space.translate(layout::EVENT_PAGE, PAGE, true),
            space.translate(layout::GRANT_TABLE, table, true),
        ) else {
            panic!("a domain without event page or grant table")
        };
        let core = config.core.unwrap_or(id) % self.cores;
        self.sched.add(core, config.weight, config.cap, config.watchdog_ms);
        let window = config.grant_window_pages as usize;
        // Only drivers map anything.
        let driver = !config.devices.is_empty() || config.spare_of.is_some();
        let mapped = if driver { window } else { 0 };
        self.guests.push(Guest {
            nested: vec![None; mapped],
            iommu: vec![None; mapped],
            attached: false,
            asleep: false,
            in_guest: false,
            orders: Orders::default(),
            injected: false,
            views: Vec::new(),
            entered: false,
            leftovers: 0,
            event_page,
            grant_table,
        });
        if config.capabilities & boot::CAP_SUPERVISOR != 0 {
            self.supervisor = Some(id);
        }
        self.domains.push(Domain::new(id, config.clone(), space, core));
    }

    fn add_connection(&mut self, config: &bundle::Connection, frames: u64) {
        self.ram.clear(frames, 2 * PAGE);
        let mut end = |domain: DomainId, page: u64, peer_page: u64| {
            let slot = self.connections.iter().filter(|c| c.ends(domain).is_some()).count();
            let gpa = layout::CONNECTIONS + slot as u64 * 2 * PAGE;
            let space = &mut self.domains[domain].space;
            let kind = hv_core::memory::Kind::Connection;
            space.add_foreign(gpa, page, PAGE, true, kind);
            space.add_foreign(gpa + PAGE, peer_page, PAGE, false, kind);
            End { domain, port: event::PORT_CONNECTIONS + slot as Port, page }
        };
        let frontend = end(config.frontend, frames, frames + PAGE);
        let backend = end(config.backend, frames + PAGE, frames);
        self.domains[config.backend].serves = true;
        self.connections.push(Connection { protocol: config.protocol, frontend, backend });
    }

    pub(crate) fn is_running(&self, domain: DomainId) -> bool {
        self.domains[domain].is_alive()
    }

    /// Machine address of a domain's event page.
    fn event_page(&self, domain: DomainId) -> u64 {
        self.guests[domain].event_page
    }

    /// Sets a port bit in a domain's event page and wakes it.
    pub(crate) fn raise(&mut self, domain: DomainId, port: Port) {
        if !self.is_running(domain) || port >= event::PORTS {
            return;
        }
        let page = self.event_page(domain);
        let at = page + u64::from(port / 64) * 8;
        self.ram.write64(at, self.ram.read64(at) | 1 << (port % 64));
        self.sched.wake(domain);
    }

    fn tell_supervisor(&mut self) {
        if let Some(id) = self.supervisor {
            self.raise(id, event::PORT_LIFECYCLE);
        }
    }

    /// `notify`.
    pub(crate) fn notify(&mut self, caller: DomainId, port: Port) -> Answer {
        let mut ends = self.connections.iter().filter_map(|c| c.ends(caller));
        let (_, peer) = ends.find(|(own, _)| own.port == port).ok_or(Error::NotFound)?;
        if !self.is_running(peer.domain) {
            return Err(Error::PeerDead);
        }
        self.raise(peer.domain, peer.port);
        Ok(0)
    }

    /// `wait`.
    pub(crate) fn wait(&mut self, caller: DomainId, deadline: u64) {
        self.sched.fed(caller, self.now);
        let page = self.event_page(caller);
        self.note_ready(caller, page);
        let pending = (0..event::WORDS as u64).any(|i| self.ram.read64(page + i * 8) != 0);
        let injected = self.ram.at(page + INJECT, 4).read_u32(0, SeqCst) != 0;
        if !pending && !injected && deadline > self.now {
            self.sched.sleep(caller, deadline);
            self.guests[caller].asleep = true;
        }
    }

    fn note_ready(&mut self, domain: DomainId, event_page: u64) {
        let said = self.ram.at(event_page + READY, 4).read_u32(0, SeqCst);
        if !self.domains[domain].advance(said) {
            return;
        }
        trace!("{}: ready", self.domains[domain].config.name);
        self.stamp(domain, |t| &mut t.ready);
        self.tell_supervisor();
    }

    /// Notes in the record of the death before this generation that a step is
    /// done now.
    fn stamp(&mut self, domain: DomainId, step: fn(&mut Timeline) -> &mut u64) {
        let generation = self.domains[domain].info.generation;
        self.deaths.stamp(domain, generation, step, self.now);
    }

    /// `hold` and `release`.
    pub(crate) fn hold(&mut self, domain: DomainId, held: bool) -> Answer {
        let domain = self.checked(domain)?;
        self.domains[domain].held = held;
        if !held {
            self.domains[domain].info.released_ns = self.now;
        }
        Ok(0)
    }

    /// `inject`.
    pub(crate) fn inject(&mut self, life: (DomainId, Generation), kind: Inject) -> Answer {
        let domain = self.checked_life(life)?;
        if !self.is_running(domain) {
            return Err(Error::BadState);
        }
        let page = self.event_page(domain);
        self.ram.at(page + INJECT, 4).write_u32(0, kind as u32, SeqCst);
        self.guests[domain].injected = true;
        self.sched.wake(domain);
        Ok(0)
    }

    /// `check`.
    pub(crate) fn order_check(
        &mut self,
        life: (DomainId, Generation),
        drain: bool,
    ) -> Result<u32, Error> {
        let domain = self.checked_life(life)?;
        if !self.is_running(domain) {
            return Err(Error::BadState);
        }
        let page = self.event_page(domain);
        let info = &mut self.domains[domain].info;
        let number = (info.check.wrapping_add(1) & !event::DRAIN).max(1);
        info.check = if drain { number | event::DRAIN } else { number };
        self.ram.at(page + CHECK, 4).write_u32(0, info.check, SeqCst);
        self.raise(domain, event::PORT_CHECK);
        Ok(number)
    }

    /// What the supervisor sees of a domain.
    pub(crate) fn info_of(&self, domain: DomainId) -> DomainInfo {
        let mut info = self.domains[domain].info(self.sched.get(domain).cpu_ns);
        info.health = self.ram.at(self.event_page(domain) + HEALTH, 4).read_u32(0, SeqCst);
        info
    }

    pub(crate) fn checked(&self, domain: DomainId) -> Result<DomainId, Error> {
        self.domains.check(domain.into()).ok_or(Error::NotFound)
    }

    /// The domain, if that is still its generation.
    pub(crate) fn checked_life(
        &self,
        (domain, generation): (DomainId, Generation),
    ) -> Result<DomainId, Error> {
        let present = self.domains.check_generation(domain.into(), generation.into());
        present.ok_or(Error::NotFound)
    }

    /// Carries out what others asked of this core's domains. What a core has
    /// in guest mode comes once it is out.
    pub(crate) fn carry_out_orders(&mut self, core: u16) -> bool {
        let mut any = false;
        for id in self.domains.ids() {
            if self.domains[id].info.core == core && !self.guests[id].in_guest {
                any |= self.carry_out(id);
            }
        }
        any
    }

    /// Carries out what others asked of one domain.
    pub(crate) fn carry_out(&mut self, id: DomainId) -> bool {
        let orders = std::mem::take(&mut self.guests[id].orders);
        if let Some(reason) = orders.end {
            self.end_on_order(id, reason);
            let d = &mut self.domains[id];
            if !orders.start && d.life == Life::Dead && reason == Reason::Operator {
                d.life = Life::Stopped;
            }
        }
        if orders.start && self.begin(id).is_err() {
            trace!("{}: not started", self.domains[id].config.name);
        }
        orders.end.is_some() || orders.start
    }

    // What the runtime of a domain does with its event page.

    /// Takes all pending events.
    pub(crate) fn take_events(&mut self, domain: DomainId) {
        let page = self.event_page(domain);
        (0..event::WORDS as u64).for_each(|i| self.ram.write64(page + i * 8, 0));
    }

    /// Declares that the domain serves.
    pub(crate) fn set_ready(&mut self, domain: DomainId) {
        self.say(domain, event::READY);
    }

    /// Says in the event page how far it is.
    pub(crate) fn say(&mut self, domain: DomainId, word: u32) {
        self.ram.at(self.event_page(domain) + READY, 4).write_u32(0, word, SeqCst);
    }

    /// Whether the domain is to finish its work, and has not said that it did:
    /// the number of the answer.
    pub(crate) fn is_to_drain(&self, domain: DomainId) -> Option<u32> {
        let page = self.event_page(domain);
        let asked = self.ram.at(page + CHECK, 4).read_u32(0, SeqCst);
        let answered = self.ram.at(page + HEALTH, 4).read_u32(0, SeqCst);
        let number = asked & !event::DRAIN;
        (asked & event::DRAIN != 0 && number != answered).then_some(number)
    }

    /// Says that its work is finished.
    pub(crate) fn drained(&mut self, domain: DomainId, number: u32) {
        self.ram.at(self.event_page(domain) + HEALTH, 4).write_u32(0, number, SeqCst);
    }

    /// Takes an ordered misbehaviour.
    pub(crate) fn take_inject(&mut self, domain: DomainId) -> Option<Inject> {
        let word = self.ram.at(self.event_page(domain) + INJECT, 4);
        let kind = word.read_u32(0, SeqCst);
        if kind == 0 {
            return None;
        }
        word.write_u32(0, 0, SeqCst);
        Inject::from_raw(kind)
    }
}
