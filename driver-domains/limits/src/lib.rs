//! What a guest may take of a driver domain.
//!
//! | module | what |
//! |---|---|
//! | [`bucket`] | token buckets, alone and as the pair that a manifest's `limits` name |
//! | [`turns`] | whose turn it is: deficit round robin by weight, within the limits |
//!
//! Nothing here knows of rings, devices or clocks: the caller says what time it
//! is, so tests run in virtual time.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod bucket;
pub mod turns;

pub use bucket::{Bucket, Limiter};
pub use turns::Turns;

#[cfg(test)]
mod tests;
