//! I/O page tables.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::iommu::Error;
use crate::iommu::page_table::{Format, IoTable};
use crate::phys::PhysIo;
use crate::sim::Machine;

const PAGE: u64 = 4096;
const AMD: Format = Format {
    levels: 4,
    read: 1 << 61 | 1,
    write: 1 << 62,
    leaf_bits: 1 << 60,
    level_shift: Some(9),
    write_back: false,
};
const INTEL: Format =
    Format { levels: 4, read: 1, write: 2, leaf_bits: 0, level_shift: None, write_back: true };
const FORMATS: [Format; 3] = [AMD, INTEL, Format { levels: 3, leaf_bits: 1 << 11, ..INTEL }];

fn table(format: Format, frames: u64) -> (Machine, IoTable<Machine>) {
    let machine = Machine::new();
    let base = machine.alloc(frames as usize).unwrap();
    (machine.clone(), IoTable::new(machine, format, base, frames).unwrap())
}

fn leaves(table: &IoTable<Machine>) -> Vec<(u64, u64, bool)> {
    let mut all = Vec::new();
    table.leaves(&mut |iova, phys, write| all.push((iova, phys, write))).unwrap();
    all
}

#[test]
fn bad_arguments_are_refused() {
    let (_, mut table) = table(AMD, 8);
    assert_eq!(table.map(1, 0, true), Err(Error::BadArgument));
    assert_eq!(table.map(0, 1, true), Err(Error::BadArgument));
    assert_eq!(table.map(1 << 48, 0, true), Err(Error::BadArgument));
    assert_eq!(table.map(0, 1 << 52, true), Err(Error::BadArgument));
    assert_eq!(table.unmap(0), Err(Error::BadState));
    table.map(0, PAGE, true).unwrap();
    assert_eq!(table.map(0, PAGE, true), Err(Error::BadState));
    assert_eq!(leaves(&table), [(0, PAGE, true)]);
}

#[test]
fn the_pool_suffices_for_the_ranges_it_was_sized_for() {
    let ranges = [(0x20_0000_0000, 256), (0x40_0000_0000, 4096), (0x3f_ffff_f000, 2)];
    let frames = AMD.frames_for(&ranges);
    let (_, mut table) = table(AMD, frames);
    // The last range overlaps the second one.
    for &(start, pages) in &ranges[..2] {
        for page in 0..pages {
            table.map(start + page * PAGE, 0x1000_0000 + page * PAGE, true).unwrap();
        }
    }
    table.map(0x3f_ffff_f000, 0, true).unwrap();
    assert_eq!(leaves(&table).len(), 256 + 4096 + 1);
    table.clear();
    assert!(leaves(&table).is_empty());
}

#[test]
fn the_walk_finds_foreign_entries() {
    let (machine, mut table) = table(AMD, 8);
    table.map(0x5000, 0x9000, true).unwrap();
    // A root entry that leads out of the table's own frames.
    machine.write64(table.root() + 8, 0x8000 | 3 << 9 | 3 << 61 | 1);
    assert_eq!(table.leaves(&mut |_, _, _| ()), Err(Error::Hardware));
    assert_eq!(table.map(1 << 39, 0, true), Err(Error::Hardware));
    assert_eq!(table.unmap(1 << 39), Err(Error::Hardware));
}

proptest! {
    #[test]
    fn it_behaves_like_a_map(
        which in 0..FORMATS.len(),
        steps in prop::collection::vec((0_u64..40, 0_u64..1000, any::<bool>(), 0_u8..2), 1..200),
    ) {
        let (_, mut table) = table(FORMATS[which], 200);
        let mut model = BTreeMap::new();
        for (slot, phys, write, what) in steps {
            // Spread over several tables of each level.
            let top = if which < 2 { (slot % 4) << 39 } else { 0 };
            let iova = top | (slot % 3) << 30 | (slot % 5) << 21 | slot << 12;
            let phys = phys * PAGE;
            match what {
                0 => {
                    let expected = if model.contains_key(&iova) { Err(Error::BadState) } else { Ok(()) };
                    prop_assert_eq!(table.map(iova, phys, write), expected);
                    model.entry(iova).or_insert((phys, write));
                }
                _ => prop_assert_eq!(table.unmap(iova).ok(), model.remove(&iova).map(|e| e.0)),
            }
        }
        let seen: BTreeMap<_, _> =
            leaves(&table).into_iter().map(|(iova, phys, write)| (iova, (phys, write))).collect();
        prop_assert_eq!(seen, model);
    }
}
