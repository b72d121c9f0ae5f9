//! The network backend: frames from the guest, frames to the guest.

use ring_proto::conn::BackBody;
use ring_proto::net::{
    FEATURE_RX_CSUM, FEATURE_TX_CSUM, FEATURE_TX_TSO4, FLAG_DATA_VALID, FLAG_NEEDS_CSUM, MAX_FRAME,
    MAX_GSO_FRAME, MAX_SEGMENTS, MIN_FRAME, RxRequest, RxResponse, Status, TxRequest, TxResponse,
};
use ring_proto::ring::{BackRing, PeerMisbehaved};
use ring_proto::shm::SharedMem;

use super::{Checksum, RULES};
use crate::conn::{self, Rules, Served, Tag};
use crate::{Piece, count, pieces};

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

/// Both rings of a vif.
#[derive(Debug)]
pub struct Rings {
    tx: BackRing<TxRequest, TxResponse>,
    rx: BackRing<RxRequest, RxResponse>,
    /// Malformed rx buffers that may still be answered in this round.
    rx_budget: u32,
}

impl Served for Vif {
    const RULES: Rules = RULES;
    type Rings = Rings;

    fn features(&self) -> u32 {
        self.features
    }

    fn body(&self) -> BackBody {
        BackBody::Net { mac: self.mac, mtu: self.mtu }
    }

    fn attach(rings: &[(SharedMem, u32)]) -> Option<Rings> {
        let &[(tx, tx_slots), (rx, rx_slots)] = rings else { return None };
        let (tx, mut rx) = (BackRing::attach(tx, tx_slots)?, BackRing::attach(rx, rx_slots)?);
        // Posted rx buffers cause no notification.
        rx.disarm();
        Some(Rings { tx, rx, rx_budget: 0 })
    }

    fn look_or_arm(rings: &mut Rings) -> Result<bool, PeerMisbehaved> {
        rings.tx.look_or_arm()
    }

    fn begin_round(rings: &mut Rings) -> u32 {
        rings.rx_budget = rings.rx.slots();
        rings.tx.slots()
    }

    fn publish(rings: &mut Rings) -> Option<bool> {
        let any = rings.tx.unpublished() > 0 || rings.rx.unpublished() > 0;
        any.then(|| rings.rx.publish() | rings.tx.publish())
    }
}

/// The network backend of one connection.
pub type Backend = conn::Backend<Vif>;

type Session = conn::Session<Rings>;

impl Backend {
    /// The next valid frame. Malformed ones are answered here. Gives at most
    /// as many as the ring has slots between two calls of `poll` or
    /// `push_responses`.
    pub fn next_tx(&mut self) -> Option<TxFrame> {
        loop {
            let request = self.take(|rings| rings.tx.pop())?;
            let tag = self.tag(request.id);
            let session = self.session.as_mut()?;
            if let Some(frame) = validate(session, &request, tag) {
                self.begin();
                return Some(frame);
            }
            count(&mut self.counters.invalid);
            answer_tx(session, request.id, Status::Invalid);
        }
    }

    /// Copies the beginning of a frame into private memory, once: decide on
    /// the copy, and send the copy, since the guest can change the original.
    /// Returns the bytes copied, 0 if the guest is gone.
    pub fn copy_head(&self, frame: &TxFrame, to: &mut [u8]) -> usize {
        let Some(session) = self.session_of(frame.tag) else { return 0 };
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
        if let Some(session) = self.end(tag) {
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
        loop {
            let session = self.live().ok_or(DeliverError::NotConnected)?;
            let request = match session.rings.rx.pop() {
                Ok(Some(request)) => request,
                Ok(None) => return Err(DeliverError::NoBuffer),
                Err(PeerMisbehaved) => {
                    self.break_off();
                    return Err(DeliverError::NotConnected);
                }
            };
            let buffer = request.buffer;
            let place = session.pool.sub(buffer.offset as usize, buffer.len as usize);
            let valid =
                request.reserved == 0 && place.is_some_and(|place| place.copy_to(0, frame).is_ok());
            let wants = session.features & FEATURE_RX_CSUM != 0;
            let flags = if valid && checksum_valid && wants { FLAG_DATA_VALID } else { 0 };
            let response = RxResponse {
                id: request.id,
                len: if valid { len } else { 0 },
                status: if valid { Status::Ok } else { Status::Invalid } as u8,
                flags,
                reserved: [0; 6],
            };
            // Never full: this request was taken just now.
            let _ = session.rings.rx.push(&response);
            if valid {
                return Ok(());
            }
            session.rings.rx_budget = session.rings.rx_budget.saturating_sub(1);
            let budget = session.rings.rx_budget;
            count(&mut self.counters.invalid);
            if budget == 0 {
                return Err(DeliverError::NoBuffer);
            }
        }
    }
}

fn answer_tx(session: &mut Session, id: u32, status: Status) {
    // Full only if the driver completes a frame twice: nothing to answer.
    let _ = session.rings.tx.push(&TxResponse { id, status: status as u8, reserved: [0; 3] });
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
