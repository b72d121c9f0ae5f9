//! Resets of functions and buses, with hostile configuration space.

use crate::pci::{Bdf, Pci};
use crate::sim::{DISK, ECAM, Machine, NIC, PORT};

const CONTROL: usize = 0x48;

fn set(machine: &Machine, bdf: u16, at: usize, bytes: &[u8]) {
    bytes.iter().enumerate().for_each(|(i, &byte)| machine.set_config(bdf, at + i, byte));
}

fn config(machine: &Machine, bdf: u16) -> Vec<u8> {
    (0..4096).map(|at| machine.config(bdf, at)).collect()
}

/// A machine whose disk has a function-level reset, and payloads of 256 bytes.
fn boot() -> (Machine, Pci<Machine>) {
    let machine = Machine::new();
    machine.set_config(DISK, 0x47, 1 << 4);
    set(&machine, DISK, CONTROL, &[0x3f, 0x28]);
    let pci = Pci::enumerate(machine.clone(), ECAM);
    pci.set_bus_master(pci.function(Bdf(DISK)).unwrap(), false);
    (machine, pci)
}

/// What a reset leaves: no addresses, nothing enabled.
fn wipe(machine: &Machine) {
    for at in (4..6).chain(0x10..0x28).chain(CONTROL..CONTROL + 2) {
        machine.set_config(DISK, at, 0);
    }
    set(machine, DISK, 0x20, &[0b1100]);
}

#[test]
fn a_reset_is_begun_and_what_it_cleared_is_given_back() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    assert!(disk.express.is_some_and(|e| e.flr));
    assert!(!pci.function(Bdf(NIC)).unwrap().express.is_some_and(|e| e.flr));
    let before = config(&machine, DISK);
    pci.reset_function(disk);
    assert_eq!(machine.config(DISK, CONTROL + 1), 0xa8, "payloads stay, the reset begins");
    wipe(&machine);
    assert!(pci.answers(disk) && !pci.is_configured(disk));
    assert!(pci.configure(disk));
    assert!(pci.answers(disk) && pci.is_configured(disk));
    assert!(config(&machine, DISK) == before);
    assert_eq!(machine.config(DISK, 4) & 0b111, 0b010, "it masters no bus");
}

#[test]
fn requests_under_way_are_seen() {
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    assert!(pci.is_idle(disk));
    machine.set_config(DISK, 0x4a, 1 << 5);
    assert!(!pci.is_idle(disk));
}

#[test]
fn another_device_in_its_place_is_not_taken_for_it() {
    for (at, bytes) in [
        (0, &[0xff; 4][..]),
        // Busy: configuration request retry status.
        (0, &[0x01, 0, 0xff, 0xff]),
        (2, &[0x43]),
        (0xb, &[2]),
        // Its MSI-X tables lie elsewhere, or there are more entries.
        (0x85, &[0x04]),
        (0x82, &[4]),
        // A list of capabilities that is a circle.
        (0x41, &[0x40]),
    ] {
        let (machine, pci) = boot();
        wipe(&machine);
        set(&machine, DISK, at, bytes);
        assert!(!pci.answers(pci.function(Bdf(DISK)).unwrap()), "{at:#x} {bytes:x?}");
    }
    // Its BAR is larger than that of then.
    let (machine, pci) = boot();
    let disk = pci.function(Bdf(DISK)).unwrap();
    wipe(&machine);
    machine.set_bar_mask(DISK, 1, 0xfff0_0000);
    assert!(pci.answers(disk) && !pci.configure(disk));
    assert_eq!(machine.config(DISK, 4) & 0b111, 0, "it stays off the bus");
}

#[test]
fn lists_of_capabilities_that_lie_end() {
    for next in [0x40, 0x43, 0x80, 0xfc, 0xff, 0x3c] {
        let machine = Machine::new();
        set(&machine, DISK, 0x40, &[0x05, next]);
        set(&machine, DISK, 0xfc, &[0x10, 0x40, 0xff, 0xff]);
        let pci = Pci::enumerate(machine, ECAM);
        let disk = pci.function(Bdf(DISK)).unwrap();
        // The last one lies across the end of the first 256 bytes.
        assert_eq!(disk.express.is_some(), next >= 0xfc, "{next:#x}");
        pci.reset_function(disk);
        assert!(pci.is_idle(disk));
    }
}

#[test]
fn a_bus_is_held_and_let_go_of() {
    let (machine, pci) = boot();
    let port = pci.port(pci.function(Bdf(DISK)).unwrap()).unwrap();
    assert_eq!(port.bdf, Bdf(PORT));
    assert_eq!(pci.behind(port).map(|f| f.bdf.0).collect::<Vec<_>>(), [DISK]);
    assert!(pci.port(pci.function(Bdf(NIC)).unwrap()).is_none());
    machine.set_config(PORT, 0x3e, 0x03);
    pci.hold_bus(port, true);
    assert_eq!(machine.config(PORT, 0x3e), 0x43);
    pci.hold_bus(port, false);
    assert_eq!(machine.config(PORT, 0x3e), 0x03);
}
