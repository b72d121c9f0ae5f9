//! A disk that does not do what it says: each fault of MINIX's `fbd`, and answers
//! that come late. It is a file that QEMU reaches over the protocol [`nbd`].

mod faulty;
pub mod nbd;

pub use faulty::{Answer, Armed, Disk, Medium};
use serde::{Deserialize, Serialize};

/// Kind of requests that a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// What the disk does to one request. Fractions say how far through all that is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Misdeed {
    /// It does nothing, and answers with an error.
    Error,
    /// It does all, and answers late.
    Late {
        /// So many milliseconds of the host's time.
        ms: u32,
    },
    /// It stores the first sectors of a write only: not all, and at least one of several.
    Torn {
        /// How many: 65536ths.
        fraction: u16,
    },
    /// It stores nothing of a write.
    Lost,
    /// It stores a write with one word changed.
    Corrupt {
        /// Which word: 65536ths.
        fraction: u16,
        /// Bits of it that are inverted.
        mask: u64,
    },
    /// It stores a write elsewhere in the same volume.
    Misdirected {
        /// Where: 2^32ths.
        fraction: u32,
    },
}
