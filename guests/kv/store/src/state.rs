//! What the store knows in memory. Nothing here touches the device, and no
//! borrow of it is held across an await.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use crate::background::Background;
use crate::format::{BATCH_ROOM, entry_bytes, op_bytes};
use crate::layout::Layout;
use crate::space::{Extent, FreeMap};
use crate::{Committed, Error};

/// A stored value. Readers hold it by `Rc`; its blocks are free once it is out
/// of the index, durably so, and no reader is left.
#[derive(Debug)]
pub(crate) struct Object {
    pub len: u32,
    pub crc: u32,
    pub extents: Box<[Extent]>,
}

/// A put or delete on its way to the journal.
pub(crate) struct Op {
    pub key: Box<str>,
    pub change: Change,
    pub ticket: Rc<Ticket>,
}

pub(crate) enum Change {
    Put(Rc<Object>),
    Delete,
}

/// Where the caller of a put or delete finds its result.
#[derive(Default)]
pub(crate) struct Ticket(Cell<Option<Result<Outcome, Error>>>);

impl Ticket {
    pub fn set(&self, result: Result<Outcome, Error>) {
        self.0.set(Some(result));
    }

    pub fn get(&self) -> Option<Result<Outcome, Error>> {
        self.0.get()
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    Put(Committed),
    /// Whether there was something to delete.
    Deleted(bool),
}

/// Where the next batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journal {
    /// The area in force, 0 or 1.
    pub area: u8,
    pub epoch: u64,
    pub seq: u64,
    /// Checksum of the last batch, or of the area's header.
    pub last: u32,
    /// Next block, counted from the start of the area.
    pub next: u64,
    /// What lies at `next` is unknown after a device error: only a new
    /// snapshot in the other area helps.
    pub broken: bool,
}

/// What an index entry takes, in the snapshot and in memory.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub snapshot: u64,
    pub memory: usize,
}

impl Cost {
    pub fn of(key: usize, extents: usize) -> Self {
        // Memory: the map's slot, the key's and the object's heap blocks with
        // what the heap adds, and per extent its eight bytes and the run of
        // free blocks that it may set apart.
        Self { snapshot: entry_bytes(key, extents) as u64, memory: 144 + key + 72 * extents }
    }
}

pub(crate) struct State {
    pub index: BTreeMap<Box<str>, Rc<Object>>,
    pub free: FreeMap,
    /// Out of the index, but still being read.
    retired: Vec<Rc<Object>>,
    /// May be in a journal record that failed; free after the next snapshot.
    limbo: Vec<Rc<Object>>,
    queue: VecDeque<Op>,
    /// Whether the commit job exists.
    committing: bool,
    pub journal: Journal,
    /// Sums over the index and all puts that are under way.
    pub snapshot_bytes: u64,
    pub memory: usize,
    pub memory_limit: usize,
    /// Counts failed flushes. Data written before one may be lost, so a put
    /// that began before it cannot be committed.
    pub lost_flushes: u64,
}

impl State {
    pub fn new(layout: &Layout, memory_limit: usize, journal: Journal) -> Self {
        Self {
            index: BTreeMap::new(),
            free: FreeMap::new(layout.data_start(), layout.blocks),
            retired: Vec::new(),
            limbo: Vec::new(),
            queue: VecDeque::new(),
            committing: false,
            journal,
            snapshot_bytes: 0,
            memory: 0,
            memory_limit,
            lost_flushes: 0,
        }
    }

    /// Adds to the sums if that stays within the limits.
    pub fn charge(&mut self, cost: Cost, snapshot_capacity: u64) -> bool {
        let (snapshot, memory) = (self.snapshot_bytes + cost.snapshot, self.memory + cost.memory);
        let fits = snapshot <= snapshot_capacity && memory <= self.memory_limit;
        if fits {
            (self.snapshot_bytes, self.memory) = (snapshot, memory);
        }
        fits
    }

    pub fn discharge(&mut self, cost: Cost) {
        self.snapshot_bytes -= cost.snapshot;
        self.memory -= cost.memory;
    }

    /// Gives back what a put that will not be committed holds.
    pub fn abandon(&mut self, key: usize, extents: &[Extent]) {
        self.discharge(Cost::of(key, extents.len()));
        extents.iter().for_each(|&extent| self.free.release(extent));
    }

    /// Queues an operation. True if the caller must start the commit job.
    pub fn enqueue(&mut self, op: Op) -> bool {
        self.queue.push_back(op);
        !core::mem::replace(&mut self.committing, true)
    }

    /// Whether changes are on their way that the index does not show yet.
    pub fn is_committing(&self) -> bool {
        self.committing
    }

    /// Takes the operations for the next batch, at most what one batch holds.
    pub fn next_batch(&mut self) -> Vec<Op> {
        let mut room = BATCH_ROOM;
        let mut batch = Vec::new();
        while let Some(op) = self.queue.front() {
            let Some(rest) = room.checked_sub(op_bytes(op)) else { break };
            room = rest;
            batch.extend(self.queue.pop_front());
        }
        batch
    }

    /// Ends the commit job.
    pub fn stop_committing(&mut self) {
        self.committing = false;
    }

    /// Applies an operation that is durable and tells its caller.
    pub fn apply(&mut self, op: Op) {
        let result = match op.change {
            Change::Put(object) => match self.index.insert(op.key.clone(), object) {
                Some(old) => {
                    self.retire(&op.key, old);
                    Outcome::Put(Committed::Replaced)
                }
                None => Outcome::Put(Committed::Created),
            },
            Change::Delete => {
                let old = self.index.remove(&op.key);
                let existed = old.is_some();
                if let Some(old) = old {
                    self.retire(&op.key, old);
                }
                Outcome::Deleted(existed)
            }
        };
        op.ticket.set(Ok(result));
    }

    /// Gives up an operation that a device error hit, and tells its caller.
    /// Its record may be on the volume nevertheless, so the blocks wait for a
    /// snapshot without it.
    pub fn fail(&mut self, op: Op) {
        if let Change::Put(object) = op.change {
            self.discharge(Cost::of(op.key.len(), object.extents.len()));
            self.limbo.push(object);
        }
        op.ticket.set(Err(Error::Device));
    }

    /// A flush failed: everything that relied on it fails.
    pub fn lose_flush(&mut self) {
        self.lost_flushes += 1;
        self.journal.broken = true;
        for op in core::mem::take(&mut self.queue) {
            self.fail(op);
        }
    }

    /// A new snapshot is durable: failed records are gone for good.
    pub fn end_limbo(&mut self) {
        for object in core::mem::take(&mut self.limbo) {
            object.extents.iter().for_each(|&extent| self.free.release(extent));
        }
    }

    fn retire(&mut self, key: &str, object: Rc<Object>) {
        self.discharge(Cost::of(key.len(), object.extents.len()));
        self.retired.push(object);
        self.reap();
    }

    /// Frees the blocks of retired values that nobody reads any more.
    pub fn reap(&mut self) {
        let free = &mut self.free;
        self.retired.retain(|object| {
            let read = Rc::strong_count(object) > 1;
            if !read {
                object.extents.iter().for_each(|&extent| free.release(extent));
            }
            read
        });
    }
}

/// What the store, its jobs and its callers share.
pub(crate) struct Inner<D> {
    /// By `Rc`, so that device operations can outlive the call that began them.
    pub dev: Rc<D>,
    pub layout: Layout,
    pub state: RefCell<State>,
    pub background: Background,
}
