//! One AMD-Vi unit: its registers, command buffer and event log.
#![expect(clippy::arithmetic_side_effects, reason = "offsets of registers and within our own ring")]

use super::entry::{self, decode_event};
use crate::acpi::ivrs::AmdViUnit;
use crate::iommu::queue::{Queue, RING};
use crate::iommu::{Error, Event, EventKind, PAGE};
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use crate::table::AllocFrames;

/// Offsets of registers.
mod register {
    pub const DEVICE_TABLE: u64 = 0x0000;
    pub const COMMAND_BASE: u64 = 0x0008;
    pub const EVENT_BASE: u64 = 0x0010;
    pub const CONTROL: u64 = 0x0018;
    pub const EXCLUSION_BASE: u64 = 0x0020;
    pub const EXCLUSION_LIMIT: u64 = 0x0028;
    pub const EXTENDED_FEATURES: u64 = 0x0030;
    pub const COMMAND_HEAD: u64 = 0x2000;
    pub const COMMAND_TAIL: u64 = 0x2008;
    pub const EVENT_HEAD: u64 = 0x2010;
    pub const EVENT_TAIL: u64 = 0x2018;
    pub const STATUS: u64 = 0x2020;
}

/// Bits of the control register.
mod control {
    pub const ENABLE: u64 = 1 << 0;
    pub const EVENT_LOG: u64 = 1 << 2;
    pub const COHERENT: u64 = 1 << 10;
    pub const COMMANDS: u64 = 1 << 12;
}

/// Bits of the status register.
mod status {
    pub const EVENT_OVERFLOW: u64 = 1 << 0;
    pub const EVENT_LOG_RUNS: u64 = 1 << 3;
}

/// Bytes of an entry of the event log, and log2 of the entries of log and
/// command buffer, where base registers want it.
const SLOT: u64 = 16;
const RING_LEN: u64 = 8 << 56;

/// One unit.
#[derive(Debug)]
pub(super) struct Unit<IO> {
    io: IO,
    mmio: u64,
    control: u64,
    pub queue: Queue<IO>,
    events: u64,
    /// It remembers that something was not mapped.
    pub caches_absent: bool,
}

impl<IO: PhysIo> Unit<IO> {
    /// Points the unit to the device table (64 Ki entries) and switches it on.
    pub fn start(
        io: IO,
        info: &AmdViUnit,
        pci: &Pci<IO>,
        device_table: u64,
        alloc: AllocFrames<'_>,
    ) -> Result<Self, Error> {
        const DEVICE_TABLE_PAGES: u64 = 512;
        const CACHES_ABSENT: u32 = 1 << 26;
        let capability = pci.ecam().read::<u32>(Bdf(info.bdf), info.capability);
        let frames = alloc(3, PAGE).ok_or(Error::Exhausted)?;
        let registers =
            [register::COMMAND_HEAD, register::COMMAND_TAIL].map(|r| info.mmio.saturating_add(r));
        let mut unit = Self {
            queue: Queue::new(io.clone(), frames, registers, entry::completion_wait),
            io,
            mmio: info.mmio,
            control: control_bits(info.flags),
            events: frames + 2 * PAGE,
            caches_absent: capability & CACHES_ABSENT != 0,
        };
        // Whatever the firmware left running stops first. Bus mastering is off
        // everywhere, so nothing slips through meanwhile.
        unit.write(register::CONTROL, 0);
        unit.write(register::DEVICE_TABLE, device_table | (DEVICE_TABLE_PAGES - 1));
        unit.write(register::COMMAND_BASE, unit.queue.ring | RING_LEN);
        unit.write(register::COMMAND_HEAD, 0);
        unit.write(register::COMMAND_TAIL, 0);
        unit.write(register::EVENT_BASE, unit.events | RING_LEN);
        unit.write(register::EVENT_HEAD, 0);
        unit.write(register::EVENT_TAIL, 0);
        // No range of addresses escapes translation.
        unit.write(register::EXCLUSION_BASE, 0);
        unit.write(register::EXCLUSION_LIMIT, 0);
        unit.write(register::CONTROL, unit.control);
        unit.forget_everything()?;
        Ok(unit)
    }

    /// Invalidates all that may be cached from before.
    fn forget_everything(&mut self) -> Result<(), Error> {
        const HAS_INVALIDATE_ALL: u64 = 1 << 6;
        if self.read(register::EXTENDED_FEATURES) & HAS_INVALIDATE_ALL != 0 {
            self.queue.submit(&[entry::invalidate_all()])?;
            return self.queue.wait();
        }
        for id in 0..=u16::MAX {
            self.queue.submit(&[
                entry::invalidate_device(id),
                entry::invalidate_interrupts(id),
                entry::invalidate_domain(id),
            ])?;
        }
        self.queue.wait()
    }

    /// The next event from the log.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.queue.broken {
            return None;
        }
        if self.read(register::STATUS) & status::EVENT_OVERFLOW != 0 {
            return self.restart_log();
        }
        let head = self.read(register::EVENT_HEAD) % RING;
        if head == self.read(register::EVENT_TAIL) % RING {
            return None;
        }
        let at = self.events + head;
        let words = [self.io.read::<u64>(at), self.io.read::<u64>(at + 8)];
        // The tail may be seen to move before the entry is: next time, then.
        if words[0] == 0 {
            return None;
        }
        self.io.write::<u64>(at, 0);
        self.io.write::<u64>(at + 8, 0);
        self.write(register::EVENT_HEAD, (head + SLOT) % RING);
        Some(decode_event(words))
    }

    /// After an overflow the log has stopped: drop what it holds and start it
    /// anew. Who fills it that fast has been seen already.
    fn restart_log(&mut self) -> Option<Event> {
        self.write(register::CONTROL, self.control & !control::EVENT_LOG);
        let (io, at) = (self.io.clone(), self.mmio + register::STATUS);
        self.queue.until(|_| io.read::<u64>(at) & status::EVENT_LOG_RUNS == 0).ok()?;
        for offset in (0..RING).step_by(8) {
            self.io.write::<u64>(self.events + offset, 0);
        }
        self.write(register::EVENT_HEAD, 0);
        self.write(register::EVENT_TAIL, 0);
        self.write(register::STATUS, status::EVENT_OVERFLOW);
        self.write(register::CONTROL, self.control);
        Some(Event { bdf: Bdf(0), address: 0, kind: EventKind::Overflow })
    }

    fn read(&self, register: u64) -> u64 {
        self.io.read::<u64>(self.mmio + register)
    }

    fn write(&self, register: u64, value: u64) {
        self.io.write::<u64>(self.mmio + register, value);
    }
}

/// The control register while the unit runs. `flags` are the IVHD's: HyperTransport
/// tunnel, PassPW, ResPassPW, isochronous.
fn control_bits(flags: u8) -> u64 {
    let hints = [1, 8, 9, 11].into_iter().enumerate();
    let hints = hints.fold(0, |all, (bit, to)| all | u64::from(flags >> bit & 1) << to);
    hints | control::ENABLE | control::EVENT_LOG | control::COMMANDS | control::COHERENT
}
