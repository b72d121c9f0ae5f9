//! Bringing the machine up, step by step, on the boot processor.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    reason = "boot only: numbers of the firmware or our own, and who cannot go on says so"
)]

use core::arch::asm;

use alloc::format;
use alloc::string::String;

use crate::cpu::{self, stack::Stack};
use crate::ioapic::IoApics;
use crate::memmap::Kind;
use crate::pci::{self, Pci};
use crate::phys::Identity;
use crate::vt::svm;
use crate::{acpi, apic, iommu, irq, kernel, memmap, paging, serial, smp, time};
use log::info;

/// First Rust code of the boot processor, on the early map and boot stack.
#[unsafe(no_mangle)]
extern "C" fn hv_main(start_info: u64) -> ! {
    time::start();
    serial::init();
    let boot = memmap::init(start_info);
    paging::init(boot);
    // SAFETY: the final stack is mapped now, and nothing on the old one is
    // used again.
    unsafe {
        asm!("mov rsp, {}", "xor ebp, ebp", "call {}", "ud2",
            in(reg) Stack::Main.top(0), sym on_final_stack, options(noreturn))
    }
}

extern "C" fn on_final_stack() -> ! {
    let boot = memmap::boot();
    cpu::init(0);
    irq::mask_legacy();
    apic::init();
    // SAFETY: the final tables map RAM and registers at their addresses; it is
    // handed to code that reads firmware tables.
    let phys = unsafe { Identity::new() };
    let platform = match acpi::discover(&phys, boot.rsdp) {
        Ok(platform) => platform,
        Err(e) => panic!("{e}"),
    };
    time::calibrate(platform.pm_timer).expect("the ACPI timer is missing or stands still");
    cpu::this().set_online();
    report();
    let max_cores = boot.option("cores").and_then(|n| n.parse().ok()).unwrap_or(cpu::MAX_CORES);
    let cores = smp::start(&platform.cpus, max_cores);
    for (core, cpu) in (0..cores).filter_map(|core| Some((core, cpu::get(core)?))) {
        info!("core {core}: APIC id {}", cpu.apic_id());
    }
    #[cfg(feature = "selftest")]
    if let Some(order) = boot.option("selftest") {
        crate::selftest::run(order);
    }
    if let Err(e) = bring_up(phys, &platform, cores) {
        panic!("{e}");
    }
    serial::start_queueing();
    memmap::seal();
    smp::release();
    run(0)
}

/// Blocks all devices, then builds the node from its bundle.
#[inline(never)]
fn bring_up(phys: Identity, platform: &acpi::Platform, cores: usize) -> Result<(), String> {
    svm::prepare(cores)?;
    let ecam = platform.ecam.ok_or("the firmware names no PCI configuration space (MCFG)")?;
    let mut pci = Pci::enumerate(phys, ecam);
    memmap::boot().ram().for_each(|ram| pci.withhold(ram.start, ram.len()));
    pci.withhold(platform.local_apic, 1 << 20);
    platform.ioapics.iter().for_each(|unit| pci.withhold(unit.address, 1 << 12));
    platform.iommu_registers().for_each(|mmio| pci.withhold(mmio, 1 << 14));
    let mut frames = |count, align: u64| memmap::alloc_frames(count, align);
    let iommu =
        iommu::init(phys, platform, &pci, &mut frames).map_err(|e| format!("IOMMU: {e:?}"))?;
    for bar in pci.functions().iter().filter(|f| f.assignable()).flat_map(pci::Function::memory) {
        paging::map_mmio(bar.address, bar.len);
    }
    info!(
        "{} PCI functions, IOMMU {}",
        pci.functions().len(),
        iommu.as_ref().map_or("none", |(iommu, _)| iommu.name)
    );
    let ioapics = IoApics::new(phys, platform);
    let devices = kernel::Devices::new(phys, platform, pci, iommu, ioapics);
    let node = kernel::build(memmap::boot().bundle(), cores as u16, devices)?;
    kernel::publish(node);
    Ok(())
}

fn report() {
    let boot = memmap::boot();
    info!("Bulkhead {}", env!("CARGO_PKG_VERSION"));
    for (range, kind) in boot.regions.iter().filter(|r| r.1 != Kind::Reserved) {
        info!("RAM {:#012x}..{:#012x} {kind:?}", range.start, range.end);
    }
    let image = memmap::image();
    info!(
        "image {} KiB, bundle {} KiB at {:#x}, free {} MiB",
        image.len() >> 10,
        boot.bundle.len() >> 10,
        boot.bundle.start,
        memmap::free_bytes() >> 20
    );
    // ns × 2³² / mult, for kHz: 10⁶ ns a ms.
    let khz = (1_000_000u64 << 32) / time::tsc_mult();
    let apic_khz = ((u128::from(apic::timer_rate()) * 1_000_000) >> 32) as u64;
    info!("TSC {khz} kHz, local APIC timer {apic_khz} kHz");
}

/// Where a core goes once it is up.
pub fn run(core: usize) -> ! {
    svm::enable_on_this_core();
    kernel::run(core as u16)
}
