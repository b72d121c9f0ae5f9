//! The network protocol's two ends.

mod backend;
mod frontend;
mod receive;
mod transmit;

pub use crate::conn::{BackendConfig, Tag};
pub use backend::{Backend, DeliverError, Rings, TxFrame, Vif};
pub use frontend::{Frontend, FrontendConfig, NetInfo};
pub use receive::Received;
pub use transmit::{SendError, TxBuffer};

use ring_proto::conn::Protocol;
use ring_proto::net::{RxRequest, RxResponse, TxRequest, TxResponse};
use ring_proto::shm::SharedMem;

use crate::conn::{QueueKind, Rules};

/// Most slots of a queue that a backend takes.
pub const MAX_SLOTS: u32 = 256;
/// Bytes of each buffer into which a frontend cuts its pool.
pub const BUFFER: usize = 2048;
const BUFFER_BYTES: u32 = 2048;
const _: () = assert!(BUFFER_BYTES as usize == BUFFER);

/// Where buffer `index` begins in its part of the pool.
fn buffer_offset(index: u16) -> u32 {
    u32::from(index).saturating_mul(BUFFER_BYTES)
}

/// The part of `mem` that is buffer `index`.
fn buffer(mem: &SharedMem, index: u16) -> Option<SharedMem> {
    mem.sub(buffer_offset(index) as usize, BUFFER)
}

/// How many buffers `mem` makes. No more than an id can name.
fn buffers(mem: &SharedMem) -> u16 {
    u16::try_from(mem.len() / BUFFER).unwrap_or(u16::MAX)
}

const RULES: Rules = Rules {
    protocol: Protocol::Net,
    queues: &[
        QueueKind { request: size_of::<TxRequest>(), response: size_of::<TxResponse>() },
        QueueKind { request: size_of::<RxRequest>(), response: size_of::<RxResponse>() },
    ],
    max_slots: MAX_SLOTS,
};

/// Pages of ring memory that the tx queue needs. `None` if `slots` is not valid.
pub fn tx_ring_pages(slots: u32) -> Option<u32> {
    pages(slots, 0)
}

/// Likewise the rx queue.
pub fn rx_ring_pages(slots: u32) -> Option<u32> {
    pages(slots, 1)
}

fn pages(slots: u32, queue: usize) -> Option<u32> {
    let kind = RULES.queues.get(queue)?;
    ring_proto::ring::layout(slots, kind.request, kind.response)
        .filter(|l| l.slots <= MAX_SLOTS)
        .map(|l| l.pages())
}

/// Checksum to be filled in, as the virtio specification has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where the checksum begins.
    pub start: u16,
    /// Where, after `start`, it is stored.
    pub offset: u16,
}
