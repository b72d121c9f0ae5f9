//! The operator: commands over the control line, and what comes back.

use std::collections::VecDeque;

use ring_proto::DomainId;
use ring_proto::bundle::Name;
use ring_proto::control::{Command, Decoder, FromNode, How, Request, encode};
use ring_proto::event::PORT_UART;
use ring_proto::hypercall::DomainState;

use crate::hv::Hv;
use crate::node;
use crate::report::{rule, trace};

/// How often the operator looks at the node once faults have stopped, ns.
const LOOK_NS: u64 = 150_000_000;
/// How long a command may take, ms.
const TIMEOUT_MS: u32 = 500;
/// How long a domain may take to finish its work, ms.
const DRAIN_MS: u32 = 100;

/// What the operator may order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Restart,
    /// A restart after it has finished its work.
    Drain,
    Panic,
    NullWrite,
    Loop,
    Hold,
    Release,
    Audit,
}

/// The host's end of the control line.
pub(crate) struct Operator {
    to_node: VecDeque<u8>,
    decoder: Decoder,
    /// Whether each request was answered.
    answered: Vec<bool>,
    next_look: u64,
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self {
            to_node: VecDeque::new(),
            decoder: Decoder::new(),
            answered: Vec::new(),
            next_look: 0,
        }
    }

    /// The next byte on its way to the node.
    pub(crate) fn next_byte(&mut self) -> Option<u8> {
        self.to_node.pop_front()
    }

    /// Sends a command.
    pub(crate) fn order(&mut self, hv: &mut Hv, domain: DomainId, order: Order) {
        let name: Name = hv.domains[domain].config.name.clone();
        trace!("operator: {order:?} {name}");
        let timeout_ms = TIMEOUT_MS;
        let crash = |how| Command::Crash { domain: name.clone(), how, timeout_ms };
        let command = match order {
            Order::Restart => Command::Restart { domain: name, timeout_ms, drain_ms: 0 },
            Order::Drain => Command::Restart { domain: name, timeout_ms, drain_ms: DRAIN_MS },
            Order::Panic => crash(How::Panic),
            Order::NullWrite => crash(How::NullWrite),
            Order::Loop => crash(How::Loop),
            Order::Hold => Command::Hold { domain: name },
            Order::Release => Command::Release { domain: name, timeout_ms },
            Order::Audit => Command::Audit,
        };
        let seq = self.answered.len() as u32;
        self.answered.push(false);
        if let Ok(frame) = encode(&Request { seq, command }) {
            self.to_node.extend(frame);
        }
        hv.raise(node::SUPERVISOR, PORT_UART);
    }

    /// The node sent something.
    pub(crate) fn hears(&mut self, mut bytes: &[u8]) {
        while let Some(message) = self.decoder.feed::<FromNode>(&mut bytes) {
            // A supervisor that died left half a frame.
            let Ok(message) = message else { continue };
            trace!("operator: hears {message:?}");
            if let FromNode::Reply(reply) = message {
                let answered = self.answered.get_mut(reply.seq as usize);
                let first = answered.is_some_and(|done| !std::mem::replace(done, true));
                rule!(first, "a command was answered twice, or never given: {}", reply.seq);
            }
        }
    }

    /// When the operator looks next.
    pub(crate) fn next_look(&self) -> u64 {
        self.next_look
    }

    /// Nobody orders misbehaviour any more, and every domain is to run.
    pub(crate) fn look_after(&mut self, hv: &mut Hv) {
        if hv.now < self.next_look {
            return;
        }
        self.next_look = hv.now + LOOK_NS;
        for id in hv.domains.ids() {
            match DomainState::from_raw(hv.domains[id].info(0).state) {
                Some(DomainState::Held) => self.order(hv, id, Order::Release),
                Some(DomainState::Stopped) => self.order(hv, id, Order::Restart),
                // The supervisor died between the two halves of a hold, which was not answered.
                Some(DomainState::Running) if hv.domains[id].held => {
                    self.order(hv, id, Order::Hold);
                }
                _ => {}
            }
        }
    }
}
