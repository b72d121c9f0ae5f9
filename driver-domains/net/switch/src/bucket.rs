//! A token bucket.

use crate::FloodLimit;

/// Parts of a token: what fits one nanosecond at one token a second.
const TOKEN: u64 = 1_000_000_000;

#[derive(Debug)]
pub(crate) struct Bucket {
    limit: FloodLimit,
    /// Parts of tokens.
    level: u64,
    at_ns: u64,
}

impl Bucket {
    /// Full.
    pub(crate) fn new(limit: FloodLimit) -> Self {
        Self { limit, level: u64::from(limit.burst) * TOKEN, at_ns: 0 }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now_ns: u64) -> bool {
        let passed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let gained = passed.saturating_mul(u64::from(self.limit.per_second));
        let full = u64::from(self.limit.burst) * TOKEN;
        self.level = self.level.saturating_add(gained).min(full);
        match self.level.checked_sub(TOKEN) {
            Some(left) => {
                self.level = left;
                true
            }
            None => false,
        }
    }
}
