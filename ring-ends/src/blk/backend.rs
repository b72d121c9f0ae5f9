//! The block backend: validates requests and answers them.

use ring_proto::blk::{
    FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_REQUEST_BYTES, MAX_SEGMENTS, Op,
    Request, Response, SECTOR, Status,
};
use ring_proto::conn::{BackBody, Pages};
use ring_proto::ring::BackRing;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Generation, Port};

use super::{RULES, SECTOR_BYTES};
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

/// Names a request that was taken, for its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    id: u32,
    /// Which connect it belongs to.
    serial: u32,
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

#[derive(Debug)]
struct Session {
    ring: BackRing<Request, Response>,
    pool: SharedMem,
    features: u32,
}

/// The block backend of one connection.
#[derive(Debug)]
pub struct Backend {
    link: BackLink,
    volume: Volume,
    session: Option<Session>,
    serial: u32,
    in_flight: u32,
    /// Requests that may still be taken in this round.
    budget: u32,
    /// The peer's ring is broken; the next poll disconnects it.
    broken: bool,
    counters: Counters,
}

impl Backend {
    /// A backend that waits for its frontend.
    pub fn new(config: BackendConfig, volume: Volume) -> Self {
        Self {
            link: BackLink::new(config.pages, config.port, config.peer, config.window, RULES),
            volume,
            session: None,
            serial: 0,
            in_flight: 0,
            budget: 0,
            broken: false,
            counters: Counters::default(),
        }
    }

    /// Drives the handshake. `again` says that [`Self::next_request`] has
    /// something to give.
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
                    match session.ring.look_or_arm() {
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

    /// The next valid request. Malformed ones are answered here. Gives at most
    /// as many as the ring has slots between two calls of `poll` or
    /// `push_responses`.
    pub fn next_request(&mut self) -> Option<ValidRequest> {
        if self.broken {
            return None;
        }
        let session = self.session.as_mut()?;
        while self.budget > 0 {
            self.budget = self.budget.saturating_sub(1);
            let request = match session.ring.pop() {
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
            match validate(&self.volume, session, &request) {
                Ok((op, sectors, segments)) => {
                    self.in_flight = self.in_flight.saturating_add(1);
                    let tag = Tag { id: request.id, serial: self.serial };
                    return Some(ValidRequest {
                        tag,
                        op,
                        sector: request.sector,
                        sectors,
                        segments,
                    });
                }
                Err(status) => {
                    count(&mut self.counters.invalid);
                    answer(session, request.id, status);
                }
            }
        }
        None
    }

    /// Answers a request; [`Self::push_responses`] shows it to the frontend.
    /// Call it exactly once for each valid request, also when the frontend
    /// is gone: it says that the device no longer touches the memory.
    pub fn complete(&mut self, tag: Tag, status: Status) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(session) = &mut self.session
            && tag.serial == self.serial
        {
            answer(session, tag.id, status);
        }
    }

    /// Shows answers to the frontend, with at most one notification. It ends
    /// a round, as `poll` does.
    pub fn push_responses(&mut self, env: &mut impl Env) {
        let Some(session) = &mut self.session else { return };
        self.budget = session.ring.slots();
        if session.ring.unpublished() > 0 {
            let notify = session.ring.publish();
            self.counters.published(env, self.link.port(), notify);
        }
    }

    /// Whether a frontend is being served.
    pub fn is_connected(&self) -> bool {
        self.link.is_up()
    }

    /// The frontend is gone and its memory is still mapped: it stays so until
    /// every request in flight was completed.
    pub fn is_draining(&self) -> bool {
        self.link.is_draining()
    }

    /// Requests given out and not completed.
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
        let features = mapped.features & self.volume.features;
        let ring = mapped.rings.first().and_then(|&(mem, slots)| BackRing::attach(mem, slots));
        let Some(ring) = ring else {
            self.link.misbehaved(env, &mut self.counters, "its ring memory does not do");
            return;
        };
        self.session = Some(Session { ring, pool: mapped.pool, features });
        self.serial = self.serial.wrapping_add(1);
        let body = BackBody::Blk {
            sectors: self.volume.sectors,
            block_size: self.volume.block_size,
            read_only: self.volume.read_only,
        };
        self.link.answer(env, &mut self.counters, features, body);
    }

    fn forget(&mut self) {
        self.session = None;
        self.broken = false;
        self.budget = 0;
    }
}

fn answer(session: &mut Session, id: u32, status: Status) {
    // Full only if the driver completes a request twice: nothing to answer.
    let _ = session.ring.push(&Response { id, status: status as u8, reserved: [0; 3] });
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
