#![allow(unsafe_code)]
//! What the host finds by its symbol: the block of orders.

use judge_orders::Block;

/// Orders and outcome.
#[unsafe(no_mangle)]
pub(crate) static JUDGE: Block = Block::new();
