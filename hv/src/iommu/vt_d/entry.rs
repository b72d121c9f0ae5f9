//! What VT-d reads and writes in memory, as numbers: context entries, interrupt
//! remapping entries, invalidation descriptors, fault records. (Intel VT-d
//! specification, document D51397, chapters 6, 7 and 9.)

use crate::iommu::queue::Command;
use crate::iommu::{Event, EventKind};
use crate::pci::Bdf;

/// What makes a root entry, a context entry or a table link count.
pub const PRESENT: u64 = 1;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A context entry: DMA by the page table at `root`. (Section 9.3.)
pub const fn context(domain_id: u16, root: u64, levels: u8) -> [u64; 2] {
    [root & ADDRESS | PRESENT, (domain_id as u64) << 8 | (levels as u64).wrapping_sub(2)]
}

/// Domain id and root of a context entry.
#[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
pub const fn domain([low, high]: [u64; 2]) -> (u16, u64) {
    ((high >> 8) as u16, low & ADDRESS)
}

/// An interrupt remapping entry: fixed delivery to one CPU, of messages that
/// come from `bdf` itself. (Section 9.10.)
pub const fn interrupt(bdf: Bdf, vector: u8, apic_id: u8) -> [u64; 2] {
    const VERIFY_ALL_OF_SOURCE: u64 = 0b01 << 18;
    [(apic_id as u64) << 40 | (vector as u64) << 16 | PRESENT, VERIFY_ALL_OF_SOURCE | bdf.0 as u64]
}

/// The address that selects an interrupt remapping entry, for messages whose
/// data counts from there. (Section 5.1.2.2.)
pub const fn message_address(entry: u64) -> u64 {
    const REMAPPABLE_WITH_SUBHANDLE: u64 = 0b11 << 3;
    let [index, index_15] = [entry & 0x7fff, entry >> 15];
    0xfee0_0000 | index << 5 | index_15 << 2 | REMAPPABLE_WITH_SUBHANDLE
}

/// Forget all context entries.
pub const INVALIDATE_CONTEXTS: Command = [1 << 4 | 1, 0];
/// Forget all translations.
pub const INVALIDATE_TRANSLATIONS: Command = [DRAIN | 1 << 4 | 2, 0];
/// Forget all interrupt remapping entries.
pub const INVALIDATE_INTERRUPTS: Command = [4, 0];

/// Accesses on their way are done before the invalidation is.
const DRAIN: u64 = 0b11 << 6;

/// Forget all translations of a domain.
pub const fn invalidate_domain(domain_id: u16) -> Command {
    [(domain_id as u64) << 16 | DRAIN | 2 << 4 | 2, 0]
}

/// After all descriptors before it, writes `data` to `address`.
pub fn wait(address: u64, data: u32) -> Command {
    const STATUS_WRITE: u64 = 1 << 5;
    const FENCE: u64 = 1 << 6;
    [u64::from(data) << 32 | FENCE | STATUS_WRITE | 5, address]
}

/// Makes sense of a fault record. (Section 10.4.14; reasons in appendix A.)
pub fn decode_fault([low, high]: [u64; 2]) -> Event {
    const READ: u64 = 1 << 62;
    let [source_low, source_high, _, _, reason, ..] = high.to_le_bytes();
    let kind = match reason {
        // No root or context entry: a blocked function. Then: an address that
        // is too wide, no write permission, no read permission.
        1 | 2 | 4..=6 if high & READ != 0 => EventKind::Read,
        1 | 2 | 4..=6 => EventKind::Write,
        0x20..=0x22 | 0x25 | 0x26 => EventKind::Interrupt,
        other => EventKind::Other(other),
    };
    let bdf = Bdf(u16::from_le_bytes([source_low, source_high]));
    // Of an interrupt it is the index in the upper bits.
    let address = if kind == EventKind::Interrupt { low >> 48 } else { low & !0xfff };
    Event { bdf, address, kind }
}
