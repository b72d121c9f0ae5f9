//! Disk and network of a unikernel guest.
//!
//! | for | take |
//! |---|---|
//! | blocks of a volume, many requests at a time | [`blk::BlkClient`] |
//! | an `embassy-net` stack | `stack::start`, with the feature `stack` |
//! | a stack of your own | [`net::NetDevice`] |
//! | a frontend of your own | [`connect`] |
//! | the guest's `args` of the manifest | [`args`] |
//!
//! A crash of the driver domain behind either is a pause here and not an
//! error: the frontend sends again what was in flight, and the network link
//! does not go down.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod args;
pub mod blk;
pub mod connect;
pub mod net;
mod pages;
#[cfg(feature = "stack")]
pub mod stack;
