//! Numbers that differ from life to life.

use x86_64::instructions::random::RdRand;

use crate::time;

/// A seed for ports and sequence numbers: from RDRAND where the CPU has it, else
/// stretched from the clock, which is no secret; nothing may take it for a key.
pub fn seed() -> u64 {
    RdRand::new().and_then(RdRand::get_u64).unwrap_or_else(|| {
        // splitmix64.
        let mut z = time::now_ns().wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}
