//! What compiled Rust code expects of its surroundings, for programs that run
//! without a C library: the memory functions and the unwinder's symbols.
//!
//! A bare-metal binary links it with `use bare_support as _;`. The symbols are
//! left out of host test builds, where the C library and `std` have them.
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::arithmetic_side_effects,
        clippy::panic,
        clippy::unreachable,
        clippy::todo
    )
)]

#[cfg(test)]
extern crate std;

pub mod mem;
#[cfg(not(test))]
mod symbols;
