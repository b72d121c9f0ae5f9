//! From the volume to memory: the snapshot and then the journal, with every
//! field checked before it is used.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crc32fast::Hasher;

use crate::format::{
    Batch, Header, Link, MAX_BATCH_BLOCKS, MAX_ENTRY_BYTES, Replayed, decode_entry, is_zero,
};
use crate::layout::Layout;
use crate::mount::device;
use crate::state::{Cost, Object, State};
use crate::{BLOCK, BlockDevice, CHUNK_BLOCKS, MountError};

impl State {
    /// Puts a value that was found on the volume into the index.
    fn adopt(&mut self, layout: &Layout, key: &str, object: Object) -> Result<(), MountError> {
        let cost = Cost::of(key.len(), object.extents.len());
        let mut extents = object.extents.iter();
        if !extents.all(|&extent| self.free.claim(extent)) {
            return Err(MountError::Corrupt("extents overlap or lie outside the data blocks"));
        }
        if let Some(old) = self.index.insert(key.into(), Rc::new(object)) {
            self.abandon(key.len(), &old.extents);
        }
        if !self.charge(cost, layout.snapshot_capacity()) {
            return Err(if self.memory + cost.memory > self.memory_limit {
                MountError::IndexMemory { limit: self.memory_limit }
            } else {
                MountError::Corrupt("more index entries than fit a snapshot")
            });
        }
        Ok(())
    }

    fn forget(&mut self, key: &str) {
        if let Some(old) = self.index.remove(key) {
            self.abandon(key.len(), &old.extents);
        }
    }
}

/// Fills the index from the snapshot behind `header`.
pub(crate) async fn load_snapshot<D: BlockDevice>(
    dev: &D,
    layout: &Layout,
    header: &Header,
    state: &mut State,
) -> Result<(), MountError> {
    let mut block = layout.area_start(state.journal.area) + 1;
    let mut unread = header.bytes;
    let mut hasher = Hasher::new();
    let mut buffer: Vec<u8> = Vec::new();
    let mut last: Box<str> = "".into();
    for _ in 0..header.entries {
        if buffer.len() < MAX_ENTRY_BYTES && unread > 0 {
            let blocks = unread.div_ceil(BLOCK as u64).min(CHUNK_BLOCKS);
            let new = unread.min(blocks * BLOCK as u64);
            let old_len = buffer.len();
            buffer.resize(old_len + blocks as usize * BLOCK, 0);
            let space = buffer.get_mut(old_len..).unwrap_or_default();
            dev.read(block, space).await.map_err(device)?;
            hasher.update(space.get(..new as usize).unwrap_or_default());
            buffer.truncate(old_len + new as usize);
            block += blocks;
            unread -= new;
        }
        let mut rest = buffer.as_slice();
        let (key, object) =
            decode_entry(&mut rest).ok_or(MountError::Corrupt("snapshot entry is malformed"))?;
        if key <= &*last {
            return Err(MountError::Corrupt("snapshot is not in order"));
        }
        last = key.into();
        state.adopt(layout, &last, object)?;
        let used = buffer.len() - rest.len();
        buffer.drain(..used);
    }
    if unread > 0 || !buffer.is_empty() || hasher.finalize() != header.crc {
        return Err(MountError::Corrupt("snapshot checksum"));
    }
    Ok(())
}

/// Applies the journal and leaves `state.journal` at its end.
pub(crate) async fn replay_journal<D: BlockDevice>(
    dev: &D,
    layout: &Layout,
    state: &mut State,
) -> Result<(), MountError> {
    let mut window =
        Window { dev, start: layout.area_start(state.journal.area), first: 0, data: Vec::new() };
    loop {
        let journal = state.journal;
        let bytes = window.get(journal.next, layout.area).await?;
        let expected = Link { epoch: journal.epoch, seq: journal.seq, prev: journal.last };
        let Some(batch) = Batch::decode(bytes).filter(|batch| batch.link == expected) else {
            break;
        };
        for op in batch.ops() {
            match op {
                Some(Replayed::Put(key, object)) => state.adopt(layout, key, object)?,
                Some(Replayed::Delete(key)) => state.forget(key),
                None => return Err(MountError::Corrupt("journal record is malformed")),
            }
        }
        state.journal.next += batch.blocks;
        state.journal.seq += 1;
        state.journal.last = batch.crc;
    }
    check_tail(&mut window, layout, state).await?;
    clear_tail(&mut window, layout, state).await
}

/// Behind the end there may be one torn batch, and none that came after it:
/// that one would have waited until the torn one was durable.
async fn check_tail<D: BlockDevice>(
    window: &mut Window<'_, D>,
    layout: &Layout,
    state: &State,
) -> Result<(), MountError> {
    let journal = &state.journal;
    for next in journal.next..layout.area.min(journal.next + MAX_BATCH_BLOCKS + 1) {
        let bytes = window.get(next, layout.area).await?;
        let found = Batch::decode(bytes).map(|batch| batch.link);
        if found.is_some_and(|link| link.epoch == journal.epoch && link.seq >= journal.seq) {
            return Err(MountError::Corrupt("journal record in the middle is damaged"));
        }
    }
    Ok(())
}

/// Removes the head of a torn batch. Else its missing sectors might happen to
/// be written by a later, likewise torn batch, and bring it back to life.
async fn clear_tail<D: BlockDevice>(
    window: &mut Window<'_, D>,
    layout: &Layout,
    state: &State,
) -> Result<(), MountError> {
    let next = state.journal.next;
    let bytes = window.get(next, layout.area).await?;
    if is_zero(bytes.get(..BLOCK).unwrap_or_default()) {
        return Ok(());
    }
    window.dev.write(window.start + next, &[0; BLOCK]).await.map_err(device)?;
    window.dev.flush().await.map_err(device)
}

/// A part of the area in memory, read in large pieces.
struct Window<'a, D> {
    dev: &'a D,
    /// First block of the area.
    start: u64,
    /// First block in memory, counted from there.
    first: u64,
    data: Vec<u8>,
}

impl<D: BlockDevice> Window<'_, D> {
    /// What follows from block `next` on: a largest batch, or all to `end`.
    async fn get(&mut self, next: u64, end: u64) -> Result<&[u8], MountError> {
        let wanted = MAX_BATCH_BLOCKS.min(end.saturating_sub(next));
        let have = (self.data.len() / BLOCK) as u64;
        if next < self.first || next + wanted > self.first + have {
            let blocks = (4 * MAX_BATCH_BLOCKS).min(end.saturating_sub(next));
            self.data.resize(blocks as usize * BLOCK, 0);
            self.first = next;
            if blocks > 0 {
                self.dev.read(self.start + next, &mut self.data).await.map_err(device)?;
            }
        }
        let skip = (next - self.first) as usize * BLOCK;
        Ok(self.data.get(skip..).unwrap_or_default())
    }
}
