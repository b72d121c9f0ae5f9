//! Writing answers.

use core::fmt::Write as _;

use embedded_io_async::{Read, Write};

use crate::{
    conn::{Clock, Conn, Gone},
    request::{Head, Method},
    status::{Reject, Status},
};

/// How the body of an answer is delimited.
pub(crate) enum Framing {
    /// No body, and no header about one.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// By the end of the connection, for HTTP/1.0.
    UntilClose,
}

/// What an answer depends on apart from its content.
#[derive(Clone, Copy)]
pub(crate) struct Reply {
    /// The connection goes on afterwards.
    pub(crate) keep: bool,
    /// Only the head is wanted.
    pub(crate) head_only: bool,
    /// HTTP/1.1.
    pub(crate) http11: bool,
    /// JSON is wanted.
    pub(crate) json: bool,
}

impl Reply {
    pub(crate) fn to(head: &Head, keep: bool) -> Self {
        Self { keep, head_only: head.method == Method::Head, http11: head.http11, json: head.json }
    }

    /// To somebody whose request was not understood.
    pub(crate) const fn last() -> Self {
        Self { keep: false, head_only: false, http11: true, json: false }
    }
}

impl<T: Read + Write, C: Clock> Conn<'_, T, C> {
    /// Puts the head of an answer, up to and with the empty line, into `out`.
    pub(crate) fn put_head(
        &mut self,
        status: Status,
        reply: Reply,
        framing: &Framing,
        headers: &[(&str, &str)],
    ) {
        self.out.clear();
        // `out` is emptied first and far larger than any head, so nothing here fails.
        let _ = write!(self.out, "HTTP/1.1 {} {}\r\n", status as u16, status.reason());
        for (name, value) in headers {
            let _ = write!(self.out, "{name}: {value}\r\n");
        }
        let _ = match framing {
            Framing::None | Framing::UntilClose => Ok(()),
            Framing::Length(n) => write!(self.out, "Content-Length: {n}\r\n"),
            Framing::Chunked => self.out.write_str("Transfer-Encoding: chunked\r\n"),
        };
        if !reply.keep {
            let _ = self.out.write_str("Connection: close\r\n");
        } else if !reply.http11 {
            let _ = self.out.write_str("Connection: keep-alive\r\n");
        }
        let _ = self.out.write_str("\r\n");
    }

    /// A whole answer with a short text as its body.
    pub(crate) async fn text(
        &mut self,
        status: Status,
        reply: Reply,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(), Gone> {
        self.put_head(status, reply, &Framing::Length(body.len() as u64), headers);
        if !reply.head_only {
            let _ = self.out.write_str(body);
        }
        self.send().await
    }

    /// An answer without a body.
    pub(crate) async fn empty(&mut self, status: Status, reply: Reply) -> Result<(), Gone> {
        let framing = if status == Status::NoContent { Framing::None } else { Framing::Length(0) };
        self.put_head(status, reply, &framing, &[]);
        self.send().await
    }

    /// A refusal.
    pub(crate) async fn reject(&mut self, reject: &Reject, reply: Reply) -> Result<(), Gone> {
        let plain = ("Content-Type", "text/plain; charset=utf-8");
        let body_len = reject.why.len() as u64 + 1;
        match reject.allow {
            Some(allow) => {
                self.put_head(
                    reject.status,
                    reply,
                    &Framing::Length(body_len),
                    &[plain, ("Allow", allow)],
                );
            }
            None => self.put_head(reject.status, reply, &Framing::Length(body_len), &[plain]),
        }
        if !reply.head_only {
            let _ = self.out.write_str(&reject.why);
            let _ = self.out.write_str("\n");
        }
        self.send().await
    }
}
