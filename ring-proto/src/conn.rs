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

use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::hypercall::numbered;
use crate::shm::SharedMem;
use crate::sync::fence;

/// Version of the connection protocol in both hellos.
pub const VERSION: u16 = 1;
/// Most bytes of a hello. (loom explores every order of its words.)
pub const HELLO_MAX: usize = if cfg!(loom) { 4 } else { 1024 };

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

const STATE: usize = offset_of!(EndPage, state);
const GENERATION: usize = offset_of!(EndPage, generation);
const EPOCH: usize = offset_of!(EndPage, epoch);
const PEER_GENERATION: usize = offset_of!(EndPage, peer_generation);
const PEER_EPOCH: usize = offset_of!(EndPage, peer_epoch);
const HELLO_LEN: usize = offset_of!(EndPage, hello_len);
const HELLO: usize = offset_of!(EndPage, hello);

/// What the hypervisor writes into an end's page when its generation ends:
/// offsets and words, in this order. `generation` is the coming one. The state
/// goes first: with the coming generation beside an old `Connected` the last
/// hello of the old generation would be the new one's for a moment.
pub const fn closed(generation: u32) -> [(usize, u32); 2] {
    [(STATE, State::Closed as u32), (GENERATION, generation)]
}

/// One hello of one life of an end. Two different hellos of an end never
/// have the same pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pair {
    /// Domain generation.
    pub generation: u32,
    /// Epoch within it.
    pub epoch: u32,
}

/// Why a peer's hello was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// It changed while it was read: look again later.
    Unsettled,
    /// Its bytes do not decode: misbehaviour.
    Malformed,
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsettled => "the hello changed while it was read",
            Self::Malformed => "the hello does not decode",
        })
    }
}

impl core::error::Error for HelloError {}

/// A hello is longer than [`HELLO_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloTooLong;

/// The two pages of a connection, as one end sees them.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(stepped, derive(PartialEq, Eq, Hash))]
pub struct Pages {
    /// Own page.
    pub own: OwnEnd,
    /// The peer's page, read-only.
    pub peer: PeerEnd,
}

impl Pages {
    /// From views of the two pages. `None` if one is too small for an
    /// [`EndPage`] or not aligned to 8 bytes.
    pub fn new(own: SharedMem, peer: SharedMem) -> Option<Self> {
        Some(Self { own: OwnEnd::new(own)?, peer: PeerEnd::new(peer)? })
    }
}

fn end_page(mem: SharedMem) -> Option<SharedMem> {
    if !mem.is_aligned(8) {
        return None;
    }
    mem.sub(0, size_of::<EndPage>())
}

/// The page that this end writes.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(stepped, derive(PartialEq, Eq, Hash))]
pub struct OwnEnd(SharedMem);

impl OwnEnd {
    /// From a view of the page; `None` as for [`Pages::new`].
    pub fn new(mem: SharedMem) -> Option<Self> {
        end_page(mem).map(Self)
    }

    /// Own domain generation, written by the hypervisor.
    pub fn generation(&self) -> u32 {
        self.0.read_u32(GENERATION, Acquire)
    }

    /// Changes the state and nothing else. What was written before, in any
    /// shared memory, is visible to a peer that sees the new state, and what
    /// follows becomes visible no earlier than the new state.
    pub fn set_state(&self, state: State) {
        self.0.write_u32(STATE, state as u32, Release);
        fence(Release);
    }

    /// Publishes a hello: first `hidden` is shown as the state, so that a
    /// peer that is reading knows, then the hello with its `epoch` and the
    /// pair that it answers (frontend: zeroes), then `state`.
    pub fn publish<H: Serialize>(
        &self,
        hello: &H,
        epoch: u32,
        answers: Pair,
        hidden: State,
        state: State,
    ) -> Result<(), HelloTooLong> {
        let mut bytes = [0; HELLO_MAX];
        let len = postcard::to_slice(hello, &mut bytes).map_err(|_| HelloTooLong)?.len();
        self.set_state(hidden);
        let written = self.0.copy_to(HELLO, &bytes);
        debug_assert!(written.is_ok());
        self.0.write_u32(HELLO_LEN, u32::try_from(len).map_err(|_| HelloTooLong)?, Relaxed);
        self.0.write_u32(PEER_GENERATION, answers.generation, Relaxed);
        self.0.write_u32(PEER_EPOCH, answers.epoch, Relaxed);
        // Who sees this epoch sees its hello, even while it is still hidden.
        self.0.write_u32(EPOCH, epoch, Release);
        self.0.write_u32(STATE, state as u32, Release);
        Ok(())
    }
}

/// What the peer's page says at a glance. All of it is the peer's claim,
/// except the generation, which the hypervisor writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// [`State`] as a number; the peer may write any.
    pub state: u32,
    /// Generation and epoch of the peer's hello.
    pub pair: Pair,
    /// Of our hellos, the one that it answers.
    pub answers: Pair,
}

impl Glance {
    /// Whether the state is `state`.
    pub fn is(&self, state: State) -> bool {
        self.state == state as u32
    }
}

/// The page that the peer writes.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(stepped, derive(PartialEq, Eq, Hash))]
pub struct PeerEnd(SharedMem);

impl PeerEnd {
    /// From a view of the page; `None` as for [`Pages::new`].
    pub fn new(mem: SharedMem) -> Option<Self> {
        end_page(mem).map(Self)
    }

    /// Reads the words. What the peer wrote before the state or the epoch that
    /// are seen here is visible afterwards.
    pub fn glance(&self) -> Glance {
        let state = self.0.read_u32(STATE, Acquire);
        Glance {
            state,
            pair: Pair {
                generation: self.0.read_u32(GENERATION, Acquire),
                epoch: self.0.read_u32(EPOCH, Acquire),
            },
            answers: Pair {
                generation: self.0.read_u32(PEER_GENERATION, Relaxed),
                epoch: self.0.read_u32(PEER_EPOCH, Relaxed),
            },
        }
    }

    /// Copies and decodes the hello that belongs to `seen`.
    pub fn hello<H: DeserializeOwned>(&self, seen: &Glance) -> Result<H, HelloError> {
        let mut bytes = [0; HELLO_MAX];
        let len = self.0.read_u32(HELLO_LEN, Relaxed) as usize;
        let copied = bytes.get_mut(..len).map(|part| self.0.copy_from(HELLO, part).is_ok());
        // If a word of a newer hello was copied, the state that hid it (or a
        // later one with another epoch) is visible from here on.
        fence(Acquire);
        if self.glance() != *seen {
            return Err(HelloError::Unsettled);
        }
        if copied != Some(true) {
            return Err(HelloError::Malformed);
        }
        match bytes.get(..len).map(postcard::take_from_bytes) {
            Some(Ok((hello, []))) => Ok(hello),
            _ => Err(HelloError::Malformed),
        }
    }

    /// Whether the peer still says exactly `seen`, apart from a state that
    /// may be any of `states`.
    pub fn still(&self, seen: Pair, states: &[State]) -> bool {
        // First what was read from shared memory before, then this.
        fence(Acquire);
        let now = self.glance();
        now.pair == seen && states.iter().any(|&s| now.is(s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::vec::Vec;

    fn page() -> SharedMem {
        let words: &'static mut [u64] = Vec::leak(std::vec![0u64; 512]);
        // SAFETY: leaked, and used only through the view.
        #[allow(unsafe_code)]
        unsafe {
            SharedMem::new(words.as_mut_ptr().cast(), 4096)
        }
    }

    fn hello(epoch: u32) -> FrontHello {
        let range = GrantRange { first: epoch, pages: epoch };
        FrontHello {
            version: VERSION,
            protocol: 1,
            features: epoch,
            queues: [QueueHello { ring: range, slots: epoch }; 4].into_iter().collect(),
            pool: range,
        }
    }

    #[test]
    fn conn_5_a_hello_is_read_whole_or_not_at_all() {
        let mem = page();
        let writer = thread::spawn(move || {
            let own = OwnEnd::new(mem).unwrap();
            for epoch in 1..=100_000 {
                own.publish(
                    &hello(epoch),
                    epoch,
                    Pair::default(),
                    State::Closing,
                    State::Initialising,
                )
                .unwrap();
            }
        });
        let peer = PeerEnd::new(mem).unwrap();
        let mut read = 0;
        loop {
            let seen = peer.glance();
            if !seen.is(State::Initialising) {
                continue;
            }
            match peer.hello::<FrontHello>(&seen) {
                Ok(got) => {
                    assert_eq!(got, hello(seen.pair.epoch));
                    read += 1;
                }
                Err(error) => assert_eq!(error, HelloError::Unsettled),
            }
            if seen.pair.epoch == 100_000 {
                break;
            }
        }
        assert!(read > 0);
        writer.join().unwrap();
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..Default::default()
        })]

        /// And a changed byte of a good one is either.
        #[test]
        fn conn_5_any_bytes_are_a_hello_or_misbehaviour(
            mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            len in 0u32..1200,
            good in proptest::prelude::any::<bool>(),
            at in 0usize..60,
        ) {
            let mem = page();
            let own = OwnEnd::new(mem).unwrap();
            own.publish(&hello(7), 1, Pair::default(), State::Closing, State::Initialising).unwrap();
            if good {
                bytes.truncate(1);
                mem.copy_to(HELLO + at, &bytes).unwrap();
            } else {
                mem.copy_to(HELLO, &bytes).unwrap();
                mem.write_u32(HELLO_LEN, len, Relaxed);
            }
            let peer = PeerEnd::new(mem).unwrap();
            match peer.hello::<FrontHello>(&peer.glance()) {
                Ok(hello) => proptest::prop_assert!(hello.queues.len() <= 4),
                Err(error) => proptest::prop_assert_eq!(error, HelloError::Malformed),
            }
        }
    }

    #[test]
    fn conn_1_the_page_has_the_specified_layout() {
        assert_eq!((STATE, GENERATION, EPOCH), (0, 4, 8));
        assert_eq!((PEER_GENERATION, PEER_EPOCH, HELLO_LEN, HELLO), (12, 16, 20, 64));
        assert!(size_of::<EndPage>() <= crate::PAGE_SIZE);
        assert!(Pages::new(page().sub(0, 1000).unwrap(), page()).is_none());
        assert!(Pages::new(page(), page().sub(4, 4000).unwrap()).is_none());
    }

    #[test]
    fn conn_4_a_hello_that_is_too_long_is_refused() {
        let own = OwnEnd::new(page()).unwrap();
        let long = [[0u64; 32]; 32].map(|row| row.map(|_| u64::MAX));
        let published = own.publish(&long, 1, Pair::default(), State::Closing, State::Initialising);
        assert_eq!(published, Err(HelloTooLong));
    }
}
