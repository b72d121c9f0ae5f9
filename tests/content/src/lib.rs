//! Bytes that say what they are: what the guests of a test write and what the
//! host expects, in one place for both.
//!
//! | module | has |
//! |---|---|
//! | [`stream`] | a stream whose every byte is known from its offset, and what its reader says of it |
//! | [`mod@file`] | files made of records with a checksum, a place and a version |
//! | [`mod@label`] | data of any length that says who wrote it, where it belongs and in which version |
//! | [`random`] | reproducible numbers |
#![no_std]
#![forbid(unsafe_code)]

pub mod file;
pub mod label;
pub mod random;
pub mod stream;

pub use crc32fast::Hasher as Crc32;
