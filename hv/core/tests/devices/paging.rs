//! Page tables in all formats.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::npt::Rights;
use crate::sim::Machine;
use crate::table::{ADDRESS, Format, NO_EXECUTE, PRESENT, PageTable, WRITE};

const PAGE: u64 = 4096;
const LARGE: u64 = 1 << 7;
const AMD: Format = Format {
    levels: 4,
    largest: 1,
    read: 1 << 61 | 1,
    write: 1 << 62,
    leaf_bits: 1 << 60,
    level_shift: Some(9),
    write_back: false,
};
const INTEL: Format =
    Format { read: 1, write: 2, leaf_bits: 0, level_shift: None, write_back: true, ..AMD };
const CPU: Format = Format::long_mode(true);
const FORMATS: [Format; 4] = [AMD, INTEL, Format { levels: 3, leaf_bits: 1 << 11, ..INTEL }, CPU];

fn table(format: Format) -> (Machine, PageTable<Machine>) {
    let machine = Machine::new();
    let table = PageTable::new(machine.clone(), format, &mut |n, _| machine.alloc(n)).unwrap();
    (machine, table)
}

/// All leaves as (virtual address, physical address, bytes, bits).
fn leaves(table: &PageTable<Machine>) -> Vec<(u64, u64, u64, u64)> {
    let mut all = Vec::new();
    assert!(table.for_each(&mut |virt, bits, phys, len| all.push((virt, phys, len, bits))));
    all
}

/// The bits of the leaf for `virt`; 0 = not mapped.
fn leaf(table: &PageTable<Machine>, virt: u64) -> u64 {
    let found = leaves(table).into_iter().find(|l| (l.0..l.0 + l.2).contains(&virt));
    found.map_or(0, |l| l.3 & !LARGE)
}

#[test]
fn bad_ranges_are_refused() {
    let (machine, mut table) = table(AMD);
    let alloc = &mut |n, _| machine.alloc(n);
    let bits = AMD.device(true);
    for (virt, phys, len) in
        [(1, 0, PAGE), (0, 1, PAGE), (0, 0, 1), (1 << 48, 0, PAGE), (0, 1 << 52, PAGE)]
    {
        assert_eq!(table.map(virt, phys, len, bits, alloc), None);
    }
    assert_eq!(table.map((1 << 48) - PAGE, 0, 2 * PAGE, bits, alloc), None);
    assert_eq!(table.map(u64::MAX - 4095, 0, PAGE, bits, alloc), None);
    assert_eq!(table.reserve(1 << 48, PAGE, alloc), None);
    assert_eq!(table.set(1 << 48, bits), None);
    assert_eq!(table.set(5, bits), None);
    assert_eq!(leaves(&table), []);
    assert_eq!(table.map(0, 0, PAGE, bits, &mut |_, _| None), None, "out of memory");
}

#[test]
fn pages_change_in_a_reserved_range_only_and_without_memory() {
    for format in FORMATS {
        let (machine, mut table) = table(format);
        table.reserve(511 << 12, 514 * PAGE, &mut |n, _| machine.alloc(n)).unwrap();
        let tables = table.tables().len();
        let bits = format.device(true);
        // The tables that the range lies in, no more.
        assert_eq!(table.set(510 << 12, 0), Some(0));
        assert_eq!(table.set(3 << 21, bits), None);
        assert_eq!(table.set(511 << 12, 0x5000 | bits), Some(0));
        assert_eq!(table.set(511 << 12, 0x6000 | bits), Some(0x5000 | bits), "in one store");
        assert_eq!(leaf(&table, 511 << 12), bits);
        assert_eq!(table.set(1024 << 12, 0x7000 | bits), Some(0));
        let two = [(511 << 12, 0x6000, PAGE, bits), (1024 << 12, 0x7000, PAGE, bits)];
        assert_eq!(leaves(&table), two);
        assert_eq!(table.set(511 << 12, 0), Some(0x6000 | bits));
        assert_eq!((leaf(&table, 511 << 12), leaves(&table).len()), (0, 1));
        assert_eq!(table.tables().len(), tables);
    }
}

#[test]
fn a_run_of_pages_changes_as_each_of_them_does() {
    for format in FORMATS {
        let (machine, mut run) = table(format);
        let (other, mut single) = table(format);
        for (table, machine) in [(&mut run, &machine), (&mut single, &other)] {
            table.reserve(500 << 12, 40 * PAGE, &mut |n, _| machine.alloc(n)).unwrap();
        }
        let bits = format.device(true);
        let changes: [(u64, Vec<u64>); 3] = [
            (505, (0..20).map(|n| ((1000 - n) * PAGE) | bits).collect()),
            (508, vec![0; 9]),
            (511, vec![0x7000 | bits]),
        ];
        for (page, entries) in changes {
            assert_eq!(run.set_run(page << 12, entries.iter().copied()), Some(()));
            for (n, entry) in (page..).zip(entries) {
                single.set(n << 12, entry).unwrap();
            }
            assert_eq!(leaves(&run), leaves(&single));
        }
        assert_eq!(run.set_run(510 << 12, []), Some(()));
        assert_eq!(run.set_run(1020 << 12, [bits; 5]), None, "it ends where the tables end");
        assert_eq!(leaf(&run, 1023 << 12), bits);
        assert_eq!(run.set_run((1 << 48) - PAGE, [0; 2]), None);
    }
}

#[test]
fn a_run_of_pages_is_marked_and_no_other() {
    const HUGE: u64 = 2 << 20;
    let (machine, mut table) = table(CPU);
    let bits = Rights { write: true, execute: false, device: false }.bits();
    // Small pages, a hole, small pages, and two large ones.
    let maps = [(0, 500 * PAGE), (510 * PAGE, 10 * PAGE), (2 * HUGE, 2 * HUGE)];
    for (virt, len) in maps {
        table.map(virt, HUGE + virt, len, bits, &mut |n, _| machine.alloc(n)).unwrap();
    }
    let pages = || (0..4 * HUGE).step_by(PAGE as usize);
    pages().for_each(|page| table.clean(page));
    assert_eq!(pages().filter(|&page| table.is_dirty(page)).count(), 0);
    table.mark(498 * PAGE, 14 * PAGE + 1);
    table.mark(3 * HUGE - 1, 2);
    let marked: Vec<_> = pages().filter(|&page| table.is_dirty(page)).map(|at| at / PAGE).collect();
    let small = [498, 499, 510, 511, 512];
    assert_eq!(marked, small.into_iter().chain(1024..2048).collect::<Vec<_>>());
}

#[test]
fn the_walk_does_not_follow_foreign_entries() {
    for (format, link) in [(AMD, 3 << 9 | 3 << 61 | 1), (INTEL, 3), (CPU, 0x67)] {
        let (machine, mut table) = table(format);
        table.map(0x5000, 0x9000, PAGE, format.device(true), &mut |n, _| machine.alloc(n)).unwrap();
        let foreign = machine.alloc(1).unwrap();
        machine.write64(foreign, 0x1000 | link);
        machine.write64(table.root() + 8, foreign | link);
        let mut seen = 0;
        assert!(!table.for_each(&mut |_, _, _, _| seen += 1));
        assert_eq!(seen, 1);
        // One of its own, but with other rights.
        machine.write64(table.root() + 8, 0);
        machine.write64(table.root(), machine.read64(table.root()) & !format.write);
        assert!(!table.for_each(&mut |_, _, _, _| ()));
    }
}

#[test]
fn large_pages_where_they_fit_and_split_where_rights_differ() {
    let (machine, mut table) = table(CPU);
    let alloc = &mut |n, _| machine.alloc(n);
    let data = PRESENT | WRITE | NO_EXECUTE;
    table.map(0, 0, 2 << 30, data, alloc).unwrap();
    assert_eq!(leaves(&table).len(), 2);
    // Text in the middle of a 2 MiB page, and a hole.
    table.map(0x20_3000, 0x20_3000, 2 * PAGE, PRESENT, alloc).unwrap();
    table.map(0x40_0000, 0x40_0000, 2 << 20, 0, alloc).unwrap();
    let all = leaves(&table);
    assert_eq!(all.len(), 512 + 510 + 1);
    assert_eq!(all.iter().map(|l| l.2).sum::<u64>(), (2 << 30) - (2 << 20));
    assert!(all.iter().all(|l| l.0 == l.1), "the identity");
    let code: Vec<_> = all.iter().filter(|l| l.3 & NO_EXECUTE == 0).map(|l| l.0).collect();
    assert_eq!(code, [0x20_3000, 0x20_4000]);
    assert_eq!((leaf(&table, 0x20_2000), leaf(&table, 0x20_3000)), (data, PRESENT));
    assert_eq!(leaf(&table, 0x41_0000), 0);
    // 4 KiB pages where the addresses do not agree.
    table.map(4 << 30, 0x1000, 2 << 20, data, alloc).unwrap();
    assert_eq!(leaves(&table).len(), 512 + 510 + 1 + 512);
}

#[test]
fn nothing_of_a_domain_is_writable_and_executable() {
    for n in 0..8 {
        let rights = Rights { write: n & 1 != 0, execute: n & 2 != 0, device: n & 4 != 0 };
        let (write, execute) = Rights::of(rights.bits());
        assert!(!(write && execute), "{rights:?}");
        assert_eq!(write, rights.write);
        assert_eq!(execute, rights.execute && !rights.write);
        assert_eq!(rights.bits() & ADDRESS, 0);
    }
    assert_eq!(Rights::of(0), (false, false));
}

proptest! {
    #[test]
    fn it_behaves_like_a_map(
        which in 0..FORMATS.len(),
        steps in prop::collection::vec((0_u64..40, 0_u64..1000, any::<bool>(), 0_u8..2), 1..200),
    ) {
        let format = FORMATS[which];
        let (machine, mut table) = table(format);
        let mut model = BTreeMap::new();
        for (slot, phys, write, what) in steps {
            // Spread over several tables of each level.
            let top = if which != 2 { (slot % 4) << 39 } else { 0 };
            let virt = top | (slot % 3) << 30 | (slot % 5) << 21 | slot << 12;
            let (phys, bits) = (phys * PAGE, format.device(write));
            if what == 0 {
                let done = table.map(virt, phys, PAGE, bits, &mut |n, _| machine.alloc(n));
                prop_assert!(done.is_some());
                model.insert(virt, (phys, PAGE, bits));
            } else {
                let old = model.remove(&virt).map_or(0, |(phys, _, bits)| phys | bits);
                prop_assert_eq!(table.set(virt, 0).unwrap_or(0), old);
            }
        }
        let seen: BTreeMap<_, _> =
            leaves(&table).into_iter().map(|(virt, phys, len, bits)| (virt, (phys, len, bits))).collect();
        prop_assert_eq!(seen, model);
    }
}

#[test]
fn a_leaf_is_clean_once_its_last_page_was_restored_and_dirty_after_a_write() {
    const HUGE: u64 = 2 << 20;
    for largest in [1, 2] {
        let (machine, mut table) = table(Format { largest, ..CPU });
        let bits = Rights { write: true, execute: false, device: false }.bits();
        table.map(HUGE, 4 * HUGE, HUGE, bits, &mut |n, _| machine.alloc(n)).unwrap();
        let pages = || (HUGE..2 * HUGE).step_by(PAGE as usize);
        let dirty = |table: &PageTable<Machine>| pages().filter(|&p| table.is_dirty(p)).count();
        assert_eq!(dirty(&table), 512, "a first life finds every page marked");
        for page in pages() {
            assert!(table.is_dirty(page), "marks of pages still to come stay: {page:#x}");
            table.clean(page);
        }
        assert_eq!(dirty(&table), 0);
        table.mark(HUGE + 5 * PAGE + 8, 1);
        assert_eq!(dirty(&table), if largest == 1 { 1 } else { 512 });
        assert!(table.is_dirty(HUGE + 5 * PAGE));
        // Neither touches what is not mapped, nor rights and addresses.
        table.mark(0, PAGE);
        table.clean(0);
        assert!(!table.is_dirty(0));
        let here = |(virt, phys, _, b)| phys == virt + 3 * HUGE && b & WRITE == bits & WRITE;
        assert!(leaves(&table).into_iter().all(here));
    }
}
