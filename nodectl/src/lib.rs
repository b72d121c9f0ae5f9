//! The host's side of the control line.
//!
//! [`Client`] speaks to a node's supervisor over the Unix socket that QEMU
//! makes of the node's second serial port. Every call has a deadline.
//! [`report`] turns answers into text for people and JSON for programs.

mod client;
mod error;
pub mod names;
pub mod report;

pub use client::Client;
pub use error::Error;
pub use ring_proto::control;
