//! Each target over its corpus, and over some random bytes.
//!
//! The corpus holds seeds that come far, and as `found-…` the input of each
//! finding that was fixed. This needs neither libFuzzer nor instrumented code.

use std::path::Path;

use fuzz_targets::{TARGETS, target};

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            (path.file_name().unwrap().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_corpus_input_passes() {
    for target in TARGETS {
        let files = corpus(target.name);
        assert!(!files.is_empty(), "{} has no seed", target.name);
        for (file, bytes) in files {
            eprintln!("{}/{file}", target.name);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn random_bytes_pass() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for target in TARGETS {
        for _ in 0..200 {
            let len = next() as usize % target.max_len.min(600);
            let bytes: Vec<u8> = (0..len).map(|_| (next() >> 24) as u8).collect();
            (target.run)(&bytes);
        }
    }
}

#[test]
fn names_are_unique_and_the_corpus_has_no_others() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().filter(|target| target.name == name).count() == 1, "{name}");
    }
    assert_eq!(target("planted").unwrap().name, "planted");
    assert!(target("no-such-target").is_none());
}

#[test]
#[should_panic(expected = "the planted value was found")]
fn the_planted_value_is_one() {
    let mut bytes = 0xb1_4e_ad_07_u32.to_le_bytes().to_vec();
    bytes.extend(0x0b0e_57ac_1e5e_7c0d_u64.to_le_bytes());
    bytes.extend(0x1de4_u16.to_le_bytes());
    (target("planted").unwrap().run)(&bytes);
}
