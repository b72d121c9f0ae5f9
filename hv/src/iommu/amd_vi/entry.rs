//! What AMD-Vi reads and writes in memory, as numbers: device table entries,
//! interrupt remapping entries, commands, events. (AMD I/O Virtualization
//! Technology Specification, document 48882, chapter 2.)

use crate::iommu::queue::Command;
use crate::iommu::{Event, EventKind};
use crate::pci::Bdf;
use crate::table::Format;

/// Entries of an interrupt table. Always all of them, because the index comes
/// from the device and QEMU does not check it against a length.
pub const INTERRUPTS: u16 = 2048;
/// Bytes of an interrupt table.
pub const INTERRUPT_TABLE: u64 = INTERRUPTS as u64 * IRTE;
/// Bytes of an interrupt remapping entry.
pub const IRTE: u64 = 4;
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
    pub const fn attached(domain_id: u16, root: u64, interrupts: u64) -> Self {
        let [low, _, remap, high] = Self::interrupts(interrupts).0;
        let mode = (FORMAT.levels as u64) << Self::MODE_SHIFT;
        Self([low | mode | root & ADDRESS | Self::READ_WRITE, domain_id as u64, remap, high])
    }

    /// Domain id and root of an attached entry.
    #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
    pub const fn domain(&self) -> (u16, u64) {
        (self.0[1] as u16, self.0[0] & ADDRESS)
    }
}

/// Page tables: present, next level, coherent, read, write. (Section 2.2.3.)
pub const FORMAT: Format = Format {
    levels: 4,
    largest: 1,
    read: 1 << 61 | 1,
    write: 1 << 62,
    leaf_bits: 1 << 60,
    level_shift: Some(9),
    write_back: false,
};

/// An interrupt remapping entry: fixed delivery to one CPU.
pub const fn interrupt_entry(vector: u8, apic_id: u8) -> u32 {
    const VALID: u32 = 1;
    (vector as u32) << 16 | (apic_id as u32) << 8 | VALID
}

/// After all commands before it, writes `data` to `address`.
pub fn completion_wait(address: u64, data: u32) -> Command {
    const STORE: u64 = 1;
    [1 << 60 | address & 0x000f_ffff_ffff_fff8 | STORE, data.into()]
}

/// Forget the device table entry of `bdf`.
pub const fn invalidate_device(bdf: u16) -> Command {
    [2 << 60 | bdf as u64, 0]
}

/// Forget all translations of a domain, including what leads to them.
pub const fn invalidate_domain(domain_id: u16) -> Command {
    const SIZE: u64 = 1 << 0;
    const UPPER_LEVELS_TOO: u64 = 1 << 1;
    // The size is told by the lowest zero bit of the address from bit 12 on.
    const EVERYTHING: u64 = 0x7fff_ffff_ffff_f000;
    [3 << 60 | (domain_id as u64) << 32, EVERYTHING | SIZE | UPPER_LEVELS_TOO]
}

/// Forget the interrupt table of `bdf`.
pub const fn invalidate_interrupts(bdf: u16) -> Command {
    [5 << 60 | bdf as u64, 0]
}

/// Forget everything. Only where the extended features have it.
pub const fn invalidate_all() -> Command {
    [8 << 60, 0]
}

/// Makes sense of an event log entry.
pub fn decode_event(words: [u64; 2]) -> Event {
    const INTERRUPT: u64 = 1 << 51;
    const WRITE: u64 = 1 << 53;
    let [head, address] = words;
    let [low, high, .., top] = head.to_le_bytes();
    let kind = match top >> 4 {
        2 if head & INTERRUPT != 0 => EventKind::Interrupt,
        2 if head & WRITE != 0 => EventKind::Write,
        2 => EventKind::Read,
        other => EventKind::Other(other),
    };
    let bdf = match kind {
        // Illegal command, hardware error at a command: nobody's.
        EventKind::Other(5 | 6) => Bdf(0),
        _ => Bdf(u16::from_le_bytes([low, high])),
    };
    Event { bdf, address, kind }
}
