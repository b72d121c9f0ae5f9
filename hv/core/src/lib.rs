//! The hypervisor's logic: what may happen, without the hardware that makes it
//! happen.
//!
//! Everything here is safe code over plain data and runs on the host, where it
//! is tested. Tables are allocated once, when the node is built; no function
//! that runs later allocates.
//!
//! | module | decides |
//! |---|---|
//! | [`bundle`] | whether a node manifest is acceptable |
//! | [`memory`] | where each page of a domain lies, in both address spaces |
//! | [`grants`] | who may map whose page, and who does |
//! | [`domain`] | life cycle, generations, events |
//! | [`sched`] | which vCPU runs next on a core, and until when |
//! | [`audit`] | whether a mapping that was found is one that should be there |
//! | [`reset`] | how hard devices are reset before a life, and at which pace |
//! | [`records`] | death records and console log that outlive their domain |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod audit;
pub mod bundle;
pub mod domain;
pub mod grants;
pub mod image;
pub mod memory;
pub mod records;
pub mod reset;
pub mod sched;
