//! A guest, a block frontend, a backend, and a disk.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;

use ring_ends::blk::{
    Backend, BackendConfig, Frontend, FrontendConfig, Io, SubmitError, ValidRequest, Volume,
};
use ring_ends::{Progress, Window};
use ring_proto::blk::{
    FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, Op, SECTOR, Segment, Status,
};

use super::rng::Rng;
use super::{BACK, Crash, FRONT, PORT, Sim};

pub const SECTORS: u64 = 192;
pub const SLOTS: u32 = 16;
pub const RING: usize = 2;
pub const RING_PAGES: usize = 1;
pub const POOL: usize = 8;
pub const POOL_PAGES: usize = 8;
const BUFFER: u32 = 2048;
pub const WINDOW: Window = Window { ring_page: 0, ring_pages: 4, pool_page: 8, pool_pages: 16 };

pub fn front_config(sim: &Sim) -> FrontendConfig {
    FrontendConfig {
        pages: sim.pages(FRONT),
        port: PORT,
        peer: BACK,
        ring: sim.region(RING, RING_PAGES),
        pool: sim.region(POOL, POOL_PAGES),
        slots: SLOTS,
    }
}

pub fn back_config(sim: &Sim) -> BackendConfig {
    BackendConfig { pages: sim.pages(BACK), port: PORT, peer: FRONT, window: WINDOW }
}

pub fn volume() -> Volume {
    Volume {
        sectors: SECTORS,
        block_size: 512,
        read_only: false,
        features: FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES,
    }
}

/// A request as the guest knows it.
#[derive(Clone, Debug)]
struct Asked {
    op: Op,
    sector: u64,
    sectors: u64,
    stamp: u64,
    buffer: u32,
    /// A read that overlaps a change: it may see either.
    races: bool,
}

impl Asked {
    fn changes(&self) -> bool {
        !matches!(self.op, Op::Read | Op::Flush)
    }

    fn overlaps(&self, sector: u64, sectors: u64) -> bool {
        self.sector < sector + sectors && sector < self.sector + self.sectors
    }
}

/// What may be in a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Stamp(u64),
    /// A write is under way, or was when the guest died.
    Unknown,
}

/// One domain's loop: runs when it has a reason to.
#[derive(Clone, Copy, Debug)]
pub struct Wake {
    pub again: bool,
    pub deadline: Option<u64>,
}

impl Wake {
    pub const NOW: Self = Self { again: true, deadline: None };

    pub fn after(progress: Progress) -> Self {
        Self { again: progress.again, deadline: progress.deadline }
    }
}

pub struct World {
    pub sim: Sim,
    pub rng: Rng,
    pub front: Frontend,
    pub back: Option<Backend>,
    pub front_wake: Wake,
    pub back_wake: Wake,
    device: Vec<(ValidRequest, u64)>,
    pub disk: Vec<u64>,
    pub expect: Vec<Expect>,
    asked: HashMap<u64, Asked>,
    next_token: u64,
    next_stamp: u64,
    /// Requests are for sectors below this one.
    pub span: u64,
    /// Changes that were asked for while an overlapping one was out.
    pub overlapping: u64,
    pub volume: Volume,
    pub completed: u64,
    pub io_errors: u64,
    pub backend_lives: u64,
    generation_of_back: u64,
    /// Order in which the present backend connection got its requests.
    pub order: Vec<u64>,
    /// How often each stamp was written to the disk.
    pub written: HashMap<u64, u32>,
}

impl World {
    pub fn new(rng: Rng) -> Self {
        let sim = Sim::new();
        Self {
            front: Frontend::new(front_config(&sim)).unwrap(),
            back: Some(Backend::new(back_config(&sim), volume())),
            sim,
            rng,
            front_wake: Wake::NOW,
            back_wake: Wake::NOW,
            device: Vec::new(),
            disk: vec![0; SECTORS as usize],
            expect: vec![Expect::Stamp(0); SECTORS as usize],
            asked: HashMap::new(),
            next_token: 1,
            next_stamp: 1,
            span: SECTORS,
            overlapping: 0,
            volume: volume(),
            completed: 0,
            io_errors: 0,
            backend_lives: 1,
            generation_of_back: 1,
            order: Vec::new(),
            written: HashMap::new(),
        }
    }

    /// Submits a random request, which may overlap others in flight.
    pub fn submit(&mut self) -> bool {
        let used: Vec<u32> = self.asked.values().map(|a| a.buffer).collect();
        let Some(buffer) = (0..POOL_PAGES as u32 * 2).find(|b| !used.contains(b)) else {
            return false;
        };
        let op = *self.rng.pick(&[
            Op::Read,
            Op::Read,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Flush,
            Op::Discard,
            Op::WriteZeroes,
        ]);
        let sectors = 1 + self.rng.below(4);
        let sector = self.rng.below(self.span - sectors + 1);
        let stamp = self.next_stamp;
        let mut segments = Vec::new();
        if matches!(op, Op::Read | Op::Write) {
            let mut at = 0;
            while at < sectors {
                let n = 1 + self.rng.below(sectors - at);
                segments.push(Segment {
                    offset: buffer * BUFFER + (at * SECTOR) as u32,
                    len: (n * SECTOR) as u32,
                });
                at += n;
            }
        }
        if op == Op::Write {
            for s in 0..sectors {
                let at = (u64::from(buffer * BUFFER) + s * SECTOR) as usize;
                let pool = self.sim.frames(POOL, POOL_PAGES);
                for word in (0..SECTOR as usize).step_by(8) {
                    pool.write(at + word, &(stamp + s)).unwrap();
                }
            }
            self.next_stamp += sectors;
        }
        let ranged = matches!(op, Op::Discard | Op::WriteZeroes);
        let io = Io {
            op,
            sector: if op == Op::Flush { 0 } else { sector },
            sectors: if ranged { sectors } else { 0 },
            segments: &segments,
        };
        let token = self.next_token;
        match self.front.submit(io, token) {
            Ok(()) => {}
            Err(SubmitError::Full) => return false,
            Err(SubmitError::Invalid) => panic!("a good request was refused"),
        }
        self.next_token += 1;
        let (sector, sectors) = if op == Op::Flush { (0, 0) } else { (sector, sectors) };
        let mut asked = Asked { op, sector, sectors, stamp, buffer, races: false };
        let mut overlapped = false;
        for other in self.asked.values_mut().filter(|other| other.overlaps(sector, sectors)) {
            overlapped |= other.changes() && asked.changes();
            other.races |= asked.changes();
            asked.races |= other.changes();
        }
        self.overlapping += u64::from(overlapped);
        if asked.changes() {
            for s in sector..sector + sectors {
                self.expect[s as usize] = Expect::Unknown;
            }
        }
        self.asked.insert(token, asked);
        self.front.kick(&mut self.sim.env(FRONT));
        // Something was given to the frontend: poll before sleeping.
        self.front_wake.again = true;
        true
    }

    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }

    pub fn run_front(&mut self) {
        self.sim.take_event(FRONT);
        let progress = self.front.poll(&mut self.sim.env(FRONT));
        self.front_wake = Wake::after(progress);
        while let Some(done) = self.front.next_completion() {
            self.front_wake.again = true;
            self.completed += 1;
            let asked = self.asked.remove(&done.token).expect("completed once, and asked for");
            let beyond = asked.sector + asked.sectors > self.volume.sectors;
            if done.status == Status::IoError && asked.op != Op::Flush && beyond {
                self.io_errors += 1;
                continue;
            }
            assert_eq!(done.status, Status::Ok, "{asked:?}");
            for s in 0..asked.sectors {
                let at = (asked.sector + s) as usize;
                let want = match asked.op {
                    Op::Write => asked.stamp + s,
                    Op::Discard | Op::WriteZeroes => 0,
                    Op::Read => {
                        let pool = self.sim.frames(POOL, POOL_PAGES);
                        let at_pool = (u64::from(asked.buffer * BUFFER) + s * SECTOR) as usize;
                        let first: u64 = pool.read(at_pool).unwrap();
                        let last: u64 = pool.read(at_pool + SECTOR as usize - 8).unwrap();
                        assert_eq!(first, last, "torn read of {at}");
                        if let Expect::Stamp(stamp) = self.expect[at]
                            && !asked.races
                        {
                            assert_eq!(first, stamp, "sector {at} was read");
                        }
                        continue;
                    }
                    Op::Flush => continue,
                };
                // BLK-11: a newer change of it has not even begun.
                assert_eq!(self.disk[at], want, "sector {at} was acknowledged");
                let newer = |a: &Asked| a.changes() && a.overlaps(at as u64, 1);
                if !self.asked.values().any(newer) {
                    self.expect[at] = Expect::Stamp(want);
                }
            }
        }
        assert_eq!(self.front.in_flight() + self.front.room(), SLOTS as usize);
        assert_eq!(self.front.in_flight(), self.asked.len());
    }

    /// One round of the backend's loop. It may die in it.
    pub fn run_back(&mut self) {
        let Some(mut back) = self.back.take() else { return };
        self.sim.take_event(BACK);
        let mut env = self.sim.env(BACK);
        let room = 12usize.saturating_sub(self.device.len());
        let life = self.generation_of_back;
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let progress = back.poll(&mut env);
            let mut taken = Vec::new();
            while taken.len() < room {
                let Some(request) = back.next_request() else { break };
                taken.push((request, life));
            }
            back.push_responses(&mut env);
            (progress, taken)
        }));
        match result {
            Ok((progress, taken)) => {
                self.back_wake = Wake::after(progress);
                if self.device.len() + taken.len() >= 12 {
                    // No room in the device: its interrupt wakes the loop.
                    self.back_wake.again = false;
                } else if !taken.is_empty() {
                    self.back_wake.again = true;
                }
                for (request, life) in taken {
                    self.check_valid(&request);
                    self.order.push(request.sector);
                    self.device.push((request, life));
                }
                self.back = Some(back);
            }
            Err(crash) => {
                assert!(crash.is::<Crash>(), "the backend panicked");
                drop(back);
                self.end_backend();
            }
        }
    }

    fn check_valid(&self, request: &ValidRequest) {
        assert!(request.sector + request.sectors <= self.volume.sectors);
        let bytes: u64 = request.segments.iter().map(|p| u64::from(p.len)).sum();
        if matches!(request.op, Op::Read | Op::Write) {
            assert_eq!(bytes, request.sectors * SECTOR);
        }
        for piece in &request.segments {
            assert!(self.sim.is_window(piece.address, piece.len as usize), "BLK-5");
        }
    }

    /// The device finishes a random request.
    pub fn run_device(&mut self) -> bool {
        if self.device.is_empty() {
            return false;
        }
        let n = self.rng.below(self.device.len() as u64) as usize;
        let (request, _) = self.device.swap_remove(n);
        self.perform(&request, u64::MAX);
        if let Some(back) = &mut self.back {
            back.complete(request.tag, Status::Ok);
            self.back_wake.again = true;
        }
        true
    }

    /// Performs up to `limit` sectors of a request.
    fn perform(&mut self, request: &ValidRequest, limit: u64) {
        let mut sector = request.sector;
        let end = request.sector + request.sectors.min(limit);
        if matches!(request.op, Op::Discard | Op::WriteZeroes) {
            self.disk[sector as usize..end as usize].fill(0);
        }
        for piece in &request.segments {
            for at in (0..piece.len).step_by(SECTOR as usize) {
                if sector == end {
                    return;
                }
                let memory = self.sim.dma(piece.address + u64::from(at), SECTOR as usize);
                let cell = &mut self.disk[sector as usize];
                match request.op {
                    // A blocked read of memory gives the device junk.
                    Op::Write => {
                        *cell = memory.map_or(u64::MAX, |m| m.read(0).unwrap());
                        *self.written.entry(*cell).or_insert(0) += 1;
                    }
                    _ => {
                        if let Some(m) = memory {
                            for word in (0..SECTOR as usize).step_by(8) {
                                m.write(word, cell).unwrap();
                            }
                        }
                    }
                }
                sector += 1;
            }
        }
    }

    /// The backend's generation ends: its device stops, anywhere.
    pub fn end_backend(&mut self) {
        self.back = None;
        for (request, _) in std::mem::take(&mut self.device) {
            let limit = self.rng.below(request.sectors + 1);
            self.perform(&request, limit);
        }
        self.sim.end_generation(BACK);
        assert_eq!(self.sim.mapped_pages(), 0);
    }

    /// The backend is told to finish its work and leave, and is then replaced.
    pub fn plan_restart(&mut self) {
        let Some(back) = &mut self.back else { return };
        assert!(back.leave());
        self.back_wake.again = true;
        while !self.back.as_ref().is_some_and(Backend::has_left) {
            self.submit();
            assert!(self.step(), "everybody sleeps and the backend has not left");
        }
        assert!(self.device.is_empty());
        self.end_backend();
    }

    pub fn start_backend(&mut self) {
        self.backend_lives += 1;
        self.generation_of_back += 1;
        self.back = Some(Backend::new(back_config(&self.sim), self.volume));
        self.back_wake = Wake::NOW;
    }

    /// The guest dies and comes back with an empty table.
    pub fn restart_frontend(&mut self) {
        for asked in self.asked.values() {
            if matches!(asked.op, Op::Read | Op::Flush) {
                continue;
            }
            for s in asked.sector..asked.sector + asked.sectors {
                self.expect[s as usize] = Expect::Unknown;
            }
        }
        self.asked.clear();
        self.sim.end_generation(FRONT);
        self.front = Frontend::new(front_config(&self.sim)).unwrap();
        self.front_wake = Wake::NOW;
    }

    /// The backend writes nonsense to the ring, once.
    pub fn glitch(&mut self) {
        if self.back.as_ref().is_some_and(Backend::is_connected) {
            let header = self.sim.frame(RING);
            let value = self.rng.next() as u32 | 1 << 20;
            header.write_u32(128, value, std::sync::atomic::Ordering::Relaxed);
            self.front_wake.again = true;
        }
    }

    /// Runs whoever has a reason to run. False if nobody has one for ever.
    pub fn step(&mut self) -> bool {
        let now = self.sim.now();
        let due = |wake: &Wake| wake.again || wake.deadline.is_some_and(|d| d <= now);
        let front = due(&self.front_wake) || self.sim.has_event(FRONT);
        let back = self.back.is_some() && (due(&self.back_wake) || self.sim.has_event(BACK));
        let device = !self.device.is_empty();
        let mut able = [(front, 0), (back, 1), (device, 2)]
            .into_iter()
            .filter_map(|(able, who)| able.then_some(who))
            .collect::<Vec<_>>();
        if able.is_empty() {
            let back = if self.back.is_some() { self.back_wake.deadline } else { None };
            let next = [self.front_wake.deadline, back].into_iter().flatten().min();
            let Some(next) = next else { return false };
            self.sim.advance(next.saturating_sub(now).max(1));
            return true;
        }
        let n = self.rng.below(able.len() as u64) as usize;
        match able.swap_remove(n) {
            0 => self.run_front(),
            1 => self.run_back(),
            _ => {
                self.run_device();
            }
        }
        self.sim.advance(1000);
        true
    }

    /// Runs until all that was asked for is done.
    pub fn settle(&mut self) {
        if self.back.is_none() {
            self.start_backend();
        }
        for _ in 0..200_000 {
            if self.outstanding() == 0 && self.device.is_empty() {
                break;
            }
            if self.back.is_none() {
                self.start_backend();
            }
            assert!(
                self.step(),
                "RING-8: everybody sleeps with {} requests out",
                self.outstanding()
            );
        }
        assert_eq!(self.outstanding(), 0, "requests hang");
        for (at, expect) in self.expect.iter().enumerate() {
            if let Expect::Stamp(stamp) = expect {
                assert_eq!(self.disk[at], *stamp, "sector {at} at the end");
            }
        }
    }
}
