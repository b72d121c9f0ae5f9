//! What can go wrong, by who has to act on it.

use alloc::string::String;
use core::fmt;

/// Why a volume was not mounted. Nothing was written to it, except by
/// [`MountError::Device`] in the middle of formatting an empty volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountError {
    /// The device failed; its error.
    Device(String),
    /// The volume has fewer blocks than the store can work with.
    TooSmall {
        /// Blocks of the volume.
        blocks: u64,
        /// Blocks needed.
        needed: u64,
    },
    /// The volume holds something else, so it is left alone.
    NotAStore,
    /// The volume was written by an unknown version of the format.
    Version(u32),
    /// The volume was cut shorter since it was formatted.
    Shrunk {
        /// Blocks of the volume now.
        blocks: u64,
        /// Blocks when it was formatted.
        formatted: u64,
    },
    /// The index does not fit the memory that the caller allows it.
    IndexMemory {
        /// The limit in bytes.
        limit: usize,
    },
    /// The metadata is damaged; what was found.
    Corrupt(&'static str),
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => write!(f, "the device failed: {error}"),
            Self::TooSmall { blocks, needed } => {
                write!(f, "the volume has {blocks} blocks of 4 KiB, {needed} are needed")
            }
            Self::NotAStore => f.write_str("the volume is not empty and holds no key-value store"),
            Self::Version(version) => write!(f, "unknown format version {version}"),
            Self::Shrunk { blocks, formatted } => {
                write!(
                    f,
                    "the volume has {blocks} blocks, but had {formatted} when it was formatted"
                )
            }
            Self::IndexMemory { limit } => {
                write!(f, "the index needs more than the {limit} bytes of memory it may use")
            }
            Self::Corrupt(what) => write!(f, "the metadata is damaged: {what}"),
        }
    }
}

impl core::error::Error for MountError {}

/// Why a put cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutError {
    /// The key breaks a rule of [`check_key`](crate::check_key).
    BadKey,
    /// The key is longer than [`MAX_KEY`](crate::MAX_KEY).
    KeyTooLong,
    /// The value is longer than [`MAX_VALUE`](crate::MAX_VALUE).
    TooLarge,
    /// No room for the value, for its metadata, or for its index entry.
    Full,
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadKey => "the key is empty or has a character that is not allowed",
            Self::KeyTooLong => "the key is longer than 255 bytes",
            Self::TooLarge => "the value is longer than 8 MiB",
            Self::Full => "the volume is full",
        })
    }
}

impl core::error::Error for PutError {}

/// Why a call on a mounted store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The device failed (the log has its error). A put or delete that ends so
    /// may or may not be there after the next mount; later ones may succeed.
    Device,
    /// The stored value does not match its checksum.
    Corrupt,
    /// More bytes were written to a put than declared.
    TooMuchData,
    /// A put was committed before all declared bytes were written.
    TooLittleData,
    /// An earlier call on this put or value failed or was dropped halfway.
    Aborted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "the device failed",
            Self::Corrupt => "the stored value is damaged",
            Self::TooMuchData => "more data than declared",
            Self::TooLittleData => "less data than declared",
            Self::Aborted => "an earlier call failed or was dropped",
        })
    }
}

impl core::error::Error for Error {}
