//! The event page: how a domain hears of things without being interrupted.
//!
//! The hypervisor sets port bits and the domain takes them (`swap(0)`); the
//! page belongs to the domain, so the hypervisor reads nothing back that it
//! relies on.

use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::{Port, hypercall::numbered};

/// Event ports of a domain.
pub const PORTS: u16 = 128;
/// Words of port bits.
pub const WORDS: usize = PORTS as usize / 64;

/// Supervisor only: some domain changed state.
pub const PORT_LIFECYCLE: Port = 0;
/// Owner of the control UART only: its interrupt.
pub const PORT_UART: Port = 1;
/// Connection slot `i` of the domain has port `PORT_CONNECTIONS + i`.
pub const PORT_CONNECTIONS: Port = 16;
/// First port that `irq_bind` may use; the last is `PORTS - 1`.
pub const PORT_IRQ: Port = 64;

/// The page at [`crate::layout::EVENT_PAGE`].
#[repr(C)]
pub struct EventPage {
    /// Bit `p % 64` of word `p / 64` is set when port `p` has an event.
    pub pending: [AtomicU64; WORDS],
    /// An [`Inject`] code for the runtime to act on; 0 = none.
    pub inject: AtomicU32,
    /// The domain writes 1 once it serves.
    pub ready: AtomicU32,
}

numbered! {
    /// Misbehaviour that the operator can order. The domain's own runtime
    /// carries it out the next time it looks at its event page.
    pub enum Inject: u32 {
        /// A Rust panic.
        Panic = 1,
        /// A write through a null pointer.
        NullWrite = 2,
        /// An endless loop that never calls `wait`.
        Loop = 3,
    }
}
