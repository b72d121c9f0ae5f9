//! PCI functions: what is found, fenced, shown and refused.

use crate::pci::bar::decode;
use crate::pci::msix::Message;
use crate::pci::{Bdf, Kind, Pci};
use crate::sim::{DISK, ECAM, Machine, NIC, PORT};

const COMMAND: u16 = 4;
const BUS_MASTER: u8 = 1 << 2;

fn boot() -> (Machine, Pci<Machine>) {
    let machine = Machine::new();
    let pci = Pci::enumerate(machine.clone(), ECAM);
    (machine, pci)
}

#[test]
fn all_functions_are_found_and_fenced() {
    let (machine, pci) = boot();
    let bdfs: Vec<_> = pci.functions().iter().map(|f| f.bdf.0).collect();
    assert_eq!(bdfs, [0x0000, PORT, NIC, DISK]);
    for bdf in [NIC, DISK] {
        assert_eq!(machine.config(bdf, 4) & 0b111, 0, "off the bus");
        assert_eq!(machine.config(bdf, 5) & 0b100, 0b100, "no INTx");
        assert_eq!(machine.config(bdf, 0x83) & 0x80, 0, "MSI-X is off");
    }
    let disk = pci.by_class(1, 0).unwrap();
    assert!(disk.bdf.0 == DISK && disk.assignable());
    assert_eq!(disk.bdf.to_string(), "01:00.0");
    let bar = disk.bars[1].unwrap();
    assert_eq!((bar.address, bar.len), (0xe100_0000, 0x1000));
    let bar = disk.bars[4].unwrap();
    assert_eq!((bar.address, bar.len), (0x8_e100_8000, 0x4000));
    assert_eq!(disk.bars.iter().flatten().count(), 2);
    assert!(disk.is_withheld(1, 0) && !disk.is_withheld(4, 0));
    assert!(matches!(
        pci.function(Bdf(PORT)).unwrap().kind,
        Kind::Bridge { secondary: 1, subordinate: 1, conventional: false }
    ));
    assert_eq!(pci.function(Bdf(0)).unwrap().kind, Kind::Platform);
}

#[test]
fn behind_conventional_pci_nothing_is_assignable() {
    let machine = Machine::new();
    // The port has no capabilities any more, hence is no PCI Express port.
    machine.set_config(PORT, 6, 0);
    let pci = Pci::enumerate(machine, ECAM);
    assert!(!pci.function(Bdf(DISK)).unwrap().assignable());
    assert!(pci.function(Bdf(NIC)).unwrap().assignable());
}

#[test]
fn bridges_and_platform_are_never_assignable() {
    let (_, pci) = boot();
    assert!(!pci.function(Bdf(PORT)).unwrap().assignable());
    assert!(!pci.function(Bdf(0)).unwrap().assignable());
    assert!(pci.by_class(6, 0).is_none());
}

/// Whether the disk may be given to a domain after a change of its
/// configuration space.
fn fit(at: usize, value: &[u8]) -> bool {
    let machine = Machine::new();
    for (i, &byte) in value.iter().enumerate() {
        machine.set_config(DISK, at + i, byte);
    }
    let pci = Pci::enumerate(machine, ECAM);
    assert!(pci.function(Bdf(NIC)).unwrap().assignable() || at == 0x14);
    pci.function(Bdf(DISK)).unwrap().assignable()
}

#[test]
fn what_overlaps_something_else_is_not_assignable() {
    let bar1 = |address: u32| fit(0x14, &address.to_le_bytes());
    assert!(bar1(0xe100_0000));
    assert!(!bar1(ECAM.base as u32 + 0x10_0000), "configuration space");
    assert!(!bar1(0xe018_0000), "the NIC's memory");
    // The upper half of BAR 4 is 8: below 4 GiB it lies upon BAR 1.
    assert!(!fit(0x20, &[0x0c, 0x00, 0x00, 0xe1, 0, 0, 0, 0]), "its own BAR 1");

    let (_, mut pci) = boot();
    pci.withhold(0xe100_0fff, 1);
    pci.withhold(0xe018_1000, 0x1000);
    assert!(!pci.function(Bdf(DISK)).unwrap().assignable());
    assert!(pci.function(Bdf(NIC)).unwrap().assignable());
    pci.withhold(0, u64::MAX);
    assert!(!pci.function(Bdf(NIC)).unwrap().assignable());
}

#[test]
fn msi_x_tables_that_lie_nowhere_make_a_function_unassignable() {
    assert!(fit(0x84, &[1, 0, 0, 0]));
    assert!(!fit(0x84, &[2, 0, 0, 0]), "no such BAR");
    assert!(!fit(0x84, &[7, 0, 0, 0]), "no BAR's number");
    assert!(!fit(0x84, &[0xc9, 0x0f, 0, 0]), "past the BAR's end");
    assert!(!fit(0x88, &[1, 0x10, 0, 0]), "pending bits past the BAR's end");
    assert!(!fit(0x82, &[0xff, 0x07]), "more entries than fit");
    assert!(!fit(0x14, &[0, 0, 0, 0]), "the BAR is not assigned");
}

#[test]
fn every_page_with_a_part_of_the_tables_is_withheld() {
    let machine = Machine::new();
    // 65 entries from 0xff8 of BAR 4 on: into the second page; pending bits in the last.
    machine.set_config(DISK, 0x82, 64);
    for (i, byte) in [0xfc, 0x0f, 0, 0, 0xfc, 0x3f, 0, 0].into_iter().enumerate() {
        machine.set_config(DISK, 0x84 + i, byte);
    }
    machine.set_config(DISK, 0x88, 0xf4);
    let pci = Pci::enumerate(machine, ECAM);
    let disk = pci.function(Bdf(DISK)).unwrap();
    let withheld: Vec<_> = (0..4).filter(|page| disk.is_withheld(4, page * 0x1000)).collect();
    assert_eq!(withheld, [0, 1, 3]);
    assert!(!disk.is_withheld(1, 0));
}

#[test]
fn ports_isolate_and_functions_translate_nothing() {
    let machine = Machine::new();
    let extended = |bdf: u16, at: usize, bytes: &[u8]| {
        bytes.iter().enumerate().for_each(|(i, &byte)| machine.set_config(bdf, at + i, byte));
    };
    // AER, then access control without "translation blocking".
    extended(PORT, 0x100, &[1, 0, 0x02, 0x15]);
    extended(PORT, 0x150, &[0x0d, 0, 0x01, 0, 0x5d, 0, 0, 0]);
    // ATS, PRI and PASID, all enabled, in a list that ends in a circle.
    extended(DISK, 0x100, &[0x0f, 0, 0x01, 0x12, 0, 0, 5, 0x80]);
    extended(DISK, 0x120, &[0x13, 0, 0x01, 0x14, 1, 0, 0, 0]);
    extended(DISK, 0x140, &[0x1b, 0, 0x01, 0x10, 0, 0, 7, 0]);
    Pci::enumerate(machine.clone(), ECAM);
    assert_eq!(machine.config(PORT, 0x156), 0x1d);
    for at in [0x106, 0x107, 0x124, 0x125, 0x146, 0x147] {
        assert_eq!(machine.config(DISK, at), 0, "{at:#x}");
    }
}

#[test]
fn bus_mastering_reaches_the_bridge_and_ends_with_the_function() {
    let (machine, pci) = boot();
    machine.set_config(PORT, 4, 0);
    // Somebody reset it.
    machine.set_config(DISK, 4, 0b001);
    machine.set_config(DISK, 5, 0);
    let disk = pci.function(Bdf(DISK)).unwrap();
    pci.set_bus_master(disk, true);
    assert_eq!(machine.config(DISK, 4) & 0b111, 0b110);
    assert_eq!(machine.config(DISK, 5) & 0b100, 0b100, "no INTx");
    assert_eq!(machine.config(PORT, 4) & 0b111, 0b110);
    pci.set_bus_master(disk, false);
    assert_eq!(machine.config(DISK, 4) & BUS_MASTER, 0);
}

#[test]
fn a_domain_can_give_up_bus_mastering_but_not_take_it() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    pci.domain_config_write(disk, COMMAND, 2, 0b111).unwrap();
    assert_eq!(machine.config(DISK, 4) & BUS_MASTER, 0);
    pci.set_bus_master(disk, true);
    pci.domain_config_write(disk, COMMAND, 2, 0b100).unwrap();
    assert_eq!(machine.config(DISK, 4) & 0b111, 0b110, "answers as before");
    pci.domain_config_write(disk, COMMAND, 4, 0b011).unwrap();
    assert_eq!(machine.config(DISK, 4) & 0b111, 0b010);
    assert_eq!(machine.config(DISK, 5) & 0b100, 0b100, "no INTx");
}

#[test]
fn a_domain_writes_nothing_else() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    let before: Vec<u8> = (0..4096).map(|at| machine.config(DISK, at)).collect();
    for offset in 0..=u16::MAX {
        for width in 0..=u8::MAX {
            let result = pci.domain_config_write(disk, offset, width, u32::MAX);
            let allowed = offset == COMMAND && matches!(width, 2 | 4);
            assert_eq!(result.is_some(), allowed, "{width} bytes at {offset:#x}");
        }
    }
    let after: Vec<u8> = (0..4096).map(|at| machine.config(DISK, at)).collect();
    assert!(before == after);
}

#[test]
fn a_domain_sees_what_a_driver_needs_and_no_more() {
    let machine = Machine::new();
    let fill = |range: std::ops::Range<usize>| {
        range.for_each(|at| machine.set_config(DISK, at, 0xee));
    };
    // All that the simulation left empty: BARs aside, and the list of capabilities.
    fill(0x28..0x34);
    fill(0x3c..0x40);
    fill(0x44..0x80);
    fill(0x8c..4096);
    // After MSI-X: power management, MSI, virtio's common registers, its notifications.
    machine.set_config(DISK, 0x81, 0xa0);
    for (at, id, next, kind) in
        [(0xa0, 1, 0xb8, 0), (0xb8, 5, 0xd0, 0), (0xd0, 9, 0xe8, 1), (0xe8, 9, 0, 2)]
    {
        let head = [id, next, 0, kind].into_iter().enumerate();
        head.for_each(|(i, byte)| machine.set_config(DISK, at + i, byte));
    }
    let pci = Pci::enumerate(machine.clone(), ECAM);
    let disk = pci.function(Bdf(DISK)).unwrap();
    let seen: Vec<u16> =
        (0..4096).step_by(4).filter(|&at| pci.domain_config_read(disk, at, 4) != 0).collect();
    let mut expected = vec![0, 4, 8, 0x2c, 0x34, 0x40, 0x80, 0x84, 0x88];
    // Of power management and MSI the head; of virtio's all.
    expected.extend([0xa0, 0xb8, 0xd0, 0xd4, 0xd8, 0xdc, 0xe8, 0xec, 0xf0, 0xf4, 0xf8]);
    assert_eq!(seen, expected);
    for (offset, width, value) in [(0, 2, 0x1af4), (2, 2, 0x1042), (0xb, 1, 1), (0x82, 2, 3)] {
        assert_eq!(pci.domain_config_read(disk, offset, width), value);
    }
    assert_eq!(pci.domain_config_read(disk, 1, 2), 0xffff, "misaligned");
    for (offset, width) in [(0x14, 1), (0x24, 4), (0x30, 4), (0x100, 4), (0xfffc, 4), (0, 8)] {
        assert_eq!(pci.domain_config_read(disk, offset, width), 0);
    }
}

#[test]
fn the_window_of_virtio_is_shut() {
    let machine = Machine::new();
    // Another vendor's capability could be anything.
    for (vendor, kind, last) in [(0xf4, 1, 3), (0xf4, 2, 4), (0xf4, 5, 0), (0x86, 1, 0)] {
        machine.set_config(DISK, 0, vendor);
        machine.set_config(DISK, 0x81, 0xa0);
        let capability = [9, 0, 20, kind].into_iter().chain([0xff; 20]);
        capability.enumerate().for_each(|(i, byte)| machine.set_config(DISK, 0xa0 + i, byte));
        let pci = Pci::enumerate(machine.clone(), ECAM);
        let disk = pci.function(Bdf(DISK)).unwrap();
        let words = (0..6).filter(|i| pci.domain_config_read(disk, 0xa0 + 4 * i, 4) != 0);
        assert_eq!(words.max(), Some(last), "{vendor:#x} {kind}");
        for i in 0..6 {
            let result = pci.domain_config_write(disk, 0xa0 + 4 * i, 4, 1);
            assert_eq!(result, None);
        }
    }
}

#[test]
fn msi_x_entries_are_ours() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    pci.set_bus_master(disk, false);
    pci.msix_enable(disk).unwrap();
    assert_eq!(machine.config(DISK, 0x83) & 0xc0, 0x80);
    let message = Message { address: 0xfee0_0000, data: 2 };
    pci.msix_program(disk, 2, message).unwrap();
    let entry = 0xe100_0000 + 32;
    assert_eq!(machine.read64(entry), 0xfee0_0000);
    assert_eq!(machine.read64(entry + 8), 1 << 32 | 2, "masked");
    pci.msix_set_mask(disk, 2, false).unwrap();
    assert_eq!(machine.read32(entry + 12), 0);
    pci.msix_mask_all(disk).unwrap();
    assert_eq!(machine.read32(entry + 12), 1);
    assert_eq!(pci.msix_program(disk, 4, message), None);
}

#[test]
fn bars_of_all_kinds_are_understood() {
    let bar = |value, probe| decode(value, probe).1.map(|b| (b.address, b.len));
    assert_eq!(bar([0xfe00_0000, 0], [0xffff_f000, 0]), Some((0xfe00_0000, 0x1000)));
    assert_eq!(bar([0xc, 0x20], [0xfff0_000c, u32::MAX]), Some((0x20_0000_0000, 0x10_0000)));
    assert_eq!(bar([0xc, 0x20], [0xc, 0xffff_fff0]), Some((0x20_0000_0000, 0x10_0000_0000)));
    assert_eq!(decode([0xc001, 0], [0xffff_ffe1, 0]), (false, None), "I/O ports");
    assert_eq!(decode([0xc005, 0x20], [0xffff_ffe1, u32::MAX]), (false, None), "I/O ports");
    assert_eq!(bar([0, 0], [0, 0]), None);
    assert_eq!(bar([0, 0], [0xffff_f000, 0]), None, "not assigned");
    assert_eq!(bar([0xfe00_0800, 0], [0xffff_f000, 0]), None, "not aligned to its size");
}
