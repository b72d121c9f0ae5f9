//! One AMD-Vi unit: its registers, command buffer and event log.

use super::entry::{Command, decode_event};
use crate::acpi::ivrs::AmdViUnit;
use crate::iommu::{AllocFrames, Error, Event, EventKind};
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;

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
    pub const HT_TUNNEL: u64 = 1 << 1;
    pub const EVENT_LOG: u64 = 1 << 2;
    pub const PASS_PW: u64 = 1 << 8;
    pub const RESPONSE_PASS_PW: u64 = 1 << 9;
    pub const COHERENT: u64 = 1 << 10;
    pub const ISOCHRONOUS: u64 = 1 << 11;
    pub const COMMANDS: u64 = 1 << 12;
}

/// Bits of the status register.
mod status {
    pub const EVENT_OVERFLOW: u64 = 1 << 0;
    pub const EVENT_LOG_RUNS: u64 = 1 << 3;
}

/// Entries of the command buffer and of the event log: 16 bytes each, a page.
const SLOTS: u64 = 256;
const SLOT: u64 = 16;
const RING: u64 = SLOTS * SLOT;
/// log2 of the slots, where base registers want it.
const RING_LEN: u64 = 8 << 56;
/// How often a value is read before the unit counts as broken. A read of a
/// cached word and a pause take some tens of cycles, so this is about a second.
const PATIENCE: u32 = if cfg!(test) { 10_000 } else { 20_000_000 };

/// One unit.
#[derive(Debug)]
pub(super) struct Unit<IO> {
    io: IO,
    mmio: u64,
    control: u64,
    commands: u64,
    tail: u64,
    events: u64,
    /// Where COMPLETION_WAIT stores.
    completion: u64,
    completed: u64,
    /// It once did not answer; nothing is expected of it any more.
    broken: bool,
    /// It remembers that something was not mapped.
    pub caches_absent: bool,
    /// It has the INVALIDATE_IOMMU_ALL command.
    has_invalidate_all: bool,
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
        const HAS_INVALIDATE_ALL: u64 = 1 << 6;
        let capability = pci.ecam().read32(Bdf(info.bdf), info.capability);
        let mut frame = || alloc(1, RING).ok_or(Error::Exhausted);
        let (commands, events, completion) = (frame()?, frame()?, frame()?);
        let mut unit = Self {
            io,
            mmio: info.mmio,
            control: control_bits(info.flags),
            commands,
            tail: 0,
            events,
            completion,
            completed: 0,
            broken: false,
            caches_absent: capability & CACHES_ABSENT != 0,
            has_invalidate_all: false,
        };
        unit.has_invalidate_all = unit.read(register::EXTENDED_FEATURES) & HAS_INVALIDATE_ALL != 0;
        // Whatever the firmware left running stops first. Bus mastering is off
        // everywhere, so nothing slips through meanwhile.
        unit.write(register::CONTROL, 0);
        unit.io.write64(unit.completion, 0);
        unit.write(register::DEVICE_TABLE, device_table | (DEVICE_TABLE_PAGES - 1));
        unit.write(register::COMMAND_BASE, commands | RING_LEN);
        unit.write(register::COMMAND_HEAD, 0);
        unit.write(register::COMMAND_TAIL, 0);
        unit.write(register::EVENT_BASE, events | RING_LEN);
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
        if self.has_invalidate_all {
            self.submit(&[Command::invalidate_all()])?;
            return self.wait();
        }
        for id in 0..=u16::MAX {
            self.submit(&[
                Command::invalidate_device(id),
                Command::invalidate_interrupts(id),
                Command::invalidate_domain(id),
            ])?;
        }
        self.wait()
    }

    /// Hands commands to the unit. They have been carried out only when a
    /// [`Unit::wait`] after it has returned `Ok`.
    pub fn submit(&mut self, commands: &[Command]) -> Result<(), Error> {
        for command in commands {
            let next = (self.tail + SLOT) % RING;
            // One slot stays empty, so that full and empty differ.
            self.until(|unit| unit.read(register::COMMAND_HEAD) % RING != next)?;
            let [low, high] = command.0;
            self.io.write64(self.commands + self.tail, low);
            self.io.write64(self.commands + self.tail + 8, high);
            self.tail = next;
            self.write(register::COMMAND_TAIL, self.tail);
        }
        Ok(())
    }

    /// Returns once all submitted commands have been carried out.
    pub fn wait(&mut self) -> Result<(), Error> {
        self.completed = self.completed.wrapping_add(1);
        let (address, number) = (self.completion, self.completed);
        self.submit(&[Command::completion_wait(address, number)])?;
        self.until(|unit| unit.io.read64(address) == number)
    }

    /// The next event from the log.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.broken {
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
        let words = [self.io.read64(at), self.io.read64(at + 8)];
        // The tail may be seen to move before the entry is: next time, then.
        if words[0] == 0 {
            return None;
        }
        self.io.write64(at, 0);
        self.io.write64(at + 8, 0);
        self.write(register::EVENT_HEAD, (head + SLOT) % RING);
        Some(decode_event(words))
    }

    /// After an overflow the log has stopped: drop what it holds and start it
    /// anew. Who fills it that fast has been seen already.
    fn restart_log(&mut self) -> Option<Event> {
        self.write(register::CONTROL, self.control & !control::EVENT_LOG);
        self.until(|unit| unit.read(register::STATUS) & status::EVENT_LOG_RUNS == 0).ok()?;
        for offset in (0..RING).step_by(8) {
            self.io.write64(self.events + offset, 0);
        }
        self.write(register::EVENT_HEAD, 0);
        self.write(register::EVENT_TAIL, 0);
        self.write(register::STATUS, status::EVENT_OVERFLOW);
        self.write(register::CONTROL, self.control);
        Some(Event { bdf: Bdf(0), address: 0, kind: EventKind::Overflow })
    }

    /// Waits until `done`, but not for ever.
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        if !self.broken {
            for _ in 0..PATIENCE {
                if done(self) {
                    return Ok(());
                }
                core::hint::spin_loop();
            }
            self.broken = true;
        }
        Err(Error::Hardware)
    }

    fn read(&self, register: u64) -> u64 {
        self.io.read64(self.mmio + register)
    }

    fn write(&self, register: u64, value: u64) {
        self.io.write64(self.mmio + register, value);
    }
}

/// The control register while the unit runs. `flags` are the IVHD's.
fn control_bits(flags: u8) -> u64 {
    let hints =
        [control::HT_TUNNEL, control::PASS_PW, control::RESPONSE_PASS_PW, control::ISOCHRONOUS];
    hints.iter().enumerate().filter(|&(bit, _)| flags >> bit & 1 != 0).fold(
        control::ENABLE | control::EVENT_LOG | control::COMMANDS | control::COHERENT,
        |all, (_, &bit)| all | bit,
    )
}
