//! Attacks on CPU, memory, hypercalls and grants by a domain without a device.
//!
//! The table in the book's chapter "Attacks" says what each tries.

use anyhow::Result;
use system_tests::{
    attack::{Attack, LIMIT},
    bench::Bench,
    runner::Test,
};

/// All of them.
pub fn all() -> Vec<Test> {
    tests![self::g1_attack_forbidden_calls]
}

fn g1_attack_forbidden_calls(bench: &Bench) -> Result<()> {
    Attack::guest("forbidden-calls")
        .run(bench, |scene| scene.done(LIMIT)?.all("tried", "refused", 500))
}
