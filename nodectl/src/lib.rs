//! The host's side of the control line.
//!
//! [`Client`] speaks to a node's supervisor over the Unix socket that QEMU
//! makes of the node's second serial port. Every call has a deadline.
//! [`report`] and [`crashes`] turn answers into text for people and JSON for
//! programs; [`symbols`] names the addresses of a backtrace.

mod client;
pub mod crashes;
pub mod elf;
mod error;
pub mod image;
pub mod names;
pub mod report;
pub mod symbols;

pub use client::Client;
pub use error::Error;
pub use ring_proto::control;
