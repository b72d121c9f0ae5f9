//! Deterministic simulation of a node.
//!
//! One seed is one run: it decides how many guests and cores there are, what
//! the guests do, who runs next at every step, what goes wrong and when. The
//! same seed is the same run, step by step.
//!
//! | real | simulated |
//! |---|---|
//! | `hv-core`: domains, grants, scheduler, records, audit | what `hv/src/kernel` does with tables and memory: `hv` |
//! | `ring-ends`, `ring-proto`: frontends, backends, rings, handshake | CPUs: a program's turn is a step, and every call a point at which others may run |
//! | `supervisor-policy`: restarts, holds, commands | disk and NIC: `disk`, `nic` |
//! | `io-limits`: turns of guests | the drivers' loops: `program` |
//!
//! What must hold is in `judge` (reads and writes, frames), in the rules of
//! `hv` (books against tables, memory that is given back), and in `world`
//! (everybody comes to an end). The book has a chapter on it.

mod disk;
mod env;
mod fault;
mod hv;
mod judge;
mod nic;
mod node;
mod operator;
mod program;
mod ram;
mod report;
mod world;

pub use report::{Violation, quiet_panics};
pub use world::{Stats, run};
