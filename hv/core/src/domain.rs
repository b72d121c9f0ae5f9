//! Domains: life cycle, generations, statistics.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

use ring_proto::{
    DomainId, Generation, bundle,
    crash::Reason,
    event,
    hypercall::{DomainInfo, DomainState, Error, NOBODY},
};

use crate::{
    grants::{Table, Window},
    image::Body,
    memory::Space,
};

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never started, exited or stopped.
    Stopped,
    /// Its memory is being restored; the guest-physical address to go on at.
    Building(u64),
    /// Running or waiting.
    Running,
    /// Died and quiesced; waiting for a decision.
    Dead,
}

/// One domain.
#[derive(Debug)]
pub struct Domain {
    /// What the manifest says.
    pub config: bundle::Domain,
    /// Its memory.
    pub space: Space,
    /// What it has mapped.
    pub window: Window,
    /// Where its grants are mapped.
    pub table: Table,
    /// Where it is in its life.
    pub life: Life,
    /// Not to be started until released.
    pub held: bool,
    /// It is a connection's backend, or the spare of one: others depend on it, so
    /// that it has no end of its work, and its exit is a death like any other.
    pub serves: bool,
    /// What its memory is laid out for.
    pub body: Body,
    /// What the supervisor sees, but for state and CPU time: [`Domain::info`].
    pub info: DomainInfo,
}

impl Domain {
    /// A stopped domain.
    pub fn new(id: DomainId, config: bundle::Domain, space: Space, core: u16) -> Self {
        let restart = config.restart;
        let mut info = DomainInfo {
            id,
            core,
            generation: 1,
            last_reason: Reason::None as u32,
            memory: config.memory,
            restart_floor_ms: restart.floor_ms,
            restart_backoff_percent: restart.backoff_percent,
            restart_budget: restart.budget,
            restart_window_s: restart.window_s,
            restart_automatic: restart.automatic.into(),
            check_ms: restart.check_ms,
            word_s: restart.word_s,
            complainant: NOBODY,
            spare_of: config.spare_of.unwrap_or(NOBODY),
            devices: config.devices.len().try_into().unwrap_or(u16::MAX),
            update_space: config.update_space,
            ..DomainInfo::default()
        };
        for (to, from) in info.name.iter_mut().zip(config.name.bytes()) {
            *to = from;
        }
        let window = Window::new(config.grant_window_pages);
        let table = Table::new(config.grant_entries);
        Self {
            // Only drivers have spares.
            serves: config.spare_of.is_some(),
            config,
            space,
            window,
            table,
            life: Life::Stopped,
            held: false,
            body: Body::default(),
            info,
        }
    }

    /// Whether it runs, so its memory means something.
    pub fn is_alive(&self) -> bool {
        self.life == Life::Running
    }

    /// Whether it is a spare that could take over now.
    pub fn stands_by(&self) -> bool {
        self.is_alive() && self.info.ready == event::STANDBY
    }

    /// Whether it can be a peer: a spare has the place of none.
    pub fn is_peer(&self) -> bool {
        self.is_alive() && self.config.spare_of.is_none()
    }

    /// The domain whose images it runs.
    pub fn principal(&self) -> DomainId {
        self.config.spare_of.unwrap_or(self.info.id)
    }

    /// Whether a next generation may begin.
    pub fn may_begin(&self) -> bool {
        matches!(self.life, Life::Stopped | Life::Dead) && !self.held
    }

    /// Begins a new life: its memory is to be restored.
    ///
    /// # Errors
    /// [`Error::BadState`] if it is alive, being built, or held.
    pub fn begin_build(&mut self) -> Result<(), Error> {
        if !self.may_begin() {
            return Err(Error::BadState);
        }
        self.life = Life::Building(0);
        Ok(())
    }

    /// The memory is restored: the present generation begins.
    pub fn born(&mut self, now: u64) {
        self.life = Life::Running;
        self.info.started_ns = now;
        self.info.ready = 0;
    }

    /// The domain says in its event page how far it is. Returns whether that is
    /// news: it only ever advances, and only a spare stands by.
    pub fn advance(&mut self, said: u32) -> bool {
        let valid = match self.config.spare_of {
            Some(_) => said == event::STANDBY,
            None => matches!(said, event::READY | event::SERVED),
        };
        let news = valid && said > self.info.ready;
        if news {
            self.info.ready = said;
        }
        news
    }

    /// Ends the present generation. Returns the one that ended.
    pub fn died(&mut self, reason: Reason, now: u64) -> Generation {
        let info = &mut self.info;
        let ended = info.generation;
        info.generation = ended.wrapping_add(1).max(1);
        info.ready = 0;
        info.check &= !event::DRAIN;
        info.last_reason = reason as u32;
        info.died_ns = now;
        if reason == Reason::Exit && !self.serves {
            self.life = Life::Stopped;
        } else {
            self.life = Life::Dead;
            info.deaths = info.deaths.saturating_add(1);
        }
        ended
    }

    /// What the supervisor sees.
    pub fn info(&self, cpu_ns: u64) -> DomainInfo {
        let state = match self.life {
            Life::Building(_) | Life::Running => DomainState::Running,
            _ if self.held => DomainState::Held,
            Life::Stopped => DomainState::Stopped,
            Life::Dead => DomainState::Dead,
        };
        let (mapped, granted) = (self.window.used(), self.table.used());
        DomainInfo { state: state as u32, cpu_ns, mapped, granted, ..self.info }
    }
}

/// A spare that stands by takes the place of its principal, which is not alive:
/// they exchange their memory. The principal's next generation runs, as if just
/// born; the spare has the dead one's memory and it is to be restored. What
/// belongs to the number (name, ports, grants, statistics) stays with it.
pub fn take_over(principal: &mut Domain, spare: &mut Domain, now: u64) {
    core::mem::swap(&mut principal.space, &mut spare.space);
    spare.space.give_foreign(&mut principal.space);
    core::mem::swap(&mut principal.body, &mut spare.body);
    principal.born(now);
    let info = &mut spare.info;
    (info.generation, info.ready) = (info.generation.wrapping_add(1).max(1), 0);
    spare.life = Life::Building(0);
}

/// One value for each domain of the node, in order of their numbers.
///
/// An index must be the number of a domain that exists: from a walk over the
/// domains, the manifest, the scheduler, a grant that is mapped, or a number
/// that [`ByDomain::check`] let through. Who has another looks with `get`.
#[derive(Debug)]
pub struct ByDomain<T>(Vec<T>);

impl<T> ByDomain<T> {
    /// The number of a domain that a caller named, if there is such a domain.
    pub fn check(&self, number: u64) -> Option<DomainId> {
        DomainId::try_from(number).ok().filter(|&id| usize::from(id) < self.0.len())
    }

    /// Adds the next domain's.
    pub fn push(&mut self, value: T) {
        self.0.push(value);
    }

    /// That of a domain that there may not be.
    pub fn named(&self, id: DomainId) -> Option<&T> {
        self.0.get(usize::from(id))
    }

    /// Those of two domains, unless they are the same.
    pub fn pair(&mut self, a: DomainId, b: DomainId) -> Option<(&mut T, &mut T)> {
        let [a, b] = self.0.get_disjoint_mut([usize::from(a), usize::from(b)]).ok()?;
        Some((a, b))
    }

    /// One after the other.
    pub fn iter(&self) -> core::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The numbers of all domains.
    pub fn ids(&self) -> impl Iterator<Item = DomainId> + use<T> {
        (0..).take(self.0.len())
    }
}

impl ByDomain<Domain> {
    /// The number of a domain that a caller named, if it is still in the generation that
    /// the caller named: an order for one that is over is not for the next.
    pub fn check_generation(&self, number: u64, generation: u64) -> Option<DomainId> {
        let id = self.check(number)?;
        self.named(id).filter(|d| u64::from(d.info.generation) == generation).map(|_| id)
    }
}

impl<T> Default for ByDomain<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Index<DomainId> for ByDomain<T> {
    type Output = T;

    #[expect(clippy::indexing_slicing, reason = "see ByDomain on where numbers come from")]
    fn index(&self, id: DomainId) -> &T {
        &self.0[usize::from(id)]
    }
}

impl<T> IndexMut<DomainId> for ByDomain<T> {
    #[expect(clippy::indexing_slicing, reason = "see ByDomain on where numbers come from")]
    fn index_mut(&mut self, id: DomainId) -> &mut T {
        &mut self.0[usize::from(id)]
    }
}
