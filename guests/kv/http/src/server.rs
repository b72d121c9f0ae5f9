//! The life of a connection: request after request.

use embassy_futures::select::select;
use embedded_io_async::{Read, Write};
use kv_store::{BlockDevice, Store};

use crate::{
    LINGER_IDLE_MS, LINGER_MS, MAX_DISCARD, MAX_HEAD, MAX_LINGER,
    conn::{Buffers, Clock, Conn, Gone},
    handler,
    request::{self, Body, Head},
    respond::Reply,
    status::{Reject, Status},
};

/// What answers the requests.
pub enum Service<'a, D: BlockDevice + 'static> {
    /// The store.
    Ready(&'a Store<D>),
    /// There is none; every request is answered with 503 and this reason.
    Unavailable(&'a str),
}

impl<D: BlockDevice + 'static> Clone for Service<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: BlockDevice + 'static> Copy for Service<'_, D> {}

/// How the caller should end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In good order: everything was sent.
    Close,
    /// With a reset: an answer was cut short and must not look complete, or
    /// the client does not respond.
    Abort,
}

/// How a request was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next request may follow.
    Keep,
    /// This was the last one.
    Close,
    /// The answer could not be completed.
    Abort,
}

/// What is still to be read of a request's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unread {
    /// Bytes; `None`: unknown.
    pub(crate) bytes: Option<u64>,
    /// The client waits for `100 Continue` before it sends them.
    pub(crate) waiting: bool,
}

impl Unread {
    fn of(head: &Head) -> Self {
        let bytes = match head.body {
            Body::Absent => Some(0),
            Body::Length(n) => Some(n),
            Body::Chunked => None,
        };
        Self { bytes, waiting: head.expect_continue && bytes != Some(0) }
    }

    /// Whether an answer that leaves this unread can be followed by another.
    ///
    /// A client that waits for leave to send its body may or may not send it
    /// after a refusal, so nobody would know where the next request begins.
    fn can_be_skipped(self) -> bool {
        !self.waiting && self.bytes.is_some_and(|n| n <= MAX_DISCARD)
    }
}

/// Serves one client until it leaves or must.
pub async fn serve<T, C, D>(
    io: &mut T,
    clock: &C,
    buffers: &mut Buffers,
    service: Service<'_, D>,
) -> End
where
    T: Read + Write,
    C: Clock,
    D: BlockDevice + 'static,
{
    let mut conn = Conn::new(io, clock, buffers);
    loop {
        match step(&mut conn, service).await {
            Ok(Flow::Keep) => {}
            Ok(Flow::Close) => {
                // Nothing that was sent depends on it, so its failure changes nothing.
                let _ = conn.flush().await;
                return End::Close;
            }
            Ok(Flow::Abort) | Err(_) => return End::Abort,
        }
    }
}

/// One request.
async fn step<T, C, D>(conn: &mut Conn<'_, T, C>, service: Service<'_, D>) -> Result<Flow, Gone>
where
    T: Read + Write,
    C: Clock,
    D: BlockDevice + 'static,
{
    conn.allow(0);
    let head = match read_head(conn).await {
        Ok(Some(head)) => head,
        Ok(None) => return Ok(Flow::Close),
        Err(Stop::Gone(Gone::Slow)) if !conn.input.bytes().is_empty() => {
            conn.allow(0);
            conn.reject(
                &Reject::new(Status::RequestTimeout, "request head took too long"),
                Reply::last(),
            )
            .await?;
            return Ok(Flow::Close);
        }
        // Silence between requests is no error.
        Err(Stop::Gone(Gone::Slow)) => return Ok(Flow::Close),
        Err(Stop::Gone(gone)) => return Err(gone),
        Err(Stop::Reject(reject)) => {
            conn.allow(0);
            conn.reject(&reject, Reply::last()).await?;
            linger(conn).await;
            return Ok(Flow::Close);
        }
    };
    let mut unread = Unread::of(&head);
    conn.allow(unread.bytes.unwrap_or(0).min(MAX_DISCARD));
    let flow = handler::handle(conn, service, &head, &mut unread).await?;
    match flow {
        Flow::Keep if unread.can_be_skipped() => {
            let rest = unread.bytes.unwrap_or(0);
            Ok(if conn.discard(rest).await? { Flow::Keep } else { Flow::Close })
        }
        Flow::Keep | Flow::Close => {
            if unread.bytes != Some(0) {
                linger(conn).await;
            }
            Ok(Flow::Close)
        }
        Flow::Abort => Ok(Flow::Abort),
    }
}

/// Whether the connection may go on after an answer to `head` given now.
pub(crate) fn may_keep(head: &Head, unread: Unread) -> bool {
    head.keep_alive && unread.can_be_skipped()
}

enum Stop {
    Gone(Gone),
    Reject(Reject),
}

impl From<Gone> for Stop {
    fn from(gone: Gone) -> Self {
        Self::Gone(gone)
    }
}

/// Reads a request head. `None`: the client left between two requests.
async fn read_head<T: Read + Write, C: Clock>(
    conn: &mut Conn<'_, T, C>,
) -> Result<Option<Head>, Stop> {
    // Bytes already looked at, so that a head that comes byte by byte is
    // parsed once a line and not once a byte.
    let mut seen = 0;
    loop {
        if seen == 0 {
            // Empty lines before a request are to be ignored (RFC 9112, 2.2).
            let blank =
                conn.input.bytes().iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            conn.input.consume(blank);
        }
        let bytes = conn.input.bytes();
        let fresh = bytes.get(seen..).unwrap_or_default();
        if fresh.contains(&b'\n') || bytes.len() >= MAX_HEAD || (seen == 0 && !fresh.is_empty()) {
            match request::parse(bytes) {
                Ok(Some((head, len))) => {
                    conn.input.consume(len);
                    return Ok(Some(head));
                }
                Ok(None) => {}
                Err(reject) => return Err(Stop::Reject(reject)),
            }
        }
        seen = bytes.len();
        if conn.fill().await? == 0 {
            return if conn.input.bytes().is_empty() {
                Ok(None)
            } else {
                Err(Stop::Reject(Reject::new(Status::BadRequest, "request head ends early")))
            };
        }
    }
}

/// After a last answer to a client that may still be sending: takes and drops
/// what it sends for a while. Closing at once would reset the connection, and
/// the reset could overtake the answer.
async fn linger<T: Read + Write, C: Clock>(conn: &mut Conn<'_, T, C>) {
    let clock = conn.clock;
    conn.allow(0);
    let drain = async {
        let mut left = MAX_LINGER;
        while left > 0 {
            let have = conn.input.bytes().len();
            left = left.saturating_sub(have as u64);
            conn.input.consume(have);
            match select(conn.fill(), clock.sleep_ms(LINGER_IDLE_MS)).await {
                embassy_futures::select::Either::First(Ok(n)) if n > 0 => {}
                _ => return,
            }
        }
    };
    select(drain, clock.sleep_ms(LINGER_MS)).await;
}
