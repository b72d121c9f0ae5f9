//! The network frontend.

use ring_proto::conn::{BackBody, BackHello, Pages, Protocol};
use ring_proto::net::{ETHERNET_HEADER, FEATURE_RX_CSUM, FEATURE_TX_CSUM, MAX_FRAME};
use ring_proto::ring::{FrontRing, PeerMisbehaved};
use ring_proto::{DomainId, Port};

use super::receive::{Receive, Received};
use super::transmit::{SendError, Transmit, TxBuffer};
use super::{BUFFER, Checksum};
use crate::conn::{FrontLink, FrontStep, Region};
use crate::stall::Stall;
use crate::{ConfigError, Counters, Env, Progress, count};

/// What a frontend is made of.
#[derive(Clone, Copy, Debug)]
pub struct FrontendConfig {
    /// The connection's pages.
    pub pages: Pages,
    /// The connection's port.
    pub port: Port,
    /// The backend's domain.
    pub peer: DomainId,
    /// Memory of the tx queue, at least [`super::tx_ring_pages`].
    pub tx_ring: Region,
    /// Memory of the rx queue, at least [`super::rx_ring_pages`].
    pub rx_ring: Region,
    /// Cut into buffers of [`BUFFER`] bytes: half of them (at most `slots`)
    /// for tx, of the others at most `slots` for rx.
    pub pool: Region,
    /// Slots of each queue, a power of two up to [`super::MAX_SLOTS`].
    pub slots: u32,
}

/// What the backend said about the vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetInfo {
    /// The vif's MAC address.
    pub mac: [u8; 6],
    /// Largest payload of a frame, without the 14-byte header.
    pub mtu: u16,
    /// `FEATURE_*` bits that may be used.
    pub features: u32,
}

/// The network frontend.
#[derive(Debug)]
pub struct Frontend {
    link: FrontLink,
    config: FrontendConfig,
    tx: Transmit,
    rx: Receive,
    info: Option<NetInfo>,
    stall: Stall,
    counters: Counters,
}

impl Frontend {
    /// A frontend that connects as soon as it is polled.
    pub fn new(config: FrontendConfig) -> Result<Self, ConfigError> {
        let tx_pages = super::tx_ring_pages(config.slots).ok_or(ConfigError::Slots)?;
        let rx_pages = super::rx_ring_pages(config.slots).ok_or(ConfigError::Slots)?;
        let fits = |region: &Region, pages| region.is_whole() && region.pages() >= pages;
        if !fits(&config.tx_ring, tx_pages) || !fits(&config.rx_ring, rx_pages) {
            return Err(ConfigError::Ring);
        }
        if !config.pool.is_whole() || u32::try_from(config.pool.mem.len()).is_err() {
            return Err(ConfigError::Pool);
        }
        let slots = config.slots as usize;
        let buffers = config.pool.mem.len() / BUFFER;
        // At most the pool's length each.
        let tx_bytes = slots.min(buffers / 2).saturating_mul(BUFFER);
        let rx_bytes = slots.min(buffers.div_ceil(2)).saturating_mul(BUFFER);
        let rx_base = u32::try_from(tx_bytes).map_err(|_| ConfigError::Pool)?;
        let tx_mem = config.pool.mem.sub(0, tx_bytes).ok_or(ConfigError::Pool)?;
        let rx_mem = config.pool.mem.sub(tx_bytes, rx_bytes).ok_or(ConfigError::Pool)?;
        let mut rings = heapless::Vec::new();
        for ring in [config.tx_ring, config.rx_ring] {
            rings.push((ring, config.slots)).map_err(|_| ConfigError::Slots)?;
        }
        let link = FrontLink::new(
            config.pages,
            config.port,
            config.peer,
            Protocol::Net,
            FEATURE_TX_CSUM | FEATURE_RX_CSUM,
            rings,
            config.pool,
        );
        Ok(Self {
            link,
            config,
            tx: Transmit::new(tx_mem),
            rx: Receive::new(rx_mem, rx_base),
            info: None,
            stall: Stall::new(),
            counters: Counters::default(),
        })
    }

    /// Has the frontend complain when no frame is taken off its hands for so many
    /// ns, though some wait and there is a backend, and at once of one that breaks
    /// the protocol or cuts it off again and again; 0 = never, as at first.
    pub fn complain_after(&mut self, ns: u64) {
        self.stall.set_bound(ns);
        self.link.set_complains(ns != 0);
    }

    /// Complains of a backend that takes frames and brings none, if it is there. This end cannot
    /// know: nobody promises that a frame is answered. A guest that waits for answers can.
    pub fn complain(&mut self, env: &mut impl Env) {
        if self.is_connected() {
            count(&mut self.counters.complaints);
            env.complain(self.link.port());
        }
    }

    /// Drives the handshake, takes responses, sends and posts what waits.
    /// Takes at most as many responses as there are buffers.
    pub fn poll(&mut self, env: &mut impl Env) -> Progress {
        let mut again = false;
        let pending = self.tx.pending();
        match self.link.step(env, &mut self.counters) {
            FrontStep::Waiting => {}
            FrontStep::Prepare => {
                self.tx.ring = FrontRing::new(self.config.tx_ring.mem, self.config.slots);
                self.rx.ring = FrontRing::new(self.config.rx_ring.mem, self.config.slots);
                self.link.offer(env);
            }
            FrontStep::Answered(hello) => {
                again = true;
                match check_answer(&hello) {
                    Some(info) => self.info = Some(info),
                    None => self.misbehaved(env),
                }
            }
            FrontStep::Up => match self.reap() {
                Ok(more) => again = more,
                Err(PeerMisbehaved) => {
                    again = true;
                    self.misbehaved(env);
                }
            },
            FrontStep::Left => {
                again = true;
                match self.reap() {
                    Ok(_) => {
                        self.link.let_go(env, &mut self.counters);
                        self.forget_rings(false);
                    }
                    Err(PeerMisbehaved) => self.misbehaved(env),
                }
            }
            FrontStep::Lost => {
                again = true;
                self.forget_rings(true);
            }
        }
        let progress = self.tx.pending() < pending;
        self.kick(env);
        let waits = self.tx.pending() > 0 && self.link.has_peer();
        if self.stall.look(env.now_ns(), waits, progress) {
            count(&mut self.counters.complaints);
            env.complain(self.link.port());
        }
        Progress { again, deadline: self.link.deadline() }.until(self.stall.deadline())
    }

    /// Sends frames and posts buffers, with at most one notification.
    pub fn kick(&mut self, env: &mut impl Env) {
        if !self.link.is_up() {
            return;
        }
        self.tx.push(&mut self.counters);
        self.rx.push();
        let mut published = false;
        let mut notify = false;
        if let Some(ring) = &mut self.rx.ring
            && ring.unpublished() > 0
        {
            published = true;
            notify |= ring.publish();
        }
        if let Some(ring) = &mut self.tx.ring
            && ring.unpublished() > 0
        {
            published = true;
            notify |= ring.publish();
        }
        if published {
            self.counters.published(env, self.link.port(), notify);
        }
    }

    /// An empty buffer for a frame; `None` while no backend is there or all
    /// are in use: ask again after a `poll`.
    pub fn tx_buffer(&mut self) -> Option<TxBuffer> {
        if !self.link.is_up() {
            return None;
        }
        self.tx.take()
    }

    /// Buffers that `tx_buffer` would give at the moment.
    pub fn tx_room(&self) -> usize {
        if self.link.is_up() { self.tx.free() } else { 0 }
    }

    /// Copies `data` to `offset` of a buffer; false if it does not fit.
    #[must_use]
    pub fn write(&self, buffer: &TxBuffer, offset: usize, data: &[u8]) -> bool {
        self.tx.write(buffer, offset, data)
    }

    /// Sends the first `len` bytes of a buffer as a frame. It goes out with
    /// the next `kick` or `poll`. `checksum` only if the feature is there.
    pub fn send(
        &mut self,
        buffer: TxBuffer,
        len: usize,
        checksum: Option<Checksum>,
    ) -> Result<(), SendError> {
        // What does not fit into u32 is too long anyway.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.tx.send(buffer, len, checksum)
    }

    /// Gives a buffer back unused.
    pub fn cancel(&mut self, buffer: TxBuffer) {
        self.tx.cancel(buffer);
    }

    /// `tx_buffer`, `write` and `send` in one.
    pub fn transmit(&mut self, frame: &[u8], checksum: Option<Checksum>) -> Result<(), SendError> {
        let buffer = self.tx_buffer().ok_or(SendError::NoBuffer)?;
        if !self.write(&buffer, 0, frame) {
            self.cancel(buffer);
            return Err(SendError::Length);
        }
        self.send(buffer, frame.len(), checksum)
    }

    /// Copies the oldest received frame into `to` and frees its buffer, which
    /// the next `kick` or `poll` posts again. Room for [`MAX_FRAME`] bytes
    /// always suffices; a longer frame than `to` is cut off.
    pub fn receive(&mut self, to: &mut [u8]) -> Option<Received> {
        self.rx.receive(to)
    }

    /// Frames that wait for `receive`.
    pub fn rx_ready(&self) -> usize {
        self.rx.ready()
    }

    /// The vif, once a backend has answered for the first time.
    pub fn info(&self) -> Option<NetInfo> {
        self.info
    }

    /// Whether a backend is there at the moment.
    pub fn is_connected(&self) -> bool {
        self.link.is_up()
    }

    /// Why the backend last refused, in its own words (foreign text).
    pub fn refusal(&self) -> Option<&str> {
        self.link.refusal()
    }

    /// Counts since the beginning.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn reap(&mut self) -> Result<bool, PeerMisbehaved> {
        let pending = self.tx.pending();
        let more = self.tx.reap()? | self.rx.reap()?;
        // As for a stall, frames that come in say nothing of those that are to go out.
        if self.tx.pending() < pending {
            self.link.worked();
        }
        Ok(more)
    }

    fn misbehaved(&mut self, env: &mut impl Env) {
        self.link.misbehaved(env, &mut self.counters);
        self.forget_rings(true);
    }

    fn forget_rings(&mut self, taken: bool) {
        self.tx.forget_ring(&mut self.counters, taken);
        self.rx.forget_ring();
    }
}

fn check_answer(hello: &BackHello) -> Option<NetInfo> {
    let BackBody::Net { mac, mtu } = hello.body else { return None };
    let plausible = (68..=MAX_FRAME - ETHERNET_HEADER).contains(&u32::from(mtu));
    plausible.then_some(NetInfo { mac, mtu, features: hello.features })
}
