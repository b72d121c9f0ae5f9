//! The blk driver domain: one disk, a volume for each connection.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the driver: virtio-blk, nothing of rings or guests |
//! | [`gpt`] | volumes: the partitions of a disk |
//! | [`service`] | rings on one side, the driver on the other |
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod gpt;
pub mod service;
