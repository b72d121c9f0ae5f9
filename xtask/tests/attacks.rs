//! The attacks of the tree: each has all that belongs to it, and each patch
//! that takes a defence away still applies.

use xtask::attacks::Attacks;
use xtask::workspace;

#[test]
fn every_attack_has_a_program_a_test_a_row_and_a_patch() {
    let attacks = Attacks::load(workspace::root()).unwrap();
    assert!(!attacks.programs.is_empty());
    let problems = attacks.problems();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_defence_can_be_taken_away() {
    let attacks = Attacks::load(workspace::root()).unwrap();
    let check = |patch: &xtask::attacks::Patch| patch.apply(workspace::root(), true).err();
    let failed: Vec<String> =
        attacks.patches.iter().filter_map(check).map(|why| why.to_string()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
