//! The runtime of a unikernel domain.
//!
//! A domain is one program on one vCPU that is never interrupted: it looks at
//! its event page when it wants to and sleeps in `wait`. So there is no
//! reentrancy here and no lock that could be held by somebody else; what is
//! shared inside a domain sits in a [`single::Single`].
//!
//! | to do | module |
//! |---|---|
//! | begin a program | [`entry!`], [`boot`], [`set_ready`], [`set_served`] |
//! | talk to the hypervisor | [`hypercall`] |
//! | hear of things | [`events`], [`time`], [`exec`] |
//! | be unlike the life before | [`random`] |
//! | share memory with another domain | [`conn`], [`mod@env`], [`refuse`] |
//! | drive a device | [`dma`], [`virtio`]; what is not virtio: [`device`] |
//! | die well | [`fault`], [`mod@panic`] |
//!
//! A binary of a domain holds `domain_rt::entry!(main);` and depends on
//! `bare-support` beside this crate. Everything that may exist once in a
//! program (panic handler, allocator, memory functions) comes in by that macro,
//! so libraries over this crate remain testable on the host.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod conn;
pub mod console;
pub mod device;
pub mod dma;
pub mod env;
pub mod events;
pub mod exec;
pub mod fault;
pub mod heap;
pub mod hypercall;
mod misbehave;
pub mod panic;
pub mod random;
pub mod ranges;
pub mod refuse;
pub mod single;
pub mod start;
pub mod time;
pub mod virtio;

pub use embassy_executor;
pub use ring_proto;
pub use start::{boot, set_in_flight, set_ready, set_served, stand_by};
