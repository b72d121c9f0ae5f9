//! Where things lie on the volume.
//!
//! ```text
//! 0               superblock (sector 0), the rest of the first 32 blocks zero
//! 32              metadata area 0: header, snapshot, journal
//! 32 + area       metadata area 1: the same
//! 32 + 2 * area   data blocks to the end
//! ```

use crate::format::{MAX_BATCH_BLOCKS, MAX_ENTRY_BYTES};
use crate::{BLOCK, MountError};

/// Blocks kept for the superblock. All of them must be zero before a volume is
/// formatted: 128 KiB cover the signatures of the usual file systems.
pub(crate) const RESERVED: u64 = 32;

const MIN_AREA: u64 = 48;
const MAX_AREA: u64 = 2048;
/// Extents pack a block number in 48 bits.
const MAX_BLOCKS: u64 = 1 << 40;

/// Smallest volume, in blocks (1 MiB).
pub const MIN_BLOCKS: u64 = 256;

/// Sizes and places of the parts of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub blocks: u64,
    /// Blocks of one metadata area.
    pub area: u64,
}

impl Layout {
    /// The layout of a volume of `blocks` blocks.
    pub fn new(blocks: u64) -> Result<Self, MountError> {
        if blocks < MIN_BLOCKS {
            return Err(MountError::TooSmall { blocks, needed: MIN_BLOCKS });
        }
        let blocks = blocks.min(MAX_BLOCKS);
        Ok(Self { blocks, area: (blocks / 32).clamp(MIN_AREA, MAX_AREA) })
    }

    /// First block of metadata area 0 or 1.
    pub fn area_start(&self, area: u8) -> u64 {
        RESERVED + u64::from(area) * self.area
    }

    /// First data block; data goes on to `blocks`.
    pub fn data_start(&self) -> u64 {
        RESERVED + 2 * self.area
    }

    /// Bytes a snapshot may have. What is left of the area is journal: at least
    /// a quarter of the area, and at least one batch of commits.
    pub fn snapshot_capacity(&self) -> u64 {
        let journal = (self.area / 4).max(MAX_BATCH_BLOCKS);
        (self.area - 1 - journal) * BLOCK as u64
    }
}

const _: () = assert!(RESERVED + 2 * MIN_AREA < MIN_BLOCKS);
const _: () = assert!((MIN_AREA - 1 - MAX_BATCH_BLOCKS) * BLOCK as u64 > MAX_ENTRY_BYTES as u64);
