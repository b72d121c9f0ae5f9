//! Blocks: random reads and writes of 4 KiB, some of 16 KiB over several segments,
//! some of the same few blocks, and flushes in between.
//!
//! What a block must hold is known from its first write on ([`Model`]). All blocks
//! are written before the first round, so that there is none whose content does
//! not matter.

use alloc::{vec, vec::Vec};

use domain_rt::{
    env::DomainEnv,
    events, random,
    time::{NEVER, now_ns},
};
use guest_io::connect;
use judge_orders::{MAX_WINDOW, READ_ONLY, VERIFY, VERIFY_ALL, VERIFY_BEFORE, WRITE_ONLY};
use ring_ends::{
    Counters, Progress,
    blk::{Completion, Frontend, Io},
};
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, SECTOR, Segment, Status},
    shm::SharedMem,
};
use test_content::{label::LABEL, random::Random};

use crate::{Step, Work, model::Model, round::Round};

/// Bytes of a block.
const BLOCK: usize = PAGE_SIZE;
const SECTORS: u64 = BLOCK as u64 / SECTOR;
/// Most blocks that are used.
const REGION: u64 = 2048;
/// Blocks of a large request.
const LARGE: usize = 4;
/// Blocks that are written more often than others, so that writes of one meet.
const HOT: u16 = 16;
/// Requests in flight at a time, at most.
const SLOTS: usize = MAX_WINDOW as usize;
/// Times that a request looks for blocks that it may have now.
const PICKS: u32 = 8;
/// Blocks of older rounds that are read back at the end of one.
const SAMPLE: usize = 16;

/// A request in flight. Its buffer is page `slot + i * SLOTS` for its i-th block, so
/// that a large one has as many segments as blocks.
#[derive(Clone, Copy)]
struct Request {
    op: Op,
    first: usize,
    count: usize,
    /// Of a write, for each block.
    versions: [u64; LARGE],
    /// It is one of those that this round was ordered to make.
    ordered_in: Option<u64>,
}

/// What a round is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Work,
    Verify,
    Repair,
    Quiet(u64),
}

pub(crate) struct Blocks {
    front: Frontend,
    env: DomainEnv,
    pool: SharedMem,
    model: Model,
    slots: [Option<Request>; SLOTS],
    free: Vec<usize>,
    random: Random,
    phase: Phase,
    /// Numbers of this round and of the one before.
    number: u64,
    before: u64,
    /// Blocks to read back or to write anew, first and count.
    queue: Vec<(usize, usize)>,
    data: Vec<u8>,
}

impl Blocks {
    /// Connects, and writes all blocks.
    pub(crate) fn open() -> Result<Self, &'static str> {
        let (connection, mut front, pool) =
            connect::blk((SLOTS * LARGE) as u32).map_err(|_| "no blk connection or no memory")?;
        front.complain_after(connect::patience(&connection));
        let mut env = DomainEnv;
        let sectors = loop {
            let _ = events::take_all();
            let progress = front.poll(&mut env);
            if let Some(geometry) = front.geometry() {
                break geometry.sectors;
            }
            rest(progress);
        };
        // Whole large requests.
        let blocks = (sectors / SECTORS).min(REGION) as usize / LARGE * LARGE;
        if blocks < usize::from(HOT) {
            return Err("the volume is too small");
        }
        let mut this = Self {
            front,
            env,
            pool,
            model: Model::new(random::seed(), blocks),
            slots: [None; SLOTS],
            free: (0..SLOTS).collect(),
            random: Random::new(0),
            phase: Phase::Work,
            number: 0,
            before: 0,
            queue: (0..blocks).step_by(LARGE).map(|first| (first, LARGE)).collect(),
            data: vec![0; BLOCK],
        };
        while !this.queue.is_empty() || this.free.len() < SLOTS {
            let _ = events::take_all();
            let progress = this.front.poll(&mut this.env);
            let mut again = progress.again;
            while let Some(completion) = this.front.next_completion() {
                if completion.status != Status::Ok {
                    return Err("a block can't be written");
                }
                this.ended(completion, None);
                again = true;
            }
            again |= this.write_queue(0, SLOTS);
            rest(Progress { again, ..progress });
        }
        Ok(this)
    }

    /// Submits a request of blocks that it may have.
    fn submit(&mut self, op: Op, first: usize, count: usize, round: u64, ordered: bool) {
        let Some(slot) = self.free.pop() else { return };
        let mut request = Request {
            op,
            first,
            count,
            versions: [0; LARGE],
            ordered_in: ordered.then_some(round),
        };
        let page = |i: usize| (slot + i * SLOTS) * BLOCK;
        let segments: [Segment; LARGE] =
            core::array::from_fn(|i| Segment { offset: page(i) as u32, len: BLOCK as u32 });
        for (i, version) in request.versions.iter_mut().enumerate().take(count) {
            if op == Op::Write {
                self.model.write(first + i, round, &mut self.data);
                *version = self.model.newest(first + i);
                // The page is in the pool.
                let _ = self.pool.copy_to(page(i), &self.data);
            } else {
                // What an earlier request left there must not pass for an answer.
                let _ = self.pool.copy_to(page(i), &[0; LABEL]);
            }
        }
        if op == Op::Read {
            self.model.read(first, count);
        }
        let sector = first as u64 * SECTORS;
        let segments = segments.get(..count).unwrap_or_default();
        // There are more places than slots, and the segments are in the pool.
        let taken = self.front.submit(Io { op, sector, sectors: 0, segments }, slot as u64);
        debug_assert!(taken.is_ok(), "the frontend refused a request");
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(request);
        }
    }

    /// A request came to its end.
    fn ended(&mut self, completion: Completion, mut round: Option<&mut Round>) {
        let slot = completion.token as usize;
        let Some(request) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.free.push(slot);
        let well = completion.status == Status::Ok;
        for (i, &version) in request.versions.iter().enumerate().take(request.count) {
            let block = request.first + i;
            if request.op == Op::Write {
                self.model.written(block, version, well);
                continue;
            }
            let copied = self.pool.copy_from((slot + i * SLOTS) * BLOCK, &mut self.data).is_ok();
            let data = Some(&*self.data).filter(|_| well && copied);
            let judged = self.model.was_read(block, data);
            if let (Some(round), Err(what)) = (round.as_deref_mut(), judged) {
                round.wrong(what);
            }
        }
        let Some(round) = round else { return };
        round.seen.errors += u64::from(!well);
        if request.ordered_in == Some(round.orders.round) {
            round.completed();
        } else if self.phase == Phase::Verify {
            round.seen.verified += request.count as u64;
        }
    }

    /// One of the requests that a round is made of.
    fn submit_next(&mut self, round: &mut Round) {
        let number = round.orders.round;
        round.submitted();
        let choice = self.random.number();
        let count = if choice >> 8 & 3 == 0 { LARGE } else { 1 };
        let hot = choice >> 10 & 3 == 0;
        let op = match choice & 15 {
            _ if round.orders.flags & READ_ONLY != 0 => Op::Read,
            4..=15 if round.orders.flags & WRITE_ONLY != 0 => Op::Write,
            0..=3 if round.orders.flags & WRITE_ONLY != 0 => Op::Flush,
            0 => Op::Flush,
            1..=8 => Op::Write,
            _ => Op::Read,
        };
        for _ in 0..PICKS {
            let end = if hot { HOT } else { self.model.len() as u16 };
            let first = usize::from(self.random.below(end)).min(self.model.len() - count);
            let fits = match op {
                Op::Read => self.model.may_read(first, count),
                Op::Write => self.model.may_write(first, count),
                _ => break,
            };
            if fits {
                return self.submit(op, first, count, number, true);
            }
        }
        self.submit(Op::Flush, 0, 0, number, true);
    }

    /// What is to be read back at the end of a round.
    fn plan(&mut self, round: &Round) {
        let flags = round.orders.flags;
        if flags & VERIFY_ALL != 0 {
            self.queue.extend((0..self.model.len()).step_by(LARGE).map(|first| (first, LARGE)));
            return;
        }
        if flags & VERIFY_BEFORE != 0 {
            self.queue.extend(self.model.of_round(self.before).map(|block| (block, 1)));
        }
        if flags & VERIFY != 0 {
            self.queue.extend(self.model.of_round(round.orders.round).map(|block| (block, 1)));
            let end = self.model.len() as u16;
            for _ in 0..SAMPLE {
                self.queue.push((usize::from(self.random.below(end)), 1));
            }
        }
    }

    /// Writes what is in the queue, as far as `window` allows. Returns whether there was room.
    fn write_queue(&mut self, round: u64, window: usize) -> bool {
        let mut any = false;
        while SLOTS - self.free.len() < window
            && let Some(&(first, count)) = self.queue.last()
            && self.model.may_write(first, count)
        {
            self.queue.pop();
            self.submit(Op::Write, first, count, round, false);
            any = true;
        }
        self.front.kick(&mut self.env);
        any
    }

    /// Goes on to the phase that comes next, if this one is over.
    fn advance(&mut self, round: &Round) -> bool {
        let idle = self.queue.is_empty() && self.free.len() == SLOTS;
        self.phase = match self.phase {
            // Those that a round before gave up must end, too: they are in the way of what
            // is read back.
            Phase::Work if round.is_worked_off() && idle => {
                self.plan(round);
                Phase::Verify
            }
            Phase::Verify if idle => {
                let verifies = round.orders.flags & (VERIFY | VERIFY_ALL | VERIFY_BEFORE) != 0;
                let unsure = (0..self.model.len()).filter(|&block| self.model.is_unsure(block));
                self.queue.extend(unsure.filter(|_| verifies).map(|block| (block, 1)));
                Phase::Repair
            }
            Phase::Repair if idle => Phase::Quiet(now_ns().saturating_add(round.orders.quiet_ns)),
            _ => return false,
        };
        true
    }
}

impl Work for Blocks {
    fn poll(&mut self) -> Progress {
        self.front.poll(&mut self.env)
    }

    fn counters(&self) -> Counters {
        self.front.counters()
    }

    fn begin(&mut self, round: &Round) {
        self.random = Random::new(round.orders.seed);
        self.phase = Phase::Work;
        self.before = core::mem::replace(&mut self.number, round.orders.round);
        self.queue.clear();
    }

    fn step(&mut self, round: &mut Round) -> Step {
        let mut again = false;
        while let Some(completion) = self.front.next_completion() {
            self.ended(completion, Some(round));
            again = true;
        }
        again |= self.advance(round);
        let window = round.orders.window;
        let mut deadline = NEVER;
        let mut done = false;
        match self.phase {
            Phase::Work => {
                while !self.free.is_empty() && round.may_submit(window) {
                    self.submit_next(round);
                    again = true;
                }
                // With no place left, an answer comes first.
                deadline = if self.free.is_empty() { NEVER } else { round.next_ns(window) };
            }
            Phase::Verify => {
                while SLOTS - self.free.len() < window as usize
                    && let Some((first, count)) = self.queue.pop()
                {
                    self.submit(Op::Read, first, count, round.orders.round, false);
                    again = true;
                }
            }
            Phase::Repair => again |= self.write_queue(round.orders.round, window as usize),
            Phase::Quiet(until) => (deadline, done) = (until, now_ns() >= until),
        }
        self.front.kick(&mut self.env);
        Step { again, deadline, done }
    }
}

fn rest(progress: Progress) {
    if progress.again {
        events::breathe();
    } else {
        events::wait(progress.deadline.unwrap_or(NEVER));
    }
}
