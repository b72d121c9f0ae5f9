//! Resets of functions and buses. When and in which order is decided in
//! `hv_core::reset`.
#![expect(clippy::arithmetic_side_effects, reason = "offsets of capabilities end at 4095")]

use zerocopy::transmute;

use super::capability::{self, PCI_EXPRESS};
use super::config::{Ecam, command, register};
use super::msix::MsiX;
use super::{Bdf, Function, Kind, Pci, bar, enumerate};
use crate::phys::PhysIo;

const CONTROL: u16 = 8;
const STATUS: u16 = 10;
const INITIATE_FLR: u16 = 1 << 15;
const TRANSACTIONS_PENDING: u16 = 1 << 5;

/// A PCI Express capability (Base Specification 5.0, 7.5.3.3 to 7.5.3.5).
#[derive(Clone, Copy, Debug)]
pub struct Express {
    at: u16,
    /// Device control, with the payload sizes that the firmware chose.
    control: u16,
    /// The function can be reset alone.
    pub flr: bool,
}

impl Express {
    pub(super) fn read<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> Option<Self> {
        let at = capability::find(ecam, bdf, PCI_EXPRESS)?;
        let control = ecam.read::<u16>(bdf, at + CONTROL) & !INITIATE_FLR;
        Some(Self { at, control, flr: ecam.read::<u32>(bdf, at + 4) >> 28 & 1 != 0 })
    }
}

impl<IO: PhysIo> Pci<IO> {
    /// Whether no request of a function is under way, as far as it tells.
    pub fn is_idle(&self, function: &Function) -> bool {
        let status = |e: Express| self.ecam.read::<u16>(function.bdf, e.at + STATUS);
        function.express.is_none_or(|e| status(e) & TRANSACTIONS_PENDING == 0)
    }

    /// Begins a function-level reset. Nobody may touch the function for 100 ms
    /// (Base Specification 5.0, 6.6.2); it comes back unconfigured.
    pub fn reset_function(&self, function: &Function) {
        if let Some(e) = function.express {
            self.ecam.write::<u16>(function.bdf, e.at + CONTROL, e.control | INITIATE_FLR);
        }
    }

    /// The port whose secondary bus a function is on.
    pub fn port(&self, function: &Function) -> Option<&Function> {
        let ours = |f: &&Function| matches!(f.kind, Kind::Bridge { secondary, .. } if secondary == function.bdf.bus());
        self.functions.iter().find(ours)
    }

    /// All functions behind a port.
    pub fn behind(&self, port: &Function) -> impl Iterator<Item = &Function> {
        let bdf = port.bdf;
        self.functions.iter().filter(move |f| self.bridges_above(f.bdf).any(|b| b.bdf == bdf))
    }

    /// Holds the bus behind a port in reset, or lets go of it (Base
    /// Specification 5.0, 7.5.1.3.13).
    pub fn hold_bus(&self, port: &Function, on: bool) {
        const SECONDARY_BUS_RESET: u16 = 1 << 6;
        let old = self.ecam.read::<u16>(port.bdf, register::BRIDGE_CONTROL);
        let set = if on { SECONDARY_BUS_RESET } else { 0 };
        let new = old & !SECONDARY_BUS_RESET | set;
        self.ecam.write::<u16>(port.bdf, register::BRIDGE_CONTROL, new);
        let _ = self.ecam.read::<u16>(port.bdf, register::BRIDGE_CONTROL);
    }

    /// Whether the function that was found at boot is there, as it was then.
    /// One that does not answer reads all ones, or 0xffff_0001 while it is busy.
    pub fn answers(&self, function: &Function) -> bool {
        let bdf = function.bdf;
        let same = |&(offset, word): &(u16, u32)| self.ecam.read::<u32>(bdf, offset) == word;
        function.identity.iter().all(same)
            && (self.is_configured(function)
                || function.msix == MsiX::read(&self.ecam, bdf, &function.bars))
    }

    /// Whether a function that answers was not reset since it got an owner.
    pub fn is_configured(&self, function: &Function) -> bool {
        self.ecam.read::<u16>(function.bdf, register::COMMAND) & command::MEMORY != 0
    }

    /// Gives a function that was reset, or is new in its place, what it had at
    /// boot: off the bus, its addresses, its device control (payload sizes).
    /// Returns whether its BARs are those of then; otherwise it stays off.
    pub fn configure(&self, function: &Function) -> bool {
        let bdf = function.bdf;
        enumerate::fence_all(&self.ecam, bdf);
        let bars = (register::BAR0..).step_by(4).zip(&function.bars);
        for (offset, bar) in bars.filter_map(|(offset, bar)| Some((offset, (*bar)?))) {
            let [low, high]: [u32; 2] = transmute!(bar.address);
            self.ecam.write::<u32>(bdf, offset, low);
            if high != 0 {
                self.ecam.write::<u32>(bdf, offset + 4, high);
            }
        }
        if let Some(e) = function.express {
            self.ecam.write::<u16>(bdf, e.at + CONTROL, e.control);
        }
        let same = bar::read_all(&self.ecam, bdf) == function.bars;
        if same {
            self.set_bus_master(function, false);
        }
        same
    }
}
