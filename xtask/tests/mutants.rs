//! The mutants of the tree: each names a model, and its patch still applies.

use xtask::{mutants, workspace};

#[test]
fn every_mutant_names_a_model_and_applies() {
    let root = workspace::root();
    let mutants = mutants::load(root).unwrap();
    let check = |mutant: &mutants::Mutant| mutant.patch.apply(root, true).err();
    let failed: Vec<String> = mutants.iter().filter_map(check).map(|e| e.to_string()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
