//! Token buckets.
//!
//! A request's size is known only when it was taken out of the ring, and then
//! it has to be served. So a bucket lets something through as long as one whole
//! token is in it, and what that costs may overdraw it: the debt is paid before
//! the next. The average is exact, at any size of request.
//!
//! The crates that there are count time per token in whole nanoseconds, which
//! is far off at 200 MiB/s (4.77 ns a byte), or refuse what is larger than the
//! bucket. This one counts in billionths of tokens and loses none.

use ring_proto::boot::Limits;

/// Parts of a token: what comes in within a nanosecond at one token a second.
const TOKEN: i128 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;
/// A sleeper wakes for so much more than a single token, if the bucket holds
/// it: at 20,000 operations a second one wakeup each would be a storm.
const NAP_NS: u64 = NS_PER_MS;

/// A token bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_second: u64,
    /// Parts of tokens that it holds at most.
    size: i128,
    /// Parts of tokens; negative after an overdraft.
    level: i128,
    /// Tokens that are there once and do not come back.
    one_time: u64,
    at_ns: u64,
}

impl Bucket {
    /// A full one that gains `per_second` tokens and holds `size` of them, at
    /// least one; `one_time` tokens beside that are there once.
    pub fn new(per_second: u64, size: u64, one_time: u64) -> Self {
        let size = i128::from(size.max(1)).saturating_mul(TOKEN);
        Self { per_second, size, level: size, one_time, at_ns: 0 }
    }

    fn fill(&mut self, now_ns: u64) {
        // A clock that goes back brings nothing.
        let passed = now_ns.saturating_sub(self.at_ns);
        if passed == 0 {
            return;
        }
        self.at_ns = now_ns;
        // Two numbers of 64 bits: the product does not wrap.
        let gained = u128::from(passed).wrapping_mul(u128::from(self.per_second));
        let gained = i128::try_from(gained).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(gained).min(self.size);
    }

    /// Whether a token is there.
    pub fn ready(&mut self, now_ns: u64) -> bool {
        self.fill(now_ns);
        self.one_time > 0 || self.level >= TOKEN
    }

    /// Takes tokens, more than there are if need be.
    pub fn spend(&mut self, tokens: u64) {
        let once = tokens.min(self.one_time);
        self.one_time = self.one_time.saturating_sub(once);
        let rest = i128::from(tokens.saturating_sub(once));
        self.level = self.level.saturating_sub(rest.saturating_mul(TOKEN));
    }

    /// Takes `tokens` if a token is there.
    pub fn take(&mut self, now_ns: u64, tokens: u64) -> bool {
        let ready = self.ready(now_ns);
        if ready {
            self.spend(tokens);
        }
        ready
    }

    /// When [`ready`](Self::ready) will say yes, if nothing is spent till then.
    pub fn ready_at(&self) -> u64 {
        let missing = TOKEN.saturating_sub(self.level);
        if self.one_time > 0 || missing <= 0 {
            return self.at_ns;
        }
        let rate = i128::from(self.per_second);
        let up = missing.saturating_add(rate).saturating_sub(1);
        let wait = up.checked_div(rate).unwrap_or(i128::MAX);
        self.at_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// When it is worth waking up for what is there then: some tokens more than
    /// one, but none that the bucket would not hold.
    fn worth_waking_at(&self) -> u64 {
        let full = self.size.checked_div(i128::from(self.per_second)).unwrap_or(0);
        let nap = NAP_NS.min(u64::try_from(full).unwrap_or(u64::MAX) / 4);
        self.ready_at().max(self.at_ns.saturating_add(nap))
    }
}

/// The buckets of a connection's [`Limits`], one for operations and one for
/// bytes. What has no limit has no bucket.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    ops: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// With both buckets full.
    pub fn new(limits: &Limits) -> Self {
        let refill_ms = u128::from(limits.refill_ms.max(1));
        let bucket = |rate: u64, one_time| {
            let size = u128::from(rate).saturating_mul(refill_ms) / 1000;
            let size = u64::try_from(size).unwrap_or(u64::MAX);
            (rate > 0).then(|| Bucket::new(rate, size, one_time))
        };
        Self {
            ops: bucket(limits.ops.into(), limits.ops_burst.into()),
            bytes: bucket(limits.bandwidth, limits.bandwidth_burst),
        }
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.ops.iter_mut().chain(&mut self.bytes)
    }

    /// Whether something may begin.
    pub fn ready(&mut self, now_ns: u64) -> bool {
        let mut ready = true;
        // Both are asked, so that both know the time.
        for bucket in self.buckets() {
            ready &= bucket.ready(now_ns);
        }
        ready
    }

    /// Counts what began, or went on.
    pub fn spend(&mut self, ops: u64, bytes: u64) {
        if let Some(bucket) = &mut self.ops {
            bucket.spend(ops);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes);
        }
    }

    /// Counts one operation of `bytes` if it may begin.
    pub fn take(&mut self, now_ns: u64, bytes: u64) -> bool {
        let ready = self.ready(now_ns);
        if ready {
            self.spend(1, bytes);
        }
        ready
    }

    /// After [`ready`](Self::ready) said no: when to ask again.
    pub fn wake_at(&self) -> u64 {
        let times = self.ops.iter().chain(&self.bytes).map(Bucket::worth_waking_at);
        times.max().unwrap_or(0)
    }
}
