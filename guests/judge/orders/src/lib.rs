//! One block of a judge's memory, over which the host orders rounds of work and
//! the judge says what it saw, while the machine runs.
//!
//! The host reads and writes the machine's memory as a file; the judge's side are
//! atomics ([`Block`]). All fields are words of 64 bits, little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 0.. | [`Head`]: written once by the judge, [`Head::magic`] last |
//! | [`ORDERS`].. | [`Orders`]: written by the host, [`Orders::signal`] last |
//! | [`OUTCOME`].. | [`Outcome`]: written by the judge, `state` and then `round` last |
//! | [`GO`].. | number of a round, written by the host when it has done in the middle of it what it wanted to |
//!
//! The block is all zeros in an image, so that the only one in a machine's
//! memory that begins with [`MAGIC`] is one that a judge serves.
#![no_std]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Symbol of the block in the guest's program.
pub const BLOCK_SYMBOL: &str = "JUDGE";
/// First word of a block that is served.
pub const MAGIC: u64 = u64::from_le_bytes(*b"bulkjudg");
/// Bytes of a block; it is aligned to as many, so it lies within one page.
pub const BLOCK: usize = 512;
/// Where the orders are in the block, bytes.
pub const ORDERS: usize = size_of::<Head>();
/// Where the outcome is in the block, bytes.
pub const OUTCOME: usize = ORDERS + size_of::<Orders>();
/// Where the number of the round is in the block whose last requests may be submitted, bytes.
pub const GO: usize = BLOCK - 8;
const _: () = assert!(OUTCOME + size_of::<Outcome>() <= GO);

/// Most requests of a round.
pub const MAX_REQUESTS: u64 = 1 << 16;
/// Most requests in flight.
pub const MAX_WINDOW: u64 = 32;
/// Longest of all times in orders, ns.
pub const MAX_NS: u64 = 600_000_000_000;

/// At the end of the round, read back what the round wrote, and some of what
/// older ones did. Blocks whose content is not as it must be are written anew.
pub const VERIFY: u64 = 1 << 0;
/// The same with the whole region.
pub const VERIFY_ALL: u64 = 1 << 1;
/// The same with what the round before wrote: after the driver began a new life in
/// between, it is the disk that is judged, and no driver's memory.
pub const VERIFY_BEFORE: u64 = 1 << 2;
/// Blocks are read only, and datagrams are as short as can be.
pub const READ_ONLY: u64 = 1 << 3;
/// Blocks are written only, with many flushes between, and datagrams are as long as can be.
pub const WRITE_ONLY: u64 = 1 << 4;
/// All of them.
const FLAGS: u64 = VERIFY | VERIFY_ALL | VERIFY_BEFORE | READ_ONLY | WRITE_ONLY;

/// What a judge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client of blk.
    Blk = 1,
    /// A client of net.
    Net = 2,
}

/// Who serves the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Head {
    /// [`MAGIC`].
    pub magic: u64,
    /// Number of the judge's domain.
    pub domain: u64,
    /// A [`Kind`].
    pub kind: u64,
    /// Generation of the judge's domain.
    pub generation: u64,
}

/// A round of work.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Orders {
    /// Number of the round: not 0, and not that of the round before.
    pub round: u64,
    /// What the round's random choices follow from.
    pub seed: u64,
    /// Requests of the round, at most [`MAX_REQUESTS`]: it lasts until so many were
    /// completed. For a datagram that is lost another is sent.
    pub requests: u64,
    /// When so many of them were completed the judge writes [`Outcome::moment_ns`];
    /// 0 = before the first is submitted, `u64::MAX` = never.
    pub moment: u64,
    /// So many of them are submitted only when the host has written [`GO`]: it may be slow to see
    /// the moment, and comes to it before they are all done.
    pub hold: u64,
    /// Requests in flight, 1 to [`MAX_WINDOW`].
    pub window: u64,
    /// Least time from one submission to the next, ns.
    pub pace_ns: u64,
    /// The round is given up if it is not done after this time, ns; not 0.
    pub limit_ns: u64,
    /// Time without requests at the end of the round, in which answers to nothing
    /// may come, ns.
    pub quiet_ns: u64,
    /// [`VERIFY`], [`VERIFY_ALL`], [`VERIFY_BEFORE`]; [`READ_ONLY`] or [`WRITE_ONLY`], or both
    /// kinds of work.
    pub flags: u64,
    /// `!round`: written after all others, so that orders that are half written
    /// are not taken for orders.
    pub signal: u64,
}

impl Orders {
    /// Whether a judge can carry them out.
    #[must_use]
    pub fn are_valid(&self) -> bool {
        let times = [self.pace_ns, self.limit_ns, self.quiet_ns];
        self.round != 0
            && self.requests <= MAX_REQUESTS
            && self.hold <= self.requests
            && (1..=MAX_WINDOW).contains(&self.window)
            && self.limit_ns != 0
            && times.iter().all(|&ns| ns <= MAX_NS)
            && self.flags & !FLAGS == 0
            && self.flags & (READ_ONLY | WRITE_ONLY) != READ_ONLY | WRITE_ONLY
    }
}

/// Values of [`Outcome::state`].
pub mod state {
    /// No round was ordered yet.
    pub const IDLE: u64 = 0;
    /// The round is under way.
    pub const RUNNING: u64 = 1;
    /// The round came to its end.
    pub const DONE: u64 = 2;
    /// The round was given up at its limit.
    pub const LIMIT: u64 = 3;
    /// The orders were none.
    pub const REFUSED: u64 = 4;
}

/// Values of [`Wrong::what`].
pub mod wrong {
    /// Nothing is wrong.
    pub const NOTHING: u64 = 0;
    /// The label's own checksum is wrong, so these are other bytes altogether.
    pub const NO_LABEL: u64 = 1;
    /// Bytes under a right label are others than it says.
    pub const BYTES: u64 = 2;
    /// A label of another length, writer or place: misdirected.
    pub const PLACE: u64 = 3;
    /// A version that was acknowledged was replaced by an older one: a lost write.
    pub const STALE: u64 = 4;
    /// A version that was never written.
    pub const FUTURE: u64 = 5;
}

/// The first thing of a round that was not as it must be.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Wrong {
    /// One of [`wrong`].
    pub what: u64,
    /// Number of the block or the datagram.
    pub place: u64,
    /// Offset of the first wrong byte, for [`wrong::BYTES`].
    pub offset: u64,
    /// The place that the label names.
    pub found_place: u64,
    /// The version that the label names.
    pub found_version: u64,
    /// The oldest version that it could have been.
    pub oldest: u64,
    /// The newest.
    pub newest: u64,
}

/// What a judge saw in a round. Counts grow while the round runs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Outcome {
    /// The round that this is about.
    pub round: u64,
    /// One of [`state`].
    pub state: u64,
    /// When the round began, ns on the node's clock.
    pub begun_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Requests submitted: those completed, those lost, and while the round runs those
    /// in flight.
    pub submitted: u64,
    /// Requests completed, with an error or without; of datagrams, those that came back.
    pub completed: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Answers whose data is wrong: bytes, place, or a version of the future.
    pub wrong: u64,
    /// Blocks whose data is older than what was acknowledged: lost writes.
    pub stale: u64,
    /// Datagrams that did not come back.
    pub lost: u64,
    /// Datagrams that came back once more.
    pub duplicate: u64,
    /// Datagrams of an earlier round that came back in this one.
    pub late: u64,
    /// Frames that every stack drops: a wrong checksum of IP or UDP.
    pub damaged: u64,
    /// Blocks read back to verify them.
    pub verified: u64,
    /// Requests that the frontend sent again after a reconnect.
    pub replayed: u64,
    /// Times the connection came up.
    pub connects: u64,
    /// Times it went down.
    pub disconnects: u64,
    /// Complaints of the frontend about a backend that completed nothing, or broke
    /// the protocol.
    pub complaints: u64,
    /// Times the backend broke the protocol.
    pub misbehaviours: u64,
    /// Longest time without a completion while requests were in flight, ns.
    pub longest_ns: u64,
    /// When the first request after the latest reconnect was completed; 0: none was.
    pub first_after_ns: u64,
    /// When the moment was; 0: it was not reached.
    pub moment_ns: u64,
    /// What was wrong first.
    pub first_wrong: Wrong,
}

impl Outcome {
    /// Whether the judge is done with `round`, whatever came of it.
    #[must_use]
    pub fn is_over(&self, round: u64) -> bool {
        self.round == round && matches!(self.state, state::DONE | state::LIMIT | state::REFUSED)
    }
}

const WORDS: usize = BLOCK / 8;
const ORDERS_WORDS: usize = size_of::<Orders>() / 8;
const OUTCOME_WORDS: usize = size_of::<Outcome>() / 8;

/// The block as the judge sees it.
#[derive(Debug)]
#[repr(C, align(512))]
pub struct Block([AtomicU64; WORDS]);
const _: () = assert!(size_of::<Block>() == BLOCK);

impl Block {
    /// A block that nobody serves.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "there is one, in a static")]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// From here on the block is served.
    pub fn open(&self, domain: u64, kind: Kind, generation: u64) {
        // Whoever searches the memory for the block must not find a copy on the stack.
        for (word, value) in self.0.iter().skip(1).zip([domain, kind as u64, generation]) {
            word.store(value, Ordering::Relaxed);
        }
        if let Some(magic) = self.0.first() {
            magic.store(MAGIC, Ordering::Release);
        }
    }

    /// The orders, if they are complete and not for round `last`.
    #[must_use]
    pub fn orders(&self, last: u64) -> Option<Orders> {
        let words = self.0.get(ORDERS / 8..)?.get(..ORDERS_WORDS)?;
        let signal = words.last()?.load(Ordering::Acquire);
        if signal == !last || signal == 0 {
            return None;
        }
        let mut copy = [0u64; ORDERS_WORDS];
        for (to, from) in copy.iter_mut().zip(words) {
            *to = from.load(Ordering::Relaxed);
        }
        let orders = Orders::read_from_bytes(copy.as_bytes()).ok()?;
        (orders.signal == signal && orders.round == !signal).then_some(orders)
    }

    /// Whether the host lets the last requests of `round` go.
    #[must_use]
    pub fn lets_go(&self, round: u64) -> bool {
        self.0.get(GO / 8).is_some_and(|word| word.load(Ordering::Acquire) == round)
    }

    /// Shows what was seen so far.
    pub fn tell(&self, outcome: &Outcome) {
        let mut copy = [0u64; OUTCOME_WORDS];
        copy.as_mut_bytes().copy_from_slice(outcome.as_bytes());
        let words = self.0.iter().skip(OUTCOME / 8).zip(copy);
        for (word, value) in words.clone().skip(2) {
            word.store(value, Ordering::Relaxed);
        }
        for (word, value) in [words.clone().nth(1), words.clone().next()].into_iter().flatten() {
            word.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(block: &Block, orders: &Orders) {
        let mut words = [0u64; ORDERS_WORDS];
        words.as_mut_bytes().copy_from_slice(orders.as_bytes());
        for (to, word) in block.0.iter().skip(ORDERS / 8).zip(words) {
            to.store(word, Ordering::Relaxed);
        }
    }

    fn valid() -> Orders {
        Orders { round: 7, window: 1, limit_ns: 1, signal: !7, ..Orders::default() }
    }

    #[test]
    fn orders_are_taken_once_and_whole() {
        let block = Block::new();
        assert_eq!(block.orders(0), None);
        order(&block, &valid());
        assert_eq!(block.orders(0), Some(valid()));
        assert_eq!(block.orders(7), None, "taken already");
        // The next ones, without their signal: all that can be seen of them is no order.
        order(&block, &Orders { round: 8, ..valid() });
        assert_eq!(block.orders(7), None);
        order(&block, &Orders { round: 8, signal: !9, ..valid() });
        assert_eq!(block.orders(7), None);
    }

    #[test]
    fn nonsense_is_seen() {
        assert!(valid().are_valid());
        let longest = Orders { limit_ns: MAX_NS, flags: FLAGS & !READ_ONLY, ..valid() };
        assert!(longest.are_valid());
        for bad in [
            Orders { round: 0, ..valid() },
            Orders { requests: MAX_REQUESTS + 1, ..valid() },
            Orders { requests: 3, hold: 4, ..valid() },
            Orders { window: 0, ..valid() },
            Orders { window: MAX_WINDOW + 1, ..valid() },
            Orders { limit_ns: 0, ..valid() },
            Orders { limit_ns: MAX_NS + 1, ..valid() },
            Orders { pace_ns: u64::MAX, ..valid() },
            Orders { quiet_ns: u64::MAX, ..valid() },
            Orders { flags: 1 << 5, ..valid() },
            Orders { flags: READ_ONLY | WRITE_ONLY, ..valid() },
        ] {
            assert!(!bad.are_valid(), "{bad:?}");
        }
    }

    #[test]
    fn the_host_lets_one_round_go() {
        let block = Block::new();
        assert!(!block.lets_go(7));
        block.0[GO / 8].store(7, Ordering::Relaxed);
        assert!(block.lets_go(7) && !block.lets_go(8));
    }

    #[test]
    fn an_outcome_comes_over() {
        let block = Block::new();
        block.open(3, Kind::Net, 1);
        let outcome = Outcome {
            round: 5,
            state: state::DONE,
            moment_ns: 77,
            first_wrong: Wrong { newest: 9, ..Wrong::default() },
            ..Outcome::default()
        };
        block.tell(&outcome);
        let mut bytes = [0; BLOCK];
        for (to, word) in bytes.chunks_exact_mut(8).zip(&block.0) {
            to.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let (head, _) = Head::read_from_prefix(&bytes).unwrap();
        assert_eq!(head, Head { magic: MAGIC, domain: 3, kind: 2, generation: 1 });
        let (seen, _) = Outcome::read_from_prefix(&bytes[OUTCOME..]).unwrap();
        assert_eq!(seen, outcome);
        assert!(seen.is_over(5) && !seen.is_over(6));
        assert!(!Outcome { state: state::RUNNING, ..seen }.is_over(5));
    }
}
