//! Grant table entries.
//!
//! A granter writes an entry into its own table without a hypercall. An entry
//! is one 64-bit word, so granter and hypervisor race by compare-and-swap only.
//! While the hypervisor has a mapping of the page it holds [`IN_USE`] set; the
//! flag is for the granter to read. The hypervisor keeps its own record and
//! does not trust the flag.

use crate::DomainId;

/// The entry may be used.
pub const VALID: u64 = 1 << 0;
/// The grantee may write.
pub const WRITE: u64 = 1 << 1;
/// The grantee's devices may reach the page.
pub const DMA: u64 = 1 << 2;
/// The page may be mapped.
pub const MAP: u64 = 1 << 3;
/// The page may be used by `grant_copy`.
pub const COPY: u64 = 1 << 4;
/// Set by the hypervisor while the page is mapped by the grantee.
pub const IN_USE: u64 = 1 << 7;

const GRANTEE_SHIFT: u32 = 8;
const FRAME_SHIFT: u32 = 24;

/// One word of a grant table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantEntry(pub u64);

impl GrantEntry {
    /// An entry for the page at guest-physical `address` (page aligned).
    pub const fn new(address: u64, grantee: DomainId, flags: u64) -> Self {
        Self(((address >> 12) << FRAME_SHIFT) | ((grantee as u64) << GRANTEE_SHIFT) | flags | VALID)
    }

    /// Guest-physical address of the page, in the granter's space.
    pub const fn address(self) -> u64 {
        (self.0 >> FRAME_SHIFT) << 12
    }

    /// Who may use it.
    #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
    pub const fn grantee(self) -> DomainId {
        (self.0 >> GRANTEE_SHIFT) as u16
    }

    /// Whether every flag of `flags` is set.
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grant_1_the_word_has_the_specified_layout() {
        assert_eq!((VALID, WRITE, DMA, MAP, COPY, IN_USE), (1, 2, 4, 8, 16, 128));
        let entry = GrantEntry::new(0x12_3456_7000, 0xabcd, MAP | IN_USE);
        assert_eq!(entry.0, 0x12_3456_7000 >> 12 << 24 | 0xab_cd00 | 0x89);
        assert_eq!((entry.address(), entry.grantee()), (0x12_3456_7000, 0xabcd));
        assert!(entry.has(VALID | MAP) && !entry.has(MAP | WRITE));
        // Whatever a granter writes reads as something.
        let any = GrantEntry(u64::MAX);
        assert_eq!((any.address(), any.grantee()), (((1 << 40) - 1) << 12, u16::MAX));
    }
}
