//! Extents and the map of free blocks.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// A run of blocks, packed as on the volume: 48 bits of start, 16 of length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent(u64);

impl Extent {
    pub fn new(start: u64, len: u64) -> Self {
        debug_assert!(start < 1 << 48 && len < 1 << 16);
        Self(start << 16 | len & 0xffff)
    }

    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    pub fn start(self) -> u64 {
        self.0 >> 16
    }

    pub fn len(self) -> u64 {
        self.0 & 0xffff
    }
}

/// Walks the blocks of a list of extents in pieces.
#[derive(Default)]
pub(crate) struct Cursor {
    extent: usize,
    used: u64,
}

impl Cursor {
    /// The next piece: first block and number of blocks, at most `max`.
    pub fn next(&mut self, extents: &[Extent], max: u64) -> Option<(u64, u64)> {
        let extent = extents.get(self.extent)?;
        let piece = (extent.start() + self.used, (extent.len() - self.used).min(max));
        self.used += piece.1;
        if self.used == extent.len() {
            self.extent += 1;
            self.used = 0;
        }
        Some(piece)
    }
}

/// The free blocks, as runs that never touch each other.
///
/// Its size follows the number of runs in use and not the size of the volume,
/// which a bitmap would.
#[derive(Default)]
pub(crate) struct FreeMap {
    by_start: BTreeMap<u64, u64>,
    by_len: BTreeSet<(u64, u64)>,
    total: u64,
}

impl FreeMap {
    /// All blocks from `start` to `end` are free.
    pub fn new(start: u64, end: u64) -> Self {
        let mut map = Self::default();
        map.insert(start, end - start);
        map
    }

    /// Number of free blocks.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes `blocks` blocks in as few extents as it can: the smallest run that
    /// holds them all, else the largest runs.
    pub fn allocate(&mut self, mut blocks: u64) -> Option<Vec<Extent>> {
        if blocks > self.total {
            return None;
        }
        let mut extents = Vec::new();
        while blocks > 0 {
            let fit = self.by_len.range((blocks, 0)..).next();
            let &(len, start) = fit.or_else(|| self.by_len.last())?;
            let taken = len.min(blocks);
            self.remove(start, len);
            self.insert(start + taken, len - taken);
            extents.push(Extent::new(start, taken));
            blocks -= taken;
        }
        Some(extents)
    }

    /// Takes just this extent. False if it is not all free.
    pub fn claim(&mut self, extent: Extent) -> bool {
        let (start, len) = (extent.start(), extent.len());
        let Some((&run, &run_len)) = self.by_start.range(..=start).next_back() else {
            return false;
        };
        // Starts have 48 bits and lengths 16, so the sums do not overflow.
        let end = start + len;
        if len == 0 || end > run + run_len {
            return false;
        }
        self.remove(run, run_len);
        self.insert(run, start - run);
        self.insert(end, run + run_len - end);
        true
    }

    /// Gives an extent back.
    pub fn release(&mut self, extent: Extent) {
        let (mut start, mut len) = (extent.start(), extent.len());
        let before = self.by_start.range(..=start).next_back().map(|(&s, &l)| (s, l));
        let after = self.by_start.range(start..).next().map(|(&s, &l)| (s, l));
        let overlap = before.is_some_and(|(s, l)| s + l > start)
            || after.is_some_and(|(s, _)| start + len > s);
        if overlap {
            // Only a bug of the store leads here; losing the blocks until the
            // next mount is the harmless way out.
            debug_assert!(false, "released twice: {start}+{len}");
            log::error!("kv-store: blocks {start}+{len} released twice");
            return;
        }
        if let Some((s, l)) = before.filter(|(s, l)| s + l == start) {
            self.remove(s, l);
            (start, len) = (s, len + l);
        }
        if let Some((s, l)) = after.filter(|(s, _)| start + len == *s) {
            self.remove(s, l);
            len += l;
        }
        self.insert(start, len);
    }

    fn insert(&mut self, start: u64, len: u64) {
        if len > 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
            self.total += len;
        }
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.total -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_fit_then_largest() {
        let mut map = FreeMap::new(0, 100);
        // Runs of 5 at 10, 20 at 40, and 10 at 90.
        for (start, len) in [(0, 10), (15, 25), (60, 30)] {
            assert!(map.claim(Extent::new(start, len)));
        }
        assert_eq!(map.total(), 35);
        assert_eq!(map.allocate(4), Some([Extent::new(10, 4)].to_vec()));
        assert_eq!(map.allocate(9), Some([Extent::new(90, 9)].to_vec()));
        let rest = map.allocate(22).unwrap();
        assert_eq!(rest, [Extent::new(40, 20), Extent::new(99, 1), Extent::new(14, 1)]);
        assert_eq!(map.allocate(1), None);
        assert_eq!(map.allocate(0), Some(Vec::new()));
    }

    #[test]
    fn claims_are_exclusive_and_releases_merge() {
        let mut map = FreeMap::new(10, 20);
        assert!(!map.claim(Extent::new(9, 2)));
        assert!(!map.claim(Extent::new(19, 2)));
        assert!(!map.claim(Extent::new(12, 0)));
        assert!(!map.claim(Extent::from_bits(u64::MAX)));
        assert!(map.claim(Extent::new(12, 3)));
        assert!(!map.claim(Extent::new(11, 2)));
        assert!(!map.claim(Extent::new(14, 1)));
        map.release(Extent::new(12, 1));
        map.release(Extent::new(14, 1));
        map.release(Extent::new(13, 1));
        assert_eq!(map.allocate(10), Some([Extent::new(10, 10)].to_vec()));
    }
}
