//! A disk with a volatile cache and a power switch.
//!
//! Operations take effect in random order when the executor says so, and go on
//! if their futures are dropped. A power cut keeps a random subset of the
//! 512-byte sectors written since the last flush, in flight ones included.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use kv_store::{BLOCK, BlockDevice};

use super::Rng;

pub const SECTOR: usize = 512;

type Image = BTreeMap<u64, Box<[u8; BLOCK]>>;

fn block_of(image: &mut Image, block: u64) -> &mut [u8; BLOCK] {
    image.entry(block).or_insert_with(|| Box::new([0; BLOCK]))
}

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub written_blocks: u64,
}

enum Kind {
    Read {
        block: u64,
        len: usize,
    },
    Write {
        block: u64,
        data: Vec<u8>,
    },
    /// With the number of completed writes when it was submitted.
    Flush {
        covers: u64,
    },
}

struct Pending {
    id: u64,
    kind: Kind,
}

/// A write that is not durable.
struct Unflushed {
    /// Order of completion; `None` while in flight.
    order: Option<u64>,
    id: u64,
    block: u64,
    data: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    blocks: u64,
    durable: Image,
    /// What reads see.
    current: Image,
    unflushed: Vec<Unflushed>,
    pending: Vec<Pending>,
    done: BTreeMap<u64, Result<Vec<u8>, &'static str>>,
    wakers: BTreeMap<u64, Waker>,
    next_id: u64,
    completed_writes: u64,
    events: u64,
    cut_at: Option<u64>,
    /// Percentage of writes and flushes that fail.
    fail_percent: u64,
    reads_fail: bool,
    bad_blocks: Vec<u64>,
    counts: Counts,
}

#[derive(Clone)]
pub struct Disk(Rc<RefCell<Shared>>);

impl Disk {
    pub fn new(blocks: u64) -> Self {
        Self(Rc::new(RefCell::new(Shared { blocks, ..Shared::default() })))
    }

    /// Steps (submissions and completions) so far.
    pub fn events(&self) -> u64 {
        self.0.borrow().events
    }

    /// Cuts the power after this many steps.
    pub fn cut_at(&self, events: u64) {
        self.0.borrow_mut().cut_at = Some(events);
    }

    pub fn is_dead(&self) -> bool {
        let disk = self.0.borrow();
        disk.cut_at.is_some_and(|at| disk.events >= at)
    }

    /// The power stays on.
    pub fn never_cut(&self) {
        self.0.borrow_mut().cut_at = None;
    }

    pub fn fail_percent(&self, percent: u64) {
        self.0.borrow_mut().fail_percent = percent;
    }

    pub fn reads_fail(&self, fail: bool) {
        self.0.borrow_mut().reads_fail = fail;
    }

    /// Every write that touches this block fails.
    pub fn add_bad_block(&self, block: u64) {
        self.0.borrow_mut().bad_blocks.push(block);
    }

    /// What is pending never happens.
    pub fn forget_pending(&self) {
        let disk = &mut *self.0.borrow_mut();
        disk.pending.clear();
        disk.unflushed.retain(|write| write.order.is_some());
    }

    pub fn heal_bad_blocks(&self) {
        self.0.borrow_mut().bad_blocks.clear();
    }

    pub fn counts(&self) -> Counts {
        self.0.borrow().counts
    }

    pub fn has_pending(&self) -> bool {
        !self.0.borrow().pending.is_empty()
    }

    /// The volume cut or grown to another size, with what is readable now.
    pub fn resized(&self, blocks: u64) -> Self {
        let disk = self.0.borrow();
        Self(Rc::new(RefCell::new(Shared {
            blocks,
            durable: disk.current.clone(),
            current: disk.current.clone(),
            ..Shared::default()
        })))
    }

    /// A copy with what is readable now; nothing is in its cache.
    pub fn copy(&self) -> Self {
        self.resized(self.0.borrow().blocks)
    }

    /// What is left after a power cut.
    pub fn after_power_cut(&self, rng: &mut Rng) -> Self {
        let kept = [0, 10, 50, 90, 100][rng.below(5) as usize];
        let whole_writes = rng.chance(50);
        let mut whole = false;
        self.after_power_cut_keeping(|_, sector| {
            if sector == 0 {
                whole = rng.chance(kept);
            }
            if whole_writes { whole } else { rng.chance(kept) }
        })
    }

    /// What is left if just the unflushed sectors survive that `keep` chooses
    /// by the first block of their write and their number within it.
    pub fn after_power_cut_keeping(&self, mut keep: impl FnMut(u64, usize) -> bool) -> Self {
        let mut disk = self.0.borrow_mut();
        let mut image = disk.durable.clone();
        disk.unflushed.sort_by_key(|write| (write.order.is_none(), write.order, write.id));
        for write in &disk.unflushed {
            for (n, sector) in write.data.chunks(SECTOR).enumerate() {
                if keep(write.block, n) {
                    put_sector(&mut image, write.block, n, sector);
                }
            }
        }
        let (blocks, current) = (disk.blocks, image.clone());
        Self(Rc::new(RefCell::new(Shared { blocks, durable: image, current, ..Shared::default() })))
    }

    /// Changes bytes behind the store's back.
    pub fn edit(&self, block: u64, change: impl FnOnce(&mut [u8; BLOCK])) {
        let disk = &mut *self.0.borrow_mut();
        change(block_of(&mut disk.current, block));
        let now = disk.current[&block].clone();
        disk.durable.insert(block, now);
    }

    pub fn peek(&self, block: u64) -> Vec<u8> {
        self.0.borrow().current.get(&block).map_or(vec![0; BLOCK], |b| b.to_vec())
    }

    /// Completes a random pending operation.
    pub fn step(&self, rng: &mut Rng) {
        let mut disk = self.0.borrow_mut();
        if disk.pending.is_empty() || !disk.event() {
            return;
        }
        let n = rng.below(disk.pending.len() as u64) as usize;
        let Pending { id, kind } = disk.pending.swap_remove(n);
        let bad = match &kind {
            Kind::Write { block, data } => {
                let end = block + (data.len() / BLOCK) as u64;
                disk.bad_blocks.iter().any(|bad| (*block..end).contains(bad))
            }
            _ => false,
        };
        let fails = rng.chance(disk.fail_percent) || bad;
        let result = match kind {
            Kind::Read { block, len } => disk.finish_read(block, len),
            Kind::Write { block, data } => disk.finish_write(id, block, &data, fails, rng),
            Kind::Flush { covers } => disk.finish_flush(covers, fails, rng),
        };
        disk.done.insert(id, result);
        let waker = disk.wakers.remove(&id);
        drop(disk);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn submit(&self, kind: Kind) -> Result<Vec<u8>, &'static str> {
        let alive = self.0.borrow_mut().event();
        if !alive {
            return std::future::pending().await;
        }
        let id = self.0.borrow_mut().submit(kind);
        poll_fn(|cx| {
            let mut disk = self.0.borrow_mut();
            match disk.done.remove(&id) {
                Some(result) => Poll::Ready(result),
                None => {
                    disk.wakers.insert(id, cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

fn put_sector(image: &mut Image, block: u64, n: usize, sector: &[u8]) {
    let at = n * SECTOR;
    let bytes = block_of(image, block + (at / BLOCK) as u64);
    bytes[at % BLOCK..at % BLOCK + SECTOR].copy_from_slice(sector);
}

impl Shared {
    /// Counts a step. False if the power is off.
    fn event(&mut self) -> bool {
        if self.cut_at.is_some_and(|at| self.events >= at) {
            return false;
        }
        self.events += 1;
        true
    }

    fn submit(&mut self, kind: Kind) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        match &kind {
            Kind::Read { .. } => self.counts.reads += 1,
            Kind::Flush { .. } => self.counts.flushes += 1,
            Kind::Write { block, data } => {
                let blocks = (data.len() / BLOCK) as u64;
                assert!(data.len().is_multiple_of(BLOCK) && block + blocks <= self.blocks);
                for other in self.unflushed.iter().filter(|w| w.order.is_none()) {
                    let end = other.block + (other.data.len() / BLOCK) as u64;
                    assert!(end <= *block || block + blocks <= other.block, "two writes at once");
                }
                self.counts.writes += 1;
                self.counts.written_blocks += blocks;
                let (block, data) = (*block, data.clone());
                self.unflushed.push(Unflushed { order: None, id, block, data });
            }
        }
        self.pending.push(Pending { id, kind });
        id
    }

    fn finish_read(&mut self, block: u64, len: usize) -> Result<Vec<u8>, &'static str> {
        if self.reads_fail {
            return Err("read error");
        }
        let mut data = Vec::with_capacity(len);
        for n in 0..(len / BLOCK) as u64 {
            match self.current.get(&(block + n)) {
                Some(bytes) => data.extend_from_slice(&bytes[..]),
                None => data.resize(data.len() + BLOCK, 0),
            }
        }
        Ok(data)
    }

    fn finish_write(
        &mut self,
        id: u64,
        block: u64,
        data: &[u8],
        fails: bool,
        rng: &mut Rng,
    ) -> Result<Vec<u8>, &'static str> {
        self.completed_writes += 1;
        let order = Some(self.completed_writes);
        let n = self.unflushed.iter().position(|w| w.id == id).expect("known write");
        if !fails {
            self.unflushed[n].order = order;
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                put_sector(&mut self.current, block, n, sector);
            }
            return Ok(Vec::new());
        }
        // Some of its sectors may have been written all the same.
        self.unflushed.remove(n);
        for (n, sector) in data.chunks(SECTOR).enumerate() {
            if rng.chance(50) {
                put_sector(&mut self.current, block, n, sector);
                put_sector(&mut self.durable, block, n, sector);
            }
        }
        Err("write error")
    }

    fn finish_flush(
        &mut self,
        covers: u64,
        fails: bool,
        rng: &mut Rng,
    ) -> Result<Vec<u8>, &'static str> {
        let mut covered: Vec<_> = self
            .unflushed
            .extract_if(.., |write| write.order.is_some_and(|order| order <= covers))
            .collect();
        covered.sort_by_key(|write| write.order);
        for write in covered {
            for (n, sector) in write.data.chunks(SECTOR).enumerate() {
                if !fails || rng.chance(50) {
                    put_sector(&mut self.durable, write.block, n, sector);
                    continue;
                }
                // Lost from the cache: reads see the old bytes again.
                let at = n * SECTOR;
                let block = write.block + (at / BLOCK) as u64;
                let old = block_of(&mut self.durable, block)[at % BLOCK..][..SECTOR].to_vec();
                put_sector(&mut self.current, write.block, n, &old);
            }
        }
        if fails { Err("flush error") } else { Ok(Vec::new()) }
    }
}

impl BlockDevice for Disk {
    type Error = &'static str;

    fn blocks(&self) -> u64 {
        self.0.borrow().blocks
    }

    async fn read(&self, block: u64, buf: &mut [u8]) -> Result<(), &'static str> {
        let end = block + (buf.len() / BLOCK) as u64;
        assert!(buf.len().is_multiple_of(BLOCK) && end <= self.blocks(), "read outside the volume");
        let data = self.submit(Kind::Read { block, len: buf.len() }).await?;
        buf.copy_from_slice(&data);
        Ok(())
    }

    async fn write(&self, block: u64, buf: &[u8]) -> Result<(), &'static str> {
        self.submit(Kind::Write { block, data: buf.to_vec() }).await.map(drop)
    }

    async fn flush(&self) -> Result<(), &'static str> {
        let covers = self.0.borrow().completed_writes;
        self.submit(Kind::Flush { covers }).await.map(drop)
    }
}
