//! What a driver of a disk is to the service: it takes requests and says when they are
//! finished.
//!
//! Whoever implements [`Disk`] has a block driver domain: rings, volumes, turns of several
//! guests, limits, checks by the supervisor and the death of a disk that does not work are
//! [`service`](crate::service)'s. Data moves by DMA between the disk and addresses that the
//! caller names: memory of the DMA pool, or granted memory.

use core::{fmt, sync::atomic::Ordering};

use domain_rt::{
    events,
    time::{MS, now_ns},
};
use ring_proto::{
    Port,
    blk::{Op, SECTOR, Status},
    shm::SharedMem,
};

/// An interrupt that was lost is noticed after this time.
pub const POLL_NS: u64 = 100 * MS;
/// A disk that finished nothing for so long is given up.
pub const STUCK_NS: u64 = 30_000 * MS;

/// A piece of memory that the disk reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Device address.
    pub address: u64,
    /// Bytes, a multiple of 512, not 0.
    pub len: u32,
}

/// A request to the disk.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// What to do.
    pub op: Op,
    /// First sector of 512 bytes.
    pub sector: u64,
    /// Discard, write-zeroes: sectors, at most [`Disk::max_range`].
    pub sectors: u32,
    /// Read, write: the data, at most [`MAX_SEGMENTS`](ring_proto::blk::MAX_SEGMENTS) pieces.
    pub pieces: &'a [Piece],
    /// Comes back with the completion.
    pub cookie: u32,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No room; take completions first.
    Full,
    /// Its parts do not fit together, or it leaves the disk.
    Invalid,
    /// The disk does not offer this.
    Unsupported,
}

/// A request that the disk finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Of the request.
    pub cookie: u32,
    /// How it ended.
    pub status: Status,
}

/// The disk broke the rules of its queue: nothing that it says counts any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misbehaved;

/// Why a request that was waited for has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The disk broke the rules of its queue.
    Misbehaved,
    /// The disk does not answer.
    Timeout,
    /// It was refused, or ended with an error.
    Status(Status),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misbehaved => f.write_str("the device broke the rules of its queue"),
            Self::Timeout => f.write_str("the device does not answer"),
            Self::Status(status) => write!(f, "the device says {status:?}"),
        }
    }
}

/// A driver of a disk.
///
/// What the device says is foreign: copy it once, check it, and answer [`Misbehaved`] if it can't
/// be. A driver keeps nothing for its next generation, and finds the device as a dead one left it.
pub trait Disk: Sized {
    /// Why a disk can't be opened.
    type Error: fmt::Display;

    /// Opens the disk at a device slot of this domain: resets it, so that it does nothing more
    /// for an earlier generation, and only then lets it reach memory.
    ///
    /// # Errors
    ///
    /// It can't be used. The next generation begins with a harder reset.
    fn open(slot: usize) -> Result<Self, Self::Error>;

    /// Port of the disk's interrupt.
    fn port(&self) -> Port;

    /// Capacity in sectors of 512 bytes.
    fn sectors(&self) -> u64;

    /// Requests must begin and end at a multiple of this: a power of two from 512 to 65,536.
    fn block_size(&self) -> u32;

    /// Whether the disk takes no writes.
    fn read_only(&self) -> bool;

    /// Whether there is a cache that a flush empties. Without one, what
    /// completed is durable.
    fn has_cache(&self) -> bool;

    /// Most sectors of one discard or write-zeroes; 0 = not offered.
    fn max_range(&self, _op: Op) -> u32 {
        0
    }

    /// Requests in flight, as far as it matters whether there are any.
    fn in_flight(&self) -> u16;

    /// Whether a request of any kind fits now.
    fn has_room(&self) -> bool;

    /// Puts a request into the queue; [`Self::kick`] starts it.
    ///
    /// # Errors
    ///
    /// Nothing of it was taken.
    fn submit(&mut self, io: &Io<'_>) -> Result<(), Refused>;

    /// Starts what was submitted.
    fn kick(&mut self);

    /// The next request that the disk finished.
    ///
    /// # Errors
    ///
    /// The disk broke the rules of its queue.
    fn next_done(&mut self) -> Result<Option<Done>, Misbehaved>;

    /// Switches the interrupt on before a sleep, and off while completions are
    /// taken anyway. Returns whether something is finished already: then do
    /// not sleep.
    fn set_interrupts(&mut self, on: bool) -> bool;

    /// Whether the disk gave up.
    fn needs_reset(&self) -> bool;

    /// Does one request and waits for it. Only while nothing else is in flight.
    ///
    /// # Errors
    ///
    /// It came to no end.
    fn run(&mut self, io: &Io<'_>) -> Result<Status, Failure> {
        if self.submit(io).is_err() {
            return Ok(Status::Invalid);
        }
        self.kick();
        let give_up = now_ns().saturating_add(STUCK_NS);
        loop {
            if let Some(done) = self.next_done().map_err(|_| Failure::Misbehaved)? {
                return Ok(done.status);
            }
            let now = now_ns();
            if now > give_up {
                return Err(Failure::Timeout);
            }
            events::take(self.port());
            if !self.set_interrupts(true) {
                events::wait(now.saturating_add(POLL_NS));
            }
        }
    }

    /// Reads whole blocks into private memory, by way of `bounce` in the DMA
    /// pool.
    ///
    /// # Errors
    ///
    /// With which status the disk answered.
    fn read(&mut self, block: u64, to: &mut [u8], bounce: SharedMem) -> Result<(), Status> {
        let sectors = u64::from(self.block_size()) / SECTOR;
        let mut sector = block.checked_mul(sectors).ok_or(Status::Invalid)?;
        for part in to.chunks_mut(bounce.len()) {
            let len = u32::try_from(part.len()).map_err(|_| Status::Invalid)?;
            let pieces = [Piece { address: bounce.address(), len }];
            let io = Io { op: Op::Read, sector, sectors: 0, pieces: &pieces, cookie: 0 };
            match self.run(&io) {
                Ok(Status::Ok) => {}
                Ok(status) => return Err(status),
                Err(_) => return Err(Status::IoError),
            }
            core::sync::atomic::fence(Ordering::Acquire);
            bounce.copy_from(0, part).map_err(|_| Status::Invalid)?;
            sector = sector.saturating_add(u64::from(len) / SECTOR);
        }
        Ok(())
    }
}
