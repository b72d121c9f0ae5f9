//! What goes wrong in a run, and when.

use fastrand::Rng;
use ring_proto::crash::Reason;
use ring_proto::{DomainId, Port, event};

use crate::node;
use crate::operator::Order;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A domain dies between two of its steps.
    Kill(DomainId, Reason),
    /// All domains whose bit is set die at once.
    KillSome(u16),
    /// A domain dies within a step: at its so many-th call from now.
    KillAtCall(DomainId, u32),
    /// A domain runs and does nothing, until its watchdog ends it.
    Hang(DomainId),
    /// A domain gets no CPU time for so many ns.
    Stall(DomainId, u64),
    /// A device finishes nothing more until it is reset.
    Stuck { disk: bool },
    /// From now on interrupts of both devices get lost with this chance in 256.
    LoseInterrupts(u8),
    /// An event that nobody sent.
    Spurious(DomainId, Port),
    /// A sleeper is woken without an event.
    Wake(DomainId),
    /// An order of the operator.
    Order(DomainId, Order),
    /// Nothing happens for so many ns.
    Pause(u64),
    /// The power fails, and comes back.
    PowerCut,
}

const DEATHS: [Reason; 7] = [
    Reason::Panic,
    Reason::Exception,
    Reason::NestedFault,
    Reason::Shutdown,
    Reason::Forbidden,
    Reason::Operator,
    Reason::Exit,
];

/// Who is there: guests, and spares of drivers after them.
#[derive(Clone, Copy)]
pub(crate) struct Cast {
    pub(crate) guests: usize,
    pub(crate) spares: usize,
}

fn any_domain(rng: &mut Rng, cast: Cast) -> DomainId {
    match rng.u8(..16) {
        0..6 => node::BLK,
        6..10 => node::NET,
        10..12 => node::SUPERVISOR,
        12..14 if cast.spares > 0 => node::guest(cast.guests + rng.usize(..cast.spares)),
        _ => node::guest(rng.usize(..cast.guests)),
    }
}

fn any_fault(rng: &mut Rng, cast: Cast) -> Fault {
    let domain = any_domain(rng, cast);
    match rng.u8(..32) {
        0..8 => Fault::Kill(domain, DEATHS[rng.usize(..DEATHS.len())]),
        8..10 => Fault::KillSome(
            rng.u16(1..1 << (usize::from(node::GUESTS) + cast.guests + cast.spares)),
        ),
        10..18 => Fault::KillAtCall(domain, rng.u32(..24)),
        18 => Fault::Hang(domain),
        19..21 => Fault::Stall(domain, 1 << rng.u32(14..26)),
        21 if rng.u8(..4) == 0 => Fault::Stuck { disk: rng.bool() },
        21..23 => Fault::LoseInterrupts(rng.u8(..)),
        23..25 => Fault::Spurious(domain, rng.u16(..event::PORTS)),
        25 => Fault::Wake(domain),
        26..29 => {
            let order = match rng.u8(..10) {
                0..2 => Order::Restart,
                2 => Order::Drain,
                3..5 => Order::Panic,
                5 => Order::NullWrite,
                6 => Order::Loop,
                7 => Order::Hold,
                8 => Order::Release,
                _ => Order::Audit,
            };
            Fault::Order(domain, order)
        }
        29..31 => Fault::Pause(1 << rng.u32(16..34)),
        _ => Fault::PowerCut,
    }
}

/// The faults of a run, with the step at which each happens; the last first.
pub(crate) fn plan(rng: &mut Rng, cast: Cast) -> Vec<(u64, Fault)> {
    let mut at = rng.u64(..160);
    let mut plan = Vec::new();
    for _ in 0..rng.u32(..8) {
        plan.push((at, any_fault(rng, cast)));
        // Every other one comes right after: during recovery, that is.
        at += if rng.bool() { rng.u64(..16) } else { rng.u64(..120) };
    }
    plan.reverse();
    plan
}
