//! Segments of a request, validated against the pool.

use ring_proto::blk::Segment;
use ring_proto::shm::SharedMem;

/// A validated segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset within the mapped pool.
    pub offset: u32,
    /// Bytes, not 0.
    pub len: u32,
    /// Its address for the own device (and in the own address space).
    pub address: u64,
}

/// Validates the first `count` of `segments`: each within `pool`, not empty,
/// offset and length multiples of `unit`. Returns them and their total length.
pub(crate) fn validate<const N: usize>(
    pool: &SharedMem,
    segments: &[Segment; N],
    count: u8,
    unit: u32,
) -> Option<(heapless::Vec<Piece, N>, u64)> {
    let mut pieces = heapless::Vec::new();
    let mut total = 0u64;
    for s in segments.get(..usize::from(count))? {
        let end = u64::from(s.offset).saturating_add(u64::from(s.len));
        let fits = s.len != 0
            && end <= pool.len() as u64
            && s.offset.is_multiple_of(unit)
            && s.len.is_multiple_of(unit);
        if !fits {
            return None;
        }
        let address = pool.address().checked_add(u64::from(s.offset))?;
        pieces.push(Piece { offset: s.offset, len: s.len, address }).ok()?;
        total = total.saturating_add(u64::from(s.len));
    }
    Some((pieces, total))
}
