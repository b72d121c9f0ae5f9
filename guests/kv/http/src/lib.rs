//! The HTTP side of the key-value guest: HTTP/1.1 in front of a
//! [`kv_store::Store`], over any byte stream, without hardware.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /key` | 201 or 204, once the value is durable |
//! | `GET /key`, `HEAD /key` | the value |
//! | `DELETE /key` | 204, or 404 |
//! | `GET /` | the keys: `key`, tab, length a line; JSON with `?format=json` or `Accept: application/json` |
//! | `GET /health` | `ok` and a line of JSON with figures of the store |
//!
//! Values are streamed: a connection owns two buffers of [`BUFFER`] bytes and
//! nothing else grows with a value's size. A value longer than the buffers
//! pushes back on the client through TCP.
//!
//! The client is a stranger: `request` says how its heads are read, and
//! `conn` bounds how long it may keep a connection waiting. Time spent
//! waiting for the store never counts, so a pause of the disk is a pause and
//! not an error.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod conn;
mod handler;
mod list;
mod request;
mod respond;
mod server;
mod status;

pub use conn::{Buffers, Clock};
pub use server::{End, Service, serve};

/// Most bytes of a key, decoded.
pub const MAX_KEY: usize = kv_store::MAX_KEY;
/// Most bytes of a value.
pub const MAX_VALUE: u64 = kv_store::MAX_VALUE;
/// Most bytes of a request target: a key with every byte escaped fits, and a
/// host and a query with it.
pub const MAX_TARGET: usize = 2048;
/// Most bytes of a request head.
pub const MAX_HEAD: usize = 16 << 10;
/// Most header fields of a request.
pub const MAX_HEADERS: usize = 64;
/// Bytes of each of a connection's two buffers.
pub const BUFFER: usize = 32 << 10;

/// How long a client may leave the server waiting, for its next byte or for
/// room to send.
pub const CLIENT_IDLE_MS: u64 = 60_000;
/// The slowest that a client may be on average once [`CLIENT_IDLE_MS`] are
/// used up, so that a connection cannot be held open by a trickle.
pub const CLIENT_BYTES_PER_MS: u64 = 8;
/// Unread body that is read and thrown away to keep a connection alive.
pub const MAX_DISCARD: u64 = MAX_VALUE;
/// Bytes taken from a client after the last answer before the connection is
/// cut: a client that only reads the answer once it has sent everything gets it.
pub const MAX_LINGER: u64 = 2 * MAX_VALUE;
/// Longest time for that.
pub const LINGER_MS: u64 = 15_000;
/// Longest silence of the client in that time.
pub const LINGER_IDLE_MS: u64 = 2_000;
