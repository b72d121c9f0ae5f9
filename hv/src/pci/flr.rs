//! Function level reset, without waiting in place.

use super::config::{Ecam, command, register};
use super::{BARS, Bdf, Error, Function, Pci};
use crate::phys::PhysIo;

/// How long a function may take before it must answer again (PCI Express
/// Base Specification, 6.6.2).
pub const SETTLE_NS: u64 = 100_000_000;
/// How long requests under way may take to end before the reset is done anyway.
const DRAIN_NS: u64 = 10_000_000;
/// How long after the settling time we wait for a function that stays away.
const ANSWER_NS: u64 = 1_000_000_000;

const DEVICE_CONTROL: u16 = 0x08;
const DEVICE_STATUS: u16 = 0x0a;
const DEVICE_CONTROL_2: u16 = 0x28;
const INITIATE_FLR: u16 = 1 << 15;
const TRANSACTIONS_PENDING: u16 = 1 << 5;

/// Registers that a reset clears, as they were at boot.
#[derive(Clone, Debug, Default)]
pub(super) struct Saved {
    bars: [u32; BARS],
    cache_line: u8,
    latency: u8,
    interrupt_line: u8,
    device_control: u16,
    device_control_2: u16,
}

impl Saved {
    pub(super) fn read<IO: PhysIo>(
        ecam: &Ecam<IO>,
        bdf: Bdf,
        bars: [u32; BARS],
        pcie: Option<u16>,
    ) -> Self {
        Self {
            bars,
            cache_line: ecam.read8(bdf, register::CACHE_LINE),
            latency: ecam.read8(bdf, register::LATENCY),
            interrupt_line: ecam.read8(bdf, register::INTERRUPT_LINE),
            device_control: pcie.map_or(0, |at| ecam.read16(bdf, at + DEVICE_CONTROL)),
            device_control_2: pcie.map_or(0, |at| ecam.read16(bdf, at + DEVICE_CONTROL_2)),
        }
    }

    /// Writes everything back; the function neither decodes nor masters.
    fn restore<IO: PhysIo>(&self, ecam: &Ecam<IO>, bdf: Bdf, pcie: Option<u16>) {
        ecam.write16(bdf, register::COMMAND, command::NO_INTX);
        for (&bar, offset) in self.bars.iter().zip((register::BAR0..).step_by(4)) {
            ecam.write32(bdf, offset, bar);
        }
        ecam.write8(bdf, register::CACHE_LINE, self.cache_line);
        ecam.write8(bdf, register::LATENCY, self.latency);
        ecam.write8(bdf, register::INTERRUPT_LINE, self.interrupt_line);
        if let Some(at) = pcie {
            ecam.write16(bdf, at + DEVICE_CONTROL, self.device_control & !INITIATE_FLR);
            ecam.write16(bdf, at + DEVICE_CONTROL_2, self.device_control_2);
        }
    }
}

/// A reset under way.
#[derive(Clone, Copy, Debug)]
pub struct Flr {
    pcie: u16,
    settle_ns: u64,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Draining { until: u64 },
    Settling { until: u64 },
    Answering { until: u64 },
    Done,
}

/// How far a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Ask again later.
    Pending,
    /// Reset and configured as at boot: decoding and bus mastering off, MSI-X off.
    Done,
}

impl<IO: PhysIo> Pci<IO> {
    /// Begins a function level reset: takes bus mastering away and lets what
    /// is under way end. [`Pci::flr_poll`] does the rest. `settle_ns` is
    /// [`SETTLE_NS`], or less for a device that is known to be quicker.
    pub fn flr_start(
        &self,
        function: &Function,
        now_ns: u64,
        settle_ns: u64,
    ) -> Result<Flr, Error> {
        let pcie = function.pcie.filter(|_| function.flr).ok_or(Error::Unsupported)?;
        self.set_bus_master(function, false);
        let step = Step::Draining { until: now_ns.saturating_add(DRAIN_NS) };
        Ok(Flr { pcie, settle_ns, step })
    }

    /// Goes on with a reset as far as it gets without waiting.
    pub fn flr_poll(
        &self,
        function: &Function,
        flr: &mut Flr,
        now_ns: u64,
    ) -> Result<Progress, Error> {
        let bdf = function.bdf;
        if let Step::Draining { until } = flr.step {
            let status = self.ecam.read16(bdf, flr.pcie + DEVICE_STATUS);
            if status & TRANSACTIONS_PENDING != 0 && now_ns < until {
                return Ok(Progress::Pending);
            }
            let at = flr.pcie + DEVICE_CONTROL;
            self.ecam.write16(bdf, at, function.saved.device_control | INITIATE_FLR);
            flr.step = Step::Settling { until: now_ns.saturating_add(flr.settle_ns) };
        }
        if let Step::Settling { until } = flr.step {
            if now_ns < until {
                return Ok(Progress::Pending);
            }
            flr.step = Step::Answering { until: now_ns.saturating_add(ANSWER_NS) };
        }
        if let Step::Answering { until } = flr.step {
            if self.ecam.read16(bdf, register::VENDOR) != function.vendor {
                if now_ns < until {
                    return Ok(Progress::Pending);
                }
                return Err(Error::Hardware);
            }
            function.saved.restore(&self.ecam, bdf, function.pcie);
            flr.step = Step::Done;
        }
        Ok(Progress::Done)
    }
}
