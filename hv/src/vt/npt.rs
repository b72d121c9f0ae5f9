//! Nested page tables: the memory that a domain's CPU can reach.
//!
//! Tables are made when the node is built; the grant window gets all of its
//! tables then, so that mapping a grant later cannot run out.

use crate::table::{ACCESSED_DIRTY, NO_EXECUTE, PRESENT, UNCACHED, USER, WRITE};

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Device registers: not to be cached.
    pub device: bool,
}

impl Rights {
    /// The bits of a leaf. What is writable is never executable, whatever was
    /// asked for. Nested walks are user accesses (APM vol. 2, 15.25.5).
    pub fn bits(self) -> u64 {
        let write = if self.write { WRITE } else { 0 };
        let execute = if self.execute && !self.write { 0 } else { NO_EXECUTE };
        let device = if self.device { UNCACHED } else { 0 };
        PRESENT | USER | ACCESSED_DIRTY | write | execute | device
    }

    /// Whether the bits of a leaf allow writes and execution.
    pub fn of(bits: u64) -> (bool, bool) {
        (bits & WRITE != 0, bits & PRESENT != 0 && bits & NO_EXECUTE == 0)
    }
}
