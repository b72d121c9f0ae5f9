//! Bulkhead's hypervisor: the only privileged code of a node.
//!
//! Event-driven: one stack per core and no threads; a core picks a vCPU, runs
//! it, handles the exit, picks again. Nothing blocks, nothing allocates once
//! the node is up, and interrupts only leave a note (see [`irq`]).
//!
//! | module | what it is for |
//! |---|---|
//! | [`boot`], [`memmap`], [`table`], [`paging`], [`heap`] | from the loader's hand-over to final page tables |
//! | [`cpu`], [`smp`], [`apic`], [`irq`], [`time`] | cores, exceptions, interrupts, the clock |
//! | [`serial`], [`mod@panic`] | the console and the end |
//! | [`phys`], [`acpi`] | what the firmware says about the platform |
#![no_std]
#![no_main]

extern crate alloc;

use bare_support as _;

mod acpi;
mod apic;
mod boot;
mod cpu;
mod heap;
mod ioapic;
mod iommu;
mod irq;
mod kernel;
mod memmap;
mod paging;
mod panic;
mod pci;
mod phys;
#[cfg(feature = "selftest")]
#[path = "../../tests/hypervisor/selftest.rs"]
mod selftest;
mod serial;
mod smp;
mod start;
mod table;
mod time;
mod vt;

pub use panic::power_off;
