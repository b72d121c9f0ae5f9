//! No DMA and no interrupt without leave, and none after it was taken away.

use crate::acpi::{Line, Platform, discover};
use crate::ioapic::{self, IoApics};
use crate::iommu::amd_vi::AmdVi;
use crate::iommu::amd_vi::page_table::{IoTable, LEVELS};
use crate::iommu::{Error, EventKind, Iommu, init};
use crate::pci::{Bdf, Pci};
use crate::phys::PhysIo;
use crate::sim::{DISK, ECAM, IOAPIC_ID, Machine, NIC};
use crate::tables;

const DISK_BDF: Bdf = Bdf(DISK);
const IOVA: u64 = 0x20_0000_0000;
const PHYS: u64 = 0x4000_0000;

fn boot() -> (Machine, Platform, Pci<Machine>, AmdVi<Machine>) {
    let machine = Machine::new();
    tables::install(&machine, &tables::all());
    let platform = discover(&machine, tables::RSDP).unwrap();
    let pci = Pci::enumerate(machine.clone(), ECAM).unwrap();
    let alloc = machine.clone();
    let iommu =
        init(machine.clone(), &platform, &pci, &mut |n, _| alloc.alloc(n)).unwrap().unwrap();
    (machine, platform, pci, iommu)
}

fn table(machine: &Machine) -> IoTable<Machine> {
    IoTable::new(machine.clone(), machine.alloc(16).unwrap(), 16).unwrap()
}

#[test]
fn everything_is_blocked_at_first() {
    let (machine, ..) = boot();
    for bdf in [0, NIC, DISK, 0x1234, 0xffff] {
        assert_eq!(machine.dma(bdf, 0x1000, false), None);
        assert_eq!(machine.dma(bdf, 0x1000, true), None);
        assert!((0..0x800).all(|data| machine.interrupt(bdf, data).is_none()));
    }
}

#[test]
fn a_device_reaches_its_table_and_nothing_after_detach() {
    let (machine, _, _, mut iommu) = boot();
    let mut table = table(&machine);
    // Cached by the IOMMU before the device was attached.
    assert_eq!(machine.dma(DISK, IOVA, true), None);
    table.map(IOVA, PHYS, true).unwrap();
    table.map(IOVA + 0x1000, PHYS + 0x5000, false).unwrap();
    iommu.attach(DISK_BDF, 3, table.root(), LEVELS).unwrap();
    assert_eq!(machine.dma(DISK, IOVA + 8, true), Some(PHYS + 8));
    assert_eq!(machine.dma(DISK, IOVA + 0x1000, false), Some(PHYS + 0x5000));
    assert_eq!(machine.dma(DISK, IOVA + 0x1000, true), None);
    assert_eq!(machine.dma(DISK, IOVA + 0x2000, false), None);
    assert_eq!(machine.dma(NIC, IOVA, false), None);
    let message = iommu.interrupt_map(DISK_BDF, 1, 0x40, 1).unwrap();
    assert_eq!(machine.interrupt(DISK, message.data), Some((0x40, 1)));
    assert_eq!(machine.interrupt(DISK, 0), None);
    assert_eq!(machine.interrupt(NIC, message.data), None);

    iommu.detach(DISK_BDF).unwrap();
    assert_eq!(machine.dma(DISK, IOVA, false), None);
    assert_eq!(machine.interrupt(DISK, message.data), None);
    assert_eq!(iommu.detach(DISK_BDF), Err(Error::BadState));

    // The next owner starts with nothing, in the old one's interrupt table.
    table.clear();
    iommu.attach(DISK_BDF, 4, table.root(), LEVELS).unwrap();
    assert_eq!(machine.dma(DISK, IOVA, false), None);
    assert_eq!(machine.interrupt(DISK, message.data), None);
}

#[test]
fn a_removed_page_is_gone_after_the_flush() {
    let (machine, _, _, mut iommu) = boot();
    let mut table = table(&machine);
    for page in 0..8 {
        table.map(IOVA + page * 0x1000, PHYS + page * 0x1000, true).unwrap();
    }
    iommu.attach(DISK_BDF, 3, table.root(), LEVELS).unwrap();
    for page in 0..8 {
        assert!(machine.dma(DISK, IOVA + page * 0x1000, true).is_some());
    }
    for page in 3..6 {
        table.unmap(IOVA + page * 0x1000).unwrap();
    }
    assert!(machine.dma(DISK, IOVA + 0x3000, true).is_some(), "the simulation caches");
    iommu.flush_pages(3, IOVA + 0x3000, 3).unwrap();
    for page in 0..8 {
        let reached = machine.dma(DISK, IOVA + page * 0x1000, true).is_some();
        assert_eq!(reached, !(3..6).contains(&page));
    }
    table.unmap(IOVA).unwrap();
    iommu.flush_all(3).unwrap();
    assert_eq!(machine.dma(DISK, IOVA, true), None);
    assert_eq!(iommu.flushes(), 2);
}

#[test]
fn a_redirected_page_leads_to_the_new_frame_and_never_faults() {
    let (machine, _, _, mut iommu) = boot();
    let mut table = table(&machine);
    table.map(IOVA, PHYS, false).unwrap();
    iommu.attach(DISK_BDF, 3, table.root(), LEVELS).unwrap();
    assert_eq!(machine.dma(DISK, IOVA, false), Some(PHYS));
    table.redirect(IOVA, PHYS + 0x9000).unwrap();
    assert!(machine.dma(DISK, IOVA, false).is_some());
    iommu.flush_all(3).unwrap();
    assert_eq!(machine.dma(DISK, IOVA + 8, true), Some(PHYS + 0x9008));
    assert!(table.redirect(IOVA + 0x1000, PHYS).is_err(), "nothing to redirect");
    assert_eq!(machine.dma(DISK, IOVA + 0x1000, true), None);
}

#[test]
fn an_interrupt_is_gone_after_unmap() {
    let (machine, _, _, mut iommu) = boot();
    let table = table(&machine);
    iommu.attach(DISK_BDF, 3, table.root(), LEVELS).unwrap();
    let message = iommu.interrupt_map(DISK_BDF, 2, 0x50, 0).unwrap();
    assert_eq!(machine.interrupt(DISK, message.data), Some((0x50, 0)));
    // To another core, then away.
    iommu.interrupt_map(DISK_BDF, 2, 0x50, 3).unwrap();
    assert_eq!(machine.interrupt(DISK, message.data), Some((0x50, 3)));
    iommu.interrupt_unmap(DISK_BDF, 2).unwrap();
    assert_eq!(machine.interrupt(DISK, message.data), None);
    assert_eq!(iommu.interrupt_map(DISK_BDF, 256, 0x50, 0), Err(Error::BadArgument));
    assert_eq!(iommu.interrupt_map(DISK_BDF, 0, 0x50, 256), Err(Error::Unsupported));
    assert_eq!(iommu.interrupt_map(DISK_BDF, 0, 2, 0), Err(Error::BadArgument));
    assert_eq!(iommu.interrupt_map(Bdf(NIC), 0, 0x50, 0), Err(Error::BadState));
}

#[test]
fn what_cannot_be_confined_is_not_attached() {
    let (machine, _, _, mut iommu) = boot();
    let root = table(&machine).root();
    assert_eq!(iommu.attach(Bdf(0x200), 3, root, LEVELS), Err(Error::NotServed));
    assert_eq!(iommu.attach(Bdf(0x300), 3, root, LEVELS), Err(Error::NotServed));
    assert_eq!(iommu.attach(DISK_BDF, 0, root, LEVELS), Err(Error::BadArgument));
    assert_eq!(iommu.attach(DISK_BDF, 3, root + 8, LEVELS), Err(Error::BadArgument));
    iommu.attach(DISK_BDF, 3, root, LEVELS).unwrap();
    assert_eq!(iommu.attach(DISK_BDF, 3, root, LEVELS), Err(Error::BadState));
}

#[test]
fn the_command_buffer_wraps() {
    let (machine, _, _, mut iommu) = boot();
    let before = machine.0.borrow().commands.len();
    for _ in 0..1000 {
        iommu.flush_all(9).unwrap();
    }
    // Each with its wait.
    let state = machine.0.borrow();
    let flushes: Vec<_> = state.commands[before..].iter().step_by(2).collect();
    assert_eq!(flushes.len(), 1000);
    assert!(flushes.iter().all(|c| c[0] == 3 << 60 | 9 << 32));
}

#[test]
fn without_invalidate_all_everything_is_forgotten_one_by_one() {
    let machine = Machine::new();
    machine.write64(crate::sim::IOMMU + 0x30, 0);
    tables::install(&machine, &tables::all());
    let platform = discover(&machine, tables::RSDP).unwrap();
    let pci = Pci::enumerate(machine.clone(), ECAM).unwrap();
    let alloc = machine.clone();
    init(machine.clone(), &platform, &pci, &mut |n, _| alloc.alloc(n)).unwrap().unwrap();
    let state = machine.0.borrow();
    for command in 2..=5_u64 {
        let count = state.commands.iter().filter(|c| c[0] >> 60 == command).count();
        assert!(command == 4 || count >= 0x1_0000, "{command}: {count}");
    }
}

#[test]
fn a_stuck_iommu_is_an_error_and_not_a_hang() {
    let (machine, _, _, mut iommu) = boot();
    let table = table(&machine);
    iommu.attach(DISK_BDF, 3, table.root(), LEVELS).unwrap();
    machine.0.borrow_mut().stuck = true;
    assert_eq!(iommu.detach(DISK_BDF), Err(Error::Hardware));
    // Only the first call is patient.
    for _ in 0..1000 {
        assert_eq!(iommu.flush_all(3), Err(Error::Hardware));
    }
}

#[test]
fn events_are_drained_in_order() {
    let (machine, _, _, mut iommu) = boot();
    assert_eq!(iommu.poll_event(), None);
    for round in 0..600_u64 {
        machine.report([2 << 60 | 3 << 32 | 1 << 53 | 0x100, round << 12]);
        let event = iommu.poll_event().unwrap();
        assert_eq!((event.bdf, event.address), (DISK_BDF, round << 12));
        let kind = EventKind::PageFault { domain_id: 3, write: true, interrupt: false };
        assert_eq!(event.kind, kind);
        assert_eq!(iommu.poll_event(), None);
    }
}

#[test]
fn legacy_interrupts_go_through_the_remapper() {
    let (machine, platform, _, mut iommu) = boot();
    let mut ioapics = IoApics::new(machine.clone(), &platform);
    let (gsi, line) = platform.isa_irq(3);
    ioapics.route(gsi, line, 0x33, 1, Some(&mut iommu)).unwrap();
    assert_eq!(machine.interrupt(IOAPIC_ID, 0x33), Some((0x33, 1)));
    assert_eq!(machine.interrupt(IOAPIC_ID, 0x34), None);
    assert_eq!(machine.dma(IOAPIC_ID, 0x1000, false), None);
    let twice = ioapics.route(4, Line::default(), 0x33, 0, Some(&mut iommu));
    assert_eq!(twice, Err(ioapic::Error::VectorInUse));
    assert_eq!(ioapics.route(24, line, 0x35, 0, None), Err(ioapic::Error::NoPin));
    ioapics.set_mask(gsi, false).unwrap();
}
