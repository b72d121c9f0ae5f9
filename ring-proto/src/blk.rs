//! The block protocol: slots of the rings.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::hypercall::numbered;

/// Bytes per sector, the unit of `sector` fields.
pub const SECTOR: u64 = 512;
/// Most segments of one request.
pub const MAX_SEGMENTS: usize = 6;
/// Most bytes of one request.
pub const MAX_REQUEST_BYTES: u32 = 1 << 20;
/// Slots of the queue that our frontends offer.
pub const SLOTS: u32 = 64;

/// Feature: flush.
pub const FEATURE_FLUSH: u32 = 1 << 0;
/// Feature: discard.
pub const FEATURE_DISCARD: u32 = 1 << 1;
/// Feature: write-zeroes.
pub const FEATURE_WRITE_ZEROES: u32 = 1 << 2;

numbered! {
    /// What a request asks for.
    pub enum Op: u8 {
        /// Disk to pool.
        Read = 0,
        /// Pool to disk.
        Write = 1,
        /// All writes that completed before become durable.
        Flush = 2,
        /// The range's content may be dropped.
        Discard = 3,
        /// The range reads as zeroes afterwards.
        WriteZeroes = 4,
    }
}

numbered! {
    /// Outcome of a request.
    pub enum Status: u8 {
        /// Done.
        Ok = 0,
        /// The device reported an error.
        IoError = 1,
        /// Out of the volume, misaligned or malformed.
        Invalid = 2,
        /// Not offered by this volume.
        Unsupported = 3,
    }
}

/// A piece of the buffer pool.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// Byte offset within the pool.
    pub offset: u32,
    /// Bytes, a multiple of 512.
    pub len: u32,
}

/// A slot of the request ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// Chosen by the frontend, unique among its requests in flight.
    pub id: u32,
    /// [`Op`].
    pub op: u8,
    /// Segments in use.
    pub segment_count: u8,
    /// Zero.
    pub reserved: u16,
    /// First sector within the volume.
    pub sector: u64,
    /// Discard, write-zeroes: sectors. Otherwise 0.
    pub sectors: u64,
    /// Where the data is.
    pub segments: [Segment; MAX_SEGMENTS],
}

/// A slot of the response ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Response {
    /// Of the request.
    pub id: u32,
    /// [`Status`].
    pub status: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blk_1_slots_have_the_specified_size() {
        assert_eq!((size_of::<Request>(), size_of::<Response>(), size_of::<Segment>()), (72, 8, 8));
        assert_eq!((MAX_SEGMENTS, MAX_REQUEST_BYTES, SECTOR), (6, 1 << 20, 512));
    }
}
