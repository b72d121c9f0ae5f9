//! The store as its users see it.

use alloc::rc::Rc;
use core::ops::Bound;

use crate::state::{Change, Inner, Outcome};
use crate::{BLOCK, BlockDevice, Error, MountError, Put, PutError, Value, check_key, mount};

/// Memory that [`Store::mount`] allows the index, in bytes.
pub const DEFAULT_INDEX_MEMORY: usize = 6 << 20;

/// How full the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Number of keys.
    pub keys: u64,
    /// Bytes of blocks that hold values, also of puts under way and of
    /// replaced values that are still being read.
    pub used_bytes: u64,
    /// Bytes of free blocks.
    pub free_bytes: u64,
}

/// A mounted store. All calls take `&self` and may be made by many tasks of
/// one core at once.
pub struct Store<D: BlockDevice + 'static> {
    inner: Rc<Inner<D>>,
}

impl<D: BlockDevice + 'static> Store<D> {
    /// Mounts a volume. One whose first 128 KiB are all zero is formatted;
    /// one with foreign data is refused and left as it is.
    pub async fn mount(dev: D) -> Result<Self, MountError> {
        Self::mount_with(dev, DEFAULT_INDEX_MEMORY).await
    }

    /// Mounts a volume with a limit in bytes for the memory of the index:
    /// about 144 and the key for each key, and 72 for each extent.
    pub async fn mount_with(dev: D, index_memory: usize) -> Result<Self, MountError> {
        let inner = mount::mount(dev, index_memory).await?;
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Begins to store a value of just `len` bytes. Its space is reserved, so
    /// a put that has begun does not end for lack of it. A value that is to be
    /// replaced keeps its space until the new one is durable.
    pub fn begin_put(&self, key: &str, len: u64) -> Result<Put<'_, D>, PutError> {
        Put::begin(&self.inner, key, len)
    }

    /// Looks a value up. What it finds is durable.
    pub fn get(&self, key: &str) -> Option<Value<'_, D>> {
        let object = self.inner.state.borrow().index.get(key)?.clone();
        Some(Value::new(&self.inner, object))
    }

    /// Deletes a value, durably. False if there was none.
    pub async fn delete(&self, key: &str) -> Result<bool, Error> {
        if check_key(key).is_err() || !self.inner.may_have(key) {
            return Ok(false);
        }
        let outcome = self.inner.commit(key.into(), Change::Delete).await?;
        Ok(matches!(outcome, Outcome::Deleted(true)))
    }

    /// Calls `visit` with keys in byte order and the lengths of their values,
    /// from the first one behind `after`, until it returns false.
    ///
    /// `visit` must not call the store. To list with pauses, stop and go on
    /// behind the last key that was seen.
    pub fn list(&self, after: Option<&str>, mut visit: impl FnMut(&str, u64) -> bool) {
        let state = self.inner.state.borrow();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (key, object) in state.index.range::<str, _>((from, Bound::Unbounded)) {
            if !visit(key, object.len.into()) {
                break;
            }
        }
    }

    /// How full the store is.
    pub fn stats(&self) -> Stats {
        let state = self.inner.state.borrow();
        let (layout, free) = (&self.inner.layout, state.free.total());
        let used = layout.blocks - layout.data_start() - free;
        Stats {
            keys: state.index.len() as u64,
            used_bytes: used * BLOCK as u64,
            free_bytes: free * BLOCK as u64,
        }
    }
}

impl<D: BlockDevice + 'static> Drop for Store<D> {
    fn drop(&mut self) {
        // Jobs hold the shared part, which holds the jobs.
        self.inner.background.clear();
    }
}
