//! A disk with a volatile cache that does things in any order.
//!
//! A sector holds one word instead of 512 bytes; the words of memory that
//! stand for its data are its first and its last, so a sector that was read or
//! written half is seen. A write is *fetched* (the device has its data) some
//! time before it is on the medium: one that an ended driver left behind can
//! come to be there until somebody resets the device.

use std::collections::VecDeque;

use fastrand::Rng;
use ring_proto::DomainId;
use ring_proto::blk::{Op, SECTOR, Status};

use crate::hv::Hv;
use crate::report::trace;

/// Most sectors of a request.
pub(crate) const MOST: usize = 4;
/// What a sector holds if its two words differ.
pub(crate) const TORN: u64 = u64::MAX;

/// What a driver asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    pub(crate) op: Op,
    /// First sector on the disk.
    pub(crate) sector: usize,
    pub(crate) sectors: usize,
    /// I/O address of each sector's data.
    pub(crate) data: [u64; MOST],
    /// The driver's name for it.
    pub(crate) cookie: u32,
}

#[derive(Debug)]
struct Request {
    io: Io,
    /// The device has the data.
    fetched: Option<[u64; MOST]>,
    /// Flush: writes that were in the cache when it came.
    covers: u64,
}

/// The disk.
#[derive(Debug)]
pub(crate) struct Disk {
    owner: DomainId,
    /// What reads see.
    pub(crate) current: Vec<u64>,
    /// What outlives a power cut.
    pub(crate) stable: Vec<u64>,
    /// Writes since: number, sector, value.
    cache: Vec<(u64, usize, u64)>,
    writes: u64,
    queue: Vec<Request>,
    done: VecDeque<u32>,
    interrupts: bool,
    /// It finishes nothing until it is reset.
    pub(crate) stuck: bool,
    /// An interrupt that is on its way and comes late; or never.
    pub(crate) late: Option<bool>,
    /// Share of completions whose interrupt is lost, of 256.
    pub(crate) loses: u8,
}

impl Disk {
    pub(crate) fn new(owner: DomainId, sectors: usize) -> Self {
        Self {
            owner,
            current: vec![0; sectors],
            stable: vec![0; sectors],
            cache: Vec::new(),
            writes: 0,
            queue: Vec::new(),
            done: VecDeque::new(),
            interrupts: false,
            stuck: false,
            late: None,
            loses: 0,
        }
    }

    /// Whether [`Self::step`] has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        self.late.is_some() || (!self.queue.is_empty() && !self.stuck)
    }

    /// Requests that it has, and what its driver did not notice yet.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len() + self.done.len()
    }

    /// The driver's doing: the device forgets what it was at, after it did as
    /// much of it as it liked.
    pub(crate) fn reset(&mut self, rng: &mut Rng) {
        for request in std::mem::take(&mut self.queue) {
            self.half(&request, rng);
        }
        self.done.clear();
        (self.stuck, self.interrupts, self.late) = (false, false, None);
    }

    /// Takes a request.
    pub(crate) fn submit(&mut self, io: Io) {
        self.queue.push(Request { io, fetched: None, covers: self.writes });
    }

    /// What it finished.
    pub(crate) fn next_done(&mut self) -> Option<u32> {
        self.done.pop_front()
    }

    /// Switches its interrupt. Whether something is done already: do not sleep.
    pub(crate) fn set_interrupts(&mut self, on: bool) -> bool {
        self.interrupts = on;
        on && !self.done.is_empty()
    }

    /// Does a piece of any of its work.
    pub(crate) fn step(&mut self, hv: &mut Hv, rng: &mut Rng) {
        if self.late.is_some() && (self.queue.is_empty() || self.stuck || rng.bool()) {
            if self.late.take() == Some(true) {
                hv.interrupt(self.owner);
            }
            return;
        }
        if self.queue.is_empty() || self.stuck {
            return;
        }
        let n = rng.usize(..self.queue.len());
        if self.queue[n].io.op == Op::Write && self.queue[n].fetched.is_none() {
            match self.fetch(hv, &self.queue[n].io) {
                Some(data) => self.queue[n].fetched = Some(data),
                // The device gets no data, and gives up on the request.
                None => drop(self.queue.swap_remove(n)),
            }
            return;
        }
        let request = self.queue.swap_remove(n);
        let io = request.io;
        match io.op {
            Op::Read => {
                for s in 0..io.sectors {
                    let value = self.current[io.sector + s];
                    let Ok(mem) = hv.dma(self.owner, io.data[s], SECTOR, true) else { return };
                    let _ = mem.write(0, &value).and(mem.write(SECTOR as usize - 8, &value));
                }
            }
            Op::Flush => self.flush(request.covers),
            _ => (0..io.sectors).for_each(|s| self.land(&request, s)),
        }
        trace!("disk: {:?} of {}+{} done", io.op, io.sector, io.sectors);
        // The used ring is memory, too.
        if !hv.guests[self.owner].attached {
            return;
        }
        self.done.push_back(io.cookie);
        if self.interrupts {
            let lost = rng.u8(..) < self.loses;
            if lost || rng.u8(..) < 64 {
                self.late = Some(!lost);
            } else {
                hv.interrupt(self.owner);
            }
        }
    }

    fn fetch(&self, hv: &Hv, io: &Io) -> Option<[u64; MOST]> {
        let mut data = [0; MOST];
        for (data, &iova) in data.iter_mut().zip(&io.data).take(io.sectors) {
            let mem = hv.dma(self.owner, iova, SECTOR, false).ok()?;
            let (first, last) = (mem.read(0).ok()?, mem.read(SECTOR as usize - 8).ok()?);
            *data = if first == last { first } else { TORN };
        }
        Some(data)
    }

    /// Sector `s` of a change is on the medium, or at least in the cache.
    fn land(&mut self, request: &Request, s: usize) {
        let value = match (request.io.op, request.fetched) {
            (Op::Write, Some(data)) => data[s],
            (Op::Discard | Op::WriteZeroes, _) => 0,
            _ => return,
        };
        let sector = request.io.sector + s;
        self.writes += 1;
        self.current[sector] = value;
        self.cache.push((self.writes, sector, value));
    }

    fn flush(&mut self, covers: u64) {
        let stable = &mut self.stable;
        self.cache.retain(|&(number, sector, value)| {
            if number <= covers {
                stable[sector] = value;
            }
            number > covers
        });
    }

    /// A request that is cut short anywhere.
    fn half(&mut self, request: &Request, rng: &mut Rng) {
        if rng.bool() {
            for s in 0..request.io.sectors {
                if rng.bool() {
                    self.land(request, s);
                }
            }
        }
    }

    /// The power fails: of each sector, any state since the last flush is left.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        self.reset(rng);
        for sector in 0..self.stable.len() {
            let versions = self.cache.iter().filter(|w| w.1 == sector);
            let n = rng.usize(..=versions.clone().count());
            if n > 0 {
                self.stable[sector] = versions.map(|w| w.2).nth(n - 1).unwrap_or_default();
            }
        }
        self.cache.clear();
        self.current.clone_from(&self.stable);
    }

    /// All requests succeed.
    pub(crate) const STATUS: Status = Status::Ok;
}
