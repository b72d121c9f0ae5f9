//! A short run of the simulation, for every `cargo xtask test`; long ones are
//! `cargo xtask sim`.
#![allow(missing_docs)]

use sim::{Stats, run};

/// Seeds of the short run.
const SEEDS: u64 = 4_000;

#[test]
fn g3_g6_g7_no_seed_ends_in_a_violation() {
    let mut sum = Stats::default();
    for seed in 0..SEEDS {
        match run(seed, false) {
            Ok(stats) => sum.add(&stats),
            Err(violation) => panic!("{violation}; again: cargo xtask sim --seed {seed}"),
        }
    }
    println!("{sum:?}");
    // A run in which nothing happens would find nothing.
    let Stats { requests, replayed, frames, deaths, power_cuts, .. } = sum;
    assert!(requests > 8 * SEEDS && frames > 4 * SEEDS, "{sum:?}");
    assert!(deaths > SEEDS && replayed > SEEDS / 4 && power_cuts > SEEDS / 20, "{sum:?}");
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    // Others in between, so that what one run leaves behind would show.
    let runs = |seeds: [u64; 3]| seeds.map(|seed| run(seed, false).ok());
    for seed in 0..50 {
        let [first, _, again] = runs([seed, seed + 1000, seed]);
        assert!(first.is_some() && first == again, "seed {seed}: {first:?}, {again:?}");
    }
}
