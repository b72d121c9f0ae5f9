//! The hypervisor's device modules against a simulated machine.
//!
//! They belong to the hypervisor's binary, which cannot be tested on the host,
//! but reach hardware through `phys::PhysIo` only. So they are compiled in
//! here once more, together with their own unit tests.
#![allow(dead_code)]

extern crate alloc;

#[path = "../../../src/acpi/mod.rs"]
mod acpi;
#[path = "../../../src/ioapic.rs"]
mod ioapic;
#[path = "../../../src/iommu/mod.rs"]
mod iommu;
#[path = "../../../src/vt/npt.rs"]
mod npt;
#[path = "../../../src/pci/mod.rs"]
mod pci;
#[path = "../../../src/phys.rs"]
mod phys;
#[path = "../../../src/table.rs"]
mod table;

mod sim;
mod sim_vtd;
mod tables;

mod firmware;
mod functions;
mod isolation;
mod paging;
mod reset;
