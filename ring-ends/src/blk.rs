//! The block protocol's two ends.

mod backend;
mod frontend;

pub use crate::conn::{BackendConfig, Tag};
pub use backend::{Backend, ValidRequest, Volume};
pub use frontend::{Completion, Frontend, FrontendConfig, Geometry, Io, SubmitError};

use ring_proto::blk::{Request, Response};
use ring_proto::conn::Protocol;

use crate::conn::{QueueKind, Rules};

/// Most slots that a backend takes.
pub const MAX_SLOTS: u32 = 256;

/// Bytes of a sector, as segments count them.
const SECTOR_BYTES: u32 = 512;
const _: () = assert!(SECTOR_BYTES as u64 == ring_proto::blk::SECTOR);

const RULES: Rules = Rules {
    protocol: Protocol::Blk,
    queues: &[QueueKind { request: size_of::<Request>(), response: size_of::<Response>() }],
    max_slots: MAX_SLOTS,
};

/// Pages of ring memory that a queue of `slots` slots needs. `None` if
/// `slots` is not valid.
pub fn ring_pages(slots: u32) -> Option<u32> {
    ring_proto::ring::layout(slots, size_of::<Request>(), size_of::<Response>())
        .filter(|l| l.slots <= MAX_SLOTS)
        .map(|l| l.pages())
}
