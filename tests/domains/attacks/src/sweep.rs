//! Attempts of which each ends the domain: one a generation.
//!
//! A domain that is refused does not live to try the next thing, so generation
//! `g` makes attempt `g - 1`, and the supervisor starts the next. Before an
//! attempt the program says `attack: NAME: try GENERATION WHAT`; the test then
//! looks for the death of that generation. An attempt that the domain survives
//! is a breach, and the sweep goes on with the next.

use core::fmt::Display;

use ring_proto::boot::BootInfo;

use crate::{begin, breach, done};

/// Makes the attempts of `count` from this generation's on. `attempt` says
/// what it does by `announce` and then does it; it returns only if nothing
/// stopped it.
pub fn run(name: &str, count: usize, attempt: impl Fn(usize, &dyn Fn(&dyn Display))) -> ! {
    let boot: &BootInfo = begin(name);
    let first = boot.generation.saturating_sub(1) as usize;
    for number in first..count {
        attempt(number, &|what| {
            log::info!("attack: {name}: try {} {what}", boot.generation);
        });
        breach!(name, "attempt {number} did not end generation {}", boot.generation);
    }
    done!(name, "tried={count}")
}
