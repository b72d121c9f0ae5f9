//! The handshake: how two ends find each other, again and again.
//!
//! ```text
//!              frontend                                backend
//!   Down ──(grants revoked, backoff over)──►
//!   Offered: fresh ring, hello, epoch + 1,
//!            state Initialising  ─────────►  Idle: maps, attaches, answers
//!   Up: state Connected          ◄─────────  Up: state Connected, names the pair
//!   …
//!   loss: state Closing, revoke  ─────────►  Draining: device I/O ends, unmap, Idle
//! ```
//!
//! Each side looks at the other's page at every poll; a changed generation,
//! epoch or state is a loss. [`FrontLink`] and [`BackLink`] do this and hold
//! the grants and mappings; what is in the rings is the protocol's business.

mod back;
mod conduct;
mod front;
mod served;

pub use back::{BackLink, BackStep, Mapped, QueueKind, Rules, Window};
pub use conduct::Complaint;
pub use front::{FrontLink, FrontStep, Region};
pub(crate) use served::Session;
pub use served::{Backend, BackendConfig, Served, Tag};

use crate::Env;

/// Shortest pause of a frontend after a loss without a new backend generation, ns.
pub const BACKOFF_FIRST_NS: u64 = 10_000_000;
/// Longest such pause, ns.
pub const BACKOFF_MOST_NS: u64 = 1_000_000_000;
/// A connection that stood as long as this sets the pause back to the first, ns.
pub const STABLE_NS: u64 = 2_000_000_000;
/// Least time between two answers of a backend to one frontend generation, ns;
/// doubled with each strike.
pub const ANSWER_INTERVAL_NS: u64 = 1_000_000;
/// Longest that strikes make this time, ns.
pub const ANSWER_PAUSE_MOST_NS: u64 = 1_000_000_000;
/// Least time between an answer to one frontend generation and to another, ns.
pub const GENERATION_INTERVAL_NS: u64 = 10_000_000;
/// Disconnects and refusals of a frontend generation after which it is barred.
pub const STRIKES_MOST: u32 = 16;
/// For each such time without a strike one is forgiven, ns.
pub const FORGIVE_NS: u64 = 60_000_000_000;
/// Connections and offers that one backend generation cuts off in a row, with
/// nothing completed between, at which a frontend begins to complain. More than
/// the one of an orderly end.
pub const CUTS_MOST: u32 = 3;
/// Pause before a failed revocation or unmapping is tried again, ns.
pub const RETRY_NS: u64 = 1_000_000;

/// The epoch after `epoch`; a generation begins with 0. Its first is the
/// clock's, so that no hello of a generation has the epoch of one of the
/// generation before: whoever looks while one ends may see the old epoch
/// beside the coming generation, and would take the old hello for the new
/// one's. Nor can a generation foresee it and write it beside its successor's
/// number.
fn next_epoch(epoch: u32, env: &impl Env) -> u32 {
    let last = match epoch {
        0 => (env.now_ns() & u64::from(u32::MAX)).try_into().unwrap_or(0),
        _ => epoch,
    };
    last.wrapping_add(1)
}
