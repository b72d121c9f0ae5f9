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
/// Spares only: the place of the principal is theirs.
pub const PORT_TAKEOVER: Port = 2;
/// [`EventPage::check`] has a new number.
pub const PORT_CHECK: Port = 3;
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
    /// [`READY`], [`SERVED`] or [`STANDBY`], written by the domain.
    pub ready: AtomicU32,
    /// Requests that the domain has taken and not answered, plus 1, written by
    /// the domain; 0 = it does not say.
    pub in_flight: AtomicU32,
    /// Number of the last check that the supervisor ordered, from 1; with
    /// [`DRAIN`] if the domain is to finish its work and take no more.
    pub check: AtomicU32,
    /// The domain's answer: the check's number once it found itself well, or
    /// finished its work; with [`STUCK`] if it found that it cannot.
    pub health: AtomicU32,
}

/// [`EventPage::ready`]: the domain serves.
pub const READY: u32 = 1;
/// [`EventPage::ready`]: it has completed a guest's request.
pub const SERVED: u32 = 2;
/// [`EventPage::ready`]: a spare waits for [`PORT_TAKEOVER`].
pub const STANDBY: u32 = 3;
/// What [`Inject::Slow`] adds, ns.
pub const SLOW_NS: u64 = 500_000;
/// Bit of [`EventPage::check`].
pub const DRAIN: u32 = 1 << 31;
/// Bit of [`EventPage::health`].
pub const STUCK: u32 = 1 << 31;

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
        /// An undefined instruction, which the domain's own handler reports.
        Exception = 4,
        /// Calls without end, until the stack meets its guard page.
        StackOverflow = 5,
        /// An exception that nothing can handle: the CPU shuts down.
        TripleFault = 6,
        /// Allocations until one fails.
        OutOfMemory = 7,
        /// It goes on waiting and does no work.
        Stall = 8,
        /// It runs and waits in turns without a pause, and does no work.
        Livelock = 9,
        /// It unmasks its interrupt without end and never looks at its device.
        Storm = 10,
        /// Each of its looks at the event page takes [`SLOW_NS`]; it goes on working.
        Slow = 11,
    }
}
