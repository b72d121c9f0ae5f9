//! What the firmware says about the platform.
//!
//! The tables are read by hand: the `acpi` crate needs a nightly compiler and
//! follows the lengths it finds in the tables. Here every access is checked
//! against the table's end, every loop ends, and a table whose checksum is
//! wrong is an error, because a misread IVRS or DMAR would leave a device unblocked.

pub mod dmar;
pub mod ivrs;
pub mod table;

use alloc::vec::Vec;

use crate::phys::PhysIo;
use dmar::Dmar;
use ivrs::AmdViUnit;
use table::{Error, MALFORMED, MISSING, Table};

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicInfo {
    /// Its id, by which the IVRS names it.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// Global system interrupt of its first pin.
    pub gsi_base: u32,
}

/// How an interrupt line behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Level-triggered instead of edge-triggered.
    pub level: bool,
    /// Active low instead of active high.
    pub active_low: bool,
}

/// The memory-mapped configuration space of PCI segment 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamInfo {
    /// Physical address of bus 0's part.
    pub base: u64,
    /// First bus that it covers.
    pub first_bus: u8,
    /// Last bus that it covers.
    pub last_bus: u8,
}

/// The ACPI timer: 3,579,545 ticks a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// I/O port, 32 bits wide.
    pub port: u16,
    /// It counts 32 bits, otherwise 24.
    pub wide: bool,
}

/// What the hypervisor wants to know about the platform.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// APIC ids of the usable CPUs, in the firmware's order.
    pub cpus: Vec<u32>,
    /// Physical address of the local APICs.
    pub local_apic: u64,
    /// All I/O APICs.
    pub ioapics: Vec<IoApicInfo>,
    /// Legacy interrupts that are not wired one to one, and where they arrive.
    pub overrides: Vec<(u8, u32, Line)>,
    /// PCI configuration space.
    pub ecam: Option<EcamInfo>,
    /// The ACPI timer.
    pub pm_timer: Option<PmTimer>,
    /// All AMD IOMMUs.
    pub amd_vi: Vec<AmdViUnit>,
    /// All Intel IOMMUs.
    pub vt_d: Dmar,
    /// I/O APIC ids and the requester ids of their interrupts, as the IOMMUs' tables name them.
    pub ioapic_sources: Vec<(u8, u16)>,
}

impl Platform {
    /// Physical addresses of the IOMMUs' registers.
    pub fn iommu_registers(&self) -> impl Iterator<Item = u64> {
        self.amd_vi.iter().map(|unit| unit.mmio).chain(self.vt_d.units.iter().copied())
    }

    /// Where a legacy interrupt arrives and how it behaves.
    pub fn isa_irq(&self, irq: u8) -> (u32, Line) {
        let found = self.overrides.iter().find(|o| o.0 == irq);
        found.map_or((irq.into(), Line::default()), |&(_, gsi, line)| (gsi, line))
    }
}

/// Reads the tables that `rsdp` leads to.
pub fn discover<IO: PhysIo>(io: &IO, rsdp: u64) -> Result<Platform, Error> {
    let mut platform = Platform::default();
    let mut madt = false;
    let (root, width) = root(io, rsdp)?;
    for entry in Table::open(io, root)?.rows(Table::<IO>::HEADER, width) {
        let address = if width == 8 { entry.get(0)? } else { entry.get::<u32>(0)?.into() };
        // Tables that we do not read may be as broken as they like.
        match &Table::signature_at(io, address)? {
            b"APIC" => {
                read_madt(&Table::open(io, address)?, &mut platform)?;
                madt = true;
            }
            b"MCFG" => platform.ecam = read_mcfg(&Table::open(io, address)?)?,
            b"FACP" => platform.pm_timer = read_fadt(&Table::open(io, address)?),
            b"IVRS" => ivrs::read(&Table::open(io, address)?, &mut platform)?,
            b"DMAR" => dmar::read(&Table::open(io, address)?, &mut platform)?,
            _ => {}
        }
    }
    if madt { Ok(platform) } else { Err(Error { table: *b"APIC", problem: MISSING }) }
}

/// Address of the root table and bytes of its entries: the XSDT or the RSDT.
fn root<IO: PhysIo>(io: &IO, rsdp: u64) -> Result<(u64, u16), Error> {
    let pointer = |len| Table::raw(io, *b"RSDP", rsdp, len);
    let v1 = pointer(20)?.sound()?;
    if v1.get::<[u8; 8]>(0)? != *b"RSD PTR " {
        return Err(v1.error(MISSING));
    }
    if v1.get::<u8>(15)? >= 2
        && let Ok(v2) = pointer(36)?.sound()
        && let address @ 1.. = v2.get(24)?
    {
        return Ok((address, 8));
    }
    Ok((v1.get::<u32>(16)?.into(), 4))
}

/// CPUs, I/O APICs and legacy interrupts.
fn read_madt<IO: PhysIo>(madt: &Table<'_, IO>, platform: &mut Platform) -> Result<(), Error> {
    const ENABLED: u32 = 1;
    platform.local_apic = madt.get::<u32>(36)?.into();
    for entry in madt.parts(44, 2, |at| Ok(madt.get::<[u8; 2]>(at)?[1].into())) {
        let entry = entry?;
        match entry.get::<u8>(0)? {
            0 if entry.get::<u32>(4)? & ENABLED != 0 => {
                platform.cpus.push(entry.get::<u8>(3)?.into());
            }
            1 => {
                let (id, address) = (entry.get(2)?, entry.get::<u32>(4)?.into());
                platform.ioapics.push(IoApicInfo { id, address, gsi_base: entry.get(8)? });
            }
            2 => {
                let flags: u16 = entry.get(8)?;
                // 0 means as the bus has it: edge, active high.
                let line = Line { level: flags >> 2 & 3 == 3, active_low: flags & 3 == 3 };
                platform.overrides.push((entry.get(3)?, entry.get(4)?, line));
            }
            5 => platform.local_apic = entry.get(4)?,
            9 if entry.get::<u32>(8)? & ENABLED != 0 => {
                platform.cpus.push(entry.get(4)?);
            }
            _ => {}
        }
    }
    Ok(())
}

/// The configuration space of segment 0.
fn read_mcfg<IO: PhysIo>(mcfg: &Table<'_, IO>) -> Result<Option<EcamInfo>, Error> {
    for entry in mcfg.rows(44, 16) {
        if entry.get::<u16>(8)? == 0 {
            let (base, [first_bus, last_bus]) = (entry.get::<u64>(0)?, entry.get(10)?);
            let sound = base.is_multiple_of(1 << 20) && first_bus <= last_bus;
            let info = EcamInfo { base, first_bus, last_bus };
            return if sound { Ok(Some(info)) } else { Err(mcfg.error(MALFORMED)) };
        }
    }
    Ok(None)
}

/// The ACPI timer, if it is an I/O port.
fn read_fadt<IO: PhysIo>(fadt: &Table<'_, IO>) -> Option<PmTimer> {
    const IO_SPACE: u8 = 1;
    const TIMER_IS_32_BITS: u32 = 1 << 8;
    let extended = match fadt.get(208) {
        Ok(IO_SPACE) => fadt.get(212).unwrap_or(0),
        _ => 0,
    };
    let address: u64 = if extended != 0 { extended } else { fadt.get::<u32>(76).ok()?.into() };
    let wide = fadt.get(112).is_ok_and(|flags: u32| flags & TIMER_IS_32_BITS != 0);
    Some(PmTimer { port: u16::try_from(address).ok().filter(|&port| port != 0)?, wide })
}
