//! Finding all functions, at boot.
#![expect(clippy::arithmetic_side_effects, reason = "offsets of capabilities end at 4095")]

use alloc::vec::Vec;

use super::capability::{self, ACS, ATS, MSI, MSI_X, PASID, PCI_EXPRESS, PRI, VENDOR};
use super::config::{Ecam, command, register};
use super::msix::MsiX;
use super::reset::Express;
use super::{BARS, Bdf, Function, Kind, bar};
use crate::phys::PhysIo;

const CLASS_BRIDGE: u8 = 0x06;
/// Class and subclass of an IOMMU.
const CLASS_IOMMU: (u8, u8) = (0x08, 0x06);

/// All functions of all buses that ECAM covers, fenced, in address order.
///
/// Every bus is looked at, whether a bridge leads to it or not: a function
/// that we did not find is one that nobody stops.
pub(super) fn all<IO: PhysIo>(ecam: &Ecam<IO>) -> Vec<Function> {
    const DEVICES: u8 = 32;
    const MULTIFUNCTION: u8 = 1 << 7;
    let mut functions = Vec::new();
    for bus in ecam.buses() {
        for device in 0..DEVICES {
            let first = Bdf::first(bus, device);
            if !present(ecam, first) {
                continue;
            }
            let count =
                if ecam.read::<u8>(first, register::HEADER) & MULTIFUNCTION != 0 { 8 } else { 1 };
            let all = (0..count).map(|i| first.sibling(i)).filter(|&bdf| present(ecam, bdf));
            functions.extend(all.map(|bdf| read(ecam, bdf)));
        }
    }
    let unfit: Vec<bool> = functions.iter().map(|f| is_unfit(&functions, f)).collect();
    for (function, unfit) in functions.iter_mut().zip(unfit) {
        function.unfit |= unfit;
    }
    functions
}

/// Its neighbours stand in the way of giving `function` to a domain.
fn is_unfit(functions: &[Function], function: &Function) -> bool {
    let conventional = |b: &Function| matches!(b.kind, Kind::Bridge { conventional: true, .. });
    let memory = || functions.iter().flat_map(Function::memory);
    bridges_above(functions, function.bdf).any(conventional)
        // Each BAR overlaps itself.
        || function.memory().any(|b| memory().filter(|o| b.overlaps(o.address, o.len)).count() != 1)
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
    !matches!(ecam.read::<u16>(bdf, register::VENDOR), 0 | u16::MAX)
}

/// Reads one function and takes it off the bus.
fn read<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) -> Function {
    let [_, _, subclass, class] = ecam.read::<u32>(bdf, register::CLASS).to_le_bytes();
    let pcie = capability::find(ecam, bdf, PCI_EXPRESS);
    let word = |offset| (offset, ecam.read::<u32>(bdf, offset));
    let kind = kind(ecam, bdf, class, subclass, pcie);
    let mut function = Function {
        bdf,
        identity: [word(register::VENDOR), word(register::CLASS)],
        class,
        kind,
        bars: [None; BARS],
        msix: None,
        express: Express::read(ecam, bdf),
        readable: 0,
        unfit: false,
    };
    // Sizing moves BARs about, which the platform's own parts may not survive.
    if kind == Kind::Endpoint {
        fence_all(ecam, bdf);
        function.bars = bar::read_all(ecam, bdf);
        function.msix = MsiX::read(ecam, bdf, &function.bars);
        function.unfit = function.msix.is_none() && capability::find(ecam, bdf, MSI_X).is_some();
        function.readable = readable(ecam, &function);
    } else if pcie.is_some() {
        fence_extended(ecam, bdf);
    }
    function
}

/// All that keeps an endpoint to itself.
pub(super) fn fence_all<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) {
    fence(ecam, bdf);
    if capability::find(ecam, bdf, PCI_EXPRESS).is_some() {
        fence_extended(ecam, bdf);
    }
}

/// No bus mastering, no addresses, no interrupts of any kind.
fn fence<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) {
    const MSI_ENABLE: u16 = 1 << 0;
    const MSI_X_ENABLE: u16 = 1 << 15;
    let off = command::BUS_MASTER | command::IO | command::MEMORY;
    ecam.change_command(bdf, off, command::NO_INTX);
    for (id, enable) in [(MSI, MSI_ENABLE), (MSI_X, MSI_X_ENABLE)] {
        if let Some(at) = capability::find(ecam, bdf, id) {
            let control = ecam.read::<u16>(bdf, at + 2);
            ecam.write::<u16>(bdf, at + 2, control & !enable);
        }
    }
}

/// Nothing reaches another function but through the IOMMU: ports send
/// requests upstream and refuse translated ones (PCI Express Base
/// Specification, 6.12.1.1), functions translate no address themselves.
fn fence_extended<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf) {
    /// Source validation, translation blocking, redirection of requests and
    /// completions, upstream forwarding.
    const ISOLATE: u16 = 0b1_1111;
    for (id, at) in capability::extended(ecam, bdf) {
        match id {
            ACS => ecam.write::<u16>(bdf, at + 6, ecam.read::<u16>(bdf, at + 4) & ISOLATE),
            ATS | PASID => ecam.write::<u16>(bdf, at + 6, 0),
            PRI => ecam.write::<u16>(bdf, at + 4, 0),
            _ => {}
        }
    }
}

/// See [`Function::readable`]: what every function has, the heads of all
/// capabilities, the whole of MSI-X, and where a virtio device's registers are
/// (virtio 1.2, 4.1.4), but not the window to them.
fn readable<IO: PhysIo>(ecam: &Ecam<IO>, function: &Function) -> u64 {
    const VIRTIO: u32 = 0x1af4;
    // Identity, command and status, class, header type; subsystem; the list.
    let mut words = 0b1111 | 1 << 0xb | 1 << 0xd;
    for (id, at) in capability::all(ecam, function.bdf) {
        let shown = match id {
            MSI_X => 0b111,
            VENDOR if function.identity[0].1 & 0xffff == VIRTIO => {
                match ecam.read::<u8>(function.bdf, at + 3) {
                    2 => 0b1_1111,
                    1 | 3 | 4 => 0b1111,
                    _ => 1,
                }
            }
            _ => 1,
        };
        words |= shown << (at / 4);
    }
    words
}

fn kind<IO: PhysIo>(ecam: &Ecam<IO>, bdf: Bdf, class: u8, subclass: u8, pcie: Option<u16>) -> Kind {
    const HEADER_TYPE: u8 = 0x7f;
    const PORT_TYPE: u16 = 0xf;
    const PCIE_TO_PCI: u16 = 7;
    match ecam.read::<u8>(bdf, register::HEADER) & HEADER_TYPE {
        0 if class == CLASS_BRIDGE || (class, subclass) == CLASS_IOMMU => Kind::Platform,
        0 => Kind::Endpoint,
        1 => {
            let [_, secondary, subordinate, _] =
                ecam.read::<u32>(bdf, register::BUSES).to_le_bytes();
            let conventional =
                pcie.is_none_or(|at| ecam.read::<u16>(bdf, at + 2) >> 4 & PORT_TYPE == PCIE_TO_PCI);
            Kind::Bridge { secondary, subordinate, conventional }
        }
        _ => Kind::Platform,
    }
}
