//! The block backend: validates requests and answers them.

use ring_proto::blk::{
    FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_REQUEST_BYTES, MAX_SEGMENTS, Op,
    Request, Response, SECTOR, Status,
};
use ring_proto::conn::BackBody;
use ring_proto::ring::{BackRing, PeerMisbehaved};
use ring_proto::shm::SharedMem;

use super::{RULES, SECTOR_BYTES};
use crate::conn::{self, Rules, Served, Tag};
use crate::{Piece, count, pieces};

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// Start and length of requests must be multiples of this: a power of
    /// two, at least 512.
    pub block_size: u32,
    /// No writes.
    pub read_only: bool,
    /// `FEATURE_*` bits that the device offers.
    pub features: u32,
}

/// A request whose every field was checked.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    /// For [`Backend::complete`].
    pub tag: Tag,
    /// What to do.
    pub op: Op,
    /// First sector, on the volume.
    pub sector: u64,
    /// Sectors; all on the volume. Flush: 0.
    pub sectors: u64,
    /// Read, write: where the data is. Together `sectors` long.
    pub segments: heapless::Vec<Piece, MAX_SEGMENTS>,
}

impl Served for Volume {
    const RULES: Rules = RULES;
    type Rings = BackRing<Request, Response>;

    fn features(&self) -> u32 {
        self.features
    }

    fn body(&self) -> BackBody {
        BackBody::Blk {
            sectors: self.sectors,
            block_size: self.block_size,
            read_only: self.read_only,
        }
    }

    fn attach(rings: &[(SharedMem, u32)]) -> Option<Self::Rings> {
        rings.first().and_then(|&(mem, slots)| BackRing::attach(mem, slots))
    }

    fn look_or_arm(ring: &mut Self::Rings) -> Result<bool, PeerMisbehaved> {
        ring.look_or_arm()
    }

    fn begin_round(ring: &mut Self::Rings) -> u32 {
        ring.slots()
    }

    fn publish(ring: &mut Self::Rings) -> Option<bool> {
        (ring.unpublished() > 0).then(|| ring.publish())
    }
}

/// The block backend of one connection.
pub type Backend = conn::Backend<Volume>;

type Session = conn::Session<<Volume as Served>::Rings>;

impl Backend {
    /// The next valid request. Malformed ones are answered here. Gives at most
    /// as many as the ring has slots between two calls of `poll` or
    /// `push_responses`.
    pub fn next_request(&mut self) -> Option<ValidRequest> {
        loop {
            let request = self.take(BackRing::pop)?;
            let tag = self.tag(request.id);
            let session = self.session.as_mut()?;
            match validate(&self.served, session, &request) {
                Ok((op, sectors, segments)) => {
                    self.begin();
                    let sector = request.sector;
                    return Some(ValidRequest { tag, op, sector, sectors, segments });
                }
                Err(status) => {
                    count(&mut self.counters.invalid);
                    answer(session, request.id, status);
                }
            }
        }
    }

    /// Answers a request; [`Self::push_responses`] shows it to the frontend.
    /// Call it exactly once for each valid request, also when the frontend
    /// is gone: it says that the device no longer touches the memory.
    pub fn complete(&mut self, tag: Tag, status: Status) {
        if let Some(session) = self.end(tag) {
            answer(session, tag.id, status);
        }
    }
}

fn answer(session: &mut Session, id: u32, status: Status) {
    // Full only if the driver completes a request twice: nothing to answer.
    let _ = session.rings.push(&Response { id, status: status as u8, reserved: [0; 3] });
}

type Checked = (Op, u64, heapless::Vec<Piece, MAX_SEGMENTS>);

fn validate(volume: &Volume, session: &Session, request: &Request) -> Result<Checked, Status> {
    let op = Op::from_raw(request.op).ok_or(Status::Invalid)?;
    if request.reserved != 0 {
        return Err(Status::Invalid);
    }
    let (needs, writes) = match op {
        Op::Read => (0, false),
        Op::Write => (0, true),
        Op::Flush => (FEATURE_FLUSH, false),
        Op::Discard => (FEATURE_DISCARD, true),
        Op::WriteZeroes => (FEATURE_WRITE_ZEROES, true),
    };
    if session.features & needs != needs || (writes && volume.read_only) {
        return Err(Status::Unsupported);
    }
    let (segments, bytes) =
        pieces::validate(&session.pool, &request.segments, request.segment_count, SECTOR_BYTES)
            .ok_or(Status::Invalid)?;
    let sectors = match op {
        Op::Read | Op::Write => {
            let sized = bytes > 0 && bytes <= u64::from(MAX_REQUEST_BYTES);
            if !sized || request.sectors != 0 {
                return Err(Status::Invalid);
            }
            bytes / SECTOR
        }
        Op::Flush => {
            if bytes != 0 || request.sectors != 0 || request.sector != 0 {
                return Err(Status::Invalid);
            }
            return Ok((op, 0, segments));
        }
        Op::Discard | Op::WriteZeroes => {
            if bytes != 0 || request.sectors == 0 {
                return Err(Status::Invalid);
            }
            request.sectors
        }
    };
    let unit = u64::from(volume.block_size) / SECTOR;
    let end = request.sector.checked_add(sectors).ok_or(Status::Invalid)?;
    let aligned =
        unit <= 1 || (request.sector.is_multiple_of(unit) && sectors.is_multiple_of(unit));
    if end > volume.sectors || !aligned {
        return Err(Status::Invalid);
    }
    Ok((op, sectors, segments))
}
