#![allow(unsafe_code)]
//! What the host finds by its symbol: the block of orders, and the moment.

use judge_orders::Block;

/// Orders and outcome.
#[unsafe(no_mangle)]
pub(crate) static JUDGE: Block = Block::new();

/// Called once a round when as many requests were completed as ordered: where the
/// host stops the machine and does what it wants to do in the middle of a round.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn moment() {
    // SAFETY: does nothing. As it may touch memory for all the compiler knows, the call
    // stays, and what was told before it is in memory when it comes.
    unsafe { core::arch::asm!("nop", options(nostack, preserves_flags)) };
}
