//! Connection pages and the handshake.
//!
//! A connection outlives both of its ends. Each end has a page of its own
//! that it alone can write; the other end sees it read-only. The hypervisor
//! owns both frames. When a generation ends, the hypervisor sets that end's
//! `state` to `Closed` and raises its `generation`, then signals the peer.
//!
//! The frontend leads: it publishes a hello with a new `epoch` and goes to
//! `Initialising`. The backend answers the pair (generation, epoch) that it
//! saw by naming it in `peer_generation` and `peer_epoch` when it goes to
//! `Connected`. An answer to any other pair is stale and ignored.

use core::sync::atomic::AtomicU32;

use serde::{Deserialize, Serialize};

use crate::hypercall::numbered;

/// Version of the connection protocol in both hellos.
pub const VERSION: u16 = 1;
/// Most bytes of a hello.
pub const HELLO_MAX: usize = 1024;

numbered! {
    /// Which protocol a connection speaks.
    pub enum Protocol: u16 {
        /// [`crate::blk`].
        Blk = 1,
        /// [`crate::net`].
        Net = 2,
    }
}

numbered! {
    /// Which end of a connection a domain is.
    pub enum Role: u16 {
        /// Sends requests and grants the memory.
        Frontend = 1,
        /// Serves requests.
        Backend = 2,
    }
}

numbered! {
    /// What an end says about itself.
    pub enum State: u32 {
        /// Not there.
        Closed = 0,
        /// Frontend: hello published, waits for the answer. Backend: starting.
        Initialising = 1,
        /// Serving.
        Connected = 2,
        /// Disconnected the peer over its misbehaviour or leaves in good order.
        Closing = 3,
    }
}

/// One end's page.
#[repr(C)]
pub struct EndPage {
    /// [`State`].
    pub state: AtomicU32,
    /// The owner's domain generation, written by the hypervisor at its start.
    pub generation: AtomicU32,
    /// Number of this hello within the generation; raised before each new one.
    pub epoch: AtomicU32,
    /// Backend: the frontend generation that this hello answers.
    pub peer_generation: AtomicU32,
    /// Backend: the frontend epoch that this hello answers.
    pub peer_epoch: AtomicU32,
    /// Bytes of `hello` in use.
    pub hello_len: AtomicU32,
    /// Padding to 64 bytes.
    pub reserved: [u32; 10],
    /// A `postcard` [`FrontHello`] or [`BackHello`], as little-endian words.
    pub hello: [AtomicU32; HELLO_MAX / 4],
}

/// Consecutive grants of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRange {
    /// First grant reference.
    pub first: u32,
    /// Number of pages.
    pub pages: u32,
}

/// One queue: a request and a response ring in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueHello {
    /// Memory of both rings (see [`crate::ring`]).
    pub ring: GrantRange,
    /// Slots, a power of two.
    pub slots: u32,
}

/// What a frontend offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontHello {
    /// [`VERSION`].
    pub version: u16,
    /// [`Protocol`] as a number.
    pub protocol: u16,
    /// Feature bits of the protocol.
    pub features: u32,
    /// blk: one queue. net: tx, then rx.
    pub queues: heapless::Vec<QueueHello, 4>,
    /// The buffer pool that segments of requests point into.
    pub pool: GrantRange,
}

/// What a backend answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackHello {
    /// [`VERSION`].
    pub version: u16,
    /// Feature bits that both ends will use.
    pub features: u32,
    /// What the protocol needs to know.
    pub body: BackBody,
}

/// Protocol part of a [`BackHello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackBody {
    /// A volume.
    Blk {
        /// Capacity in sectors of 512 bytes.
        sectors: u64,
        /// Bytes that a request's start and length must be a multiple of.
        block_size: u32,
        /// No writes.
        read_only: bool,
    },
    /// A vif.
    Net {
        /// The vif's MAC address.
        mac: [u8; 6],
        /// Largest payload of a frame (without the 14-byte header).
        mtu: u16,
    },
    /// The backend cannot serve this connection; says why (for people).
    Refused {
        /// UTF-8 text.
        why: heapless::String<96>,
    },
}
