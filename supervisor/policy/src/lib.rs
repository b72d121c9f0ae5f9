//! The supervisor without its hardware.
//!
//! [`Supervisor`] is a state machine over a [`Node`]: the caller feeds it the
//! bytes of the control line, lets it look at the node, and carries its bytes
//! away. The unikernel beside this crate does that with hypercalls and a UART;
//! tests do it with a simulated node.
//!
//! | module | what |
//! |---|---|
//! | [`node`] | what the supervisor can see and do |
//! | [`complaint`] | what comes of a frontend's complaint |
//! | [`restart`] | when a dead domain is started again, and when it is held |
//! | [`operation`] | commands that end when a next generation serves |
//! | [`status`] | how the node's state is told to the host |
//! | [`service`] | the event loop's body: deaths, commands, replies, events |
//!
//! Nothing is remembered here that the node would miss: states, generations,
//! holds and crash records are the hypervisor's, so a restarted supervisor
//! reads them and goes on, with the deaths that restart budgets are judged by.
//! Two things end with a supervisor: commands under way (the host is told by
//! [`Started`](ring_proto::control::Event::Started)), and whose word was taken
//! in a [`complaint`].
#![no_std]
#![forbid(unsafe_code)]
// There is no heap here to box failures in.
#![allow(clippy::result_large_err)]

#[cfg(any(test, feature = "fake"))]
extern crate std;

pub mod complaint;
#[cfg(any(test, feature = "fake"))]
#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::arithmetic_side_effects,
    reason = "for tests: a wrong step of the simulated node is to end them"
)]
pub mod fake;
pub mod node;
pub mod operation;
pub mod restart;
pub mod service;
pub mod status;

pub use node::{Life, Node};
pub use service::Supervisor;

#[cfg(test)]
mod tests;
