//! One VT-d unit: its registers, invalidation queue and fault records.
#![expect(clippy::arithmetic_side_effects, reason = "offsets of registers, and counts of few bits")]

use super::entry::{self, decode_fault};
use crate::iommu::queue::Queue;
use crate::iommu::{Error, Event, EventKind, PAGE};
use crate::pci::Bdf;
use crate::phys::PhysIo;
use crate::table::AllocFrames;

/// Offsets of registers. (Section 10.4.)
mod register {
    pub const CAPABILITY: u64 = 0x08;
    pub const EXTENDED_CAPABILITY: u64 = 0x10;
    pub const COMMAND: u64 = 0x18;
    pub const STATUS: u64 = 0x1c;
    pub const ROOT_TABLE: u64 = 0x20;
    pub const FAULT_STATUS: u64 = 0x34;
    pub const FAULT_CONTROL: u64 = 0x38;
    pub const PROTECTED_MEMORY: u64 = 0x64;
    pub const QUEUE_HEAD: u64 = 0x80;
    pub const QUEUE_TAIL: u64 = 0x88;
    pub const QUEUE: u64 = 0x90;
    pub const INTERRUPT_TABLE: u64 = 0xb8;
}

/// Bits of the command and status registers. (Interrupts of the format without
/// remapping stay blocked: that bit, 23, is never set.)
mod command {
    pub const TRANSLATE: u32 = 1 << 31;
    pub const SET_ROOT_TABLE: u32 = 1 << 30;
    pub const QUEUE: u32 = 1 << 26;
    pub const REMAP_INTERRUPTS: u32 = 1 << 25;
    pub const SET_INTERRUPT_TABLE: u32 = 1 << 24;
}

/// One unit.
#[derive(Debug)]
pub(super) struct Unit<IO> {
    io: IO,
    mmio: u64,
    pub queue: Queue<IO>,
    /// First fault record and how many there are.
    faults: u64,
    fault_count: u64,
    next_fault: u64,
}

/// Capability and extended capability registers of the unit with registers at
/// `mmio`. Refuses one that lacks what we need.
pub(super) fn abilities<IO: PhysIo>(io: &IO, mmio: u64) -> Result<[u64; 2], Error> {
    let basic = io.read::<u64>(mmio + register::CAPABILITY);
    let extended = io.read::<u64>(mmio + register::EXTENDED_CAPABILITY);
    if basic == u64::MAX || basic >> 4 & 1 != 0 {
        return Err(Error::Unsupported("a VT-d unit that does not answer, or buffers writes"));
    }
    if basic & 7 < 2 {
        return Err(Error::Unsupported("VT-d with fewer than 256 domains"));
    }
    if extended >> 1 & 1 == 0 || extended >> 3 & 1 == 0 {
        return Err(Error::Unsupported("VT-d without queued invalidation or interrupt remapping"));
    }
    Ok([basic, extended])
}

impl<IO: PhysIo> Unit<IO> {
    /// Points the unit to its tables and switches it on.
    pub fn start(
        io: IO,
        mmio: u64,
        [root_table, interrupt_table]: [u64; 2],
        alloc: AllocFrames<'_>,
    ) -> Result<Self, Error> {
        let [able, _] = abilities(&io, mmio)?;
        let frames = alloc(2, PAGE).ok_or(Error::Exhausted)?;
        let registers = [mmio + register::QUEUE_HEAD, mmio + register::QUEUE_TAIL];
        let mut unit = Self {
            queue: Queue::new(io.clone(), frames, registers, entry::wait),
            io,
            mmio,
            faults: mmio + (able >> 24 & 0x3ff) * 16,
            fault_count: (able >> 40 & 0xff) + 1,
            next_fault: 0,
        };
        // Whatever the firmware left running stops first. Bus mastering is off
        // everywhere, so nothing slips through meanwhile.
        for bit in [command::TRANSLATE, command::REMAP_INTERRUPTS, command::QUEUE] {
            unit.command(bit, false)?;
        }
        // Faults are polled for, so their interrupt stays masked.
        unit.io.write::<u32>(mmio + register::FAULT_CONTROL, 1 << 31);
        unit.io.write::<u64>(mmio + register::QUEUE_TAIL, 0);
        unit.io.write::<u64>(mmio + register::QUEUE, unit.queue.ring);
        unit.command(command::QUEUE, true)?;
        unit.io.write::<u64>(mmio + register::ROOT_TABLE, root_table);
        unit.command(command::SET_ROOT_TABLE, true)?;
        unit.io.write::<u64>(mmio + register::INTERRUPT_TABLE, interrupt_table);
        unit.command(command::SET_INTERRUPT_TABLE, true)?;
        unit.queue.submit(&[
            entry::INVALIDATE_CONTEXTS,
            entry::INVALIDATE_TRANSLATIONS,
            entry::INVALIDATE_INTERRUPTS,
        ])?;
        unit.queue.wait()?;
        unit.command(command::REMAP_INTERRUPTS, true)?;
        unit.command(command::TRANSLATE, true)?;
        // What the firmware protected is protected by the tables now.
        if able >> 5 & 0b11 != 0 {
            unit.io.write::<u32>(mmio + register::PROTECTED_MEMORY, 0);
        }
        Ok(unit)
    }

    /// Sets or clears a bit of the command register and waits until the status
    /// shows it. The one-shot bits read as what was done last and must not be
    /// written again. (Section 10.4.4.)
    fn command(&mut self, bit: u32, on: bool) -> Result<(), Error> {
        const ONE_SHOT: u32 = 0x6900_0000;
        let (io, status) = (self.io.clone(), self.mmio + register::STATUS);
        let old = io.read::<u32>(status) & !ONE_SHOT;
        let new = if on { old | bit } else { old & !bit };
        io.write::<u32>(self.mmio + register::COMMAND, new);
        self.queue.until(|_| (io.read::<u32>(status) & bit != 0) == on)
    }

    /// The next fault from the records.
    pub fn poll_event(&mut self) -> Option<Event> {
        const FAULT: u64 = 1 << 63;
        const OVERFLOW: u32 = 1 << 0;
        const PENDING: u32 = 1 << 1;
        let status = self.io.read::<u32>(self.mmio + register::FAULT_STATUS);
        if status & (OVERFLOW | PENDING) == 0 {
            return None;
        }
        for _ in 0..self.fault_count {
            let at = self.faults + self.next_fault * 16;
            self.next_fault = (self.next_fault + 1) % self.fault_count;
            let words = [self.io.read::<u64>(at), self.io.read::<u64>(at + 8)];
            if words[1] & FAULT != 0 {
                // Writing the bit frees the record.
                self.io.write::<u64>(at + 8, FAULT);
                return Some(decode_fault(words));
            }
        }
        // Only when all records are free: until then no new fault could be kept.
        self.io.write::<u32>(self.mmio + register::FAULT_STATUS, OVERFLOW);
        Some(Event { bdf: Bdf(0), address: 0, kind: EventKind::Overflow })
    }
}
