//! A client's connection: two buffers, and bounds on waiting for the client.

use alloc::{boxed::Box, vec};
use core::{fmt, future::Future};

use embassy_futures::select::{Either, select};
use embedded_io_async::{Read, Write};

use crate::{BUFFER, CLIENT_BYTES_PER_MS, CLIENT_IDLE_MS};

/// Time, as the server needs it.
pub trait Clock {
    /// Milliseconds since some moment.
    fn now_ms(&self) -> u64;
    /// Completes after `ms` milliseconds.
    fn sleep_ms(&self, ms: u64) -> impl Future<Output = ()>;
}

/// The memory of one connection; one connection after the other can use it.
pub struct Buffers {
    pub(crate) input: Input,
    pub(crate) out: Out,
}

impl Buffers {
    /// Allocates twice [`BUFFER`] bytes.
    pub fn new() -> Self {
        Self {
            input: Input { buf: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 },
            out: Out { buf: vec![0; BUFFER].into_boxed_slice(), len: 0 },
        }
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes received and not yet used: `buf[start..end]`.
pub(crate) struct Input {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// The first `n` bytes, or as many as there are.
    pub(crate) fn first(&self, n: usize) -> &[u8] {
        let bytes = self.bytes();
        bytes.get(..n).unwrap_or(bytes)
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
        if self.start == self.end {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Moves the bytes to the front and returns the room behind them.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.buf.get_mut(self.end..).unwrap_or_default()
    }
}

/// Bytes to be sent: `buf[..len]`.
pub(crate) struct Out {
    buf: Box<[u8]>,
    len: usize,
}

impl Out {
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }

    /// The room behind what is there; say with [`Out::advance`] how much was filled.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.buf.get_mut(self.len..).unwrap_or_default()
    }

    pub(crate) fn advance(&mut self, n: usize) {
        self.len = self.len.saturating_add(n).min(self.buf.len());
    }

    /// Forgets what was appended since the length was `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Overwrites bytes that are already there.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len()).min(self.len);
        if let Some(target) = self.buf.get_mut(at..end)
            && target.len() == bytes.len()
        {
            target.copy_from_slice(bytes);
        }
    }
}

impl fmt::Write for Out {
    /// All of `s`, or none of it and an error.
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let target = self.room().get_mut(..s.len()).ok_or(fmt::Error)?;
        target.copy_from_slice(s.as_bytes());
        self.advance(s.len());
        Ok(())
    }
}

/// The connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The stream failed.
    Broken,
    /// The client was too slow.
    Slow,
}

/// A stream, its buffers and the client's time.
pub(crate) struct Conn<'a, T, C> {
    pub(crate) io: &'a mut T,
    pub(crate) clock: &'a C,
    pub(crate) input: &'a mut Input,
    pub(crate) out: &'a mut Out,
    /// What is left of the client's time for this request.
    allowance_ms: u64,
}

impl<'a, T: Read + Write, C: Clock> Conn<'a, T, C> {
    pub(crate) fn new(io: &'a mut T, clock: &'a C, buffers: &'a mut Buffers) -> Self {
        buffers.input.clear();
        buffers.out.clear();
        Self {
            io,
            clock,
            input: &mut buffers.input,
            out: &mut buffers.out,
            allowance_ms: CLIENT_IDLE_MS,
        }
    }

    /// The client's time begins anew: a request, or an answer, of `bytes`.
    pub(crate) fn allow(&mut self, bytes: u64) {
        self.allowance_ms = CLIENT_IDLE_MS.saturating_add(bytes / CLIENT_BYTES_PER_MS);
    }

    /// Receives more. `Ok(0)`: the client has sent all it will, or the buffer is full.
    pub(crate) async fn fill(&mut self) -> Result<usize, Gone> {
        let room = self.input.room();
        if room.is_empty() {
            return Ok(0);
        }
        let n = timed(self.clock, &mut self.allowance_ms, self.io.read(room)).await?;
        self.input.end = self.input.end.saturating_add(n).min(self.input.buf.len());
        Ok(n)
    }

    /// Sends all of `out` and empties it.
    pub(crate) async fn send(&mut self) -> Result<(), Gone> {
        let mut rest = self.out.bytes();
        while !rest.is_empty() {
            let n = timed(self.clock, &mut self.allowance_ms, self.io.write(rest)).await?;
            if n == 0 {
                return Err(Gone::Broken);
            }
            rest = rest.get(n..).unwrap_or_default();
        }
        self.out.clear();
        Ok(())
    }

    /// Has everything that was sent go out.
    pub(crate) async fn flush(&mut self) -> Result<(), Gone> {
        timed(self.clock, &mut self.allowance_ms, self.io.flush()).await
    }

    /// Reads `n` bytes of input and throws them away. `false`: the client ended before.
    pub(crate) async fn discard(&mut self, mut n: u64) -> Result<bool, Gone> {
        loop {
            let have = self.input.bytes().len();
            let take = usize::try_from(n).unwrap_or(usize::MAX).min(have);
            self.input.consume(take);
            n = n.saturating_sub(take as u64);
            if n == 0 {
                return Ok(true);
            }
            if self.fill().await? == 0 {
                return Ok(false);
            }
        }
    }
}

/// Waits for the client, but no longer than it is allowed.
async fn timed<O, E, C: Clock>(
    clock: &C,
    allowance_ms: &mut u64,
    operation: impl Future<Output = Result<O, E>>,
) -> Result<O, Gone> {
    let began = clock.now_ms();
    let limit = CLIENT_IDLE_MS.min(*allowance_ms);
    let outcome = select(operation, clock.sleep_ms(limit)).await;
    let used = clock.now_ms().saturating_sub(began);
    *allowance_ms = allowance_ms.saturating_sub(used);
    match outcome {
        Either::First(Ok(value)) => Ok(value),
        Either::First(Err(_)) => Err(Gone::Broken),
        Either::Second(()) => Err(Gone::Slow),
    }
}
