//! PCI functions: finding and fencing them, and interrupting through them.
//!
//! At boot [`Pci::enumerate`] finds every function and takes all but the
//! platform's own off the bus: they answer to no address, send no request and
//! no interrupt. [`Pci::set_bus_master`] brings one back when it gets an owner.
//! Nothing in here trusts what a device says about itself after boot: BARs and
//! capability offsets are kept as they were found then, before any domain ran.

pub mod bar;
pub mod capability;
pub mod config;
pub mod enumerate;
pub mod msix;
pub mod reset;

use alloc::vec::Vec;
use core::fmt;

use crate::acpi::EcamInfo;
use crate::phys::PhysIo;
use bar::Bar;
use config::{Ecam, command, register};
use msix::MsiX;
use reset::Express;

/// BARs of a function.
pub const BARS: usize = 6;

/// Address of a function: `bus << 8 | device << 3 | function`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf(pub u16);

impl Bdf {
    /// The bus number.
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Function 0 of device `device` on bus `bus`.
    const fn first(bus: u8, device: u8) -> Self {
        Self(u16::from_be_bytes([bus, device << 3]))
    }

    /// Both are functions of one device.
    pub const fn is_sibling(self, other: Self) -> bool {
        self.0 & !7 == other.0 & !7
    }

    /// Another function of the same device.
    const fn sibling(self, function: u8) -> Self {
        Self(self.0 & !7 | (function & 7) as u16)
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.0 >> 3 & 0x1f, self.0 & 7)
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a function is to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A device that may be given to a domain.
    Endpoint,
    /// Part of the platform: host or ISA bridge, IOMMU. Never given away.
    Platform,
    /// Leads to the buses `secondary..=subordinate`.
    Bridge {
        /// The bus right behind it.
        secondary: u8,
        /// The last bus behind it.
        subordinate: u8,
        /// Conventional PCI lies behind it, where requester ids get lost.
        conventional: bool,
    },
}

/// A PCI function as it was found at boot.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it is.
    pub bdf: Bdf,
    /// Words of its configuration that tell it from others: offset and value.
    identity: [(u16, u32); 2],
    /// Base class: 1 = storage, 2 = network.
    pub class: u8,
    /// What it is to us.
    pub kind: Kind,
    /// Its memory BARs; one that is absent, unassigned or the upper half of another is `None`.
    pub bars: [Option<Bar>; BARS],
    /// Its MSI-X capability, if its tables lie wholly in a memory BAR.
    pub msix: Option<MsiX>,
    /// Its PCI Express capability.
    pub express: Option<Express>,
    /// The words of the first 256 bytes of its configuration space that its
    /// owner may read, one bit each. Beyond them it may read none.
    readable: u64,
    /// It must not be given to a domain: it stands behind conventional PCI,
    /// where the IOMMU cannot tell it from its neighbours, or its MSI-X tables
    /// lie in no BAR, or its memory is also something else's.
    pub unfit: bool,
}

impl Function {
    /// A domain may own it, as far as PCI can tell.
    pub fn assignable(&self) -> bool {
        self.kind == Kind::Endpoint && !self.unfit
    }

    /// Its memory BARs.
    pub fn memory(&self) -> impl Iterator<Item = &Bar> {
        self.bars.iter().flatten()
    }

    /// The page at byte `offset` of BAR `bar` holds MSI-X table or pending
    /// bits and must not be mapped into a domain.
    pub fn is_withheld(&self, bar: usize, offset: u64) -> bool {
        self.msix.as_ref().is_some_and(|msix| msix.covers_page(bar, offset))
    }
}

/// All PCI functions of the node.
#[derive(Debug)]
pub struct Pci<IO> {
    ecam: Ecam<IO>,
    functions: Vec<Function>,
}

impl<IO: PhysIo> Pci<IO> {
    /// Finds all functions and takes those that are not the platform's off the
    /// bus. Call once, at boot, before the IOMMU is set up.
    pub fn enumerate(io: IO, info: EcamInfo) -> Self {
        let ecam = Ecam::new(io, info);
        let mut this = Self { functions: enumerate::all(&ecam), ecam };
        let (start, len) = this.ecam.range();
        this.withhold(start, len);
        this
    }

    /// All functions in the order of their addresses.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The function at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<&Function> {
        self.functions.iter().find(|f| f.bdf == bdf)
    }

    /// The `index`-th assignable function of a base class.
    pub fn by_class(&self, class: u8, index: usize) -> Option<&Function> {
        self.functions.iter().filter(|f| f.class == class && f.assignable()).nth(index)
    }

    /// Configuration space.
    pub fn ecam(&self) -> &Ecam<IO> {
        &self.ecam
    }

    /// Withdraws all functions with memory in `start..start + len`, where
    /// something else is that no domain may reach.
    pub fn withhold(&mut self, start: u64, len: u64) {
        for function in &mut self.functions {
            let hit = function.memory().any(|bar| bar.overlaps(start, len));
            function.unfit |= hit;
        }
    }

    /// A domain's read of 1, 2 or 4 bytes of configuration space of a function
    /// that it owns: zero but for identity, status and the capabilities that a
    /// driver needs. No machine address, no window to anything else, no
    /// extended capability. All ones if misaligned.
    pub fn domain_config_read(&self, function: &Function, offset: u16, width: u8) -> u32 {
        let readable =
            function.readable.checked_shr((offset / 4).into()).is_some_and(|r| r & 1 != 0);
        match width {
            1 if readable => self.ecam.read::<u8>(function.bdf, offset).into(),
            2 if readable => self.ecam.read::<u16>(function.bdf, offset).into(),
            4 if readable => self.ecam.read::<u32>(function.bdf, offset),
            _ => 0,
        }
    }

    /// A domain's write to the configuration space of a function that it owns;
    /// `None` if it may not do this.
    ///
    /// All that it can do is give up bus mastering. Everything else moves or
    /// redirects the function, or opens a window to what the nested tables
    /// withhold (virtio 1.2, 4.1.4.9), and belongs to the hypervisor.
    pub fn domain_config_write(
        &self,
        function: &Function,
        offset: u16,
        width: u8,
        value: u32,
    ) -> Option<()> {
        let allowed = offset == register::COMMAND && matches!(width, 2 | 4);
        if allowed && value & u32::from(command::BUS_MASTER) == 0 {
            self.set_bus_master(function, false);
        }
        allowed.then_some(())
    }

    /// Lets a function master the bus, or stops it. Either way it answers to
    /// its memory BARs, for the hypervisor must reach its MSI-X table. When
    /// this returns after `on = false`, the function issues no new request;
    /// what is on its way is for the IOMMU to stop.
    pub fn set_bus_master(&self, function: &Function, on: bool) {
        let keep = command::MEMORY | command::NO_INTX;
        if on {
            // Requests pass a bridge upwards only while it masters the bus.
            for bridge in self.bridges_above(function.bdf) {
                self.ecam.change_command(bridge.bdf, 0, command::MEMORY | command::BUS_MASTER);
            }
            self.ecam.change_command(function.bdf, command::IO, keep | command::BUS_MASTER);
        } else {
            self.ecam.change_command(function.bdf, command::IO | command::BUS_MASTER, keep);
        }
    }

    /// The bridges between the root and a function.
    pub fn bridges_above(&self, bdf: Bdf) -> impl Iterator<Item = &Function> {
        enumerate::bridges_above(&self.functions, bdf)
    }
}
