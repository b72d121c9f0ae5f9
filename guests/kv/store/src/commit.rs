//! Group commit: one job writes the journal for everybody.
//!
//! Each turn of the job flushes once. The flush makes the *data* of the batch
//! it just took durable, and at the same time the *record* of the batch it
//! wrote in the turn before. So a lone put costs two flushes, and under load
//! each batch costs one.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;

use crate::format::{Link, encode_batch};
use crate::state::{Change, Inner, Op, Outcome, Ticket};
use crate::{BLOCK, BlockDevice, Error};

impl<D: BlockDevice + 'static> Inner<D> {
    /// Commits a change whose data is written, and waits until it is durable
    /// and visible. If the caller goes away, the change is committed all the
    /// same.
    pub async fn commit(self: &Rc<Self>, key: Box<str>, change: Change) -> Result<Outcome, Error> {
        let ticket = Rc::new(Ticket::default());
        let op = Op { key, change, ticket: ticket.clone() };
        let start = self.state.borrow_mut().enqueue(op);
        if start {
            self.background.add(Box::pin(run(self.clone())));
        }
        let done = poll_fn(|_| ticket.get().map_or(Poll::Pending, Poll::Ready));
        self.background.drive(done).await
    }

    /// Whether a delete of `key` could find something, now or after what is
    /// being committed.
    pub fn may_have(&self, key: &str) -> bool {
        let state = self.state.borrow();
        state.index.contains_key(key) || state.is_committing()
    }

    /// Flushes; a failure takes everything with it that relied on the flush.
    pub async fn flush(&self) -> Result<(), Error> {
        self.dev.flush().await.map_err(|error| {
            log::error!("kv-store: flush failed: {error:?}");
            self.state.borrow_mut().lose_flush();
            Error::Device
        })
    }

    pub async fn write(&self, block: u64, data: &[u8]) -> Result<(), Error> {
        self.dev.write(block, data).await.map_err(|error| {
            log::error!("kv-store: write of block {block} failed: {error:?}");
            Error::Device
        })
    }

    fn finish(&self, ops: Vec<Op>, result: Result<(), Error>) {
        if ops.is_empty() {
            return;
        }
        let mut state = self.state.borrow_mut();
        for op in ops {
            match result {
                Ok(()) => state.apply(op),
                Err(_) => state.fail(op),
            }
        }
        drop(state);
        self.background.wake_all();
    }

    /// Writes the record of `batch`, into a new area if this one is full.
    async fn append(&self, batch: &[Op]) -> Result<(), Error> {
        let mut journal = self.state.borrow().journal;
        let link = |j: &crate::state::Journal| Link { epoch: j.epoch, seq: j.seq, prev: j.last };
        let (mut record, mut crc) = encode_batch(link(&journal), batch);
        let blocks = (record.len() / BLOCK) as u64;
        if journal.broken || journal.next + blocks > self.layout.area {
            self.compact().await?;
            journal = self.state.borrow().journal;
            (record, crc) = encode_batch(link(&journal), batch);
        }
        let block = self.layout.area_start(journal.area) + journal.next;
        let result = self.write(block, &record).await;
        let journal = &mut self.state.borrow_mut().journal;
        match result {
            Ok(()) => {
                journal.next += blocks;
                journal.seq += 1;
                journal.last = crc;
            }
            Err(_) => journal.broken = true,
        }
        result
    }
}

/// The commit job: runs until nothing is left to commit.
async fn run<D: BlockDevice + 'static>(inner: Rc<Inner<D>>) {
    // The batch whose record is written, but not known to be durable.
    let mut written: Vec<Op> = Vec::new();
    loop {
        let batch = inner.state.borrow_mut().next_batch();
        if batch.is_empty() && written.is_empty() {
            inner.state.borrow_mut().stop_committing();
            return;
        }
        let has_data = |op: &Op| matches!(&op.change, Change::Put(object) if object.len > 0);
        if !written.is_empty() || batch.iter().any(has_data) {
            let flushed = inner.flush().await;
            inner.finish(core::mem::take(&mut written), flushed);
            if flushed.is_err() {
                inner.finish(batch, flushed);
                continue;
            }
        }
        if batch.is_empty() {
            continue;
        }
        match inner.append(&batch).await {
            Ok(()) => written = batch,
            error => inner.finish(batch, error),
        }
    }
}
