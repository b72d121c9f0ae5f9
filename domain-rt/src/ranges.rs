//! Hands out ranges of numbers: grant references, window pages, DMA pages.

use alloc::vec::Vec;
use core::ops::Range;

/// A first-fit allocator of ranges. Frees join their neighbours.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Ascending, not touching.
    free: Vec<Range<u32>>,
}

impl Ranges {
    /// Everything in `all` is free.
    pub fn new(all: Range<u32>) -> Self {
        let mut ranges = Self { free: Vec::new() };
        ranges.free(all);
        ranges
    }

    /// Nothing is free. For statics.
    pub const fn empty() -> Self {
        Self { free: Vec::new() }
    }

    /// The first number of `count` consecutive free ones.
    pub fn alloc(&mut self, count: u32) -> Option<u32> {
        let len = |range: &Range<u32>| range.end.saturating_sub(range.start);
        let at = self.free.iter().position(|range| len(range) >= count)?;
        let range = self.free.get_mut(at)?;
        let first = range.start;
        range.start = first.saturating_add(count);
        if range.start == range.end {
            self.free.remove(at);
        }
        Some(first)
    }

    /// Gives back what was allocated.
    pub fn free(&mut self, range: Range<u32>) {
        if range.start >= range.end {
            return;
        }
        let at = self.free.partition_point(|other| other.start < range.start);
        self.free.insert(at, range);
        // Join with the next, then with the one before.
        for i in [at, at.wrapping_sub(1)] {
            let next = i.wrapping_add(1);
            if let Some(right) = self.free.get(next).cloned()
                && let Some(left) = self.free.get_mut(i)
                && left.end == right.start
            {
                left.end = right.end;
                self.free.remove(next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_again() {
        let mut ranges = Ranges::new(1..100);
        let a = ranges.alloc(10).unwrap();
        let b = ranges.alloc(20).unwrap();
        let c = ranges.alloc(69).unwrap();
        assert_eq!((a, b, c), (1, 11, 31));
        assert_eq!(ranges.alloc(1), None);
        ranges.free(11..31);
        ranges.free(1..11);
        ranges.free(31..100);
        assert_eq!(ranges.free.len(), 1);
        assert_eq!(ranges.alloc(99), Some(1));
        assert_eq!(ranges.alloc(1), None);
    }

    #[test]
    fn a_gap_that_is_too_small_is_skipped() {
        let mut ranges = Ranges::new(0..10);
        ranges.alloc(3).unwrap();
        ranges.alloc(3).unwrap();
        ranges.free(0..3);
        assert_eq!(ranges.alloc(4), Some(6));
        assert_eq!(ranges.alloc(3), Some(0));
    }
}
