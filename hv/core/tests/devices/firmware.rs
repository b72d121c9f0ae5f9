//! Reading the firmware's tables.

use proptest::prelude::*;

use crate::acpi::discover;
use crate::acpi::table::{BAD_CHECKSUM, Error, MALFORMED, OTHER_SEGMENT};
use crate::sim::{ECAM, IOAPIC, IOAPIC_ID, IOMMU, Machine};
use crate::{sim_vtd, tables};

fn error(table: &[u8; 4], problem: &'static str) -> Error {
    Error { table: *table, problem }
}

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
    let unit = &platform.amd_vi[0];
    assert_eq!((unit.bdf, unit.capability, unit.mmio), (0x20, 0x40, IOMMU));
    assert_eq!(platform.ioapic_sources, [(0, IOAPIC_ID)]);
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
    assert_eq!(discover(&machine, tables::RSDP).unwrap_err(), error(b"IVRS", BAD_CHECKSUM));
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
        assert_eq!(discover(&machine, tables::RSDP).unwrap_err(), error(b"IVRS", MALFORMED));
    }
    let machine = Machine::new();
    tables::install(&machine, &[tables::table(b"APIC", &[0; 20])]);
    assert_eq!(discover(&machine, tables::RSDP).unwrap_err(), error(b"APIC", MALFORMED));
}

#[test]
fn a_dmar_is_understood_and_a_broken_one_an_error() {
    let read = |dmar| {
        let machine = Machine::new();
        tables::install(&machine, &[tables::madt(), dmar]);
        discover(&machine, tables::RSDP)
    };
    let platform = read(tables::dmar()).unwrap();
    let dmar = platform.vt_d;
    assert_eq!((&*dmar.units, dmar.all), (&[sim_vtd::IOMMU][..], false));
    assert_eq!((&*dmar.served, &*dmar.reserved), (&[0x18, 0x10][..], &[0x20][..]));
    assert_eq!(platform.ioapic_sources, [(0, IOAPIC_ID)]);
    let unit = |scopes: &[u8]| tables::dmar_part(0, 1, &[sim_vtd::IOMMU], scopes);
    assert!(read(tables::dmar_with(&unit(&[]))).unwrap().vt_d.all);
    // Of a longer path it is not known whom it names.
    let path = read(tables::dmar_with(&unit(&[1, 10, 0, 0, 0, 0, 2, 0, 0, 0]))).unwrap();
    assert!(path.vt_d.served.is_empty());
    let mut other_segment = unit(&[]);
    other_segment[6] = 1;
    for (bad, expected) in [
        (unit(&[1, 0, 0, 0, 0, 0, 0, 0]), error(b"DMAR", MALFORMED)),
        (unit(&[1, 9, 0, 0, 0, 0, 0, 0]), error(b"DMAR", MALFORMED)),
        (tables::dmar_part(0, 1, &[0x123], &[]), error(b"DMAR", MALFORMED)),
        (vec![0; 16], error(b"DMAR", MALFORMED)),
        (other_segment, error(b"DMAR", OTHER_SEGMENT)),
    ] {
        assert_eq!(read(tables::dmar_with(&bad)).unwrap_err(), expected, "{bad:x?}");
    }
}

#[test]
fn no_rsdp_is_an_error() {
    for nowhere in [0x1000, u64::MAX] {
        assert_eq!(discover(&Machine::new(), nowhere).unwrap_err().table, *b"RSDP");
    }
}

proptest! {
    /// Whatever the bytes are, reading them ends, without a panic.
    #[test]
    fn garbage_is_survived(
        which in 0_usize..5,
        changes in prop::collection::vec((36_usize..200, any::<u8>()), 1..8),
    ) {
        let machine = Machine::new();
        let mut set = tables::all();
        set.push(tables::dmar());
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
