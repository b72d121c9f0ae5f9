//! The handshake, explored: the real [`ring_ends::conn`] machines in all
//! interleavings of their steps, with a crash of either end in every state.
//!
//! ```text
//! RUSTFLAGS="--cfg stepped" cargo test -p ring-ends --test model --release --target-dir target/model
//! ```
//!
//! Without `--cfg stepped` this file is empty. With it every access to shared
//! memory goes through [`machine`], which can stop an end between any two:
//! [`ends`] drives the links as a guest and a driver domain do, [`explore`]
//! says what can happen and what must hold.
#![allow(missing_docs)]
#![cfg(stepped)]

mod ends;
mod explore;
mod machine;

use explore::{Bounds, explore};
use machine::Grain;

/// Nothing breaks, and every access is a step.
const CALM: Bounds =
    Bounds { grain: Grain::Access, crashes: [0, 0], complaints: [0, 0], spurious: 0 };

#[test]
fn conn_model_calm() {
    explore("nothing breaks", Bounds { spurious: 1, ..CALM });
}

#[test]
fn conn_model_one_crash_of_each_end_at_any_access() {
    explore("a crash of each end at any access", Bounds { crashes: [1, 1], ..CALM });
}

#[test]
fn conn_model_misbehaviour_at_any_access() {
    explore("misbehaviour of each end", Bounds { complaints: [1, 1], ..CALM });
}

#[test]
fn conn_model_misbehaviour_and_a_crash_at_any_call() {
    for (name, crashes) in [("frontend", [1, 0]), ("backend", [0, 1])] {
        let bounds = Bounds { grain: Grain::Call, crashes, complaints: [1, 1], spurious: 0 };
        explore(&format!("misbehaviour of each end and a crash of the {name}"), bounds);
    }
}

#[test]
fn conn_model_two_crashes_of_each_end_at_any_call() {
    let bounds = Bounds { grain: Grain::Call, crashes: [2, 2], ..CALM };
    explore("two crashes of each end at any call", bounds);
}
