//! Names for the numbers that the node tells.

use ring_proto::{
    conn::{Protocol, State},
    crash::{Reason, Rebuild, Reset},
    hypercall::{DomainState, Error},
};

/// State of a domain.
pub fn domain_state(number: u32) -> String {
    known(number, DomainState::from_raw(number), |state| match state {
        DomainState::Stopped => "stopped",
        DomainState::Running => "running",
        DomainState::Dead => "dead",
        DomainState::Held => "held",
    })
}

/// State of an end of a connection.
pub fn connection_state(number: u32) -> String {
    known(number, State::from_raw(number), |state| match state {
        State::Closed => "closed",
        State::Initialising => "initialising",
        State::Connected => "connected",
        State::Closing => "closing",
    })
}

/// Reason of a death.
pub fn reason(number: u32) -> String {
    known(number, Reason::from_raw(number), |reason| match reason {
        Reason::None => "none",
        Reason::Panic => "panic",
        Reason::Exception => "exception",
        Reason::NestedFault => "nested-fault",
        Reason::Shutdown => "shutdown",
        Reason::Watchdog => "watchdog",
        Reason::Forbidden => "forbidden",
        Reason::IommuFault => "iommu-fault",
        Reason::Operator => "operator",
        Reason::Exit => "exit",
        Reason::Stalled => "stalled",
        Reason::Memory => "memory",
    })
}

/// How a next generation came about.
pub fn rebuild(number: u16) -> String {
    known(number.into(), Rebuild::from_raw(number), |rebuild| match rebuild {
        Rebuild::None => "none",
        Rebuild::Cold => "cold",
        Rebuild::Spare => "spare",
    })
}

/// How devices were reset for a life.
pub fn reset(number: u16) -> String {
    known(number.into(), Reset::from_raw(number), |reset| match reset {
        Reset::Driver => "driver",
        Reset::Function => "function",
        Reset::Bus => "bus",
        Reset::Gone => "device gone",
    })
}

/// Protocol of a connection.
pub fn protocol(number: u16) -> String {
    known(number.into(), Protocol::from_raw(number), |protocol| match protocol {
        Protocol::Blk => "blk",
        Protocol::Net => "net",
    })
}

/// Why a hypercall failed.
pub fn hypercall_error(number: u64) -> String {
    match Error::from_raw(number) {
        Some(error) => format!("{error:?}"),
        None => format!("error {number}"),
    }
}

fn known<T>(number: u32, value: Option<T>, name: impl Fn(T) -> &'static str) -> String {
    value.map_or_else(|| format!("unknown({number})"), |value| name(value).to_owned())
}
