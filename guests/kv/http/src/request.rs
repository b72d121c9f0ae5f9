//! From the bytes of a request head to what is asked for.
//!
//! Two kinds of errors are kept apart. Where the *framing* of the request is
//! in doubt [`parse`] fails, and the connection ends after the answer, because
//! nobody knows where the next request begins. Where only its *meaning* is
//! wrong, the head is fine, [`Head::route`] holds the refusal, and the
//! connection can go on.

use alloc::{
    borrow::Cow,
    format,
    string::{String, ToString},
};

use crate::{
    MAX_HEAD, MAX_HEADERS, MAX_KEY, MAX_TARGET,
    status::{Reject, Status},
};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Put,
    Delete,
    Other,
}

/// What to do it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/`: the list of keys.
    List,
    /// `/health`.
    Health,
    /// `/key`.
    Key(String),
}

/// How the request's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Neither `Content-Length` nor `Transfer-Encoding`: there is none.
    Absent,
    /// `Content-Length`; numbers that do not fit count as `u64::MAX`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A request head that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) route: Result<Route, Reject>,
    pub(crate) body: Body,
    /// HTTP/1.1, so the answer may be chunked and interim.
    pub(crate) http11: bool,
    /// The client wants to go on afterwards.
    pub(crate) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expect_continue: bool,
    /// The client prefers JSON.
    pub(crate) json: bool,
}

/// Parses the head at the start of `bytes`. `Ok(None)`: more bytes are needed.
/// Otherwise the head and its length.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Reject> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => {
            // A target that is too long already need not be waited for.
            return match request.path {
                Some(path) if path.len() > MAX_TARGET => Err(target_too_long()),
                None if bytes.len() > MAX_TARGET + 16 => Err(target_too_long()),
                _ => Ok(None),
            };
        }
        Ok(_) => {
            let line = bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len());
            return Err(if line > MAX_TARGET {
                target_too_long()
            } else {
                Reject::new(
                    Status::HeadersTooLarge,
                    format!("request head is over {MAX_HEAD} bytes"),
                )
            });
        }
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Reject::new(
                Status::HeadersTooLarge,
                format!("over {MAX_HEADERS} header fields"),
            ));
        }
        Err(httparse::Error::Version) => {
            return Err(Reject::new(
                Status::VersionNotSupported,
                "this server speaks HTTP/1.0 and HTTP/1.1",
            ));
        }
        Err(e) => return Err(Reject::new(Status::BadRequest, format!("malformed request: {e}"))),
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Reject::new(Status::BadRequest, "malformed request line"));
    };
    if target.len() > MAX_TARGET {
        return Err(target_too_long());
    }
    let http11 = version == 1;
    let fields = Fields::collect(request.headers)?;
    if http11 && fields.hosts != 1 {
        return Err(Reject::new(Status::BadRequest, "HTTP/1.1 needs exactly one Host header"));
    }
    let body = match (fields.chunked, fields.length) {
        (true, Some(_)) => {
            return Err(Reject::new(
                Status::BadRequest,
                "both Content-Length and Transfer-Encoding",
            ));
        }
        (true, None) if !http11 => {
            return Err(Reject::new(Status::BadRequest, "Transfer-Encoding in HTTP/1.0"));
        }
        (true, None) => Body::Chunked,
        (false, Some(n)) => Body::Length(n),
        (false, None) => Body::Absent,
    };
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    };
    let (path, query) = split_target(target);
    let route = match route(path) {
        Ok(_) if fields.bad_expect => {
            Err(Reject::new(Status::ExpectationFailed, "only 100-continue can be expected"))
        }
        Ok(_) if method == Method::Put && fields.content_range => Err(Reject::new(
            Status::BadRequest,
            "a PUT cannot replace a part of a value (Content-Range)",
        )),
        other => other,
    };
    let head = Head {
        method,
        route,
        body,
        http11,
        keep_alive: if http11 { !fields.close } else { fields.keep_alive && !fields.close },
        expect_continue: http11 && fields.expect_continue,
        json: fields.json || query.split('&').any(|p| p == "format=json"),
    };
    Ok(Some((head, len)))
}

fn target_too_long() -> Reject {
    Reject::new(Status::UriTooLong, format!("request target is over {MAX_TARGET} bytes"))
}

/// The header fields that matter here.
#[derive(Default)]
struct Fields {
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expect_continue: bool,
    bad_expect: bool,
    content_range: bool,
    json: bool,
}

impl Fields {
    fn collect(headers: &[httparse::Header<'_>]) -> Result<Self, Reject> {
        let mut f = Self::default();
        let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
        for h in headers {
            if is(h.name, "host") {
                f.hosts = f.hosts.saturating_add(1);
            } else if is(h.name, "content-length") {
                let n = content_length(h.value)?;
                if f.length.is_some_and(|old| old != n) {
                    return Err(Reject::new(
                        Status::BadRequest,
                        "contradictory Content-Length headers",
                    ));
                }
                f.length = Some(n);
            } else if is(h.name, "transfer-encoding") {
                if f.chunked || !trim(h.value).eq_ignore_ascii_case(b"chunked") {
                    return Err(Reject::new(
                        Status::NotImplemented,
                        "transfer coding not supported",
                    ));
                }
                f.chunked = true;
            } else if is(h.name, "connection") {
                f.close |= has_token(h.value, b"close");
                f.keep_alive |= has_token(h.value, b"keep-alive");
            } else if is(h.name, "expect") {
                if trim(h.value).eq_ignore_ascii_case(b"100-continue") {
                    f.expect_continue = true;
                } else {
                    f.bad_expect = true;
                }
            } else if is(h.name, "content-range") {
                f.content_range = true;
            } else if is(h.name, "accept") {
                f.json |= has_token(h.value, b"application/json");
            }
        }
        Ok(f)
    }
}

/// Digits only: signs, blanks within and lists are refused, since another
/// parser on the way might read them differently.
fn content_length(value: &[u8]) -> Result<u64, Reject> {
    let value = trim(value);
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Reject::new(Status::BadRequest, "malformed Content-Length"));
    }
    Ok(value
        .iter()
        .fold(0u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d.wrapping_sub(b'0')))))
}

fn trim(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// Whether a comma-separated list names `token` (parameters are ignored).
fn has_token(value: &[u8], token: &[u8]) -> bool {
    value
        .split(|&b| b == b',')
        .filter_map(|item| item.split(|&b| b == b';').next())
        .any(|item| trim(item).eq_ignore_ascii_case(token))
}

/// Path and query of a request target in origin or absolute form.
fn split_target(target: &str) -> (&str, &str) {
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            rest.find(['/', '?']).and_then(|i| rest.get(i..)).unwrap_or("/")
        }
        _ => target,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    // `http://host?query` has an empty path, which means the root.
    (if path.is_empty() && rest.starts_with('?') { "/" } else { path }, query)
}

/// What a path names. Routes are compared after decoding, so that every
/// spelling of a path names the same thing.
fn route(path: &str) -> Result<Route, Reject> {
    let Some(encoded) = path.strip_prefix('/') else {
        return Err(Reject::new(Status::BadRequest, "request target must begin with /"));
    };
    check_escapes(encoded)?;
    let bytes: Cow<'_, [u8]> = percent_encoding::percent_decode_str(encoded).into();
    if bytes.len() > MAX_KEY {
        return Err(Reject::new(Status::UriTooLong, format!("key is over {MAX_KEY} bytes")));
    }
    let Ok(key) = core::str::from_utf8(&bytes) else {
        return Err(Reject::new(Status::BadRequest, "key is not UTF-8"));
    };
    Ok(match key {
        "" => Route::List,
        "health" => Route::Health,
        key => Route::Key(key.to_string()),
    })
}

/// A `%` without two hex digits is refused; the decoder would let it through
/// as it stands, and two spellings would then name one key.
fn check_escapes(encoded: &str) -> Result<(), Reject> {
    let mut rest = encoded.as_bytes();
    while let Some(at) = rest.iter().position(|&b| b == b'%') {
        match rest.get(at..).unwrap_or_default() {
            [_, a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest = tail,
            _ => {
                return Err(Reject::new(Status::BadRequest, "malformed percent-escape in the key"));
            }
        }
    }
    Ok(())
}
