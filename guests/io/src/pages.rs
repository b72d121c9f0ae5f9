//! Which pages of a buffer pool are in use.

use alloc::{vec, vec::Vec};

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// A first-fit allocator of runs. Pools are a few hundred pages, and a search
/// costs far less than the copy that follows it.
#[derive(Debug)]
pub(crate) struct PagePool {
    used: Vec<bool>,
}

impl PagePool {
    pub(crate) fn new(pages: usize) -> Self {
        Self { used: vec![false; pages] }
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<Run> {
        let mut first = 0usize;
        while let Some(window) = self.used.get_mut(first..first.checked_add(count)?) {
            match window.iter().rposition(|&used| used) {
                Some(last) => first = first.checked_add(last)?.checked_add(1)?,
                None => {
                    window.fill(true);
                    return Some(Run { first, count });
                }
            }
        }
        None
    }

    pub(crate) fn give(&mut self, run: Run) {
        let end = run.first.saturating_add(run.count).min(self.used.len());
        if let Some(pages) = self.used.get_mut(run.first..end) {
            pages.fill(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_overlap_and_come_back() {
        let mut pool = PagePool::new(10);
        let a = pool.take(4).expect("room");
        let b = pool.take(4).expect("room");
        assert_eq!((a.first, b.first), (0, 4));
        assert_eq!(pool.take(3), None);
        pool.give(a);
        assert_eq!(pool.take(5), None);
        assert_eq!(pool.take(3), Some(Run { first: 0, count: 3 }));
        pool.give(b);
        assert_eq!(pool.take(7), Some(Run { first: 3, count: 7 }));
        assert_eq!(pool.take(1), None);
    }

    #[test]
    fn every_page_can_be_had() {
        let mut pool = PagePool::new(64);
        let runs: Vec<Run> = core::iter::from_fn(|| pool.take(1)).collect();
        assert_eq!(runs.len(), 64);
        runs.iter().filter(|r| r.first % 2 == 0).for_each(|&r| pool.give(r));
        assert_eq!(pool.take(2), None);
        runs.iter().filter(|r| r.first % 2 == 1).for_each(|&r| pool.give(r));
        assert_eq!(pool.take(64), Some(Run { first: 0, count: 64 }));
    }
}
