//! The node's clock.

use crate::start::boot;

/// No deadline.
pub const NEVER: u64 = u64::MAX;
/// Nanoseconds of a millisecond.
pub const MS: u64 = 1_000_000;

/// Nanoseconds on the node's clock. Costs no exit.
pub fn now_ns() -> u64 {
    let boot = boot();
    let ticks = tsc().wrapping_sub(boot.tsc_base);
    // Two numbers of 64 bits: the product does not wrap.
    let scaled = u128::from(ticks).wrapping_mul(u128::from(boot.tsc_mult)) >> 32;
    // Over after some centuries.
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[allow(unsafe_code)]
fn tsc() -> u64 {
    // SAFETY: RDTSC has no effect but its result, and domains may use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
