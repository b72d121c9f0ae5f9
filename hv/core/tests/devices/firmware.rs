//! Reading the firmware's tables.

use proptest::prelude::*;

use crate::acpi::{Error, discover};
use crate::phys::PhysIo;
use crate::sim::{ECAM, IOAPIC, IOAPIC_ID, IOMMU, Machine};
use crate::tables;

#[test]
fn a_good_set_of_tables_is_understood() {
    let machine = Machine::new();
    tables::install(&machine, &tables::all());
    let platform = discover(&machine, tables::RSDP).unwrap();
    assert_eq!(platform.cpus, [0, 1]);
    assert_eq!(platform.local_apic, 0xfee0_0000);
    assert_eq!(platform.ioapics[0].address, IOAPIC);
    assert_eq!(platform.isa_irq(0).0, 2);
    assert_eq!(platform.isa_irq(3), (3, Default::default()));
    let (gsi, line) = platform.isa_irq(9);
    assert!(gsi == 9 && line.level && !line.active_low);
    assert_eq!(platform.ecam, Some(ECAM));
    assert_eq!(platform.pm_timer.unwrap().port, 0x608);
    let unit = &platform.iommus[0];
    assert_eq!((unit.bdf, unit.capability, unit.mmio), (0x20, 0x40, IOMMU));
    assert_eq!(unit.ioapics, [(0, IOAPIC_ID)]);
    assert_eq!(unit.serves(0x100), Some(None));
    assert_eq!(unit.serves(0x300), Some(Some(0x310)));
    assert_eq!(unit.serves(0x200), None);
}

#[test]
fn a_wrong_checksum_is_an_error() {
    let machine = Machine::new();
    let mut set = tables::all();
    set[3][40] ^= 1;
    tables::install(&machine, &set);
    assert_eq!(discover(&machine, tables::RSDP).unwrap_err(), Error::BadChecksum(*b"IVRS"));
}

#[test]
fn malformed_entries_are_errors_and_not_loops() {
    let truncated_range = tables::ivrs_with(&[3, 0, 0, 0]);
    let backward_range = tables::ivrs_with(&[3, 9, 0, 0, 4, 8, 0, 0]);
    let cut_off = tables::ivrs_with(&[0x48, 0, 0, 0]);
    let zero_length = tables::table(b"IVRS", &[0; 16]);
    for bad in [truncated_range, backward_range, cut_off, zero_length] {
        let machine = Machine::new();
        tables::install(&machine, &[tables::madt(), bad]);
        assert_eq!(discover(&machine, tables::RSDP).unwrap_err(), Error::Malformed(*b"IVRS"));
    }
    let machine = Machine::new();
    tables::install(&machine, &[tables::table(b"APIC", &[0; 20])]);
    assert_eq!(discover(&machine, tables::RSDP).unwrap_err(), Error::Malformed(*b"APIC"));
}

#[test]
fn no_rsdp_is_an_error() {
    assert_eq!(discover(&Machine::new(), 0x1000).unwrap_err(), Error::NoRsdp);
    assert_eq!(discover(&Machine::new(), u64::MAX).unwrap_err(), Error::NoRsdp);
}

proptest! {
    /// Whatever the bytes are, reading them ends, without a panic.
    #[test]
    fn garbage_is_survived(
        which in 0_usize..4,
        changes in prop::collection::vec((36_usize..200, any::<u8>()), 1..8),
    ) {
        let machine = Machine::new();
        let mut set = tables::all();
        let len = set[which].len();
        for (at, value) in changes {
            set[which][36 + at % (len - 36)] = value;
        }
        let mut signature = [0; 4];
        signature.copy_from_slice(&set[which][..4]);
        let body = set[which][36..].to_vec();
        set[which] = tables::table(&signature, &body);
        tables::install(&machine, &set);
        let _ = discover(&machine, tables::RSDP);
    }

    /// Likewise with any damage to any header.
    #[test]
    fn damaged_headers_are_survived(page in 7_u64..16, at in 0_u64..64, value: u8) {
        let machine = Machine::new();
        tables::install(&machine, &tables::all());
        machine.write8(page * 0x1_0000 + at, value);
        let _ = discover(&machine, tables::RSDP);
    }
}
