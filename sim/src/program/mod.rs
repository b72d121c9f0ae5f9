//! What runs in the domains.
//!
//! | module | what |
//! |---|---|
//! | [`guest`] | a guest with a volume and a vif: the real frontends, a random workload |
//! | [`blk`], [`net`] | driver domains: the real backends, in loops like those of `driver-domains` |
//! | `Spare` | a spare, whose body its principal gets: the program begins anew with it |
//! | [`supervisor`] | the real policy, in a loop like that of `supervisor/src` |

pub(crate) mod blk;
pub(crate) mod guest;
pub(crate) mod net;
pub(crate) mod supervisor;

use io_limits::Turns;
use ring_ends::conn::{Backend, Served};
use ring_proto::DomainId;
use ring_proto::crash::Reason;
use ring_proto::event::{self, Inject};

use crate::env::DomainEnv;
use crate::node;

/// How often a driver whose device works looks after it without an interrupt, ns.
pub(crate) const POLL_NS: u64 = 100_000_000;
/// After this time without progress a driver gives up on its device, ns.
pub(crate) const STUCK_NS: u64 = 30_000_000_000;

/// How a program's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There is more to do.
    Again,
    /// It waits for an event, until this time at the latest.
    Wait(u64),
}

/// A domain's program. It ends with its generation.
pub(crate) enum Program {
    Supervisor(Box<supervisor::Program>),
    Blk(Box<blk::Driver>),
    Net(Box<net::Driver>),
    Guest(Box<guest::Guest>),
    /// A spare, which stands by.
    Spare,
}

impl Program {
    /// The program of a domain, at its first instruction.
    pub(crate) fn new(env: &mut DomainEnv<'_>) -> Self {
        if env.world.hv.domains[env.me].config.spare_of.is_some() {
            env.world.hv.say(env.me, event::STANDBY);
            return Self::Spare;
        }
        match env.me {
            node::SUPERVISOR => Self::Supervisor(Box::default()),
            node::BLK => Self::Blk(Box::new(blk::Driver::new(env))),
            node::NET => Self::Net(Box::new(net::Driver::new(env))),
            guest => {
                let number = usize::from(guest - node::GUESTS);
                Self::Guest(Box::new(guest::Guest::new(env, number)))
            }
        }
    }

    /// One round of its loop.
    pub(crate) fn turn(&mut self, env: &mut DomainEnv<'_>) -> Turn {
        obey(env);
        env.world.hv.take_events(env.me);
        match self {
            Self::Supervisor(program) => program.turn(env),
            Self::Blk(driver) => driver.turn(env),
            Self::Net(driver) => driver.turn(env),
            Self::Guest(guest) => guest.turn(env),
            Self::Spare => Turn::Wait(u64::MAX),
        }
    }

    /// Times that its peers broke the protocol, as it says.
    pub(crate) fn misbehaviours(&self) -> u64 {
        match self {
            Self::Supervisor(_) | Self::Spare => 0,
            Self::Blk(driver) => driver.misbehaviours(),
            Self::Net(driver) => driver.misbehaviours(),
            Self::Guest(guest) => guest.misbehaviours(),
        }
    }

    /// The guest, if it is one.
    pub(crate) fn guest(&self) -> Option<&guest::Guest> {
        match self {
            Self::Guest(guest) => Some(guest),
            _ => None,
        }
    }
}

/// Misbehaves if the operator ordered it, as a domain's runtime does.
fn obey(env: &mut DomainEnv<'_>) {
    match env.world.hv.take_inject(env.me) {
        None => {}
        Some(Inject::NullWrite) => env.end(Reason::NestedFault),
        Some(Inject::Loop) => env.world.hang(env.me),
        Some(_) => env.end(Reason::Panic),
    }
}

/// Deadline of a loop: the earlier one.
fn earlier(deadline: u64, other: Option<u64>) -> u64 {
    other.map_or(deadline, |other| deadline.min(other))
}

/// Polls a driver's backends: whether to go on at once, and until when to wait.
/// Who is served and has more to do is picked by `turns`.
fn poll_all<'a, S: Served + 'a>(
    backends: impl Iterator<Item = &'a mut Backend<S>>,
    turns: &mut Turns,
    env: &mut DomainEnv<'_>,
) -> (bool, u64) {
    let mut again = false;
    let mut deadline = u64::MAX;
    for (index, backend) in backends.enumerate() {
        let was_up = backend.is_connected();
        let progress = backend.poll(env);
        deadline = earlier(deadline, progress.deadline);
        if progress.again {
            turns.wake(index);
            again |= !(was_up && backend.is_connected());
        }
    }
    again |= turns.wants_round();
    (again, earlier(deadline, turns.deadline()))
}

/// The connections of a driver domain, in the order of their guests.
fn connections(env: &DomainEnv<'_>, driver: DomainId) -> Vec<crate::hv::Connection> {
    let all = env.world.hv.connections.iter();
    all.filter(|c| c.backend.domain == driver).copied().collect()
}
