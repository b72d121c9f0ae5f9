//! The list of keys, a buffer at a time.
//!
//! The list is not a snapshot: between two buffers keys may come and go, and
//! the walk goes on after the last key that was sent. Every key that is there
//! all the while is listed exactly once.

use alloc::string::String;
use core::fmt::Write as _;

use embedded_io_async::{Read, Write};
use kv_store::{BlockDevice, Store};

use crate::{
    conn::{Clock, Conn, Gone, Out},
    respond::{Framing, Reply},
    status::Status,
};

/// Room for a chunk's size: four hex digits and CR LF. `BUFFER` is far below 64 KiB.
const CHUNK_HEAD: usize = 6;
/// Room for the CR LF after a chunk and for the last chunk.
const CHUNK_TAIL: usize = 2 + 5;

/// Sends the answer to `GET /`.
pub(crate) async fn send<T: Read + Write, C: Clock, D: BlockDevice + 'static>(
    conn: &mut Conn<'_, T, C>,
    store: &Store<D>,
    reply: Reply,
) -> Result<(), Gone> {
    let content_type = if reply.json { "application/json" } else { "text/plain; charset=utf-8" };
    let framing = if reply.http11 { Framing::Chunked } else { Framing::UntilClose };
    let headers = [("Content-Type", content_type), ("Cache-Control", "no-store")];
    conn.put_head(Status::Ok, reply, &framing, &headers);
    if reply.head_only {
        return conn.send().await;
    }
    let mut last: Option<String> = None;
    loop {
        let chunk = Chunk::begin(conn.out, reply.http11);
        if last.is_none() && reply.json {
            let _ = conn.out.write_str("[");
        }
        let done = fill(conn.out, store, &mut last, reply.json);
        if done && reply.json {
            let _ = conn.out.write_str("\n]\n");
        }
        chunk.end(conn.out, done);
        conn.send().await?;
        if done {
            return Ok(());
        }
    }
}

/// Appends entries after `last` while they fit. `true`: those were all.
fn fill<D: BlockDevice + 'static>(
    out: &mut Out,
    store: &Store<D>,
    last: &mut Option<String>,
    json: bool,
) -> bool {
    let mut newest: Option<String> = None;
    let mut full = false;
    let mut first = last.is_none();
    store.list(last.as_deref(), |key, len| {
        let before = out.len();
        let written = entry(out, key, len, json, first);
        // Keep room for what comes after the entries.
        if written.is_err() || out.room().len() < CHUNK_TAIL + 4 {
            out.truncate(before);
            full = true;
            return false;
        }
        first = false;
        newest = Some(key.into());
        true
    });
    if newest.is_some() {
        *last = newest;
    }
    !full
}

fn entry(out: &mut Out, key: &str, len: u64, json: bool, first: bool) -> core::fmt::Result {
    if json {
        out.write_str(if first { "\n" } else { ",\n" })?;
        out.write_str("{\"key\":\"")?;
        for c in key.chars() {
            match c {
                '"' => out.write_str("\\\"")?,
                '\\' => out.write_str("\\\\")?,
                c if (c as u32) < 0x20 => write!(out, "\\u{:04x}", c as u32)?,
                c => out.write_char(c)?,
            }
        }
        write!(out, "\",\"length\":{len}}}")
    } else {
        // A line break or tab in a key would forge an entry, so those are
        // percent-escaped, and `%` with them: the line decodes to the key.
        for c in key.chars() {
            if c.is_ascii_control() || c == '%' {
                write!(out, "%{:02X}", c as u32)?;
            } else {
                out.write_char(c)?;
            }
        }
        writeln!(out, "\t{len}")
    }
}

/// A chunk whose size is filled in at its end.
struct Chunk {
    at: Option<usize>,
}

impl Chunk {
    fn begin(out: &mut Out, chunked: bool) -> Self {
        let at = chunked.then(|| out.len());
        if chunked {
            let _ = out.write_str("0000\r\n");
        }
        Self { at }
    }

    fn end(self, out: &mut Out, last: bool) {
        let Some(at) = self.at else { return };
        let size = out.len().saturating_sub(at).saturating_sub(CHUNK_HEAD);
        if size == 0 {
            // A chunk of size 0 would end the body.
            out.truncate(at);
        } else {
            let digits: [u8; 4] = core::array::from_fn(|i| {
                let nibble = (size >> (12 - 4 * i)) & 0xf;
                b"0123456789abcdef".get(nibble).copied().unwrap_or(b'0')
            });
            out.patch(at, &digits);
            let _ = out.write_str("\r\n");
        }
        if last {
            let _ = out.write_str("0\r\n\r\n");
        }
    }
}
