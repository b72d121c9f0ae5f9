//! Stacks: one to run on and four for interrupts per core, each between
//! unmapped pages, in an area of their own above the identity map.
//!
//! The address of a stack tells the core, which holds even where GS does not.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "cores are few, and the area has room for them: asserted below"
)]

use super::MAX_CORES;

const AREA: u64 = 0x80_0000_0000;
const CORE_STRIDE: u64 = 0x40_0000;
const SLOT_STRIDE: u64 = 0x8_0000;
/// Unmapped bytes below each stack.
const GUARD: u64 = 0x1_0000;

/// Which stack of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// What the core runs on.
    Main,
    /// Non-maskable interrupts.
    Nmi,
    /// Double faults.
    DoubleFault,
    /// Machine checks.
    MachineCheck,
    /// Every other exception and interrupt.
    Other,
}

/// All stacks of a core.
pub const ALL: [Stack; 5] =
    [Stack::Main, Stack::Nmi, Stack::DoubleFault, Stack::MachineCheck, Stack::Other];

impl Stack {
    /// Bytes.
    pub const fn len(self) -> u64 {
        match self {
            // Reading the manifest takes most of it.
            Stack::Main => 256 * 1024,
            _ => 16 * 1024,
        }
    }

    /// Index in the TSS (from 0), for those that are in it.
    pub(super) const fn ist(self) -> Option<usize> {
        (self as usize).checked_sub(1)
    }

    /// Lowest address on core `core`.
    pub const fn bottom(self, core: usize) -> u64 {
        AREA + core as u64 * CORE_STRIDE + self as u64 * SLOT_STRIDE + GUARD
    }

    /// Address above it on core `core`.
    pub const fn top(self, core: usize) -> u64 {
        self.bottom(core) + self.len()
    }
}

const _: () = assert!(GUARD + Stack::Main.len() <= SLOT_STRIDE);
const _: () = assert!(ALL.len() as u64 * SLOT_STRIDE <= CORE_STRIDE);

/// What an address in the stack area belongs to.
pub struct Place {
    /// The core.
    pub core: usize,
    /// The stack, or the one above the guard.
    pub stack: Stack,
    /// In the unmapped part below the stack.
    pub guard: bool,
}

/// What `address` is in the stack area.
pub fn place(address: u64) -> Option<Place> {
    let offset = address.checked_sub(AREA)?;
    let core = (offset / CORE_STRIDE) as usize;
    let stack = *ALL.get((offset % CORE_STRIDE / SLOT_STRIDE) as usize)?;
    (core < MAX_CORES && address < stack.top(core)).then_some(Place {
        core,
        stack,
        guard: address < stack.bottom(core),
    })
}
