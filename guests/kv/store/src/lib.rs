//! A crash-safe key-value store on a raw block volume.
//!
//! Values of 0 bytes to 8 MiB are streamed to extents of 4 KiB blocks; a small
//! index lives in memory and, as a snapshot and a journal, on the volume.
//!
//! What it promises, for a device that may lose or keep any subset of the
//! 512-byte sectors written since its last flush:
//!
//! - A put or delete that was acknowledged is there after a power cut.
//! - One that was not acknowledged is there as a whole or not at all.
//! - A value that is being read stays as it was when `get` found it.
//! - Damage is reported (an error of `mount` or of `Value::read`), never
//!   handed out as data, and never a panic.
//!
//! The order that makes it so: data blocks, flush, one journal record for all
//! commits that wait, flush, acknowledge, and only then may the blocks of a
//! replaced value be used again. FORMAT.md has the layout of the volume.
//!
//! Nothing here knows about an executor: whoever awaits a call of the store
//! also moves the shared work forward (module `background`). A call may be
//! dropped at any await; the device operations it began are carried to their
//! end before their blocks are used again.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod background;
mod commit;
mod compact;
mod device;
mod error;
mod format;
mod key;
mod layout;
mod mount;
mod put;
mod replay;
mod space;
mod state;
mod store;
mod value;

pub use device::{BLOCK, BlockDevice};
pub use error::{Error, MountError, PutError};
pub use key::{MAX_KEY, check_key};
pub use layout::MIN_BLOCKS;
pub use put::{Committed, Put};
pub use store::{DEFAULT_INDEX_MEMORY, Stats, Store};
pub use value::Value;

/// Longest value, in bytes.
pub const MAX_VALUE: u64 = 8 << 20;

/// Largest single device operation for data, in blocks (64 KiB).
const CHUNK_BLOCKS: u64 = 16;
