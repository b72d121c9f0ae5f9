//! What compiled Rust code expects of its surroundings, for programs that run
//! without a C library: the memory functions and the unwinder's symbols.
//!
//! A bare-metal binary links it with `use bare_support as _;`. The symbols are
//! left out of host test builds, where the C library and `std` have them.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod mem;
#[cfg(not(test))]
mod symbols;
