//! The disk's driver domain: the real backends, and a loop in the order of
//! `driver-domains/blk/src/service.rs`.

use io_limits::{Limiter, Turns};
use ring_ends::Window;
use ring_ends::blk::{Backend, BackendConfig, Tag, ValidRequest, Volume};
use ring_proto::blk::{
    FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_REQUEST_BYTES, Op, SECTOR,
};
use ring_proto::boot::Limits;
use ring_proto::conn::Role;
use ring_proto::crash::Reason;
use ring_proto::layout;

use super::{POLL_NS, STUCK_NS, Turn, connections, poll_all};
use crate::disk::{Disk, Io, MOST};
use crate::env::DomainEnv;
use crate::hv::PAGE;
use crate::node;
use crate::report::{rule, trace};

const QUANTUM: u64 = MAX_REQUEST_BYTES as u64;
const REQUEST_COST: u64 = 4096;
/// Requests that the disk works on at a time.
const COOKIES: u32 = 6;
/// The flush before service, and the last one.
const FLUSH: u32 = COOKIES;

struct Client {
    backend: Backend,
    /// First sector of the volume on the disk.
    first: usize,
    /// Page of the window at which its pool begins.
    pool_page: u32,
}

#[derive(Clone, Copy)]
struct Work {
    client: usize,
    tag: Tag,
    cost: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first instruction.
    New,
    /// The disk's cache is being flushed.
    Flushing,
    Serving,
    /// It takes no more and has finished its work; the disk's cache is flushed.
    Leaving,
}

/// The driver.
pub(crate) struct Driver {
    phase: Phase,
    clients: Vec<Client>,
    turns: Turns,
    work: [Option<Work>; COOKIES as usize],
    free: Vec<u32>,
    in_flight: usize,
    last_progress: u64,
    rounds: u32,
    /// Busy rounds between two looks at the handshakes.
    poll_rounds: u32,
}

impl Driver {
    pub(super) fn new(env: &mut DomainEnv<'_>) -> Self {
        let mut turns = Turns::new(QUANTUM, 2 * QUANTUM);
        let mut clients = Vec::new();
        for (connection, number) in connections(env, env.me).iter().zip(0u32..) {
            let _ = turns.add(256, Limiter::new(&Limits::default()));
            let (own, peer) = connection.end(Role::Backend);
            let (ring_page, pool_page) =
                (number * node::WINDOW, number * node::WINDOW + node::WINDOW_POOL);
            let backend = Backend::new(
                BackendConfig {
                    pages: env.pages(connection, Role::Backend),
                    port: own.port,
                    peer: peer.domain,
                    window: Window {
                        ring_page,
                        ring_pages: node::WINDOW_POOL,
                        pool_page,
                        pool_pages: node::WINDOW - node::WINDOW_POOL,
                    },
                },
                Volume {
                    sectors: node::SECTORS as u64,
                    block_size: 512,
                    read_only: false,
                    features: FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES,
                },
            );
            let first = env.world.volumes[number as usize].first;
            clients.push(Client { backend, first, pool_page });
        }
        Self {
            phase: Phase::New,
            clients,
            turns,
            work: [None; COOKIES as usize],
            free: (0..COOKIES).collect(),
            in_flight: 0,
            last_progress: env.world.hv.now,
            rounds: 0,
            poll_rounds: 1 << env.world.rng.u32(..4),
        }
    }

    pub(super) fn misbehaviours(&self) -> u64 {
        self.clients.iter().map(|c| c.backend.counters().misbehaviours).sum()
    }

    pub(super) fn turn(&mut self, env: &mut DomainEnv<'_>) -> Turn {
        match self.phase {
            Phase::New => {
                // Before anything else: what an earlier generation asked for ends here.
                let world = &mut *env.world;
                world.disk.reset(&mut world.rng);
                env.point();
                env.world.hv.device_enable(env.me);
                self.flush(env, Phase::Flushing)
            }
            Phase::Flushing | Phase::Leaving => match env.world.disk.next_done() {
                Some(_) => {
                    self.in_flight = 0;
                    env.world.disk.set_interrupts(false);
                    if self.phase == Phase::Flushing {
                        env.world.hv.set_ready(env.me);
                    } else if let Some(number) = env.world.hv.is_to_drain(env.me) {
                        env.world.hv.drained(env.me, number);
                    }
                    self.phase = Phase::Serving;
                    Turn::Again
                }
                None => {
                    self.look_after_device(env);
                    Turn::Wait(env.world.hv.now + POLL_NS)
                }
            },
            Phase::Serving => self.serve(env),
        }
    }

    /// Flushes the disk's cache, with nothing else under way.
    fn flush(&mut self, env: &mut DomainEnv<'_>, phase: Phase) -> Turn {
        let data = [0; MOST];
        let io = Io { op: Op::Flush, sector: 0, sectors: 0, data, cookie: FLUSH };
        env.world.disk.submit(io);
        env.world.disk.set_interrupts(true);
        (self.in_flight, self.phase) = (1, phase);
        Turn::Wait(env.world.hv.now + POLL_NS)
    }

    fn serve(&mut self, env: &mut DomainEnv<'_>) -> Turn {
        env.world.disk.set_interrupts(false);
        self.rounds = self.rounds.wrapping_add(1);
        let mut busy = self.completions(env);
        busy |= self.requests(env);
        if busy && !self.rounds.is_multiple_of(self.poll_rounds) {
            return Turn::Again;
        }
        let (mut again, deadline) = self.poll(env);
        if env.world.hv.is_to_drain(env.me).is_some() {
            for client in &mut self.clients {
                again |= client.backend.leave();
            }
            if self.clients.iter().all(|client| client.backend.has_left()) {
                return self.flush(env, Phase::Leaving);
            }
        }
        if busy || again || env.world.disk.set_interrupts(true) {
            return Turn::Again;
        }
        Turn::Wait(deadline)
    }

    fn poll(&mut self, env: &mut DomainEnv<'_>) -> (bool, u64) {
        let backends = self.clients.iter_mut().map(|client| &mut client.backend);
        let (again, mut deadline) = poll_all(backends, &mut self.turns, env);
        if self.in_flight == 0 {
            self.last_progress = env.world.hv.now;
        } else {
            self.look_after_device(env);
            deadline = deadline.min(env.world.hv.now + POLL_NS);
        }
        (again && self.has_room(), deadline)
    }

    fn look_after_device(&self, env: &mut DomainEnv<'_>) {
        let idle = env.world.hv.now.saturating_sub(self.last_progress);
        let stuck = env.world.disk.stuck;
        if idle > STUCK_NS || (idle > POLL_NS && stuck && env.world.says_stuck) {
            rule!(stuck, "the disk works, and its driver gave up on it after {idle} ns");
            env.end(Reason::Panic);
        }
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn requests(&mut self, env: &mut DomainEnv<'_>) -> bool {
        let mut any = false;
        self.turns.begin_round();
        while self.has_room()
            && let Some(index) = self.turns.pick(env.world.hv.now)
        {
            let next = self.clients.get_mut(index).and_then(|c| c.backend.next_request());
            match next {
                Some(request) => {
                    any = true;
                    self.start(env, index, &request);
                }
                None => self.turns.empty(index),
            }
        }
        if any {
            self.push_responses(env);
        }
        any
    }

    fn push_responses(&mut self, env: &mut DomainEnv<'_>) {
        for client in &mut self.clients {
            client.backend.push_responses(env);
        }
    }

    fn start(&mut self, env: &mut DomainEnv<'_>, index: usize, request: &ValidRequest) {
        let client = &self.clients[index];
        let bytes = match request.op {
            Op::Read | Op::Write | Op::WriteZeroes => request.sectors * SECTOR,
            Op::Flush | Op::Discard => 0,
        };
        let cost = bytes + REQUEST_COST;
        self.turns.started(index, cost, 1, bytes);
        let (sector, sectors) = (request.sector as usize, request.sectors as usize);
        rule!(sector + sectors <= node::SECTORS && sectors <= MOST, "BLK-4: {request:?}");
        // The device's address of a piece is the window's.
        let pool = client.backend.pool().map_or(0, |pool| pool.address());
        let window = layout::GRANT_WINDOW + u64::from(client.pool_page) * PAGE;
        let mut data = [0; MOST];
        let mut places = data.iter_mut();
        for piece in &request.segments {
            let offset = piece.address.wrapping_sub(pool);
            let inside = offset + u64::from(piece.len) <= u64::from(node::BLK_POOL.1) * PAGE;
            rule!(inside && offset == u64::from(piece.offset), "BLK-5: {piece:?}");
            for at in (0..u64::from(piece.len)).step_by(SECTOR as usize) {
                if let Some(place) = places.next() {
                    *place = window + offset + at;
                }
            }
        }
        let Some(cookie) = self.free.pop() else { return };
        let sector = client.first + sector;
        trace!("blk: {:?} of {sector}+{sectors}", request.op);
        env.world.disk.submit(Io { op: request.op, sector, sectors, data, cookie });
        self.work[cookie as usize] = Some(Work { client: index, tag: request.tag, cost });
        self.in_flight += 1;
    }

    fn completions(&mut self, env: &mut DomainEnv<'_>) -> bool {
        let mut any = false;
        while let Some(cookie) = env.world.disk.next_done() {
            let work = self.work.get_mut(cookie as usize).and_then(Option::take);
            let Some(work) = work else { continue };
            self.free.push(cookie);
            self.in_flight -= 1;
            self.turns.finished(work.client, work.cost);
            self.clients[work.client].backend.complete(work.tag, Disk::STATUS);
            any = true;
        }
        if any {
            self.last_progress = env.world.hv.now;
            self.push_responses(env);
        }
        any
    }
}
