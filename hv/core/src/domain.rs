//! Domains: life cycle, generations, statistics.

use alloc::vec::Vec;
use core::ops::{Deref, DerefMut, Index, IndexMut};

use ring_proto::{
    DomainId, Generation, bundle,
    crash::Reason,
    hypercall::{DomainInfo, DomainState, Error},
};

use crate::{
    grants::{Table, Window},
    memory::Space,
};

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never started, exited or stopped.
    Stopped,
    /// Its memory is being restored; bytes done.
    Building(u64),
    /// Running or waiting.
    Running,
    /// Died and quiesced; waiting for a decision.
    Dead,
}

/// Counters over all generations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Exits to the hypervisor.
    pub exits: u64,
    /// Hypercalls among them.
    pub hypercalls: u64,
    /// `notify` calls among them.
    pub notifies: u64,
    /// Device interrupts delivered.
    pub interrupts: u64,
}

/// One domain.
#[derive(Debug)]
pub struct Domain {
    /// Number.
    pub id: DomainId,
    /// What the manifest says.
    pub config: bundle::Domain,
    /// Its memory.
    pub space: Space,
    /// What it has mapped.
    pub window: Window,
    /// Where its grants are mapped.
    pub table: Table,
    /// Core it is bound to.
    pub core: u16,
    /// Where it is in its life.
    pub life: Life,
    /// Not to be started until released.
    pub held: bool,
    /// Present generation, or the coming one while not running. From 1.
    pub generation: Generation,
    /// Deaths so far.
    pub deaths: u32,
    /// Reason of the last.
    pub last_reason: Reason,
    /// When the present generation was entered, ns.
    pub started_ns: u64,
    /// When the last death was seen, ns.
    pub died_ns: u64,
    /// It declared itself ready (seen by the hypervisor).
    pub ready: bool,
    /// Counters.
    pub stats: Stats,
}

impl Domain {
    /// A stopped domain.
    pub fn new(id: DomainId, config: bundle::Domain, space: Space, core: u16) -> Self {
        Self {
            window: Window::new(config.grant_window_pages),
            table: Table::new(config.grant_entries),
            id,
            config,
            space,
            core,
            life: Life::Stopped,
            held: false,
            generation: 1,
            deaths: 0,
            last_reason: Reason::None,
            started_ns: 0,
            died_ns: 0,
            ready: false,
            stats: Stats::default(),
        }
    }

    /// Whether it can be a peer: it runs, so its memory means something.
    pub fn is_alive(&self) -> bool {
        self.life == Life::Running
    }

    /// Begins a new life: its memory is to be restored.
    ///
    /// # Errors
    /// [`Error::BadState`] if it is alive, being built, or held.
    pub fn begin_build(&mut self) -> Result<(), Error> {
        match self.life {
            Life::Stopped | Life::Dead if !self.held => {
                self.life = Life::Building(0);
                Ok(())
            }
            _ => Err(Error::BadState),
        }
    }

    /// The memory is restored: the present generation begins.
    pub fn born(&mut self, now: u64) {
        self.life = Life::Running;
        self.started_ns = now;
        self.ready = false;
    }

    /// Ends the present generation. Returns the one that ended.
    pub fn died(&mut self, reason: Reason, now: u64) -> Generation {
        let ended = self.generation;
        self.generation = self.generation.wrapping_add(1).max(1);
        self.ready = false;
        self.last_reason = reason;
        self.died_ns = now;
        if reason == Reason::Exit {
            self.life = Life::Stopped;
        } else {
            self.life = Life::Dead;
            self.deaths = self.deaths.saturating_add(1);
        }
        ended
    }

    /// What the supervisor sees, but for CPU time.
    pub fn info(&self) -> DomainInfo {
        let state = match self.life {
            _ if self.held && !matches!(self.life, Life::Running | Life::Building(_)) => {
                DomainState::Held
            }
            Life::Stopped => DomainState::Stopped,
            Life::Building(_) | Life::Running => DomainState::Running,
            Life::Dead => DomainState::Dead,
        };
        let mut name = [0; 24];
        for (to, from) in name.iter_mut().zip(self.config.name.bytes()) {
            *to = from;
        }
        let restart = self.config.restart;
        DomainInfo {
            id: self.id,
            core: self.core,
            state: state as u32,
            generation: self.generation,
            deaths: self.deaths,
            last_reason: self.last_reason as u32,
            ready: self.ready.into(),
            memory: self.config.memory,
            started_ns: self.started_ns,
            died_ns: self.died_ns,
            cpu_ns: 0,
            exits: self.stats.exits,
            hypercalls: self.stats.hypercalls,
            notifies: self.stats.notifies,
            interrupts: self.stats.interrupts,
            restart_floor_ms: restart.floor_ms,
            restart_backoff_percent: restart.backoff_percent,
            restart_budget: restart.budget,
            restart_window_s: restart.window_s,
            restart_automatic: restart.automatic.into(),
            reserved: 0,
            name,
        }
    }
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

    /// The numbers of all domains.
    pub fn ids(&self) -> impl Iterator<Item = DomainId> + use<T> {
        (0..).take(self.0.len())
    }
}

impl<T> Default for ByDomain<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for ByDomain<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for ByDomain<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
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
