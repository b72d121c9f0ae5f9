//! What each block of the volume must hold.
//!
//! A block has a version, which grows with each write. Any number of writes of a
//! block may be in flight at a time (the frontend keeps their order, over crashes
//! too), but no read beside a write: which of the two the device does first is
//! nobody's promise. So a read has exactly one right answer.

use alloc::{vec, vec::Vec};

use judge_orders::{Wrong, wrong};
use test_content::label::{Damage, Label};

#[derive(Clone, Copy, Default)]
struct State {
    /// Newest version whose write was acknowledged.
    acked: u64,
    /// Newest version that was submitted.
    newest: u64,
    /// Newest version whose write failed, or whose loss was seen: until a newer one is
    /// acknowledged nobody knows what the block holds.
    unsure: u64,
    reads: u32,
    writes: u32,
    /// Round that wrote it last.
    round: u64,
}

pub(crate) struct Model {
    writer: u64,
    blocks: Vec<State>,
}

impl Model {
    pub(crate) fn new(writer: u64, blocks: usize) -> Self {
        Self { writer, blocks: vec![State::default(); blocks] }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    fn range(&mut self, first: usize, count: usize) -> &mut [State] {
        self.blocks.get_mut(first..first + count).unwrap_or_default()
    }

    pub(crate) fn may_write(&mut self, first: usize, count: usize) -> bool {
        self.range(first, count).iter().all(|block| block.reads == 0)
    }

    pub(crate) fn may_read(&mut self, first: usize, count: usize) -> bool {
        self.range(first, count).iter().all(|block| block.writes == 0)
    }

    /// Makes the next content of a block, which is to be written in `round`.
    pub(crate) fn write(&mut self, block: usize, round: u64, data: &mut [u8]) {
        let writer = self.writer;
        let Some(state) = self.blocks.get_mut(block) else { return };
        state.newest += 1;
        state.writes += 1;
        state.round = round;
        Label { writer, place: block as u64, version: state.newest }.fill(data);
    }

    /// The newest version of a block that was submitted.
    pub(crate) fn newest(&self, block: usize) -> u64 {
        self.blocks.get(block).map_or(0, |state| state.newest)
    }

    /// The write of `version` ended.
    pub(crate) fn written(&mut self, block: usize, version: u64, well: bool) {
        let Some(state) = self.blocks.get_mut(block) else { return };
        state.writes = state.writes.saturating_sub(1);
        if !well {
            state.unsure = state.unsure.max(version);
            return;
        }
        state.acked = state.acked.max(version);
        if version > state.unsure {
            state.unsure = 0;
        }
    }

    /// Blocks are about to be read.
    pub(crate) fn read(&mut self, first: usize, count: usize) {
        self.range(first, count).iter_mut().for_each(|block| block.reads += 1);
    }

    /// A read of a block ended; without data if it failed.
    pub(crate) fn was_read(&mut self, block: usize, data: Option<&[u8]>) -> Result<(), Wrong> {
        let Some(state) = self.blocks.get_mut(block) else { return Ok(()) };
        state.reads = state.reads.saturating_sub(1);
        let Some(data) = data.filter(|_| state.unsure == 0) else { return Ok(()) };
        let judged = judge(data, self.writer, block as u64, state.acked);
        if judged.is_err() {
            // Told once.
            state.unsure = state.newest;
        }
        judged
    }

    /// Whether nobody knows what a block holds.
    pub(crate) fn is_unsure(&self, block: usize) -> bool {
        self.blocks.get(block).is_some_and(|state| state.unsure != 0)
    }

    /// Blocks that `round` wrote.
    pub(crate) fn of_round(&self, round: u64) -> impl Iterator<Item = usize> {
        let blocks = self.blocks.iter().enumerate();
        blocks.filter(move |(_, state)| state.round == round).map(|(block, _)| block)
    }
}

/// Whether `data` is what `writer` put at `place` in `version`.
pub(crate) fn judge(data: &[u8], writer: u64, place: u64, version: u64) -> Result<(), Wrong> {
    let (what, label, offset) = match Label::read(data) {
        Err(Damage::NoLabel) => (wrong::NO_LABEL, None, 0),
        Err(Damage::Length(label)) => (wrong::PLACE, Some(label), 0),
        Err(Damage::Byte(label, at)) => (wrong::BYTES, Some(label), at),
        Ok(label) if label.writer != writer || label.place != place => {
            (wrong::PLACE, Some(label), 0)
        }
        Ok(label) if label.version < version => (wrong::STALE, Some(label), 0),
        Ok(label) if label.version > version => (wrong::FUTURE, Some(label), 0),
        Ok(_) => return Ok(()),
    };
    Err(Wrong {
        what,
        place,
        offset: offset as u64,
        found_place: label.map_or(0, |label| label.place),
        found_version: label.map_or(0, |label| label.version),
        oldest: version,
        newest: version,
    })
}
