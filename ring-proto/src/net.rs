//! The network protocol: slots of the rings.
//!
//! Frames are Ethernet frames without FCS. The offload fields carry the
//! meaning that the virtio specification gives them (5.1.6 `virtio_net_hdr`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::hypercall::numbered;

/// Most segments of a frame.
pub const MAX_SEGMENTS: usize = 3;
/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: u32 = 14;
/// Shortest frame that is taken.
pub const MIN_FRAME: u32 = 14;
/// Longest frame without segmentation offload.
pub const MAX_FRAME: u32 = 1514;
/// Longest frame with segmentation offload.
pub const MAX_GSO_FRAME: u32 = 65_550;
/// Slots of each queue that our frontends offer.
pub const SLOTS: u32 = 128;

/// Feature: the frontend may leave tx checksums to the backend.
pub const FEATURE_TX_CSUM: u32 = 1 << 0;
/// Feature: the frontend may send frames to be segmented (TCP over IPv4).
pub const FEATURE_TX_TSO4: u32 = 1 << 1;
/// Feature: the backend may hand over frames whose checksum it verified.
pub const FEATURE_RX_CSUM: u32 = 1 << 2;

/// Frame flag: checksum to be filled in (`csum_start`, `csum_offset`).
pub const FLAG_NEEDS_CSUM: u8 = 1 << 0;
/// Frame flag: checksum was verified.
pub const FLAG_DATA_VALID: u8 = 1 << 1;

/// A piece of the buffer pool.
pub use crate::blk::Segment;

/// A slot of the tx request ring: a frame to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxRequest {
    /// Chosen by the frontend, unique among its requests in flight.
    pub id: u32,
    /// `FLAG_*`.
    pub flags: u8,
    /// 0 = none, 1 = TCP over IPv4.
    pub gso_type: u8,
    /// Bytes of TCP payload per segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where, after `csum_start`, it is stored.
    pub csum_offset: u16,
    /// Segments in use.
    pub segment_count: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Where the frame is.
    pub segments: [Segment; MAX_SEGMENTS],
}

/// A slot of the tx response ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxResponse {
    /// Of the request.
    pub id: u32,
    /// [`Status`].
    pub status: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A slot of the rx request ring: an empty buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxRequest {
    /// Chosen by the frontend, unique among its requests in flight.
    pub id: u32,
    /// The buffer.
    pub buffer: Segment,
    /// Zero.
    pub reserved: u32,
}

/// A slot of the rx response ring: a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxResponse {
    /// Of the request whose buffer was filled.
    pub id: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// [`Status`].
    pub status: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

numbered! {
    /// Outcome of a request.
    pub enum Status: u8 {
        /// Sent or received.
        Ok = 0,
        /// Dropped: spoofed source, limit, or no room.
        Dropped = 1,
        /// Malformed.
        Invalid = 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn net_1_slots_have_the_specified_size() {
        assert_eq!((size_of::<TxRequest>(), size_of::<TxResponse>()), (40, 8));
        assert_eq!((size_of::<RxRequest>(), size_of::<RxResponse>()), (16, 16));
    }
}
