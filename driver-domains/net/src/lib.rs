//! The net driver domain: one NIC, a virtual interface for each connection.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the driver: virtio-net, nothing of rings or guests |
//! | [`checksum`] | checksums for guests that leave them to others |
//! | [`service`] | rings on one side, the driver on the other, `net-switch` between |
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

pub mod checksum;
pub mod device;
pub mod service;
