//! A network interface, for an `embassy-net` stack.
//!
//! The link comes up with the first backend and stays up. While a backend is
//! away nothing can be sent, so the stack keeps its data, addresses and
//! connections, and goes on with the next backend: a crash of the driver looks
//! like a cable that was slow for a moment.

use alloc::boxed::Box;
use core::task::Context;

use domain_rt::{env::DomainEnv, events, exec};
use embassy_net_driver::{Capabilities, Driver, HardwareAddress, LinkState};
use ring_ends::net::{BUFFER, Frontend};
use ring_proto::{Port, net::MAX_FRAME};

use crate::connect;
pub use crate::connect::SetupError;

/// Frames taken in one go, so that a flood does not keep other tasks waiting.
const BURST: u32 = 64;
/// Times that a full or empty ring is looked at again at once.
const LOOKS: u32 = 4;

/// The first net connection of this domain.
pub struct NetDevice {
    front: Frontend,
    env: DomainEnv,
    port: Port,
    peer: &'static str,
    mac: [u8; 6],
    connected: bool,
    /// There was a backend once.
    link: bool,
    /// Frames that may still be taken in this go.
    burst: u32,
    /// The frame that is being looked at, and the one that is being written.
    rx_frame: Box<[u8; BUFFER]>,
    tx_frame: Box<[u8; BUFFER]>,
}

impl NetDevice {
    /// Takes this domain's first net connection. The stack's runner drives it.
    pub fn new() -> Result<Self, SetupError> {
        let (connection, mut front) = connect::net()?;
        front.complain_after(connect::patience(&connection));
        Ok(Self {
            front,
            env: DomainEnv,
            port: connection.port(),
            peer: connection.peer_name(),
            mac: connection.boot.mac,
            connected: false,
            link: false,
            burst: BURST,
            rx_frame: Box::new([0; BUFFER]),
            tx_frame: Box::new([0; BUFFER]),
        })
    }

    /// The address that the manifest gives this interface.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Polls the frontend; the task of `cx` will be woken when there is more.
    /// Returns whether to look again at once.
    fn turn(&mut self, cx: &Context<'_>) -> bool {
        events::take(self.port);
        let progress = self.front.poll(&mut self.env);
        self.report();
        if progress.again {
            return true;
        }
        if let Some(deadline) = progress.deadline {
            exec::wake_at(deadline, cx.waker());
        }
        if exec::poll_event(self.port, cx.waker()).is_ready() {
            cx.waker().wake_by_ref();
        }
        false
    }

    /// Polls until `ready`, a few times at most.
    fn turn_until(&mut self, cx: &Context<'_>, ready: impl Fn(&Frontend) -> bool) -> bool {
        for _ in 0..LOOKS {
            if ready(&self.front) {
                return true;
            }
            if !self.turn(cx) {
                return ready(&self.front);
            }
        }
        let ready = ready(&self.front);
        if !ready {
            cx.waker().wake_by_ref();
        }
        ready
    }

    /// Tells of the connection's coming and going.
    fn report(&mut self) {
        let connected = self.front.is_connected();
        if connected == self.connected {
            return;
        }
        self.connected = connected;
        let peer = self.peer;
        if !connected {
            log::warn!("net: lost `{peer}`, frames wait for it");
            return;
        }
        self.link = true;
        let resent = self.front.counters().replayed;
        log::info!("net: connected to `{peer}`, {resent} frames resent so far");
        if let Some(info) = self.front.info()
            && info.mac != self.mac
        {
            log::warn!("net: `{peer}` expects another MAC address: {:02x?}", info.mac);
        }
    }
}

impl Driver for NetDevice {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, cx: &mut Context<'_>) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if self.burst == 0 {
            cx.waker().wake_by_ref();
            return None;
        }
        // Without room for an answer the frame has to wait.
        if !self.turn_until(cx, |front| front.rx_ready() > 0 && front.tx_room() > 0) {
            return None;
        }
        let received = self.front.receive(self.rx_frame.as_mut_slice())?;
        self.burst = self.burst.saturating_sub(1);
        let rx = RxToken { frame: self.rx_frame.get_mut(..received.len)? };
        Some((rx, TxToken { front: &mut self.front, frame: &mut self.tx_frame }))
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Option<TxToken<'_>> {
        if !self.turn_until(cx, |front| front.tx_room() > 0) {
            return None;
        }
        Some(TxToken { front: &mut self.front, frame: &mut self.tx_frame })
    }

    /// The stack asks this at the end of each of its turns, so what the turn
    /// produced goes out here, with one notification.
    fn link_state(&mut self, _cx: &mut Context<'_>) -> LinkState {
        self.burst = BURST;
        self.front.kick(&mut self.env);
        if self.link { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = MAX_FRAME as usize;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.mac)
    }
}

/// A received frame.
pub struct RxToken<'a> {
    frame: &'a mut [u8],
}

impl embassy_net_driver::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// Leave to send a frame. There is a free buffer as long as it exists.
pub struct TxToken<'a> {
    front: &'a mut Frontend,
    frame: &'a mut [u8; BUFFER],
}

impl embassy_net_driver::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // The stack keeps to the size that `capabilities` gave it.
        let len = len.min(self.frame.len());
        let (frame, _) = self.frame.split_at_mut(len);
        let result = f(frame);
        if let Err(error) = self.front.transmit(frame, None) {
            log::warn!("net: a frame of {len} bytes was not taken: {error:?}");
        }
        result
    }
}
