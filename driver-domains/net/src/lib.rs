//! The net driver domain: one NIC, a virtual interface for each connection.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the driver: virtio-net, nothing of rings or guests |
//! | [`checksum`] | checksums for guests that leave them to others |
//! | [`service`] | rings on one side, the driver on the other, `net-switch` between |
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod device;
pub mod service;
