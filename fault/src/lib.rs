//! Fault injection, as far as it needs no machine: what faults there are
//! ([`class`]), how they change a program ([`mutate`]), what a disk ([`disk`]) and a
//! wire ([`wire`]) do that do not do as they should, what a trial does ([`plan`]),
//! what the guests do meanwhile ([`workload`]), what is written down of each trial
//! ([`record`]), how it is judged ([`verdict`]), and what people read of it all
//! ([`report`]). `cargo xtask fault` runs the trials.

pub mod class;
pub mod disk;
pub mod mutate;
pub mod plan;
pub mod record;
pub mod report;
mod terms;
pub mod verdict;
pub mod wire;
pub mod workload;
