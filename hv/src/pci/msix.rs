//! MSI-X: the table stays in the hypervisor's hands.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "offsets end at 255 in configuration space, and in tables with their BAR"
)]

use super::bar::Bar;
use super::capability::{self, MSI_X};
use super::config::{Ecam, command, register};
use super::{BARS, Bdf, Function, Pci};
use crate::phys::PhysIo;

/// What a function writes where to raise an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// An MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Offset of the capability.
    pub capability: u16,
    /// Entries of the table.
    pub entries: u16,
    /// Where table and pending bits are: BAR, byte offset in it, bytes.
    parts: [(usize, u64, u64); 2],
    /// Physical address of the table.
    table: u64,
}

const ENTRY: u64 = 16;
const ENTRY_DATA: u64 = 8;
const ENTRY_CONTROL: u64 = 12;
const ENTRY_MASKED: u32 = 1;
const CONTROL: u16 = 2;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
const PAGE: u64 = 4096;

impl MsiX {
    /// Reads the capability; `None` if there is none or it makes no sense.
    pub(super) fn read<IO: PhysIo>(
        ecam: &Ecam<IO>,
        bdf: Bdf,
        bars: &[Option<Bar>; BARS],
    ) -> Option<Self> {
        const SIZE: u16 = 0x7ff;
        const BIR: u32 = 7;
        let capability = capability::find(ecam, bdf, MSI_X)?;
        let entries = (ecam.read::<u16>(bdf, capability + CONTROL) & SIZE) + 1;
        let place = |offset: u16, len: u64| {
            let value: u32 = ecam.read(bdf, capability + offset);
            let (bar, start) = ((value & BIR) as usize, u64::from(value & !BIR));
            let address = bars.get(bar).copied().flatten()?.slice(start, len)?;
            Some((address, (bar, start, len)))
        };
        let (table, table_part) = place(4, u64::from(entries) * ENTRY)?;
        let (_, pending_part) = place(8, u64::from(entries).div_ceil(64) * 8)?;
        Some(Self { capability, entries, parts: [table_part, pending_part], table })
    }

    /// The page at `offset` of BAR `bar` holds a part of table or pending bits.
    pub(super) fn covers_page(&self, bar: usize, offset: u64) -> bool {
        self.parts.iter().any(|&(in_bar, start, len)| {
            let last = (start + len - 1) / PAGE;
            in_bar == bar && (start / PAGE..=last).contains(&(offset / PAGE))
        })
    }

    fn entry(&self, index: u16) -> Option<u64> {
        (index < self.entries).then_some(self.table + u64::from(index) * ENTRY)
    }
}

/// What answers with an `Option` has nothing to do with `None`: the function has
/// no MSI-X, or no such entry.
impl<IO: PhysIo> Pci<IO> {
    /// Switches MSI-X on with every entry masked; changes nothing if it is on.
    /// A reset switches it off.
    pub fn msix_enable(&self, function: &Function) -> Option<()> {
        let msix = function.msix.as_ref()?;
        let control = self.ecam.read::<u16>(function.bdf, msix.capability + CONTROL);
        if control & (CONTROL_ENABLE | CONTROL_MASK_ALL) != CONTROL_ENABLE {
            // Nothing may fire while the entries still hold what was there before.
            self.msix_control(function.bdf, msix, CONTROL_ENABLE | CONTROL_MASK_ALL);
            self.msix_mask_all(function)?;
            self.msix_control(function.bdf, msix, CONTROL_ENABLE);
        }
        Some(())
    }

    /// Switches MSI-X off.
    pub fn msix_disable(&self, function: &Function) -> Option<()> {
        self.msix_control(function.bdf, function.msix.as_ref()?, CONTROL_MASK_ALL);
        Some(())
    }

    /// Sets what entry `index` sends and leaves it masked.
    pub fn msix_program(&self, function: &Function, index: u16, message: Message) -> Option<()> {
        let entry = function.msix.as_ref()?.entry(index)?;
        self.msix_set_mask(function, index, true)?;
        let io = self.ecam.io();
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        io.write::<u32>(entry, u32::from_le_bytes([a, b, c, d]));
        io.write::<u32>(entry + 4, u32::from_le_bytes([e, f, g, h]));
        io.write::<u32>(entry + ENTRY_DATA, message.data);
        Some(())
    }

    /// Masks or unmasks an entry. A masked entry remembers that it wants to
    /// fire and does so once it is unmasked.
    pub fn msix_set_mask(&self, function: &Function, index: u16, masked: bool) -> Option<()> {
        let entry = function.msix.as_ref()?.entry(index)?;
        let io = self.ecam.io();
        io.write::<u32>(entry + ENTRY_CONTROL, if masked { ENTRY_MASKED } else { 0 });
        // Reading back waits until the write has arrived.
        let _ = io.read::<u32>(entry + ENTRY_CONTROL);
        Some(())
    }

    /// Whether a function masters the bus and whether MSI-X is on. (Where it
    /// does not answer to its BARs, its table cannot be looked at.)
    pub fn reaches_out(&self, function: &Function) -> (bool, bool) {
        let command = self.ecam.read::<u16>(function.bdf, register::COMMAND);
        let on = |msix: &MsiX| {
            self.ecam.read::<u16>(function.bdf, msix.capability + CONTROL) & CONTROL_ENABLE != 0
        };
        let sends = function.msix.as_ref().is_some_and(on) && command & command::MEMORY != 0;
        (command & command::BUS_MASTER != 0, sends)
    }

    /// Entries that are not masked, and what they send.
    pub fn msix_unmasked(&self, function: &Function) -> impl Iterator<Item = (u16, Message)> {
        let entries = function.msix.as_ref().map_or(0, |msix| msix.entries);
        (0..entries).filter_map(|index| {
            let at = function.msix.as_ref()?.entry(index)?;
            let io = self.ecam.io();
            let [low, high] = [0, 4].map(|offset| u64::from(io.read::<u32>(at + offset)));
            let message =
                Message { address: high << 32 | low, data: io.read::<u32>(at + ENTRY_DATA) };
            (io.read::<u32>(at + ENTRY_CONTROL) & ENTRY_MASKED == 0).then_some((index, message))
        })
    }

    /// Masks all entries.
    pub fn msix_mask_all(&self, function: &Function) -> Option<()> {
        let entries = function.msix.as_ref()?.entries;
        (0..entries).try_for_each(|index| self.msix_set_mask(function, index, true))
    }

    fn msix_control(&self, bdf: Bdf, msix: &MsiX, set: u16) {
        let at = msix.capability + CONTROL;
        let old = self.ecam.read::<u16>(bdf, at);
        self.ecam.write::<u16>(bdf, at, old & !(CONTROL_ENABLE | CONTROL_MASK_ALL) | set);
        let _ = self.ecam.read::<u16>(bdf, at);
    }
}
