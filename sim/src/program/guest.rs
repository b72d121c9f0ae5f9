//! A guest: a block and a network frontend, and random work for both.

use ring_ends::{blk, net};
use ring_proto::blk::{Op, SECTOR, Segment, Status};
use ring_proto::conn::{Protocol, Role};
use ring_proto::shm::SharedMem;

use super::{Turn, earlier};
use crate::disk::{MOST, TORN};
use crate::env::DomainEnv;
use crate::nic::{FRAME, Frame};
use crate::node;
use crate::report::{rule, trace};

/// Bytes of a request's buffer.
const BUFFER: u32 = MOST as u32 * SECTOR as u32;
const BUFFERS: u32 = node::BLK_POOL.1 * 4096 / BUFFER;
/// Most requests and frames in one round.
const ROUND: u32 = 3;

/// A guest.
pub(crate) struct Guest {
    number: usize,
    ready: bool,
    blk: blk::Frontend,
    net: net::Frontend,
    pool: SharedMem,
    free: Vec<u32>,
    /// Token and buffer of each request under way.
    buffers: Vec<(u64, u32)>,
}

impl Guest {
    pub(super) fn new(env: &mut DomainEnv<'_>, number: usize) -> Self {
        let me = env.me;
        let own = |env: &DomainEnv<'_>, protocol: Protocol| {
            let all = env.world.hv.connections.iter();
            let mut own = all.filter(|c| c.frontend.domain == me && c.protocol == protocol as u16);
            own.next().copied()
        };
        let (Some(disk), Some(wire)) = (own(env, Protocol::Blk), own(env, Protocol::Net)) else {
            panic!("guest {number} has a volume and a vif")
        };
        let region = |(first, pages)| env.region(first, pages);
        let blk = blk::Frontend::new(blk::FrontendConfig {
            pages: env.pages(&disk, Role::Frontend),
            port: disk.frontend.port,
            peer: disk.backend.domain,
            ring: region(node::BLK_RING),
            pool: region(node::BLK_POOL),
            slots: node::BLK_SLOTS,
        });
        let net = net::Frontend::new(net::FrontendConfig {
            pages: env.pages(&wire, Role::Frontend),
            port: wire.frontend.port,
            peer: wire.backend.domain,
            tx_ring: region(node::TX_RING),
            rx_ring: region(node::RX_RING),
            pool: region(node::NET_POOL),
            slots: node::NET_SLOTS,
        });
        let (Ok(blk), Ok(net)) = (blk, net) else { panic!("the configuration of guest {number}") };
        let pool = region(node::BLK_POOL).mem;
        let free = (0..BUFFERS).collect();
        Self { number, ready: false, blk, net, pool, free, buffers: Vec::new() }
    }

    pub(super) fn misbehaviours(&self) -> u64 {
        self.blk.counters().misbehaviours + self.net.counters().misbehaviours
    }

    /// Its number, counting from 0.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Whether both its backends are there.
    pub(crate) fn is_connected(&self) -> bool {
        self.blk.is_connected() && self.net.is_connected()
    }

    /// How often its vif went down in this life.
    pub(crate) fn losses(&self) -> u64 {
        self.net.counters().disconnects
    }

    /// Requests that it sent again in this life.
    pub(crate) fn replayed(&self) -> u64 {
        self.blk.counters().replayed
    }

    pub(super) fn turn(&mut self, env: &mut DomainEnv<'_>) -> Turn {
        if !self.ready {
            self.ready = true;
            env.world.hv.set_ready(env.me);
        }
        let number = self.number;
        let mut progress = self.blk.poll(env);
        if self.blk.is_connected() && !env.world.volumes[number].settled {
            let world = &mut *env.world;
            world.volumes[number].settle(&world.disk.current);
        }
        let mut busy = false;
        while let Some(done) = self.blk.next_completion() {
            busy = true;
            self.completed(env, done);
            // It is slow now and then, and leaves the rest for its next round.
            if env.world.rng.u8(..4) == 0 {
                break;
            }
        }
        rule!(
            self.blk.in_flight() == env.world.volumes[number].outstanding(),
            "{} requests are under way, and the frontend has {}",
            env.world.volumes[number].outstanding(),
            self.blk.in_flight()
        );
        progress = progress.and(self.net.poll(env));
        let mut bytes = [0; FRAME];
        while let Some(got) = self.net.receive(&mut bytes) {
            busy = true;
            let frame = Frame::read(&bytes).filter(|f| f.guest == number && got.len == FRAME);
            let Some(frame) = frame else {
                crate::report::violated(format_args!("guest {number} received a torn frame"))
            };
            trace!("guest {number}: received {frame:?}");
            env.world.frames[number].received(frame.number);
        }
        busy |= self.submit(env);
        busy |= self.send(env);
        self.blk.kick(env);
        self.net.kick(env);
        if busy || progress.again {
            return Turn::Again;
        }
        let mut deadline = earlier(u64::MAX, progress.deadline);
        let world = &mut *env.world;
        let more = world.volumes[number].settled && world.requests_left[number] > 0;
        if more && self.blk.room() > 0 && !self.free.is_empty()
            || self.net.tx_room() > 0 && world.frames_left[number] > 0
        {
            // It thinks for a while.
            deadline = deadline.min(world.hv.now + world.rng.u64(..500_000));
        }
        Turn::Wait(deadline)
    }

    fn completed(&mut self, env: &mut DomainEnv<'_>, done: blk::Completion) {
        let world = &mut *env.world;
        let asked = world.volumes[self.number].complete(done.token);
        trace!("guest {}: {:?} of {}+{} ended", self.number, asked.op, asked.sector, asked.sectors);
        rule!(done.status == Status::Ok, "{asked:?} ended with {:?}", done.status);
        let place = self.buffers.iter().position(|&(token, _)| token == done.token);
        let buffer = place.map(|at| self.buffers.swap_remove(at).1);
        let volume = &mut world.volumes[self.number];
        match asked.op {
            Op::Read => {
                let mut values = [0; MOST];
                let base = buffer.unwrap_or_default() * BUFFER;
                for (value, s) in values.iter_mut().zip(0..asked.sectors) {
                    let at = base as usize + s * SECTOR as usize;
                    let word = |at| self.pool.read::<u64>(at).unwrap_or(TORN);
                    let (first, last) = (word(at), word(at + SECTOR as usize - 8));
                    *value = if first == last { first } else { TORN };
                }
                volume.has_read(&asked, values);
            }
            Op::Flush => volume.has_flushed(&asked, &world.disk.stable),
            Op::Write | Op::Discard | Op::WriteZeroes => {
                volume.has_changed(&asked, &world.disk.current);
            }
        }
        self.free.extend(buffer);
    }

    /// Asks for something.
    fn submit(&mut self, env: &mut DomainEnv<'_>) -> bool {
        let mut any = false;
        let world = &mut *env.world;
        if !world.volumes[self.number].settled {
            return false;
        }
        for _ in 0..world.rng.u32(..=ROUND) {
            if world.requests_left[self.number] == 0 || self.blk.room() == 0 {
                break;
            }
            let op = match world.rng.u8(..16) {
                0..5 => Op::Read,
                5..12 => Op::Write,
                12..14 => Op::Flush,
                14 => Op::Discard,
                _ => Op::WriteZeroes,
            };
            let data = matches!(op, Op::Read | Op::Write);
            let buffer = if data { self.free.pop() } else { None };
            if data && buffer.is_none() {
                break;
            }
            let span = world.span.max(1);
            let sectors = if op == Op::Flush { 0 } else { 1 + world.rng.usize(..MOST.min(span)) };
            let sector = if op == Op::Flush { 0 } else { world.rng.usize(..=span - sectors) };
            let volume = &mut world.volumes[self.number];
            let (token, stamp) = volume.ask(op, sector, sectors);
            let mut segments = heapless::Vec::<Segment, MOST>::new();
            if let Some(buffer) = buffer {
                self.buffers.push((token, buffer));
                let base = buffer * BUFFER;
                let len = sectors as u32 * SECTOR as u32;
                let cut = world.rng.u32(0..sectors as u32) * SECTOR as u32;
                for (offset, len) in [(base, cut), (base + cut, len - cut)] {
                    if len > 0 {
                        let _ = segments.push(Segment { offset, len });
                    }
                }
                for s in 0..sectors {
                    let at = base as usize + s * SECTOR as usize;
                    let value = if op == Op::Write { stamp + s as u64 } else { TORN - 1 };
                    for at in [at, at + SECTOR as usize - 8] {
                        let written = self.pool.write(at, &value);
                        debug_assert!(written.is_ok());
                    }
                }
            }
            trace!("guest {}: {op:?} of {sector}+{sectors}, {stamp:#x}", self.number);
            let ranged = matches!(op, Op::Discard | Op::WriteZeroes);
            let io = blk::Io {
                op,
                sector: sector as u64,
                sectors: if ranged { sectors as u64 } else { 0 },
                segments: &segments,
            };
            let taken = self.blk.submit(io, token);
            rule!(taken.is_ok(), "the frontend refused a request: {taken:?}");
            world.requests_left[self.number] -= 1;
            any = true;
        }
        any
    }

    /// Sends frames.
    fn send(&mut self, env: &mut DomainEnv<'_>) -> bool {
        let mut any = false;
        let world = &mut *env.world;
        for _ in 0..world.rng.u32(..=ROUND) {
            if world.frames_left[self.number] == 0 || self.net.tx_room() == 0 {
                break;
            }
            let losses = self.losses();
            let number = world.frames[self.number].send(losses);
            let frame = Frame { guest: self.number, number };
            trace!("guest {}: sends {frame:?}", self.number);
            let sent = self.net.transmit(&frame.bytes(), None);
            rule!(sent.is_ok(), "the frontend refused a frame: {sent:?}");
            world.frames_left[self.number] -= 1;
            any = true;
        }
        any
    }
}
