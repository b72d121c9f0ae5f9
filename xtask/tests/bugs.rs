//! The planted bugs of the tree: each is in the book's list, and each patch
//! still applies.

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
