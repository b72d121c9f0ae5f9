//! Frontends and backends as state machines, without hardware.
//!
//! | module | what |
//! |---|---|
//! | [`conn`] | the handshake: offer, answer, loss, backoff; grants and mappings |
//! | [`blk`] | block frontend (replay after a crash) and backend (validation) |
//! | [`net`] | network frontend (buffers) and backend (validation, delivery) |
//!
//! The machines make no hypercall: they ask an [`Env`]. A domain implements
//! it with hypercalls; host tests with a simulated machine in which both ends,
//! or one end and a hostile peer, run against each other.
//!
//! # How to drive an end
//!
//! Everything happens in calls from one loop, and every call is bounded:
//!
//! ```text
//! loop {
//!     take events;
//!     let progress = end.poll(&mut env);
//!     … submit or serve requests, take completions …
//!     end.kick(&mut env);
//!     if !progress.again && nothing was done this round {
//!         wait(progress.deadline)
//!     }
//! }
//! ```
//!
//! Notifications are asked for only by a `poll` that found nothing to do. So
//! sleep only after a `poll` that returned `again == false`, with nothing
//! taken from that end or given to it since. A busy end is then never notified.
//!
//! Nothing that a peer writes makes an end panic, loop or leak. A peer that
//! breaks the protocol is disconnected and counted.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use ring_proto::hypercall::Error;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, GrantRef, Port};

pub mod blk;
pub mod conn;
mod counters;
pub mod net;
mod pieces;
mod stall;

pub use conn::{Region, Window};
pub use counters::Counters;
use counters::count;
pub use pieces::Piece;

/// What an end needs of the domain it lives in.
pub trait Env {
    /// The node's clock, ns.
    fn now_ns(&self) -> u64;

    /// Signals the peer of the connection that `port` belongs to. A peer that
    /// is not alive is no error: it looks around when it starts.
    fn notify(&mut self, port: Port);

    /// Tells whoever restarts domains that the backend of the connection that
    /// `port` belongs to completes nothing, or broke the protocol.
    fn complain(&mut self, port: Port);

    /// Writes entry `gref` of the own grant table: the page at guest-physical
    /// `address` for `grantee`, with `flags` of [`ring_proto::grant`]
    /// (`VALID` is implied).
    fn grant(&mut self, gref: GrantRef, address: u64, grantee: DomainId, flags: u64);

    /// Clears `count` own entries and ends the peer's use of them before it
    /// returns. Any count. Entries that are not in use are no error.
    fn revoke(&mut self, first: GrantRef, count: u32) -> Result<(), Error>;

    /// Maps `count` consecutive grants of `granter` at page `window_page` of
    /// the grant window. Any count; all or nothing. `flags` are
    /// [`ring_proto::hypercall::MAP_WRITE`] and `MAP_DMA`.
    fn map(
        &mut self,
        granter: DomainId,
        first: GrantRef,
        count: u32,
        window_page: u32,
        flags: u64,
    ) -> Result<SharedMem, Error>;

    /// Unmaps `count` pages of the grant window. Any count.
    fn unmap(&mut self, window_page: u32, count: u32) -> Result<(), Error>;
}

/// The entry that an id names: its lower half. The upper half tells uses of
/// the entry apart.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn index_of(id: u32) -> u16 {
    id as u16
}

/// What a `poll` leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Progress {
    /// There is or may be more to do: poll again before sleeping.
    pub again: bool,
    /// Poll again at this time (ns) even if no event comes.
    pub deadline: Option<u64>,
}

impl Progress {
    /// The two together, for a loop that drives several ends.
    pub fn and(self, other: Self) -> Self {
        let deadline = match (self.deadline, other.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { again: self.again || other.again, deadline }
    }

    /// The same, and to be polled again at `deadline` at the latest.
    fn until(self, deadline: Option<u64>) -> Self {
        self.and(Self { again: false, deadline })
    }
}

/// The configuration of an end does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The number of slots is not a power of two or too large.
    Slots,
    /// Ring memory is too small, or not whole aligned pages.
    Ring,
    /// Pool memory is too small, or not whole aligned pages.
    Pool,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Slots => "slots must be a power of two within the limit",
            Self::Ring => "ring memory must be whole pages and large enough",
            Self::Pool => "pool memory must be whole pages and large enough",
        })
    }
}

impl core::error::Error for ConfigError {}
