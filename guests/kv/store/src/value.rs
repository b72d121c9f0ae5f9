//! Reading a value.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;

use crc32fast::Hasher;

use crate::background::Transfer;
use crate::space::Cursor;
use crate::state::{Inner, Object};
use crate::{BLOCK, BlockDevice, CHUNK_BLOCKS, Error};

/// The blocks of a piece, and how reading them went.
type Read<E> = Transfer<(Vec<u8>, Result<(), E>)>;

/// A value as it was when [`Store::get`](crate::Store::get) found it. As long
/// as this lives, later puts and deletes leave its blocks alone.
pub struct Value<'a, D: BlockDevice + 'static> {
    inner: &'a Inner<D>,
    /// `None` only while this is dropped.
    object: Option<Rc<Object>>,
    cursor: Cursor,
    /// Bytes of the value that were loaded so far.
    loaded: u64,
    /// The piece being handed out, and how much of it was.
    piece: Vec<u8>,
    used: usize,
    /// The read of the next piece.
    ahead: Option<Read<D::Error>>,
    hasher: Hasher,
    failed: Option<Error>,
}

impl<'a, D: BlockDevice + 'static> Value<'a, D> {
    pub(crate) fn new(inner: &'a Inner<D>, object: Rc<Object>) -> Self {
        Self {
            inner,
            object: Some(object),
            cursor: Cursor::default(),
            loaded: 0,
            piece: Vec::new(),
            used: 0,
            ahead: None,
            hasher: Hasher::new(),
            failed: None,
        }
    }

    /// Length of the value in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a value is no collection")]
    pub fn len(&self) -> u64 {
        self.object.as_ref().map_or(0, |object| object.len.into())
    }

    /// Reads the next bytes; 0 at the end (or for an empty `buf`).
    ///
    /// The last piece of up to 64 KiB is handed out only after the checksum of
    /// the whole value was found right; until then a damaged value cannot be
    /// told from a good one. Who needs the bytes checked must read to the end.
    pub async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.used == self.piece.len() && !buf.is_empty() {
            self.load().await.inspect_err(|&error| self.failed = Some(error))?;
        }
        let rest = self.piece.get(self.used..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.used += n;
        Ok(n)
    }

    /// Loads the next piece, if there is one.
    async fn load(&mut self) -> Result<(), Error> {
        let Some(read) = self.ahead.take().or_else(|| self.next_read()) else {
            self.piece.clear();
            self.used = 0;
            return self.verify();
        };
        // Kept in `self`, so that it is not lost if this call is dropped.
        let ahead = self.ahead.insert(read);
        let (mut data, result) = self.inner.background.drive(ahead).await;
        self.ahead = None;
        result.map_err(|error| {
            log::error!("kv-store: read of a value failed: {error:?}");
            Error::Device
        })?;
        let left = self.len() - self.loaded;
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        self.hasher.update(&data);
        self.loaded += data.len() as u64;
        self.piece = data;
        self.used = 0;
        if self.loaded == self.len() {
            return self.verify();
        }
        // Let the device fetch the next piece while the caller uses this one.
        self.ahead = self.next_read();
        if let Some(ahead) = &mut self.ahead {
            ahead.start().await;
        }
        Ok(())
    }

    fn next_read(&mut self) -> Option<Read<D::Error>> {
        let object = self.object.as_ref()?;
        let (block, blocks) = self.cursor.next(&object.extents, CHUNK_BLOCKS)?;
        let dev = self.inner.dev.clone();
        Some(Transfer::new(async move {
            let mut data = vec![0; blocks as usize * BLOCK];
            let result = dev.read(block, &mut data).await;
            (data, result)
        }))
    }

    fn verify(&self) -> Result<(), Error> {
        let expected = self.object.as_ref().map(|object| object.crc);
        if expected == Some(self.hasher.clone().finalize()) {
            return Ok(());
        }
        let start = self.object.as_ref().and_then(|o| o.extents.first()).map(|e| e.start());
        log::error!("kv-store: a value does not match its checksum (first block: {start:?})");
        Err(Error::Corrupt)
    }
}

impl<D: BlockDevice + 'static> Drop for Value<'_, D> {
    fn drop(&mut self) {
        self.object = None;
        self.inner.state.borrow_mut().reap();
    }
}
