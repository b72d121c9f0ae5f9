//! No DMA and no interrupt without leave, and none after it was taken away.

use crate::acpi::{Platform, discover};
use crate::ioapic::IoApics;
use crate::iommu::{Error, EventKind, Found, Iommu, Opening, init};
use crate::pci::msix::Message;
use crate::pci::{Bdf, Pci};
use crate::sim::{DISK, ECAM, IOAPIC_ID, Machine, NIC, PORT};
use crate::table::PageTable;
use crate::{sim_vtd, tables};

const DISK_BDF: Bdf = Bdf(DISK);
const IOVA: u64 = 0x20_0000_0000;
const PHYS: u64 = 0x4000_0000;

type Booted = (Machine, Platform, Pci<Machine>, Iommu);

fn boot() -> Booted {
    boot_on(Machine::new())
}

fn boot_on(machine: Machine) -> Booted {
    let (platform, pci, iommu) = try_boot(&machine);
    (machine, platform, pci, iommu.unwrap().unwrap().0)
}

fn try_boot(machine: &Machine) -> (Platform, Pci<Machine>, Result<Option<Found>, Error>) {
    let mut set = tables::all();
    if machine.0.read().unwrap().intel {
        set[3] = tables::dmar();
    }
    tables::install(machine, &set);
    let platform = discover(machine, tables::RSDP).unwrap();
    let pci = Pci::enumerate(machine.clone(), ECAM);
    let iommu = init(machine.clone(), &platform, &pci, &mut |n, _| machine.alloc(n));
    (platform, pci, iommu)
}

/// Runs a test on both kinds of IOMMU.
fn on_both(test: impl Fn(Booted)) {
    test(boot());
    test(boot_on(Machine::intel()));
    // Three levels are enough.
    let machine = Machine::intel();
    machine.set_register(8, sim_vtd::CAPABILITY & !(1 << 10));
    test(boot_on(machine));
}

fn table(machine: &Machine, iommu: &Iommu) -> PageTable<Machine> {
    let alloc = &mut |n, _| machine.alloc(n);
    let mut table = PageTable::new(machine.clone(), iommu.format, alloc).unwrap();
    table.reserve(IOVA, 1 << 20, alloc).unwrap();
    table
}

/// Has a page lead to `phys`, which it did not yet.
fn map(table: &mut PageTable<Machine>, iova: u64, phys: u64, write: bool) {
    assert_eq!(table.set(iova, phys | table.format().device(write)), Some(0));
}

/// A message as a device that knows nothing of remapping would forge it.
fn forged(data: u32) -> Message {
    Message { address: 0xfee0_0000, data }
}

#[test]
fn everything_is_blocked_at_first() {
    on_both(|(machine, _, _, iommu)| {
        for bdf in [0, NIC, DISK, 0x1234, 0xffff] {
            assert_eq!(machine.dma(bdf, 0x1000, false), None);
            assert_eq!(machine.dma(bdf, 0x1000, true), None);
            assert!((0..0x800).all(|data| machine.interrupt(bdf, forged(data)).is_none()));
            let forged = |at: u64| Message { address: 0xfee0_0010 | at << 5, data: 0 };
            assert!((0..0x8000).all(|at| machine.interrupt(bdf, forged(at)).is_none()));
        }
        assert_eq!(openings(&iommu), []);
    });
}

fn openings(iommu: &Iommu) -> Vec<Opening> {
    let mut all = Vec::new();
    iommu.openings(&mut |opening| all.push(opening));
    all
}

#[test]
fn a_device_reaches_its_table_and_nothing_after_detach() {
    on_both(|(machine, _, _, mut iommu)| {
        let mut table = table(&machine, &iommu);
        // Cached by the IOMMU before the device was attached.
        assert_eq!(machine.dma(DISK, IOVA, true), None);
        map(&mut table, IOVA, PHYS, true);
        map(&mut table, IOVA + 0x1000, PHYS + 0x5000, false);
        iommu.attach(DISK_BDF, 3, table.root()).unwrap();
        assert_eq!(machine.dma(DISK, IOVA + 8, true), Some(PHYS + 8));
        assert_eq!(machine.dma(DISK, IOVA + 0x1000, false), Some(PHYS + 0x5000));
        assert_eq!(machine.dma(DISK, IOVA + 0x1000, true), None);
        assert_eq!(machine.dma(DISK, IOVA + 0x2000, false), None);
        assert_eq!(machine.dma(NIC, IOVA, false), None);
        let message = iommu.interrupt_map(DISK_BDF, 1, 0x40, 1).unwrap();
        assert_eq!(machine.interrupt(DISK, message), Some((0x40, 1)));
        assert_eq!(machine.interrupt(DISK, forged(0)), None);
        assert_eq!(machine.interrupt(NIC, message), None);
        let memory = Opening::Memory { bdf: DISK_BDF, domain_id: 3, root: table.root() };
        let interrupt = Opening::Interrupt { bdf: DISK_BDF, index: 1, vector: 0x40, apic_id: 1 };
        assert_eq!(openings(&iommu), [memory, interrupt]);

        iommu.detach(DISK_BDF).unwrap();
        assert_eq!(openings(&iommu), []);
        assert_eq!(machine.dma(DISK, IOVA, false), None);
        assert_eq!(machine.interrupt(DISK, message), None);
        assert_eq!(iommu.detach(DISK_BDF), Err(Error::BadState));

        // The next owner starts with nothing, in the old one's interrupt table.
        table.set(IOVA, 0).unwrap();
        iommu.attach(DISK_BDF, 4, table.root()).unwrap();
        assert_eq!(machine.dma(DISK, IOVA, false), None);
        assert_eq!(machine.interrupt(DISK, message), None);
    });
}

#[test]
fn an_entry_that_nobody_wrote_is_seen() {
    for machine in [Machine::new(), Machine::intel()] {
        let (mut iommu, pieces) = try_boot(&machine).2.unwrap().unwrap();
        let table = table(&machine, &iommu);
        iommu.attach(DISK_BDF, 3, table.root()).unwrap();
        iommu.interrupt_map(DISK_BDF, 1, 0x40, 1).unwrap();
        let sound = openings(&iommu);
        // In the tables of functions and of interrupts, here and there.
        let seen = pieces.iter().filter(|&&(base, len)| {
            (0..6).map(|i| base + len / 8 * i).any(|at| {
                let old = machine.read64(at);
                machine.write64(at, old ^ 1 << 62 ^ 1);
                let seen = openings(&iommu) != sound;
                machine.write64(at, old);
                seen
            })
        });
        assert!(seen.count() >= 2);
    }
}

#[test]
fn a_removed_page_is_gone_after_the_flush() {
    on_both(|(machine, _, _, mut iommu)| {
        let mut table = table(&machine, &iommu);
        for page in 0..8 {
            map(&mut table, IOVA + page * 0x1000, PHYS + page * 0x1000, true);
        }
        iommu.attach(DISK_BDF, 3, table.root()).unwrap();
        for page in 0..8 {
            assert!(machine.dma(DISK, IOVA + page * 0x1000, true).is_some());
        }
        for page in 3..6 {
            assert_ne!(table.set(IOVA + page * 0x1000, 0), Some(0));
        }
        assert!(machine.dma(DISK, IOVA + 0x3000, true).is_some(), "the simulation caches");
        iommu.flush_all(3).unwrap();
        for page in 0..8 {
            let reached = machine.dma(DISK, IOVA + page * 0x1000, true).is_some();
            assert_eq!(reached, !(3..6).contains(&page));
        }
        assert_eq!(iommu.flushes, 1);
        map(&mut table, IOVA + 0x3000, PHYS, true);
        iommu.flush_added(3).unwrap();
        assert_eq!(machine.dma(DISK, IOVA + 0x3000, true), Some(PHYS));
    });
}

#[test]
fn a_redirected_page_leads_to_the_new_frame_and_never_faults() {
    on_both(|(machine, _, _, mut iommu)| {
        let mut table = table(&machine, &iommu);
        map(&mut table, IOVA, PHYS, false);
        iommu.attach(DISK_BDF, 3, table.root()).unwrap();
        assert_eq!(machine.dma(DISK, IOVA, false), Some(PHYS));
        let write = table.format().device(true);
        table.set(IOVA, (PHYS + 0x9000) | write).unwrap();
        assert!(machine.dma(DISK, IOVA, false).is_some());
        iommu.flush_all(3).unwrap();
        assert_eq!(machine.dma(DISK, IOVA + 8, true), Some(PHYS + 0x9008));
        assert_eq!(machine.dma(DISK, IOVA + 0x1000, true), None);
    });
}

#[test]
fn an_interrupt_follows_its_owner_to_another_core() {
    on_both(|(machine, _, _, mut iommu)| {
        let table = table(&machine, &iommu);
        iommu.attach(DISK_BDF, 3, table.root()).unwrap();
        let message = iommu.interrupt_map(DISK_BDF, 2, 0x50, 0).unwrap();
        assert_eq!(machine.interrupt(DISK, message), Some((0x50, 0)));
        iommu.interrupt_map(DISK_BDF, 2, 0x50, 3).unwrap();
        assert_eq!(machine.interrupt(DISK, message), Some((0x50, 3)));
        assert_eq!(iommu.interrupt_map(DISK_BDF, 256, 0x50, 0), Err(Error::BadArgument));
        let too_far = iommu.interrupt_map(DISK_BDF, 0, 0x50, 256);
        assert!(matches!(too_far, Err(Error::Unsupported(_))));
        assert_eq!(iommu.interrupt_map(DISK_BDF, 0, 2, 0), Err(Error::BadArgument));
        assert_eq!(iommu.interrupt_map(Bdf(NIC), 0, 0x50, 0), Err(Error::BadState));
    });
}

#[test]
fn what_cannot_be_confined_is_not_attached() {
    on_both(|(machine, _, _, mut iommu)| {
        let root = table(&machine, &iommu).root();
        assert_eq!(iommu.attach(Bdf(0x200), 3, root), Err(Error::NotServed));
        assert_eq!(iommu.attach(Bdf(0x300), 3, root), Err(Error::NotServed));
        assert_eq!(iommu.attach(DISK_BDF, 0, root), Err(Error::BadArgument));
        assert_eq!(iommu.attach(DISK_BDF, 3, root + 8), Err(Error::BadArgument));
        iommu.attach(DISK_BDF, 3, root).unwrap();
        assert_eq!(iommu.attach(DISK_BDF, 3, root), Err(Error::BadState));
    });
}

#[test]
fn a_function_that_the_firmware_keeps_using_is_not_attached() {
    let machine = Machine::intel();
    let nic = [1, 8, 0, 0, 0, 0, 3, 0];
    // Reserved memory for the NIC and, through the port, for the disk.
    let port = [1, 10, 0, 0, 0, 0, 2, 0, 0, 0];
    let mut parts = tables::dmar_part(0, 1, &[sim_vtd::IOMMU], &[]);
    parts.extend(tables::dmar_part(1, 0, &[0, 0], &nic));
    parts.extend(tables::dmar_part(1, 0, &[0, 0], &port));
    tables::install(&machine, &[tables::madt(), tables::dmar_with(&parts)]);
    let platform = discover(&machine, tables::RSDP).unwrap();
    let pci = Pci::enumerate(machine.clone(), ECAM);
    let booted = init(machine.clone(), &platform, &pci, &mut |n, _| machine.alloc(n));
    let mut iommu = booted.unwrap().unwrap().0;
    let root = table(&machine, &iommu).root();
    for bdf in [NIC, DISK, PORT] {
        assert_eq!(iommu.attach(Bdf(bdf), 3, root), Err(Error::NotServed));
    }
    // The unit that serves all others serves this one.
    iommu.attach(Bdf(0), 3, root).unwrap();
}

#[test]
fn the_command_queue_wraps() {
    on_both(|(machine, _, _, mut iommu)| {
        let before = machine.0.read().unwrap().commands.len();
        for _ in 0..1000 {
            iommu.flush_all(9).unwrap();
        }
        // Each with its wait.
        let state = machine.0.read().unwrap();
        let flushes: Vec<_> = state.commands[before..].iter().step_by(2).collect();
        assert_eq!(flushes.len(), 1000);
        let expected = if state.intel { 9 << 16 | 0xe2 } else { 3 << 60 | 9 << 32 };
        assert!(flushes.iter().all(|c| c[0] == expected));
    });
}

#[test]
fn without_invalidate_all_everything_is_forgotten_one_by_one() {
    let machine = Machine::new();
    machine.set_register(0x30, 0);
    let _booted = try_boot(&machine);
    let state = machine.0.read().unwrap();
    for command in 2..=5_u64 {
        let count = state.commands.iter().filter(|c| c[0] >> 60 == command).count();
        assert!(command == 4 || count >= 0x1_0000, "{command}: {count}");
    }
}

#[test]
fn a_unit_that_lacks_what_is_needed_is_refused() {
    // No answer, write buffers, few domains, no queue, no remapping, no fitting tables.
    let basic = [u64::MAX, 1 << 4 | sim_vtd::CAPABILITY, sim_vtd::CAPABILITY & !7];
    let extended = [sim_vtd::EXTENDED & !2, sim_vtd::EXTENDED & !8];
    let cases = basic.map(|value| (8, value)).into_iter();
    let cases = cases.chain(extended.map(|value| (0x10, value)));
    for (register, value) in cases.chain([(8, sim_vtd::CAPABILITY & !0x600)]) {
        let machine = Machine::intel();
        machine.set_register(register, value);
        let refused = try_boot(&machine).2;
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{register:#x} {value:#x}");
    }
}

#[test]
fn a_stuck_iommu_is_an_error_and_not_a_hang() {
    on_both(|(machine, _, _, mut iommu)| {
        let table = table(&machine, &iommu);
        iommu.attach(DISK_BDF, 3, table.root()).unwrap();
        machine.0.write().unwrap().stuck = true;
        assert_eq!(iommu.detach(DISK_BDF), Err(Error::Hardware));
        // Only the first call is patient.
        for _ in 0..1000 {
            assert_eq!(iommu.flush_all(3), Err(Error::Hardware));
        }
    });
}

#[test]
fn events_are_drained_in_order() {
    on_both(|(machine, _, _, mut iommu)| {
        assert_eq!(iommu.poll_event(), None);
        for round in 0..600_u64 {
            let intel = machine.0.read().unwrap().intel;
            match intel {
                true => machine.report_fault(DISK, 5, round << 12, true),
                false => machine.report([2 << 60 | 3 << 32 | 1 << 53 | 0x100, round << 12]),
            }
            let event = iommu.poll_event().unwrap();
            assert_eq!((event.bdf, event.address), (DISK_BDF, round << 12));
            assert_eq!(event.kind, EventKind::Write);
            assert_eq!(iommu.poll_event(), None);
        }
    });
}

#[test]
fn faults_name_who_where_and_what() {
    let (machine, _, _, mut iommu) = boot_on(Machine::intel());
    let mut table = table(&machine, &iommu);
    map(&mut table, IOVA, PHYS, false);
    iommu.attach(DISK_BDF, 3, table.root()).unwrap();
    let mut fault = |bdf, address, write| {
        assert_eq!(machine.dma(bdf, address, write), None);
        let event = iommu.poll_event().unwrap();
        assert_eq!((event.bdf, iommu.poll_event()), (Bdf(bdf), None));
        (event.address, event.kind)
    };
    assert_eq!(fault(DISK, 0x5678, false), (0x5000, EventKind::Read));
    assert_eq!(fault(DISK, 0x5678, true), (0x5000, EventKind::Write));
    assert_eq!(fault(DISK, IOVA, true), (IOVA, EventKind::Write));
    assert_eq!(fault(NIC, 0x1000, false), (0x1000, EventKind::Read), "no context entry");
    assert_eq!(fault(0xff08, 0x1000, true), (0x1000, EventKind::Write), "no root entry");
}

#[test]
fn a_flood_of_faults_ends_in_an_overflow_and_goes_on() {
    let (machine, _, _, mut iommu) = boot_on(Machine::intel());
    for round in 0..3 {
        (0..100).for_each(|page| machine.report_fault(DISK, 6, page << 12, false));
        let events: Vec<_> = std::iter::from_fn(|| iommu.poll_event()).take(100).collect();
        // As many as there are records.
        assert_eq!(events.len(), 5, "round {round}");
        assert_eq!(events[3].address, 3 << 12);
        assert_eq!(events[4].kind, EventKind::Overflow);
    }
}

#[test]
fn a_full_event_log_is_started_anew() {
    let (machine, _, _, mut iommu) = boot();
    (0..5).for_each(|page| machine.report([2 << 60 | 0x100, page << 12]));
    machine.set_register(0x2020, 1);
    assert_eq!(iommu.poll_event().unwrap().kind, EventKind::Overflow);
    machine.set_register(0x2020, 0);
    assert_eq!(iommu.poll_event(), None);
    // Reads, interrupts, broken tables.
    for (head, kind) in [
        (2 << 60, EventKind::Read),
        (2 << 60 | 1 << 51, EventKind::Interrupt),
        (1 << 60, EventKind::Other(1)),
        (6 << 60, EventKind::Other(6)),
    ] {
        machine.report([head | 0x100, 0x9000]);
        assert_eq!(iommu.poll_event().unwrap().kind, kind);
    }
}

#[test]
fn legacy_interrupts_go_through_the_remapper() {
    on_both(|(machine, platform, _, mut iommu)| {
        let ioapics = IoApics::new(machine.clone(), &platform);
        let (gsi, line) = platform.isa_irq(3);
        ioapics.route(gsi, line, 0x33, 1, Some(&mut iommu)).unwrap();
        let sent = machine.ioapic_message(gsi);
        assert_eq!(sent.data, 0x33);
        assert_eq!(machine.interrupt(IOAPIC_ID, sent), Some((0x33, 1)));
        assert_eq!(machine.interrupt(IOAPIC_ID, forged(0x34)), None);
        assert_eq!(machine.interrupt(NIC, sent), None);
        assert_eq!(machine.dma(IOAPIC_ID, 0x1000, false), None);
        assert_eq!(ioapics.route(24, line, 0x35, 0, None), Err(Error::BadArgument));
    });
}
