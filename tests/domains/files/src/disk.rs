//! The volume under the file system: a write-behind cache over the blk frontend.
//!
//! The file system writes one block at a time and waits for it. Here a write
//! only goes into the cache, and many go to the disk together, with as many
//! requests in flight as the ring has room for, while the file system goes on.
//! So a driver that dies finds reads and many writes in flight, as under the
//! page cache of a larger system. A few clean pages are kept, until the next
//! [`Disk::sync`]: enough for FAT and directories, so that most of what is read
//! back comes from the disk.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec,
    vec::Vec,
};
use core::{cell::RefCell, fmt};

use domain_rt::{
    env::DomainEnv,
    events,
    time::{NEVER, now_ns},
};
use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use guest_io::connect;
use ring_ends::{
    Counters, Progress,
    blk::{Frontend, FrontendConfig, Io, ring_pages},
};
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, SECTOR, SLOTS, Segment, Status},
    conn::Protocol,
    shm::SharedMem,
};

/// Blocks that may wait; the file system waits while there are more.
const CACHE: usize = 256;
/// Blocks that make those that wait go to the disk.
const BURST: usize = 64;
/// Blocks that are read at a time: a page. They are at the front of the pool.
const PAGE: u32 = 8;
/// Clean pages that are kept.
const PAGES: usize = 12;
const _: () = assert!(Block::LEN as u64 == SECTOR);
/// Token of the read or the flush that is in flight. That of a write is the
/// number of its block in the pool.
const OWN: u64 = 0;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskError(&'static str);

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for DiskError {}

/// The first volume of this domain.
pub(crate) struct Disk(RefCell<Inner>);

struct Inner {
    front: Frontend,
    env: DomainEnv,
    /// A page for reads, and a block for each write in flight.
    pool: SharedMem,
    /// Blocks that are to be written.
    dirty: BTreeMap<u32, Block>,
    /// Blocks that are being written, and where in the pool.
    writing: BTreeMap<u32, (u64, Block)>,
    /// What waits goes to the disk until nothing does.
    bursting: bool,
    /// Blocks of the pool that are free.
    free: Vec<u64>,
    /// First sectors and contents of pages, in the order in which they were read.
    clean: VecDeque<(u32, Vec<Block>)>,
    /// The read or flush that was in flight has come to its end.
    answered: bool,
    /// The first request that failed. The file system takes some errors for
    /// "there is no such file"; this does not forget them.
    failure: Option<DiskError>,
}

impl Disk {
    /// Waits for a driver.
    pub(crate) fn open() -> Result<Self, DiskError> {
        let setup = |_| DiskError("no blk connection, or no memory for it");
        let (connection, pages) = connect::find(Protocol::Blk).map_err(setup)?;
        let ring = ring_pages(SLOTS).ok_or(DiskError("too many slots"))?;
        let pool_pages = (SLOTS * Block::LEN_U32).div_ceil(PAGE_SIZE as u32);
        let config = FrontendConfig {
            pages,
            port: connection.port(),
            peer: connection.boot.peer,
            ring: connect::region(ring).map_err(setup)?,
            pool: connect::region(pool_pages).map_err(setup)?,
            slots: SLOTS,
        };
        let mut front = Frontend::new(config).map_err(|error| setup(error.into()))?;
        front.complain_after(connect::patience(&connection));
        let mut inner = Inner {
            front,
            env: DomainEnv,
            pool: config.pool.mem,
            dirty: BTreeMap::new(),
            writing: BTreeMap::new(),
            bursting: false,
            free: (u64::from(PAGE)..u64::from(SLOTS)).collect(),
            clean: VecDeque::new(),
            answered: false,
            failure: None,
        };
        inner.wait(|inner| inner.front.geometry().is_some() || inner.front.refusal().is_some())?;
        match inner.front.refusal() {
            None => Ok(Self(RefCell::new(inner))),
            Some(_) => Err(DiskError("the blk driver refused the connection")),
        }
    }

    /// Has all that waits written in its own time.
    pub(crate) fn write_back(&self) -> Result<(), DiskError> {
        let mut inner = self.0.borrow_mut();
        inner.bursting = true;
        inner.start_writes()
    }

    /// Has all that was written made durable, and forgets what was read.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        let mut inner = self.0.borrow_mut();
        inner.clean.clear();
        inner.bursting = true;
        inner.wait(|inner| inner.dirty.is_empty() && inner.writing.is_empty())?;
        inner.request(Op::Flush, 0, 0)
    }

    /// What the frontend counted.
    pub(crate) fn counters(&self) -> Counters {
        self.0.borrow().front.counters()
    }

    /// The first request that failed, whatever became of its error.
    pub(crate) fn failure(&self) -> Result<(), DiskError> {
        self.0.borrow().failure.clone().map_or(Ok(()), Err)
    }

    /// Looks after the connection until the clock reaches `deadline`.
    pub(crate) fn idle(&self, deadline: u64) -> Result<(), DiskError> {
        let mut inner = self.0.borrow_mut();
        loop {
            let progress = inner.turn()?;
            if now_ns() >= deadline {
                return Ok(());
            }
            rest(progress, deadline);
        }
    }
}

impl BlockDevice for Disk {
    type Error = DiskError;

    fn read(&self, blocks: &mut [Block], first: BlockIdx) -> Result<(), DiskError> {
        let mut inner = self.0.borrow_mut();
        for (sector, block) in (first.0..).zip(blocks) {
            if inner.kept(sector).is_none() {
                inner.fetch(sector)?;
            }
            block.clone_from(inner.kept(sector).ok_or(DiskError("a block went astray"))?);
        }
        Ok(())
    }

    fn write(&self, blocks: &[Block], first: BlockIdx) -> Result<(), DiskError> {
        let mut inner = self.0.borrow_mut();
        for (sector, block) in (first.0..).zip(blocks) {
            // So that it is still right when the block was written and is no longer dirty.
            let page = inner.clean.iter_mut().find(|(first, _)| *first == page_of(sector));
            let kept = page.and_then(|(first, blocks)| blocks.get_mut((sector - *first) as usize));
            if let Some(kept) = kept {
                kept.clone_from(block);
            }
            inner.dirty.insert(sector, block.clone());
        }
        inner.bursting |= inner.dirty.len() >= BURST;
        inner.start_writes()?;
        inner.wait(|inner| inner.dirty.len() <= CACHE)
    }

    fn num_blocks(&self) -> Result<BlockCount, DiskError> {
        let sectors = self.0.borrow().front.geometry().map_or(0, |geometry| geometry.sectors);
        // FAT has no larger volumes.
        Ok(BlockCount(u32::try_from(sectors).unwrap_or(u32::MAX)))
    }
}

impl Inner {
    /// The newest content of a sector, if that is here.
    fn kept(&self, sector: u32) -> Option<&Block> {
        let written = self.dirty.get(&sector);
        let written = written.or(self.writing.get(&sector).map(|(_, block)| block));
        written.or_else(|| {
            let (first, blocks) = self.clean.iter().find(|(f, _)| *f == page_of(sector))?;
            blocks.get((sector - first) as usize)
        })
    }

    /// Reads the page of a sector, once nothing in it is to be written any more.
    fn fetch(&mut self, sector: u32) -> Result<(), DiskError> {
        let first = page_of(sector);
        let page = first..first + PAGE;
        // While the file system waits there is time for what it wrote.
        self.bursting = true;
        self.wait(|inner| {
            let untouched = inner.dirty.range(page.clone()).next().is_none();
            untouched && inner.writing.range(page.clone()).next().is_none()
        })?;
        self.request(Op::Read, first, PAGE)?;
        let mut blocks = vec![Block::new(); PAGE as usize];
        for (number, block) in blocks.iter_mut().enumerate() {
            let copied = self.pool.copy_from(number * Block::LEN, &mut block.contents);
            copied.map_err(|_| DiskError("a block is not in the pool"))?;
        }
        self.clean.truncate(PAGES - 1);
        self.clean.push_front((first, blocks));
        Ok(())
    }

    /// Submits a read or a flush and waits for its end.
    fn request(&mut self, op: Op, sector: u32, blocks: u32) -> Result<(), DiskError> {
        self.answered = false;
        self.submit(op, sector, blocks, OWN)?;
        self.wait(|inner| inner.answered)
    }

    /// Submits writes of what waits, as far as there is room. A sector that is
    /// being written waits until that is over.
    fn start_writes(&mut self) -> Result<(), DiskError> {
        while self.bursting
            && let Some(&place) = self.free.last()
            && let Some(&sector) =
                self.dirty.keys().find(|sector| !self.writing.contains_key(sector))
            && let Some(block) = self.dirty.remove(&sector)
        {
            self.free.pop();
            let copied = self.pool.copy_to(place as usize * Block::LEN, &block.contents);
            copied.map_err(|_| DiskError("a block is not in the pool"))?;
            self.writing.insert(sector, (place, block));
            self.submit(Op::Write, sector, 1, place)?;
        }
        self.bursting &= !self.dirty.is_empty();
        self.front.kick(&mut self.env);
        Ok(())
    }

    /// Hands one request to the frontend; its data is at the block of the pool
    /// that `token` names.
    fn submit(&mut self, op: Op, sector: u32, blocks: u32, token: u64) -> Result<(), DiskError> {
        let offset = token as u32 * Block::LEN_U32;
        let segment = Segment { offset, len: blocks * Block::LEN_U32 };
        let segments = if blocks == 0 { &[] } else { core::slice::from_ref(&segment) };
        let io = Io { op, sector: sector.into(), sectors: 0, segments };
        let taken = self.front.submit(io, token);
        taken.map_err(|_| DiskError("the frontend refused a request"))
    }

    /// Waits for as long as it takes, and for as many drivers.
    fn wait(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), DiskError> {
        while !done(self) {
            let progress = self.turn()?;
            if !done(self) {
                rest(progress, NEVER);
            }
        }
        Ok(())
    }

    /// Takes what came to its end, and submits what waits.
    fn turn(&mut self) -> Result<Progress, DiskError> {
        // All of them: an event that nobody takes would keep this domain awake.
        let _ = events::take_all();
        let progress = self.front.poll(&mut self.env);
        while let Some(done) = self.front.next_completion() {
            if done.status != Status::Ok {
                let error = DiskError("the driver failed a request");
                self.failure.get_or_insert(error.clone());
                return Err(error);
            }
            if done.token == OWN {
                self.answered = true;
            } else {
                self.writing.retain(|_, (place, _)| *place != done.token);
                self.free.push(done.token);
            }
        }
        self.start_writes()?;
        Ok(progress)
    }
}

/// The first sector of the page that a sector is in.
fn page_of(sector: u32) -> u32 {
    sector - sector % PAGE
}

/// Sleeps until `deadline` at most, unless there is more to do.
fn rest(progress: Progress, deadline: u64) {
    if progress.again {
        events::breathe();
    } else {
        events::wait(deadline.min(progress.deadline.unwrap_or(NEVER)));
    }
}
