#![allow(unsafe_code)]
//! The control line: the second UART.
//!
//! Neither direction ever waits. What the FIFO does not take stays in the
//! supervisor's queue; what the supervisor has no room to answer stays in the
//! receive FIFO, which holds the host back.

use supervisor_policy::{Node, Supervisor};
use uart_16550::{
    BaudRate, Config, Uart16550,
    backend::PioBackend,
    spec::registers::{FifoTriggerLevel, IER, LSR},
};

/// First I/O port of the second UART.
const PORT: u16 = 0x2f8;
/// Most bytes taken or sent in one turn of the event loop.
const TURN: usize = 4096;

/// The line.
pub enum Line {
    /// The machine has none, or one that does not work.
    Absent,
    /// It still sends what an earlier generation left in it. Setting the UART up would wait for
    /// that, and a host that does not read could make it wait for ever.
    Draining(Uart16550<PioBackend>),
    /// Ready.
    Open(Uart16550<PioBackend>),
}

impl Line {
    /// Finds the UART and sets it up if it has nothing to send. Without one the supervisor still
    /// does its duty, only nobody can talk to it.
    pub fn open() -> Self {
        // SAFETY: the manifest gives this domain, and no other, the eight
        // ports from here on (CAP_CONTROL_UART), and they have no effect on memory.
        let uart = unsafe { Uart16550::new_port(PORT) };
        let mut line = uart.map_or(Self::Absent, Self::Draining);
        line.set_up();
        line
    }

    /// Opens a drained line; true while it still has something to send.
    pub fn set_up(&mut self) -> bool {
        let Self::Draining(uart) = self else {
            return false;
        };
        if !uart.lsr().contains(LSR::TRANSMITTER_EMPTY) {
            return true;
        }
        // A request's tail does not wait in the FIFO: what stays there for the
        // time of four characters interrupts, too. With a low level QEMU hands
        // on as few bytes at a time. Sending is polled, see `send`.
        let config = Config {
            interrupts: IER::DATA_READY,
            fifo_trigger_level: Some(FifoTriggerLevel::Fourteen),
            baud_rate: BaudRate::Baud115200,
            ..Config::DEFAULT
        };
        *self = match (uart.init(config), core::mem::replace(self, Self::Absent)) {
            (Ok(()), Self::Draining(uart)) => Self::Open(uart),
            (Err(why), _) => {
                log::error!("no control line: {why}");
                Self::Absent
            }
            (Ok(()), other) => other,
        };
        false
    }

    /// Hands what came to the supervisor; true if there may be more.
    ///
    /// The interrupt is an edge, so bytes must not be left behind unless
    /// somebody comes back for them: either the turn was too short (`true`),
    /// or there was no room for answers, and then the supervisor has something
    /// to send and the loop returns soon.
    pub fn receive(&mut self, supervisor: &mut Supervisor, node: &mut impl Node) -> bool {
        let Self::Open(uart) = self else {
            return false;
        };
        for _ in 0..TURN {
            if !supervisor.can_receive() {
                return false;
            }
            match uart.try_receive_byte() {
                Ok(byte) => supervisor.receive(node, byte),
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends what the FIFO takes now.
    pub fn send(&mut self, supervisor: &mut Supervisor) {
        let uart = match self {
            Self::Open(uart) => uart,
            Self::Draining(_) => return,
            Self::Absent => {
                // Nobody will ever read it.
                while !supervisor.to_send().is_empty() {
                    supervisor.sent(supervisor.to_send().len());
                }
                return;
            }
        };
        let mut left = TURN;
        while left > 0 {
            let count = uart.send_bytes(supervisor.to_send());
            if count == 0 {
                return;
            }
            supervisor.sent(count);
            left = left.saturating_sub(count);
        }
    }
}
