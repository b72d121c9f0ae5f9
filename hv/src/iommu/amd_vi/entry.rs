//! What AMD-Vi reads and writes in memory, as numbers: device table entries,
//! interrupt remapping entries, commands, events. (AMD I/O Virtualization
//! Technology Specification, document 48882, chapter 2.)

use crate::iommu::{Event, EventKind};
use crate::pci::Bdf;

/// Bytes of an interrupt table: 2,048 entries. Always all of them, because
/// the index comes from the device and QEMU does not check it against a length.
pub const INTERRUPT_TABLE: u64 = 2048 * IRTE;
/// Bytes of an interrupt remapping entry.
pub const IRTE: u64 = 4;
/// Interrupts of a function that we can map. The index travels in bits 10:0 of
/// the message, of which 10:8 are the delivery mode: those stay "fixed".
pub const INDEXES: u16 = 256;
/// Where functions send interrupts.
pub const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceEntry(pub [u64; 4]);

impl DeviceEntry {
    const VALID: u64 = 1 << 0;
    const TRANSLATION_VALID: u64 = 1 << 1;
    const MODE_SHIFT: u32 = 9;
    const READ_WRITE: u64 = 0b11 << 61;

    const INTERRUPTS_VALID: u64 = 1 << 0;
    const TABLE_LEN_2048: u64 = 11 << 1;
    const REMAP: u64 = 0b10 << 60;

    /// No DMA, no interrupts. `interrupts` is the address of a table in which
    /// no entry is valid: it is not used (interrupts are aborted before), but
    /// a walker that uses it anyway finds nothing.
    pub const fn blocked(interrupts: u64) -> Self {
        Self([
            Self::VALID | Self::TRANSLATION_VALID,
            0,
            Self::INTERRUPTS_VALID | Self::TABLE_LEN_2048 | interrupts & ADDRESS,
            0,
        ])
    }

    /// Interrupts by the table at `interrupts`, no DMA.
    pub const fn interrupts(interrupts: u64) -> Self {
        let [low, domain, remap, high] = Self::blocked(interrupts).0;
        Self([low, domain, remap | Self::REMAP, high])
    }

    /// DMA by the page table at `root`, interrupts by the table at `interrupts`.
    pub const fn attached(domain_id: u16, root: u64, levels: u8, interrupts: u64) -> Self {
        let [low, _, remap, high] = Self::interrupts(interrupts).0;
        let mode = (levels as u64 & 7) << Self::MODE_SHIFT;
        Self([low | mode | root & ADDRESS | Self::READ_WRITE, domain_id as u64, remap, high])
    }
}

/// An interrupt remapping entry: fixed delivery to one CPU.
pub const fn interrupt_entry(vector: u8, apic_id: u8) -> u32 {
    const VALID: u32 = 1;
    (vector as u32) << 16 | (apic_id as u32) << 8 | VALID
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub [u64; 2]);

impl Command {
    const fn new(code: u64, low: u64, high: u64) -> Self {
        Self([code << 60 | low, high])
    }

    /// After all commands before it, writes `data` to `address`.
    pub const fn completion_wait(address: u64, data: u64) -> Self {
        const STORE: u64 = 1;
        Self::new(1, address & 0x000f_ffff_ffff_fff8 | STORE, data)
    }

    /// Forget the device table entry of `bdf`.
    pub const fn invalidate_device(bdf: u16) -> Self {
        Self::new(2, bdf as u64, 0)
    }

    /// Forget translations of a domain: those of `pages` pages from `iova` on
    /// or more, including what leads to them.
    pub const fn invalidate_pages(domain_id: u16, iova: u64, pages: u64) -> Self {
        Self::new(3, (domain_id as u64) << 32, page_range(iova, pages))
    }

    /// Forget all translations of a domain.
    pub const fn invalidate_domain(domain_id: u16) -> Self {
        Self::invalidate_pages(domain_id, 0, u64::MAX)
    }

    /// Forget the interrupt table of `bdf`.
    pub const fn invalidate_interrupts(bdf: u16) -> Self {
        Self::new(5, bdf as u64, 0)
    }

    /// Forget everything. Only where the extended features have it.
    pub const fn invalidate_all() -> Self {
        Self::new(8, 0, 0)
    }
}

/// The second word of an invalidation of pages: the smallest naturally aligned
/// power-of-two range around them. Its size is told by the lowest zero bit of
/// the address from bit 12 on.
const fn page_range(iova: u64, pages: u64) -> u64 {
    const PAGE: u64 = 1 << 12;
    const SIZE: u64 = 1 << 0;
    const UPPER_LEVELS_TOO: u64 = 1 << 1;
    const EVERYTHING: u64 = 0x7fff_ffff_ffff_f000;
    let first = iova & !(PAGE - 1);
    let last = match pages {
        0 | 1 => first,
        _ => first.saturating_add((pages - 1).saturating_mul(PAGE)),
    };
    if first >> 12 == last >> 12 {
        return first | UPPER_LEVELS_TOO;
    }
    // The highest bit in which the ends differ.
    let top = 63 - (first ^ last).leading_zeros();
    if top >= 52 {
        return EVERYTHING | SIZE | UPPER_LEVELS_TOO;
    }
    let below = (1 << top) - 1;
    let block = first & !(below | 1 << top);
    (block | below) & !(PAGE - 1) | SIZE | UPPER_LEVELS_TOO
}

/// Makes sense of an event log entry.
pub fn decode_event(words: [u64; 2]) -> Event {
    const INTERRUPT: u64 = 1 << 51;
    const WRITE: u64 = 1 << 53;
    let [head, address] = words;
    let field = |shift: u32| {
        let [low, high, ..] = (head >> shift).to_le_bytes();
        u16::from_le_bytes([low, high])
    };
    let [.., top] = head.to_le_bytes();
    let kind = match top >> 4 {
        2 => EventKind::PageFault {
            domain_id: field(32),
            write: head & WRITE != 0,
            interrupt: head & INTERRUPT != 0,
        },
        8 => EventKind::InvalidRequest,
        1 | 3 | 4 => EventKind::BadTable,
        5 | 6 => EventKind::BadCommand,
        7 => EventKind::DeviceTimeout,
        other => EventKind::Other(other),
    };
    let bdf = match kind {
        EventKind::BadCommand => Bdf(0),
        _ => Bdf(field(0)),
    };
    Event { bdf, address, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_entry_lets_nothing_through() {
        let DeviceEntry([low, domain, remap, high]) = DeviceEntry::blocked(0x1234_5000);
        assert_eq!(low, 0b11, "V and TV, no IR, no IW, mode 0");
        assert_eq!((domain, high), (0, 0));
        assert_eq!(remap, 0x1234_5000 | 11 << 1 | 1, "IV, IntCtl = abort");
    }

    #[test]
    fn attached_entry_has_all_fields() {
        let DeviceEntry(words) = DeviceEntry::attached(7, 0x8_0000_0000, 4, 0x7000);
        assert_eq!(words[0], 3 << 61 | 0x8_0000_0000 | 4 << 9 | 3);
        assert_eq!(words[1], 7);
        assert_eq!(words[2], 2 << 60 | 0x7000 | 11 << 1 | 1);
        assert_eq!(words[3], 0);
    }

    #[test]
    fn page_ranges_cover_what_was_asked_for() {
        assert_eq!(page_range(0x5000, 1), 0x5000 | 2);
        // 8 KiB: bit 12 clear is the lowest zero bit.
        assert_eq!(page_range(0x4000, 2), 0x4000 | 3);
        // 0x5000..0x7000 crosses an 8 KiB boundary: 16 KiB from 0x4000.
        assert_eq!(page_range(0x5000, 2), 0x5000 | 3);
        assert_eq!(page_range(0, u64::MAX), 0x7fff_ffff_ffff_f000 | 3);
        for first in 0..64_u64 {
            for pages in 2..64_u64 {
                let word = page_range(first << 12, pages);
                let zero = (word >> 12).trailing_ones();
                let size = 2_u64 << zero;
                let base = word >> 12 & !(size - 1);
                assert!(base <= first && base + size >= first + pages, "{first} {pages}");
                assert!(word & 0xff8 == 0);
            }
        }
    }

    #[test]
    fn events_name_the_culprit() {
        let event = decode_event([2 << 60 | 1 << 53 | 5 << 32 | 0x0100, 0xdead_b000]);
        let kind = EventKind::PageFault { domain_id: 5, write: true, interrupt: false };
        assert_eq!(event, Event { bdf: Bdf(0x0100), address: 0xdead_b000, kind });
    }
}
