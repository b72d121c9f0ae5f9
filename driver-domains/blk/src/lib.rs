//! The blk driver domain.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the driver: virtio-blk, nothing of rings or guests |
//! | [`gpt`] | volumes: the partitions of a disk |
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod gpt;
