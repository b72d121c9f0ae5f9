//! Blocks: sequential 128 KiB and random 4 KiB, read and written, one or 32
//! requests at a time.
//!
//! A request whose data nobody looks at measures nothing that a guest does. So
//! what is written is copied into the buffer, and what was read is copied out
//! of it, once; this is part of the workload in both modes.

mod fused;
mod recovery;
mod ring;

use alloc::{boxed::Box, format, vec};

use domain_rt::events;
use ring_proto::{
    blk::{Op, SECTOR},
    shm::SharedMem,
};

use crate::{
    args::Args,
    record::{self, Snapshot, Work},
};

pub(crate) use fused::run as fused;
pub(crate) use recovery::run as recovery;
pub(crate) use ring::run as ring;

/// Buffers, and most requests at a time.
const BUFFERS: usize = 32;
/// Bytes of a buffer.
const BUFFER: usize = 128 << 10;
/// Part of the disk that is used: past the partition table, as the volume is.
const FIRST_SECTOR: u64 = 2048;
/// Sectors that are used.
const SECTORS: u64 = (128 << 20) / SECTOR;

/// A disk, reached one way or the other. Request `i` uses buffer `i`.
trait Disk {
    /// The memory of all buffers, one after the other.
    fn memory(&self) -> SharedMem;
    /// First sector of the part that may be used.
    fn first(&self) -> u64;
    /// Queues a request.
    fn submit(&mut self, op: Op, sector: u64, index: usize, len: usize)
    -> Result<(), &'static str>;
    /// Starts what was queued.
    fn kick(&mut self);
    /// Looks for completions.
    fn look(&mut self) -> Result<(), &'static str>;
    /// The next completed request.
    fn next_done(&mut self) -> Result<Option<usize>, &'static str>;
    /// Called when a look found nothing: sleeps, unless there is more to do.
    fn rest(&mut self);
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    op: Op,
    len: usize,
    random: bool,
    requests: u64,
}

const CASES: [Case; 4] = [
    Case { name: "seq128k.read", op: Op::Read, len: BUFFER, random: false, requests: 1500 },
    Case { name: "seq128k.write", op: Op::Write, len: BUFFER, random: false, requests: 1500 },
    Case { name: "rand4k.read", op: Op::Read, len: 4096, random: true, requests: 6000 },
    Case { name: "rand4k.write", op: Op::Write, len: 4096, random: true, requests: 6000 },
];

/// Runs the cases that are wanted; `open` is called if there are any.
fn run_all<D: Disk>(
    args: &Args,
    open: impl FnOnce() -> Result<D, &'static str>,
) -> Result<(), &'static str> {
    let cases = CASES.iter().flat_map(|case| {
        [1, BUFFERS].map(|depth| (case, depth, format!("blk.{}.d{depth}", case.name)))
    });
    let mut wanted = cases.filter(|(_, _, name)| args.wants(name)).peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    let mut disk = open()?;
    let mut private = vec![0x5au8; BUFFER].into_boxed_slice();
    for (case, depth, name) in wanted {
        // The first requests warm up caches of all kinds.
        run(&mut disk, case, depth, case.requests / 10, &mut private)?;
        // A case of depth 1 takes longer and is as steady with fewer.
        let requests = if depth == 1 { case.requests / 2 } else { case.requests };
        let before = Snapshot::take();
        run(&mut disk, case, depth, requests, &mut private)?;
        let after = Snapshot::take();
        let work = Work { requests, bytes: requests * case.len as u64, p50_ns: 0 };
        record::case(&name, &work, &before, &after);
    }
    Ok(())
}

/// Does `requests` requests, `depth` at a time.
fn run(
    disk: &mut impl Disk,
    case: &Case,
    depth: usize,
    requests: u64,
    private: &mut Box<[u8]>,
) -> Result<(), &'static str> {
    let memory = disk.memory();
    let data = private.get_mut(..case.len).ok_or("the private buffer is too short")?;
    let mut sectors = Sectors::new(case, disk.first());
    let mut submitted = 0;
    let mut completed = 0;
    let mut submit = |disk: &mut _, index: usize, data: &[u8]| -> Result<(), &'static str> {
        if submitted == requests {
            return Ok(());
        }
        submitted += 1;
        if case.op == Op::Write {
            memory.copy_to(index * BUFFER, data).map_err(|_| "a buffer is not in the pool")?;
        }
        Disk::submit(disk, case.op, sectors.next(), index, case.len)
    };
    for index in 0..depth {
        submit(disk, index, data)?;
    }
    disk.kick();
    while completed < requests {
        disk.look()?;
        let mut any = false;
        while let Some(index) = disk.next_done()? {
            any = true;
            completed += 1;
            if case.op == Op::Read {
                memory
                    .copy_from(index * BUFFER, data)
                    .map_err(|_| "a buffer is not in the pool")?;
            }
            submit(disk, index, data)?;
        }
        if any {
            disk.kick();
            events::breathe();
        } else {
            disk.rest();
        }
    }
    Ok(())
}

/// Where the requests of a case go.
struct Sectors {
    first: u64,
    /// In units of the request's length.
    slots: u64,
    unit: u64,
    next: u64,
    random: bool,
}

impl Sectors {
    fn new(case: &Case, first: u64) -> Self {
        let unit = case.len as u64 / SECTOR;
        let next = if case.random { 0x9e37_79b9_7f4a_7c15 } else { 0 };
        Self { first, slots: SECTORS / unit, unit, next, random: case.random }
    }

    fn next(&mut self) -> u64 {
        let slot = if self.random {
            // xorshift64
            self.next ^= self.next << 13;
            self.next ^= self.next >> 7;
            self.next ^= self.next << 17;
            self.next % self.slots
        } else {
            let slot = self.next % self.slots;
            self.next += 1;
            slot
        };
        self.first + slot * self.unit
    }
}
