//! An attack in parts, for what a backend bears a few times only.
//!
//! A backend bars a generation of a guest that it has to disconnect too often
//! (SPEC.md, CONN-14), and makes it wait longer each time. So each generation
//! of the attacker takes some steps, says what came of them,
//!
//! `attack: NAME: part: tried=6 right=6`
//!
//! and dies; the generation after the last step sees whether it is served.

use ring_proto::boot::BootInfo;

use super::front::Front;
use crate::{begin, breach};

/// Steps of one generation.
pub const PART: usize = 7;

/// What a generation has to do.
pub enum Todo {
    /// These steps.
    Steps(core::ops::Range<usize>),
    /// Nothing is left; so many connections serve.
    Rest {
        /// How many.
        served: u32,
    },
}

/// What this generation has to do of `count` steps.
pub fn todo(name: &'static str, boot: &BootInfo, count: usize) -> Todo {
    begin(name);
    let first = (boot.generation as usize - 1) * PART;
    if first < count {
        return Todo::Steps(first..count.min(first + PART));
    }
    let mut served = 0;
    for mut front in Front::all() {
        match front.is_welcome() {
            true => served += 1,
            false => breach!(name, "{} no longer serves", front.name()),
        }
    }
    Todo::Rest { served }
}

/// Ends a part.
pub fn end(name: &'static str, tried: u32, right: u32) -> ! {
    log::info!("attack: {name}: part: tried={tried} right={right}");
    panic!("a part of the attack is over");
}
