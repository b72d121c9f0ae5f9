//! smoltcp over a [`Nic`].

use alloc::{boxed::Box, vec, vec::Vec};

use domain_rt::{
    events,
    time::{NEVER, now_ns},
};
use ring_proto::net::MAX_FRAME;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Device, DeviceCapabilities, Medium},
    socket::{tcp, udp},
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr},
};

/// Bytes of a socket's receive and of its send buffer.
const SOCKET_BUFFER: usize = 64 << 10;
/// Bytes of a frame buffer.
const FRAME: usize = 2048;

/// A NIC, reached one way or the other.
pub(super) trait Nic {
    /// Its MAC address.
    fn mac(&self) -> [u8; 6];
    /// Looks after the queues.
    fn look(&mut self);
    /// Whether a frame can be sent.
    fn has_room(&self) -> bool;
    /// Sends a frame; only if there is room.
    fn send(&mut self, frame: &[u8]);
    /// Copies the next received frame out.
    fn receive(&mut self, to: &mut [u8; FRAME]) -> Option<usize>;
    /// Shows the other side what was sent.
    fn kick(&mut self);
    /// Called when there is nothing to do: sleeps until `deadline` at most,
    /// unless there is more to do.
    fn rest(&mut self, deadline: u64);
}

/// A TCP stack.
pub(super) struct Stack<N> {
    device: NicDevice<N>,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    client: SocketHandle,
    next_port: u16,
    /// Most frames that a turn takes in.
    pub(super) most: usize,
}

impl<N: Nic> Stack<N> {
    pub(super) fn new(nic: N, address: Ipv4Address, seed: u64) -> Self {
        let mut config =
            Config::new(HardwareAddress::Ethernet(EthernetAddress::from_bytes(&nic.mac())));
        config.random_seed = seed;
        let mut device = NicDevice {
            nic,
            rx: Box::new([0; FRAME]),
            tx: Box::new([0; FRAME]),
            active: false,
            room: 0,
        };
        let mut interface = Interface::new(config, &mut device, now());
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 24)));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let client = sockets.add(socket());
        Self { device, interface, sockets, client, next_port: 50_000, most: usize::MAX }
    }

    /// What is below the stack.
    pub(super) fn nic(&self) -> &N {
        &self.device.nic
    }

    /// One turn: frames in and out. Returns when to be back.
    pub(super) fn turn(&mut self) -> u64 {
        let _ = events::take_all();
        self.device.active = false;
        self.device.room = self.most;
        self.device.nic.look();
        let _ = self.interface.poll(now(), &mut self.device, &mut self.sockets);
        self.device.nic.kick();
        if self.device.active {
            return 0;
        }
        match self.interface.poll_at(now(), &self.sockets) {
            Some(at) => u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000),
            None => NEVER,
        }
    }

    /// After a turn in which nobody had anything to do: sleeps.
    pub(super) fn rest(&mut self, deadline: u64) {
        if deadline <= now_ns() {
            events::breathe();
        } else {
            self.device.nic.rest(deadline);
        }
    }

    /// Turns until `step`, which works on the client socket, returns true. It
    /// has `patience` ns between two of its actions.
    pub(super) fn drive(
        &mut self,
        patience: u64,
        mut step: impl FnMut(&mut tcp::Socket<'_>) -> Result<bool, &'static str>,
    ) -> Result<(), &'static str> {
        let mut give_up = now_ns().saturating_add(patience);
        loop {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.client);
            let before = (socket.send_queue(), socket.recv_queue());
            if step(socket)? {
                return Ok(());
            }
            let acted = before != (socket.send_queue(), socket.recv_queue());
            if acted {
                give_up = now_ns().saturating_add(patience);
            } else if now_ns() > give_up {
                return Err("a TCP connection got stuck");
            }
            let deadline = self.turn();
            if !self.device.active {
                self.rest(deadline.min(give_up));
            } else {
                events::breathe();
            }
        }
    }

    /// Connects the client socket.
    pub(super) fn connect(
        &mut self,
        to: Ipv4Address,
        port: u16,
        give_up: u64,
    ) -> Result<(), &'static str> {
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.client);
        let context = self.interface.context();
        socket.connect(context, (to, port), self.next_port).map_err(|_| "cannot connect")?;
        self.drive(give_up.saturating_sub(now_ns()), |socket| {
            if socket.is_active() { Ok(socket.may_send()) } else { Err("the peer refuses") }
        })
    }

    /// Ends the client socket's connection at once and tells the peer.
    pub(super) fn abort(&mut self) -> Result<(), &'static str> {
        self.sockets.get_mut::<tcp::Socket<'_>>(self.client).abort();
        while self.turn() == 0 {}
        Ok(())
    }
}

/// A socket with the settings that all have.
pub(super) fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; SOCKET_BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket
}

/// A datagram socket with room for `count` datagrams of `len` bytes each way.
pub(super) fn datagrams(count: usize, len: usize) -> udp::Socket<'static> {
    let buffer = || {
        let slots = vec![udp::PacketMetadata::EMPTY; count];
        udp::PacketBuffer::new(slots, vec![0; count.saturating_mul(len)])
    };
    udp::Socket::new(buffer(), buffer())
}

fn now() -> Instant {
    Instant::from_micros((now_ns() / 1000) as i64)
}

struct NicDevice<N> {
    nic: N,
    /// The frame that is being looked at, and the one that is being written.
    rx: Box<[u8; FRAME]>,
    tx: Box<[u8; FRAME]>,
    /// A frame came or went in this turn.
    active: bool,
    /// Frames that may still come in this turn.
    room: usize,
}

impl<N: Nic> Device for NicDevice<N> {
    type RxToken<'a>
        = RxToken<'a>
    where
        N: 'a;
    type TxToken<'a>
        = TxToken<'a, N>
    where
        N: 'a;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_, N>)> {
        // Without room for an answer the frame has to wait.
        if !self.nic.has_room() {
            return None;
        }
        self.room = self.room.checked_sub(1)?;
        let len = self.nic.receive(&mut self.rx)?;
        self.active = true;
        let frame = self.rx.get(..len)?;
        Some((
            RxToken { frame },
            TxToken { nic: &mut self.nic, frame: &mut self.tx, active: &mut self.active },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, N>> {
        let token = TxToken { nic: &mut self.nic, frame: &mut self.tx, active: &mut self.active };
        token.nic.has_room().then_some(token)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME as usize;
        capabilities
    }
}

/// A received frame.
pub(super) struct RxToken<'a> {
    frame: &'a [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// Leave to send a frame.
pub(super) struct TxToken<'a, N> {
    nic: &'a mut N,
    frame: &'a mut [u8; FRAME],
    active: &'a mut bool,
}

impl<N: Nic> phy::TxToken for TxToken<'_, N> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // The stack keeps to the size that `capabilities` gave it.
        let frame = &mut self.frame[..len];
        let result = f(frame);
        self.nic.send(frame);
        *self.active = true;
        result
    }
}
