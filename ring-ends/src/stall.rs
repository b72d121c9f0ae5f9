//! When a frontend complains that its backend does no work.

/// Watches whether a frontend's requests come to an end.
///
/// A backend that is not there is nobody to complain about: the node knows,
/// and the wait costs no CPU time. One that is there and completes nothing for
/// too long is complained about, again and again, until something happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stall {
    bound_ns: Option<u64>,
    /// Since when requests wait and none was completed.
    since: Option<u64>,
}

impl Stall {
    /// One that never complains.
    pub const fn new() -> Self {
        Self { bound_ns: None, since: None }
    }

    /// Complains after so many ns without a completion; 0 = never.
    pub fn set_bound(&mut self, ns: u64) {
        self.bound_ns = (ns != 0).then_some(ns);
    }

    /// Looks at how things are `now`: whether requests wait for a backend that
    /// is there, and whether one of them came to its end. Returns whether to
    /// complain.
    pub fn look(&mut self, now: u64, waits: bool, progress: bool) -> bool {
        let Some(bound) = self.bound_ns else { return false };
        if !waits {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let overdue = !progress && now.saturating_sub(since) >= bound;
        if overdue || progress {
            self.since = Some(now);
        }
        overdue
    }

    /// When to look again at the latest.
    pub fn deadline(&self) -> Option<u64> {
        self.since.zip(self.bound_ns).map(|(since, bound)| since.saturating_add(bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_comes_after_the_bound_and_again_after_each_bound() {
        let mut stall = Stall::new();
        stall.set_bound(100);
        assert!(!stall.look(1000, true, false));
        assert_eq!(stall.deadline(), Some(1100));
        assert!(!stall.look(1099, true, false));
        assert!(stall.look(1100, true, false));
        assert!(!stall.look(1199, true, false));
        assert!(stall.look(1250, true, false));
    }

    #[test]
    fn progress_and_nothing_to_wait_for_begin_anew() {
        let mut stall = Stall::new();
        stall.set_bound(100);
        assert!(!stall.look(1000, true, false));
        assert!(!stall.look(1090, true, true));
        assert!(!stall.look(1150, true, false));
        assert!(stall.look(1190, true, false));
        assert!(!stall.look(1280, false, false));
        assert_eq!(stall.deadline(), None, "no timer while there is nobody to complain about");
        assert!(!stall.look(1300, true, false));
        assert!(!stall.look(1399, true, false));
        assert!(stall.look(1400, true, false));
    }

    #[test]
    fn without_a_bound_nobody_complains() {
        let mut stall = Stall::new();
        assert!(!stall.look(0, true, false));
        assert!(!stall.look(u64::MAX, true, false));
        stall.set_bound(0);
        assert!(!stall.look(u64::MAX, true, false));
        assert_eq!(stall.deadline(), None);
    }
}
