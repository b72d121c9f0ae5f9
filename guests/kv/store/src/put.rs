//! A put under way: data goes to its blocks as it comes, the commit at the end.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::Poll;

use crc32fast::Hasher;

use crate::background::Transfer;
use crate::space::{Cursor, Extent};
use crate::state::{Change, Cost, Inner, Object, Outcome};
use crate::{BLOCK, BlockDevice, CHUNK_BLOCKS, Error, MAX_VALUE, PutError, check_key};

/// Device writes of one put that may be in flight while the next fills.
const MAX_IN_FLIGHT: usize = 2;

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The key was not there before.
    Created,
    /// There was a value before, which this one replaced.
    Replaced,
}

/// A put under way, from [`Store::begin_put`](crate::Store::begin_put).
///
/// Nothing of it is visible before [`Put::commit`]; to drop it is to abort it.
pub struct Put<'a, D: BlockDevice + 'static> {
    inner: &'a Rc<Inner<D>>,
    key: Box<str>,
    len: u64,
    /// `None` once committed.
    extents: Option<Box<[Extent]>>,
    cursor: Cursor,
    /// First block of the piece that `buffer` is for, and the piece's bytes.
    piece: (u64, usize),
    buffer: Vec<u8>,
    accepted: u64,
    hasher: Hasher,
    in_flight: VecDeque<Transfer<Result<(), D::Error>>>,
    lost_flushes: u64,
    /// An earlier call failed or was dropped halfway.
    aborted: bool,
}

impl<'a, D: BlockDevice + 'static> Put<'a, D> {
    pub(crate) fn begin(inner: &'a Rc<Inner<D>>, key: &str, len: u64) -> Result<Self, PutError> {
        check_key(key)?;
        if len > MAX_VALUE {
            return Err(PutError::TooLarge);
        }
        let mut state = inner.state.borrow_mut();
        let extents = state.free.allocate(len.div_ceil(BLOCK as u64)).ok_or(PutError::Full)?;
        let cost = Cost::of(key.len(), extents.len());
        if !state.charge(cost, inner.layout.snapshot_capacity()) {
            extents.iter().for_each(|&extent| state.free.release(extent));
            return Err(PutError::Full);
        }
        let lost_flushes = state.lost_flushes;
        drop(state);
        Ok(Self {
            inner,
            key: key.into(),
            len,
            extents: Some(extents.into_boxed_slice()),
            cursor: Cursor::default(),
            piece: (0, 0),
            buffer: Vec::new(),
            accepted: 0,
            hasher: Hasher::new(),
            in_flight: VecDeque::new(),
            lost_flushes,
            aborted: false,
        })
    }

    /// Takes the next bytes of the value. They go to the device in writes of up
    /// to 64 KiB, while the caller fetches more.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        if core::mem::replace(&mut self.aborted, true) {
            return Err(Error::Aborted);
        }
        if data.len() as u64 > self.len - self.accepted {
            return Err(Error::TooMuchData);
        }
        self.hasher.update(data);
        self.accepted += data.len() as u64;
        while !data.is_empty() {
            if self.buffer.is_empty() {
                self.next_piece()?;
            }
            let room = self.piece.1.saturating_sub(self.buffer.len());
            let (head, tail) = data.split_at(room.min(data.len()));
            self.buffer.extend_from_slice(head);
            data = tail;
            if self.buffer.len() == self.piece.1 {
                self.send().await?;
            }
        }
        self.aborted = false;
        Ok(())
    }

    /// Makes the value durable and visible, in that order. Returns after both.
    pub async fn commit(mut self) -> Result<Committed, Error> {
        if self.aborted {
            return Err(Error::Aborted);
        }
        if self.accepted != self.len {
            return Err(Error::TooLittleData);
        }
        if !self.buffer.is_empty() {
            self.send().await?;
        }
        while !self.in_flight.is_empty() {
            self.oldest_written().await?;
        }
        if self.lost_flushes != self.inner.state.borrow().lost_flushes {
            return Err(Error::Device);
        }
        let extents = self.extents.take().ok_or(Error::Aborted)?;
        let key = core::mem::take(&mut self.key);
        let crc = self.hasher.clone().finalize();
        let object = Object { len: self.len as u32, crc, extents };
        match self.inner.commit(key, Change::Put(Rc::new(object))).await? {
            Outcome::Put(committed) => Ok(committed),
            Outcome::Deleted(_) => Err(Error::Aborted),
        }
    }

    fn next_piece(&mut self) -> Result<(), Error> {
        let extents = self.extents.as_deref().unwrap_or_default();
        let (block, blocks) = self.cursor.next(extents, CHUNK_BLOCKS).ok_or(Error::TooMuchData)?;
        self.piece = (block, blocks as usize * BLOCK);
        self.buffer.reserve_exact(self.piece.1);
        Ok(())
    }

    /// Begins to write the buffer, padded with zeros to whole blocks.
    async fn send(&mut self) -> Result<(), Error> {
        while self.in_flight.len() >= MAX_IN_FLIGHT {
            self.oldest_written().await?;
        }
        let mut data = core::mem::take(&mut self.buffer);
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        let (dev, block) = (self.inner.dev.clone(), self.piece.0);
        let mut write = Transfer::new(async move { dev.write(block, &data).await });
        write.start().await;
        self.in_flight.push_back(write);
        Ok(())
    }

    async fn oldest_written(&mut self) -> Result<(), Error> {
        let in_flight = &mut self.in_flight;
        let oldest = poll_fn(|cx| {
            in_flight.iter_mut().for_each(|write| write.advance(cx));
            in_flight.front_mut().map_or(Poll::Ready(Ok(())), |write| Pin::new(write).poll(cx))
        });
        let result = self.inner.background.drive(oldest).await;
        self.in_flight.pop_front();
        result.map_err(|error| {
            log::error!("kv-store: write of a value failed: {error:?}");
            Error::Device
        })
    }
}

impl<D: BlockDevice + 'static> Drop for Put<'_, D> {
    fn drop(&mut self) {
        let Some(extents) = self.extents.take() else { return };
        if self.in_flight.is_empty() {
            self.inner.state.borrow_mut().abandon(self.key.len(), &extents);
            return;
        }
        // The device may still write to these blocks.
        let (inner, key) = (self.inner.clone(), self.key.len());
        let in_flight = core::mem::take(&mut self.in_flight);
        self.inner.background.add(Box::pin(async move {
            for write in in_flight {
                let _ = write.await;
            }
            inner.state.borrow_mut().abandon(key, &extents);
        }));
    }
}
