//! What the backends of all protocols have in common: the handshake, and a
//! session with what came of it.

use ring_proto::conn::{BackBody, Pages};
use ring_proto::ring::PeerMisbehaved;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, Generation, Port};

use super::{BackLink, BackStep, Complaint, Mapped, Rules, Window};
use crate::{Counters, Env, Progress, count};

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

/// What a backend serves, and how the protocol's rings carry it.
pub trait Served {
    /// What the protocol demands of a hello.
    const RULES: Rules;
    /// The rings of a connection.
    type Rings;

    /// Features that are offered.
    fn features(&self) -> u32;

    /// What the backend's hello says.
    fn body(&self) -> BackBody;

    /// Attaches to the rings of a frontend; `None` if their memory does not do.
    fn attach(rings: &[(SharedMem, u32)]) -> Option<Self::Rings>;

    /// Whether requests wait; if not, asks to be told of the next one.
    fn look_or_arm(rings: &mut Self::Rings) -> Result<bool, PeerMisbehaved>;

    /// A round begins. Returns how many requests may be taken in it: as many
    /// as there are slots, so that nobody keeps the backend for ever.
    fn begin_round(rings: &mut Self::Rings) -> u32;

    /// Shows new responses. Whether to notify the frontend, or `None` if there
    /// are none.
    fn publish(rings: &mut Self::Rings) -> Option<bool>;
}

/// Names a request that was taken, for its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub(crate) id: u32,
    /// Which connect it belongs to.
    serial: u32,
}

/// While a frontend is connected.
#[derive(Debug)]
pub(crate) struct Session<R> {
    pub(crate) rings: R,
    pub(crate) pool: SharedMem,
    /// What both ends offer.
    pub(crate) features: u32,
}

/// The backend of one connection.
#[derive(Debug)]
pub struct Backend<S: Served> {
    pub(crate) served: S,
    pub(crate) session: Option<Session<S::Rings>>,
    pub(crate) counters: Counters,
    link: BackLink,
    serial: u32,
    in_flight: u32,
    /// Requests that may still be taken in this round.
    budget: u32,
    /// The peer's ring is broken; the next poll disconnects it.
    broken: bool,
    /// It takes no more requests.
    leaving: bool,
}

impl<S: Served> Backend<S> {
    /// A backend that waits for its frontend.
    pub fn new(config: BackendConfig, served: S) -> Self {
        Self {
            served,
            session: None,
            counters: Counters::default(),
            link: BackLink::new(config.pages, config.port, config.peer, config.window, S::RULES),
            serial: 0,
            in_flight: 0,
            budget: 0,
            broken: false,
            leaving: false,
        }
    }

    /// Takes no more requests from now on. Polled on, it closes the connection
    /// in good order once all that it took is completed (CONN-15). Returns
    /// whether that is news, so that a poll is due.
    pub fn leave(&mut self) -> bool {
        !core::mem::replace(&mut self.leaving, true)
    }

    /// Whether it left, nothing of the frontend's is mapped any more, and the
    /// frontend has taken its answers.
    pub fn has_left(&self) -> bool {
        self.link.has_left()
    }

    /// Drives the handshake. `again` says that there are requests to take, or
    /// the handshake goes on.
    pub fn poll(&mut self, env: &mut impl Env) -> Progress {
        self.push_responses(env);
        if self.leaving && self.in_flight == 0 && !self.link.is_leaving() {
            self.link.leave(env, &mut self.counters);
            self.forget();
        }
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
                if let Some(session) = self.session.as_mut().filter(|_| !self.leaving) {
                    match S::look_or_arm(&mut session.rings) {
                        Ok(more) => again = more,
                        Err(PeerMisbehaved) => {
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

    /// Shows answers to the frontend, with at most one notification. It ends
    /// a round, as `poll` does.
    pub fn push_responses(&mut self, env: &mut impl Env) {
        let Some(session) = &mut self.session else { return };
        self.budget = S::begin_round(&mut session.rings);
        if let Some(notify) = S::publish(&mut session.rings) {
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

    /// Takes a request out of the ring with `pop`, if this round has room.
    pub(crate) fn take<R>(
        &mut self,
        pop: impl FnOnce(&mut S::Rings) -> Result<Option<R>, PeerMisbehaved>,
    ) -> Option<R> {
        let session = self.session.as_mut().filter(|_| !self.broken && !self.leaving)?;
        self.budget = self.budget.checked_sub(1)?;
        let request = match pop(&mut session.rings) {
            Ok(request) => request?,
            Err(PeerMisbehaved) => {
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
        Some(request)
    }

    /// Names a request that was taken.
    pub(crate) fn tag(&self, id: u32) -> Tag {
        Tag { id, serial: self.serial }
    }

    /// A valid request is given out; [`Self::end`] is to follow.
    pub(crate) fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request that was given out has ended. The session, if it is still
    /// the one that the request came by.
    pub(crate) fn end(&mut self, tag: Tag) -> Option<&mut Session<S::Rings>> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.session.as_mut().filter(|_| tag.serial == self.serial)
    }

    /// The session that a request came by, if it is still the present one.
    pub(crate) fn session_of(&self, tag: Tag) -> Option<&Session<S::Rings>> {
        self.session.as_ref().filter(|_| tag.serial == self.serial)
    }

    /// The session, if what its rings and pool say can be believed now.
    pub(crate) fn live(&mut self) -> Option<&mut Session<S::Rings>> {
        if self.broken || !self.link.still() { None } else { self.session.as_mut() }
    }

    /// The frontend broke the rules of a ring: the next poll disconnects it.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
    }

    fn attach(&mut self, env: &mut impl Env, mapped: Mapped) {
        let features = mapped.features & self.served.features();
        let Some(rings) = S::attach(&mapped.rings) else {
            self.link.misbehaved(env, &mut self.counters, "its ring memory does not do");
            return;
        };
        self.session = Some(Session { rings, pool: mapped.pool, features });
        self.serial = self.serial.wrapping_add(1);
        self.link.answer(env, &mut self.counters, features, self.served.body());
    }

    fn forget(&mut self) {
        self.session = None;
        self.broken = false;
        self.budget = 0;
    }
}
