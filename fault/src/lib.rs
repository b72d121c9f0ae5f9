//! Fault injection, as far as it needs no machine: what faults there are
//! ([`class`]), what is written down of each trial ([`record`]) and how it is
//! judged ([`verdict`]). `cargo xtask fault` runs the trials.

pub mod class;
pub mod record;
pub mod verdict;
