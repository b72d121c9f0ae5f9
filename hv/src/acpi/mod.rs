//! What the firmware says about the platform.
//!
//! The tables are read by hand: the `acpi` crate needs a nightly compiler and
//! follows the lengths it finds in the tables. Here every access is checked
//! against the table's end, every loop ends, and a table whose checksum is
//! wrong is an error, because a misread IVRS or DMAR would leave a device unblocked.

pub mod dmar;
pub mod ivrs;
pub mod table;

use core::fmt;

use heapless::Vec;

use crate::phys::PhysIo;
use dmar::Dmar;
use ivrs::AmdViUnit;
use table::Table;

/// Most CPUs that are noticed.
pub const MAX_CPUS: usize = 64;
/// Most I/O APICs.
pub const MAX_IOAPICS: usize = 8;
/// Most IOMMU units.
pub const MAX_IOMMUS: usize = 4;
/// Legacy interrupt lines.
const ISA_IRQS: usize = 16;
/// Most tables that the root table may list.
const MAX_TABLES: usize = 128;

/// Why the firmware's tables cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no valid RSDP at the address given.
    NoRsdp,
    /// A table's address or length is out of range.
    BadTable([u8; 4]),
    /// A table's checksum is wrong.
    BadChecksum([u8; 4]),
    /// A table that is needed is not there.
    Missing([u8; 4]),
    /// A table's content is malformed.
    Malformed([u8; 4]),
    /// The platform has more of something than we can handle.
    TooMany([u8; 4]),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, table) = match self {
            Self::NoRsdp => return f.write_str("no valid ACPI RSDP"),
            Self::BadTable(table) => ("address or length out of range", table),
            Self::BadChecksum(table) => ("wrong checksum", table),
            Self::Missing(table) => ("not found", table),
            Self::Malformed(table) => ("malformed", table),
            Self::TooMany(table) => ("more entries than supported", table),
        };
        write!(f, "ACPI table {}: {text}", table.escape_ascii())
    }
}

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

/// A legacy interrupt that is not wired one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaOverride {
    /// The legacy interrupt number.
    pub irq: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// How it behaves.
    pub line: Line,
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

/// I/O APIC ids and the requester ids of their interrupts.
pub type IoApicSources = Vec<(u8, u16), MAX_IOAPICS>;

/// What the hypervisor wants to know about the platform.
#[derive(Clone, Debug)]
pub struct Platform {
    /// APIC ids of the usable CPUs, in the firmware's order.
    pub cpus: Vec<u32, MAX_CPUS>,
    /// Physical address of the local APICs.
    pub local_apic: u64,
    /// All I/O APICs.
    pub ioapics: Vec<IoApicInfo, MAX_IOAPICS>,
    /// Legacy interrupts that are not wired one to one.
    pub overrides: Vec<IsaOverride, ISA_IRQS>,
    /// PCI configuration space.
    pub ecam: Option<EcamInfo>,
    /// The ACPI timer.
    pub pm_timer: Option<PmTimer>,
    /// All AMD IOMMUs.
    pub amd_vi: Vec<AmdViUnit, MAX_IOMMUS>,
    /// All Intel IOMMUs.
    pub vt_d: Dmar,
    /// As the IOMMUs' tables name them.
    pub ioapic_sources: IoApicSources,
}

impl Platform {
    /// Physical addresses of the IOMMUs' registers.
    pub fn iommu_registers(&self) -> impl Iterator<Item = u64> {
        self.amd_vi.iter().map(|unit| unit.mmio).chain(self.vt_d.units.iter().copied())
    }

    /// Where a legacy interrupt arrives and how it behaves.
    pub fn isa_irq(&self, irq: u8) -> (u32, Line) {
        self.overrides
            .iter()
            .find(|o| o.irq == irq)
            .map_or((u32::from(irq), Line::default()), |o| (o.gsi, o.line))
    }
}

/// Reads the tables that `rsdp` leads to.
pub fn discover<IO: PhysIo>(io: &IO, rsdp: u64) -> Result<Platform, Error> {
    let mut platform = Platform {
        cpus: Vec::new(),
        local_apic: 0,
        ioapics: Vec::new(),
        overrides: Vec::new(),
        ecam: None,
        pm_timer: None,
        amd_vi: Vec::new(),
        vt_d: Dmar::default(),
        ioapic_sources: Vec::new(),
    };
    let mut madt = false;
    for address in root_entries(io, rsdp)? {
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
    if madt { Ok(platform) } else { Err(Error::Missing(*b"APIC")) }
}

/// Addresses of all tables, from the XSDT or RSDT.
fn root_entries<IO: PhysIo>(io: &IO, rsdp: u64) -> Result<Vec<u64, MAX_TABLES>, Error> {
    const V1_LEN: usize = 20;
    const V2_LEN: usize = 36;
    let v1 = Table::raw(io, rsdp, V1_LEN).ok_or(Error::NoRsdp)?;
    if !v1.starts_with(b"RSD PTR ") || !v1.sums_to_zero() {
        return Err(Error::NoRsdp);
    }
    let mut root = (v1.u32(16).map(u64::from), 4);
    if v1.u8(15).is_some_and(|revision| revision >= 2) {
        let v2 = Table::raw(io, rsdp, V2_LEN).ok_or(Error::NoRsdp)?;
        if v2.sums_to_zero() && v2.u64(24) != Some(0) {
            root = (v2.u64(24), 8);
        }
    }
    let (Some(address), width) = root else { return Err(Error::NoRsdp) };
    let root = Table::open(io, address)?;
    let mut entries = Vec::new();
    let mut at = Table::<IO>::HEADER;
    while at.saturating_add(width) <= root.size() {
        let entry = if width == 8 { root.u64(at) } else { root.u32(at).map(u64::from) };
        entries
            .push(entry.ok_or(Error::Malformed(root.signature()))?)
            .map_err(|_| Error::TooMany(root.signature()))?;
        at = at.saturating_add(width);
    }
    Ok(entries)
}

/// CPUs, I/O APICs and legacy interrupts.
fn read_madt<IO: PhysIo>(madt: &Table<'_, IO>, platform: &mut Platform) -> Result<(), Error> {
    const MALFORMED: Error = Error::Malformed(*b"APIC");
    const TOO_MANY: Error = Error::TooMany(*b"APIC");
    const ENABLED: u32 = 1;
    platform.local_apic = madt.u32(36).ok_or(MALFORMED)?.into();
    let mut at = 44;
    while at < madt.size() {
        let kind = madt.u8(at).ok_or(MALFORMED)?;
        let len = usize::from(madt.u8(at.saturating_add(1)).ok_or(MALFORMED)?);
        // Also ends the loop: an entry has at least its own header.
        let entry = madt.part(at, len).filter(|_| len >= 2).ok_or(MALFORMED)?;
        match kind {
            0 if entry.u32(4).ok_or(MALFORMED)? & ENABLED != 0 => {
                // More CPUs than we can use are left alone.
                let _ = platform.cpus.push(entry.u8(3).ok_or(MALFORMED)?.into());
            }
            1 => platform
                .ioapics
                .push(IoApicInfo {
                    id: entry.u8(2).ok_or(MALFORMED)?,
                    address: entry.u32(4).ok_or(MALFORMED)?.into(),
                    gsi_base: entry.u32(8).ok_or(MALFORMED)?,
                })
                .map_err(|_| TOO_MANY)?,
            2 => {
                let flags = entry.u16(8).ok_or(MALFORMED)?;
                platform
                    .overrides
                    .push(IsaOverride {
                        irq: entry.u8(3).ok_or(MALFORMED)?,
                        gsi: entry.u32(4).ok_or(MALFORMED)?,
                        // 0 means as the bus has it: edge, active high.
                        line: Line { level: flags >> 2 & 3 == 3, active_low: flags & 3 == 3 },
                    })
                    .map_err(|_| TOO_MANY)?;
            }
            5 => platform.local_apic = entry.u64(4).ok_or(MALFORMED)?,
            9 if entry.u32(8).ok_or(MALFORMED)? & ENABLED != 0 => {
                let _ = platform.cpus.push(entry.u32(4).ok_or(MALFORMED)?);
            }
            _ => {}
        }
        at = at.saturating_add(len);
    }
    Ok(())
}

/// The configuration space of segment 0.
fn read_mcfg<IO: PhysIo>(mcfg: &Table<'_, IO>) -> Result<Option<EcamInfo>, Error> {
    const ENTRY: usize = 16;
    let mut at = 44;
    while let Some(entry) = mcfg.part(at, ENTRY) {
        let info = (|| {
            Some((
                entry.u16(8)?,
                EcamInfo { base: entry.u64(0)?, first_bus: entry.u8(10)?, last_bus: entry.u8(11)? },
            ))
        })();
        match info {
            Some((0, info))
                if info.base.is_multiple_of(1 << 20) && info.first_bus <= info.last_bus =>
            {
                return Ok(Some(info));
            }
            Some((0, _)) | None => return Err(Error::Malformed(*b"MCFG")),
            Some(_) => {}
        }
        at = at.saturating_add(ENTRY);
    }
    Ok(None)
}

/// The ACPI timer, if it is an I/O port.
fn read_fadt<IO: PhysIo>(fadt: &Table<'_, IO>) -> Option<PmTimer> {
    const IO_SPACE: u8 = 1;
    const TIMER_IS_32_BITS: u32 = 1 << 8;
    let extended =
        if fadt.u8(208) == Some(IO_SPACE) { fadt.u64(212).filter(|&a| a != 0) } else { None };
    let address = extended.or(fadt.u32(76).map(u64::from)).filter(|&a| a != 0)?;
    let wide = fadt.u32(112).is_some_and(|flags| flags & TIMER_IS_32_BITS != 0);
    Some(PmTimer { port: u16::try_from(address).ok()?, wide })
}
