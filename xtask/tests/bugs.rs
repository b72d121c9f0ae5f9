//! The planted bugs of the tree: each is in a list of the book, and each patch
//! still applies.

use xtask::fault::planted;
use xtask::{sim, workspace};

#[test]
fn every_planted_bug_is_in_the_list_and_applies() {
    let bugs = sim::bugs(workspace::root()).unwrap();
    assert!(bugs.len() >= 5);
    let check = |patch: &xtask::attacks::Patch| patch.apply(workspace::root(), true).err();
    let failed: Vec<String> =
        bugs.iter().filter_map(|(patch, _)| check(patch)).map(|why| why.to_string()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_bug_for_campaigns_is_in_the_list_and_applies() {
    let bugs = planted::bugs(workspace::root()).unwrap();
    let failed: Vec<String> = bugs
        .iter()
        .filter_map(|patch| patch.apply(workspace::root(), true).err())
        .map(|why| why.to_string())
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let is_of_hypervisor = |patch: &&xtask::attacks::Patch| {
        std::fs::read_to_string(&patch.path).unwrap().contains("\n--- a/hv/")
    };
    let of_hypervisor = bugs.iter().filter(is_of_hypervisor).count();
    assert!(of_hypervisor >= 5 && bugs.len() - of_hypervisor >= 5);
}
