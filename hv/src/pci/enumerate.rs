//! Finding all functions, at boot.

use heapless::Vec;

use super::capability::{self, MSI, MSI_X, PCI_EXPRESS};
use super::config::{Ecam, command, register};
use super::msix::MsiX;
use super::{BARS, Bdf, Error, Function, Kind, MAX_FUNCTIONS, bar, flr};
use crate::phys::PhysIo;

const CLASS_BRIDGE: u8 = 0x06;
/// Class and subclass of an IOMMU.
const CLASS_IOMMU: (u8, u8) = (0x08, 0x06);

/// All functions of all buses that ECAM covers, fenced, in address order.
///
/// Every bus is looked at, whether a bridge leads to it or not: a function
/// that we did not find is one that nobody stops.
pub(super) fn all<IO: PhysIo>(ecam: &Ecam<IO>) -> Result<Vec<Function, MAX_FUNCTIONS>, Error> {
    const DEVICES: u8 = 32;
    const MULTIFUNCTION: u8 = 1 << 7;
    let mut functions: Vec<Function, MAX_FUNCTIONS> = Vec::new();
    for bus in ecam.buses() {
        for device in 0..DEVICES {
            let first = Bdf::first(bus, device);
            if !present(ecam, first) {
                continue;
            }
            let count =
                if ecam.read8(first, register::HEADER) & MULTIFUNCTION != 0 { 8 } else { 1 };
            for bdf in (0..count).map(|i| first.sibling(i)).filter(|&bdf| present(ecam, bdf)) {
                functions.push(read(ecam, bdf)).map_err(|_| Error::TooMany)?;
            }
        }
    }
    let shared: Vec<bool, MAX_FUNCTIONS> = functions
        .iter()
        .map(|f| {
            bridges_above(&functions, f.bdf)
                .any(|b| matches!(b.kind, Kind::Bridge { conventional: true, .. }))
        })
        .collect();
    for (function, shared) in functions.iter_mut().zip(shared) {
        function.shared_requester = shared;
    }
    Ok(functions)
}

/// The bridges between `bdf` and the root.
pub(super) fn bridges_above(functions: &[Function], bdf: Bdf) -> impl Iterator<Item = &Function> {
    functions.iter().filter(move |f| match f.kind {
        Kind::Bridge { secondary, subordinate, .. } => {
            (secondary..=subordinate).contains(&bdf.bus())
        }
        _ => false,
    })
}

fn present<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> bool {
    !matches!(ecam.read16(bdf, register::VENDOR), 0 | u16::MAX)
}

/// Reads one function and takes bus mastering from it.
fn read<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> Function {
    const FLR_CAPABLE: u32 = 1 << 28;
    let [_, interface, subclass, class] = ecam.read32(bdf, register::CLASS).to_le_bytes();
    let pcie = capability::find(ecam, bdf, PCI_EXPRESS);
    let kind = kind(ecam, bdf, class, subclass, pcie);
    let mut function = Function {
        bdf,
        vendor: ecam.read16(bdf, register::VENDOR),
        device: ecam.read16(bdf, register::DEVICE),
        class,
        subclass,
        interface,
        kind,
        bars: [None; BARS],
        msix: None,
        pcie,
        flr: false,
        shared_requester: false,
        saved: flr::Saved::default(),
    };
    // Sizing moves BARs about, which the platform's own parts may not survive.
    if kind == Kind::Endpoint {
        fence(ecam, bdf);
        let decoding = ecam.read16(bdf, register::COMMAND) & (command::IO | command::MEMORY);
        ecam.change_command(bdf, decoding, 0);
        let (bars, raw) = bar::read_all(ecam, bdf);
        ecam.change_command(bdf, 0, decoding);
        function.bars = bars;
        function.msix = MsiX::read(ecam, bdf, &bars);
        function.flr = pcie.is_some_and(|at| ecam.read32(bdf, at + 4) & FLR_CAPABLE != 0);
        function.saved = flr::Saved::read(ecam, bdf, raw, pcie);
    }
    function
}

/// No bus mastering, no interrupts of any kind.
fn fence<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) {
    const MSI_ENABLE: u16 = 1 << 0;
    const MSI_X_ENABLE: u16 = 1 << 15;
    ecam.change_command(bdf, command::BUS_MASTER, command::NO_INTX);
    for (id, enable) in [(MSI, MSI_ENABLE), (MSI_X, MSI_X_ENABLE)] {
        if let Some(at) = capability::find(ecam, bdf, id) {
            let control = ecam.read16(bdf, at + 2);
            ecam.write16(bdf, at + 2, control & !enable);
        }
    }
}

fn kind<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf, class: u8, subclass: u8, pcie: Option<u16>) -> Kind {
    const HEADER_TYPE: u8 = 0x7f;
    const PORT_TYPE: u16 = 0xf;
    const PCIE_TO_PCI: u16 = 7;
    match ecam.read8(bdf, register::HEADER) & HEADER_TYPE {
        0 if class == CLASS_BRIDGE || (class, subclass) == CLASS_IOMMU => Kind::Platform,
        0 => Kind::Endpoint,
        1 => {
            let [_, secondary, subordinate, _] = ecam.read32(bdf, register::BUSES).to_le_bytes();
            let conventional =
                pcie.is_none_or(|at| ecam.read16(bdf, at + 2) >> 4 & PORT_TYPE == PCIE_TO_PCI);
            Kind::Bridge { secondary, subordinate, conventional }
        }
        _ => Kind::Platform,
    }
}
