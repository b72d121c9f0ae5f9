//! PCI functions: what is found, fenced, refused and restored.

use crate::pci::bar::{BarKind, decode};
use crate::pci::flr::{Progress, SETTLE_NS};
use crate::pci::msix::Message;
use crate::pci::{Bdf, Error, Kind, Pci};
use crate::phys::PhysIo;
use crate::sim::{DISK, ECAM, Machine, NIC, PORT};

const COMMAND: u16 = 4;
const BUS_MASTER: u8 = 1 << 2;

fn boot() -> (Machine, Pci<Machine>) {
    let machine = Machine::new();
    let pci = Pci::enumerate(machine.clone(), ECAM).unwrap();
    (machine, pci)
}

#[test]
fn all_functions_are_found_and_fenced() {
    let (machine, pci) = boot();
    let bdfs: Vec<_> = pci.functions().iter().map(|f| f.bdf.0).collect();
    assert_eq!(bdfs, [0x0000, PORT, NIC, DISK]);
    for bdf in [NIC, DISK] {
        assert_eq!(machine.config(bdf, 4) & BUS_MASTER, 0);
        assert_eq!(machine.config(bdf, 0x83) & 0x80, 0, "MSI-X is off");
        assert_eq!(machine.config(bdf, 4) & 0b11, 0b11, "decodes as before");
    }
    let disk = pci.by_class(1, 0).unwrap();
    assert!(disk.bdf.0 == DISK && disk.assignable() && disk.flr);
    assert_eq!(disk.bdf.to_string(), "01:00.0");
    let bar = disk.bars[1].unwrap();
    assert_eq!((bar.address, bar.len, bar.kind), (0xe100_0000, 0x1000, BarKind::Memory32));
    let bar = disk.bars[4].unwrap();
    assert_eq!((bar.address, bar.len, bar.kind), (0x8_e100_8000, 0x4000, BarKind::Memory64));
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
    let pci = Pci::enumerate(machine, ECAM).unwrap();
    assert!(!pci.function(Bdf(DISK)).unwrap().assignable());
    assert!(pci.function(Bdf(NIC)).unwrap().assignable());
}

#[test]
fn bus_mastering_reaches_the_bridge_and_ends_with_the_function() {
    let (machine, pci) = boot();
    machine.set_config(PORT, 4, 0);
    let disk = pci.function(Bdf(DISK)).unwrap();
    pci.set_bus_master(disk, true);
    assert_eq!(machine.config(DISK, 4) & 0b111, 0b110);
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
    pci.domain_config_write(disk, COMMAND, 2, 0b110).unwrap();
    assert_eq!(machine.config(DISK, 4) & 0b110, 0b110);
    pci.domain_config_write(disk, COMMAND, 4, 0b010).unwrap();
    assert_eq!(machine.config(DISK, 4) & 0b110, 0b010);
    for (offset, width) in [(0x14, 4), (0x82, 2), (4, 1), (0x48, 2)] {
        let result = pci.domain_config_write(disk, offset, width, u32::MAX);
        assert_eq!(result, Err(Error::NotPermitted));
    }
    assert_eq!(pci.config_read(Bdf(DISK), 0, 2), 0x1af4);
    assert_eq!(pci.config_read(Bdf(DISK), 1, 2), 0xffff);
    assert_eq!(pci.config_read(Bdf(0x0400), 0, 4), u32::MAX);
}

#[test]
fn msi_x_entries_are_ours() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
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
    assert_eq!(pci.msix_program(disk, 4, message), Err(Error::BadArgument));
}

#[test]
fn a_reset_restores_what_it_clears() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    pci.set_bus_master(disk, true);
    let mut flr = pci.flr_start(disk, 0, SETTLE_NS).unwrap();
    assert_eq!(machine.config(DISK, 4) & BUS_MASTER, 0);
    assert_eq!(pci.flr_poll(disk, &mut flr, 0), Ok(Progress::Pending));
    assert_eq!(machine.0.borrow().resets, [DISK]);
    assert_eq!(pci.config_read(Bdf(DISK), 0x14, 4), 0);
    machine.0.borrow_mut().absent = true;
    assert_eq!(pci.flr_poll(disk, &mut flr, SETTLE_NS), Ok(Progress::Pending));
    machine.0.borrow_mut().absent = false;
    assert_eq!(pci.flr_poll(disk, &mut flr, SETTLE_NS + 1), Ok(Progress::Done));
    assert_eq!(pci.config_read(Bdf(DISK), 0x14, 4), 0xe100_0000);
    assert_eq!(machine.config(DISK, 4) & 0b111, 0);
    assert_eq!(machine.0.borrow().resets, [DISK], "once");
}

#[test]
fn a_reset_that_never_ends_is_an_error() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    // A request stays under way for ever: reset all the same, after a while.
    machine.set_config(DISK, 0x4a, 1 << 5);
    let mut flr = pci.flr_start(disk, 0, 0).unwrap();
    assert_eq!(pci.flr_poll(disk, &mut flr, 1), Ok(Progress::Pending));
    machine.0.borrow_mut().absent = true;
    assert_eq!(pci.flr_poll(disk, &mut flr, 20_000_000), Ok(Progress::Pending));
    assert_eq!(pci.flr_poll(disk, &mut flr, 10_000_000_000), Err(Error::Hardware));
}

#[test]
fn bars_of_all_kinds_are_understood() {
    let bar = |value, probe| decode(value, probe).1.map(|b| (b.address, b.len));
    assert_eq!(bar([0xfe00_0000, 0], [0xffff_f000, 0]), Some((0xfe00_0000, 0x1000)));
    assert_eq!(bar([0xc, 0x20], [0xfff0_000c, u32::MAX]), Some((0x20_0000_0000, 0x10_0000)));
    assert_eq!(bar([0xc, 0x20], [0xc, 0xffff_fff0]), Some((0x20_0000_0000, 0x10_0000_0000)));
    assert_eq!(bar([0xc001, 0], [0xffff_ffe1, 0]), Some((0xc000, 0x20)));
    assert_eq!(bar([0xc001, 0], [0x0000_ffe1, 0]), Some((0xc000, 0x20)));
    assert_eq!(bar([0, 0], [0, 0]), None);
    assert_eq!(bar([0, 0], [0xffff_f000, 0]), None, "not assigned");
    assert_eq!(bar([0xfe00_0800, 0], [0xffff_f000, 0]), None, "not aligned to its size");
}
