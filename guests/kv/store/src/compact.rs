//! Compaction: a snapshot of the index in the other area, and a new journal.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Bound;

use crc32fast::Hasher;

use crate::format::{Header, encode_entry};
use crate::state::{Inner, Journal};
use crate::{BLOCK, BlockDevice, CHUNK_BLOCKS, Error};

impl<D: BlockDevice + 'static> Inner<D> {
    /// Moves to the other area. Only the commit job calls this, and only it
    /// changes the index, so the snapshot is consistent although reads and the
    /// data of puts go on.
    ///
    /// Until the new header is durable the old area is in force, and nothing
    /// in it is touched.
    pub async fn compact(&self) -> Result<(), Error> {
        let old = self.state.borrow().journal;
        let area = 1 - old.area;
        let start = self.layout.area_start(area);
        let epoch = old.epoch + 1;
        let mut header = Header { epoch, seq: old.seq, entries: 0, bytes: 0, crc: 0 };
        self.write_snapshot(start + 1, &mut header).await?;
        self.flush().await?;

        let (block, last) = header.encode(&self.layout);
        // From here on the other area may be in force on the volume, so nothing
        // may be added to this journal, even if writing the header fails.
        // Another try writes the very same snapshot and header.
        self.state.borrow_mut().journal.broken = true;
        self.write(start, &block).await?;
        self.flush().await?;
        {
            let mut state = self.state.borrow_mut();
            let next = 1 + header.snapshot_blocks();
            let seq = old.seq;
            state.journal = Journal { area, epoch, seq, last, next, broken: false };
            state.end_limbo();
        }
        // So that damage to the new header shows at mount as damage, and does
        // not bring back the old state. It need not be durable yet.
        let _ = self.write(self.layout.area_start(old.area), &[0; BLOCK]).await;
        Ok(())
    }

    /// Writes the index from `block` on and fills in the header.
    async fn write_snapshot(&self, mut block: u64, header: &mut Header) -> Result<(), Error> {
        const CHUNK: usize = CHUNK_BLOCKS as usize * BLOCK;
        let mut hasher = Hasher::new();
        let mut buffer: Vec<u8> = Vec::new();
        let mut after: Option<Box<str>> = None;
        loop {
            let mut last = None;
            {
                let state = self.state.borrow();
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                for (key, object) in state.index.range::<str, _>((from, Bound::Unbounded)) {
                    encode_entry(&mut buffer, key, object);
                    header.entries += 1;
                    if buffer.len() >= CHUNK {
                        last = Some(key.clone());
                        break;
                    }
                }
            }
            // Whole blocks while there may be more, then the rest.
            let more = last.is_some();
            after = last;
            let len = if more { buffer.len() / BLOCK * BLOCK } else { buffer.len() };
            let rest = buffer.split_off(len);
            hasher.update(&buffer);
            header.bytes += len as u64;
            buffer.resize(len.next_multiple_of(BLOCK), 0);
            if !buffer.is_empty() {
                self.write(block, &buffer).await?;
            }
            block += (buffer.len() / BLOCK) as u64;
            buffer = rest;
            if !more {
                header.crc = hasher.finalize();
                return Ok(());
            }
        }
    }
}
