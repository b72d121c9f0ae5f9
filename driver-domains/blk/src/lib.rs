//! The blk driver domain: one disk, a volume for each connection.
//!
//! | module | what |
//! |---|---|
//! | [`disk`] | what a driver of a disk is, nothing of rings or guests |
//! | [`device`] | one: virtio-blk |
//! | [`gpt`] | volumes: the partitions of a disk |
//! | [`service`] | rings on one side, the driver on the other |
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod disk;
pub mod gpt;
pub mod service;
