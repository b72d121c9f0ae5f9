//! Every byte that crosses a boundary of a Bulkhead node, and nothing else.
//!
//! Hypervisor, domains and host tools share this crate and no other, so a
//! layout that two of them must agree on stands here exactly once. `SPEC.md`
//! beside this crate states the rules as numbered clauses.
//!
//! | boundary | modules |
//! |---|---|
//! | domain ↔ hypervisor | [`hypercall`], [`boot`], [`event`], [`layout`], [`crash`] |
//! | domain ↔ domain | [`grant`], [`conn`], [`ring`], [`blk`], [`net`] |
//! | node ↔ host | [`bundle`], [`control`] |
//!
//! Bytes that come from the other side are hostile until a function here has
//! copied and validated them.
#![no_std]

#[cfg(any(test, stepped))]
extern crate std;

pub mod blk;
pub mod boot;
pub mod bundle;
pub mod conn;
pub mod control;
pub mod crash;
pub mod event;
pub mod grant;
pub mod hypercall;
pub mod layout;
pub mod net;
pub mod ring;
pub mod shm;
mod sync;

#[cfg(stepped)]
pub use sync::stepped;

/// Size of a page and of a machine frame, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// Most domains that one node can hold.
pub const MAX_DOMAINS: usize = 16;
/// Most connections that one node can hold.
pub const MAX_CONNECTIONS: usize = 32;
/// Most connections that one domain can be an end of.
pub const MAX_DOMAIN_CONNECTIONS: usize = 12;
/// Most PCI functions that one domain can own.
pub const MAX_DOMAIN_DEVICES: usize = 2;

/// Number of a domain: its place in the node manifest. It stays the same over
/// restarts; the generation tells one life of a domain from the next.
pub type DomainId = u16;
/// Counts the lives of a domain, from 1.
pub type Generation = u32;
/// Number of an event port within its domain, below [`event::PORTS`].
pub type Port = u16;
/// Index into a domain's grant table.
pub type GrantRef = u32;
