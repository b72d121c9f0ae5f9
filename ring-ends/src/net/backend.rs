//! The network backend: frames from the guest, frames to the guest.

use ring_proto::conn::{BackBody, Pages};
use ring_proto::net::{
    FEATURE_TX_CSUM, FEATURE_TX_TSO4, FLAG_DATA_VALID, FLAG_NEEDS_CSUM, MAX_FRAME, MAX_GSO_FRAME,
    MAX_SEGMENTS, MIN_FRAME, RxRequest, RxResponse, Status, TxRequest, TxResponse,
};
use ring_proto::ring::BackRing;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Generation, Port};

use super::{Checksum, RULES};
use crate::conn::{BackLink, BackStep, Complaint, Mapped, Window};
use crate::{Counters, Env, Piece, Progress, count, pieces};

/// Where a backend stands.
#[derive(Clone, Copy, Debug)]
pub struct BackendConfig {
    /// The connection's pages.
    pub pages: Pages,
    /// The connection's port.
    pub port: Port,
    /// The frontend's domain.
    pub peer: DomainId,
    /// Its part of the grant window.
    pub window: Window,
}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vif {
    /// MAC address.
    pub mac: [u8; 6],
    /// Largest payload of a frame, at most 1500.
    pub mtu: u16,
    /// `FEATURE_*` bits that the driver offers.
    pub features: u32,
}

/// Names a frame that was taken, for its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    id: u32,
    /// Which connect it belongs to.
    serial: u32,
}

/// A frame that the guest sends; every field was checked, the content was not.
#[derive(Clone, Debug)]
pub struct TxFrame {
    /// For [`Backend::complete_tx`].
    pub tag: Tag,
    /// Bytes of the frame.
    pub len: u32,
    /// Checksum to fill in.
    pub checksum: Option<Checksum>,
    /// To be segmented (TCP over IPv4) into this much payload each.
    pub gso_size: Option<u16>,
    /// Where it is. Together `len` long.
    pub segments: heapless::Vec<Piece, MAX_SEGMENTS>,
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliverError {
    /// No guest is connected.
    NotConnected,
    /// The guest has no buffer posted.
    NoBuffer,
    /// Shorter than an Ethernet header or longer than a frame.
    Length,
}

#[derive(Debug)]
struct Session {
    tx: BackRing<TxRequest, TxResponse>,
    rx: BackRing<RxRequest, RxResponse>,
    pool: SharedMem,
    features: u32,
}

/// The network backend of one connection.
#[derive(Debug)]
pub struct Backend {
    link: BackLink,
    vif: Vif,
    session: Option<Session>,
    serial: u32,
    in_flight: u32,
    /// Frames that may still be taken in this round.
    tx_budget: u32,
    /// Malformed rx buffers that may still be answered in this round.
    rx_budget: u32,
    broken: bool,
    counters: Counters,
}

impl Backend {
    /// A backend that waits for its frontend.
    pub fn new(config: BackendConfig, vif: Vif) -> Self {
        Self {
            link: BackLink::new(config.pages, config.port, config.peer, config.window, RULES),
            vif,
            session: None,
            serial: 0,
            in_flight: 0,
            tx_budget: 0,
            rx_budget: 0,
            broken: false,
            counters: Counters::default(),
        }
    }

    /// Drives the handshake. `again` says that [`Self::next_tx`] has
    /// something to give. Posted rx buffers cause no notification.
    pub fn poll(&mut self, env: &mut impl Env) -> Progress {
        self.push_responses(env);
        let mut again = false;
        match self.link.step(env, &mut self.counters, self.in_flight) {
            BackStep::Waiting | BackStep::Draining => {}
            BackStep::Offered(mapped) => {
                again = true;
                self.attach(env, mapped);
            }
            BackStep::Up if self.broken => {
                again = true;
                self.link.misbehaved(env, &mut self.counters, "its ring index is out of bounds");
                self.forget();
            }
            BackStep::Up => {
                if let Some(session) = &mut self.session {
                    match session.tx.look_or_arm() {
                        Ok(more) => again = more,
                        Err(_) => {
                            self.broken = true;
                            again = true;
                        }
                    }
                }
            }
            BackStep::Lost => {
                again = true;
                self.forget();
            }
        }
        Progress { again, deadline: self.link.deadline() }
    }

    /// The next valid frame. Malformed ones are answered here. Gives at most
    /// as many as the ring has slots between two calls of `poll` or
    /// `push_responses`.
    pub fn next_tx(&mut self) -> Option<TxFrame> {
        if self.broken {
            return None;
        }
        let session = self.session.as_mut()?;
        while self.tx_budget > 0 {
            self.tx_budget = self.tx_budget.saturating_sub(1);
            let request = match session.tx.pop() {
                Ok(request) => request?,
                Err(_) => {
                    self.broken = true;
                    return None;
                }
            };
            // Junk from a page that was just revoked must not be served.
            if !self.link.still() {
                self.broken = true;
                return None;
            }
            count(&mut self.counters.requests);
            let tag = Tag { id: request.id, serial: self.serial };
            if let Some(frame) = validate(session, &request, tag) {
                self.in_flight = self.in_flight.saturating_add(1);
                return Some(frame);
            }
            count(&mut self.counters.invalid);
            answer_tx(session, request.id, Status::Invalid);
        }
        None
    }

    /// Copies the beginning of a frame into private memory, once: decide on
    /// the copy, and send the copy, since the guest can change the original.
    /// Returns the bytes copied, 0 if the guest is gone.
    pub fn copy_head(&self, frame: &TxFrame, to: &mut [u8]) -> usize {
        let Some(session) = &self.session else { return 0 };
        if frame.tag.serial != self.serial {
            return 0;
        }
        let mut done = 0;
        for piece in &frame.segments {
            let Some(rest) = to.get_mut(done..) else { break };
            let n = rest.len().min(piece.len as usize);
            let Some(part) = rest.get_mut(..n) else { break };
            if session.pool.copy_from(piece.offset as usize, part).is_err() {
                return 0;
            }
            done = done.saturating_add(n);
        }
        done
    }

    /// Answers a frame; [`Self::push_responses`] shows it to the frontend.
    /// Call it exactly once for each frame, also when the frontend is gone:
    /// it says that the device no longer touches the memory.
    pub fn complete_tx(&mut self, tag: Tag, status: Status) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(session) = &mut self.session
            && tag.serial == self.serial
        {
            answer_tx(session, tag.id, status);
        }
    }

    /// Copies a frame into the guest's next buffer. It is shown to the guest
    /// by [`Self::push_responses`]. `checksum_valid` has an effect only if
    /// the guest wants to know.
    pub fn deliver(&mut self, frame: &[u8], checksum_valid: bool) -> Result<(), DeliverError> {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(DeliverError::Length);
        }
        if self.broken || !self.link.still() {
            return Err(DeliverError::NotConnected);
        }
        let session = self.session.as_mut().ok_or(DeliverError::NotConnected)?;
        loop {
            let request = match session.rx.pop() {
                Ok(Some(request)) => request,
                Ok(None) => return Err(DeliverError::NoBuffer),
                Err(_) => {
                    self.broken = true;
                    return Err(DeliverError::NotConnected);
                }
            };
            let buffer = request.buffer;
            let place = session.pool.sub(buffer.offset as usize, buffer.len as usize);
            let valid =
                request.reserved == 0 && place.is_some_and(|place| place.copy_to(0, frame).is_ok());
            let wants = session.features & ring_proto::net::FEATURE_RX_CSUM != 0;
            let flags = if valid && checksum_valid && wants { FLAG_DATA_VALID } else { 0 };
            let response = RxResponse {
                id: request.id,
                len: if valid { len } else { 0 },
                status: if valid { Status::Ok } else { Status::Invalid } as u8,
                flags,
                reserved: [0; 6],
            };
            // Never full: this request was taken just now.
            let _ = session.rx.push(&response);
            if valid {
                return Ok(());
            }
            count(&mut self.counters.invalid);
            self.rx_budget = self.rx_budget.saturating_sub(1);
            if self.rx_budget == 0 {
                return Err(DeliverError::NoBuffer);
            }
        }
    }

    /// Shows answers and frames to the frontend, with at most one
    /// notification. It ends a round, as `poll` does.
    pub fn push_responses(&mut self, env: &mut impl Env) {
        let Some(session) = &mut self.session else { return };
        self.tx_budget = session.tx.slots();
        self.rx_budget = session.rx.slots();
        if session.tx.unpublished() > 0 || session.rx.unpublished() > 0 {
            let notify = session.rx.publish() | session.tx.publish();
            self.counters.published(env, self.link.port(), notify);
        }
    }

    /// Whether a frontend is being served.
    pub fn is_connected(&self) -> bool {
        self.link.is_up()
    }

    /// The frontend is gone and its memory is still mapped: it stays so until
    /// every frame in flight was completed.
    pub fn is_draining(&self) -> bool {
        self.link.is_draining()
    }

    /// Frames given out and not completed.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The mapped pool, while connected.
    pub fn pool(&self) -> Option<SharedMem> {
        self.session.as_ref().map(|s| s.pool)
    }

    /// The frontend's generation that is not served any more, if there is one.
    pub fn barred(&self) -> Option<Generation> {
        self.link.barred()
    }

    /// Something to log about the frontend, if there is (see [`Complaint`]).
    pub fn complaint(&mut self) -> Option<Complaint> {
        self.link.complaint()
    }

    /// Counts since the beginning.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn attach(&mut self, env: &mut impl Env, mapped: Mapped) {
        let features = mapped.features & self.vif.features;
        let tx = mapped.rings.first().and_then(|&(mem, slots)| BackRing::attach(mem, slots));
        let rx = mapped.rings.get(1).and_then(|&(mem, slots)| BackRing::attach(mem, slots));
        let (Some(tx), Some(mut rx)) = (tx, rx) else {
            self.link.misbehaved(env, &mut self.counters, "its ring memory does not do");
            return;
        };
        rx.disarm();
        self.session = Some(Session { tx, rx, pool: mapped.pool, features });
        self.serial = self.serial.wrapping_add(1);
        let body = BackBody::Net { mac: self.vif.mac, mtu: self.vif.mtu };
        self.link.answer(env, &mut self.counters, features, body);
    }

    fn forget(&mut self) {
        self.session = None;
        self.broken = false;
        self.tx_budget = 0;
        self.rx_budget = 0;
    }
}

fn answer_tx(session: &mut Session, id: u32, status: Status) {
    // Full only if the driver completes a frame twice: nothing to answer.
    let _ = session.tx.push(&TxResponse { id, status: status as u8, reserved: [0; 3] });
}

fn validate(session: &Session, request: &TxRequest, tag: Tag) -> Option<TxFrame> {
    let (segments, len) =
        pieces::validate(&session.pool, &request.segments, request.segment_count, 1)?;
    let checksum = match request.flags {
        0 => None,
        FLAG_NEEDS_CSUM if session.features & FEATURE_TX_CSUM != 0 => {
            let field = u64::from(request.csum_start).saturating_add(request.csum_offset.into());
            if field.saturating_add(2) > len {
                return None;
            }
            Some(Checksum { start: request.csum_start, offset: request.csum_offset })
        }
        _ => return None,
    };
    let gso_size = match request.gso_type {
        0 if request.gso_size == 0 => None,
        1 if session.features & FEATURE_TX_TSO4 != 0
            && checksum.is_some()
            && request.gso_size > 0 =>
        {
            Some(request.gso_size)
        }
        _ => return None,
    };
    let most = if gso_size.is_some() { MAX_GSO_FRAME } else { MAX_FRAME };
    let len = u32::try_from(len).ok()?;
    if !(MIN_FRAME..=most).contains(&len) || request.reserved != [0; 3] {
        return None;
    }
    Some(TxFrame { tag, len, checksum, gso_size, segments })
}
