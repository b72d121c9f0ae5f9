//! What the store needs from a block device.

use core::fmt::Debug;
use core::future::Future;

/// Block size in bytes: the unit of allocation and of device transfers.
pub const BLOCK: usize = 4096;

/// A block device with a volatile write cache.
///
/// Several calls may be in flight at once, never two writes of one block. The
/// futures may be polled by different tasks in turn and must wake the last one.
pub trait BlockDevice {
    /// What the device reports when an operation fails.
    type Error: Debug;

    /// Size of the volume in blocks.
    fn blocks(&self) -> u64;

    /// Reads whole blocks from `block` on; `buf` is a multiple of [`BLOCK`].
    fn read(&self, block: u64, buf: &mut [u8]) -> impl Future<Output = Result<(), Self::Error>>;

    /// Writes whole blocks from `block` on; `buf` is a multiple of [`BLOCK`].
    fn write(&self, block: u64, buf: &[u8]) -> impl Future<Output = Result<(), Self::Error>>;

    /// Makes every write that completed before this call durable.
    fn flush(&self) -> impl Future<Output = Result<(), Self::Error>>;
}
