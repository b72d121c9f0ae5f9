//! The NIC's driver domain: the real backends, and a loop in the order of
//! `driver-domains/net/src/service.rs`, without the switch: every frame of a
//! guest goes to the wire, and every frame of the wire to the guest it names.

use io_limits::{Limiter, Turns};
use ring_ends::Window;
use ring_ends::net::{Backend, BackendConfig, Tag, TxFrame, Vif};
use ring_proto::boot::Limits;
use ring_proto::conn::Role;
use ring_proto::crash::Reason;
use ring_proto::layout;
use ring_proto::net::Status;

use super::{POLL_NS, STUCK_NS, Turn, connections, poll_all};
use crate::env::DomainEnv;
use crate::hv::PAGE;
use crate::nic::{FRAME, Frame, HEAD};
use crate::node;
use crate::report::{rule, trace};

const QUANTUM: u64 = 65_536;
const FRAME_COST: u64 = 256;
/// Frames that the NIC has at a time.
const COOKIES: u32 = 4;
/// Frames of the wire that are taken in one round.
const RX_TURN: usize = 3;
/// How long after the last frame was sent an interrupt counts as lost, ns.
const SENT_NS: u64 = 1_000_000;

struct Client {
    backend: Backend,
    pool_page: u32,
}

/// The driver.
pub(crate) struct Driver {
    enabled: bool,
    clients: Vec<Client>,
    turns: Turns,
    sent: [Option<(usize, Tag)>; COOKIES as usize],
    free: Vec<u32>,
    last_sent: u64,
    rounds: u32,
    poll_rounds: u32,
}

impl Driver {
    pub(super) fn new(env: &mut DomainEnv<'_>) -> Self {
        let mut turns = Turns::new(QUANTUM, u64::MAX);
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
                Vif { mac: [2, 0, 0, 0, 0, number as u8], mtu: 1500, features: 0 },
            );
            clients.push(Client { backend, pool_page });
        }
        Self {
            enabled: false,
            clients,
            turns,
            sent: [None; COOKIES as usize],
            free: (0..COOKIES).collect(),
            last_sent: env.world.hv.now,
            rounds: 0,
            poll_rounds: 1 << env.world.rng.u32(..4),
        }
    }

    pub(super) fn misbehaviours(&self) -> u64 {
        self.clients.iter().map(|c| c.backend.counters().misbehaviours).sum()
    }

    pub(super) fn turn(&mut self, env: &mut DomainEnv<'_>) -> Turn {
        if !self.enabled {
            self.enabled = true;
            env.world.nic.reset();
            env.point();
            env.world.hv.device_enable(env.me);
            env.world.hv.set_ready(env.me);
            return Turn::Again;
        }
        env.world.nic.set_interrupts(false);
        self.rounds = self.rounds.wrapping_add(1);
        let mut busy = self.completions(env);
        busy |= self.receive_frames(env);
        busy |= self.serve_guests(env);
        if busy {
            for client in &mut self.clients {
                client.backend.push_responses(env);
            }
            if !self.rounds.is_multiple_of(self.poll_rounds) {
                return Turn::Again;
            }
        }
        let (mut again, deadline) = self.poll(env);
        if let Some(number) = env.world.hv.is_to_drain(env.me) {
            for client in &mut self.clients {
                again |= client.backend.leave();
            }
            if self.clients.iter().all(|client| client.backend.has_left()) {
                env.world.hv.drained(env.me, number);
            }
        }
        if busy || again || env.world.nic.set_interrupts(true) {
            return Turn::Again;
        }
        Turn::Wait(deadline)
    }

    fn poll(&mut self, env: &mut DomainEnv<'_>) -> (bool, u64) {
        let backends = self.clients.iter_mut().map(|client| &mut client.backend);
        let (again, mut deadline) = poll_all(backends, &mut self.turns, env);
        let now = env.world.hv.now;
        if self.in_flight() == 0 {
            self.last_sent = now;
        } else {
            let idle = now.saturating_sub(self.last_sent);
            let stuck = env.world.nic.stuck;
            if idle > STUCK_NS || (idle > POLL_NS && stuck && env.world.says_stuck) {
                rule!(stuck, "the NIC works, and its driver gave up on it after {idle} ns");
                env.end(Reason::Panic);
            }
            // The more it waited already, the less it hurries: steps are dear here.
            deadline = deadline.min(now + SENT_NS.max(idle / 2));
        }
        (again && self.has_room(), deadline)
    }

    fn in_flight(&self) -> usize {
        self.sent.iter().flatten().count()
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn completions(&mut self, env: &mut DomainEnv<'_>) -> bool {
        let mut any = false;
        while let Some(cookie) = env.world.nic.next_sent() {
            any = true;
            let Some((client, tag)) = self.sent[cookie as usize].take() else { continue };
            self.free.push(cookie);
            self.clients[client].backend.complete_tx(tag, Status::Ok);
        }
        if any {
            self.last_sent = env.world.hv.now;
        }
        any
    }

    fn receive_frames(&mut self, env: &mut DomainEnv<'_>) -> bool {
        for done in 0..RX_TURN {
            let Some(bytes) = env.world.nic.receive() else { return done > 0 };
            let Some(frame) = Frame::read(&bytes) else { continue };
            let Some(client) = self.clients.get_mut(frame.guest) else { continue };
            if client.backend.deliver(&bytes, false).is_ok() {
                trace!("net: {frame:?} delivered");
                env.world.frames[frame.guest].delivered(frame.number);
            }
        }
        true
    }

    fn serve_guests(&mut self, env: &mut DomainEnv<'_>) -> bool {
        let mut any = false;
        self.turns.begin_round();
        while self.has_room()
            && let Some(index) = self.turns.pick(env.world.hv.now)
        {
            let Some(frame) = self.clients.get_mut(index).and_then(|c| c.backend.next_tx()) else {
                self.turns.empty(index);
                continue;
            };
            any = true;
            let len = u64::from(frame.len);
            self.turns.charge(index, len + FRAME_COST, 1, len);
            if !self.forward(env, index, &frame) {
                self.clients[index].backend.complete_tx(frame.tag, Status::Dropped);
            }
        }
        any
    }

    /// Gives a frame to the NIC. False: it is dropped.
    fn forward(&mut self, env: &mut DomainEnv<'_>, index: usize, frame: &TxFrame) -> bool {
        let client = &self.clients[index];
        let mut head = [0; HEAD];
        if client.backend.copy_head(frame, &mut head) != HEAD {
            return false;
        }
        let [piece] = frame.segments.as_slice() else {
            crate::report::violated(format_args!("a frame of one piece has {:?}", frame.segments))
        };
        rule!(frame.len as usize == FRAME, "NET-3: {frame:?}");
        let pool = client.backend.pool().map_or(0, |pool| pool.address());
        let offset = piece.address.wrapping_sub(pool);
        rule!(offset == u64::from(piece.offset), "NET-4: {piece:?}");
        let rest = layout::GRANT_WINDOW + u64::from(client.pool_page) * PAGE + offset + HEAD as u64;
        let Some(cookie) = self.free.pop() else { return false };
        let generation = env.world.hv.domains[node::guest(index)].info.generation;
        env.world.nic.send(head, rest, cookie, (index, generation));
        self.sent[cookie as usize] = Some((index, frame.tag));
        true
    }
}
