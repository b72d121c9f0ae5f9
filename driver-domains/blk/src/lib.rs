//! The blk driver domain: one disk, a volume for each connection.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the driver: virtio-blk, nothing of rings or guests |
//! | [`gpt`] | volumes: the partitions of a disk |
//! | [`service`] | rings on one side, the driver on the other |
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::arithmetic_side_effects,
        clippy::panic,
        clippy::unreachable,
        clippy::todo
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device;
pub mod gpt;
pub mod service;
