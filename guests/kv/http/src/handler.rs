//! What each request does.

use alloc::format;
use core::fmt::{Display, Write as _};

use embedded_io_async::{Read, Write};
use kv_store::{BlockDevice, PutError, Store};

use crate::{
    BUFFER, MAX_KEY, MAX_VALUE,
    conn::{Clock, Conn, Gone},
    list,
    request::{Body, Head, Method, Route},
    respond::{Framing, Reply},
    server::{Flow, Service, Unread, may_keep},
    status::{Reject, Status},
};

const TEXT: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");
const NO_STORE: (&str, &str) = ("Cache-Control", "no-store");

/// Answers the request whose head was read. `unread` tells afterwards how much
/// of the request's body is still in the stream.
pub(crate) async fn handle<T, C, D>(
    conn: &mut Conn<'_, T, C>,
    service: Service<'_, D>,
    head: &Head,
    unread: &mut Unread,
) -> Result<Flow, Gone>
where
    T: Read + Write,
    C: Clock,
    D: BlockDevice + 'static,
{
    let store = match service {
        Service::Ready(store) => store,
        Service::Unavailable(why) => {
            let reject =
                Reject::new(Status::Unavailable, format!("the store is not available: {why}"));
            return refuse(conn, head, *unread, &reject).await;
        }
    };
    let route = match &head.route {
        Ok(route) => route,
        Err(reject) => return refuse(conn, head, *unread, reject).await,
    };
    match (route, head.method) {
        (Route::Key(key), Method::Put) => put(conn, store, key, head, unread).await,
        (Route::Key(key), Method::Get | Method::Head) => get(conn, store, key, head, *unread).await,
        (Route::Key(key), Method::Delete) => delete(conn, store, key, head, *unread).await,
        (Route::Key(_), Method::Other) => {
            refuse(conn, head, *unread, &Reject::method("GET, HEAD, PUT, DELETE")).await
        }
        (Route::List, Method::Get | Method::Head) => {
            // An old client learns the end of a list by the end of the connection.
            let keep = may_keep(head, *unread) && head.http11;
            list::send(conn, store, Reply::to(head, keep)).await?;
            Ok(flow(keep))
        }
        (Route::Health, Method::Get | Method::Head) => health(conn, store, head, *unread).await,
        (Route::List | Route::Health, _) => {
            refuse(conn, head, *unread, &Reject::method("GET, HEAD")).await
        }
    }
}

const fn flow(keep: bool) -> Flow {
    if keep { Flow::Keep } else { Flow::Close }
}

async fn refuse<T: Read + Write, C: Clock>(
    conn: &mut Conn<'_, T, C>,
    head: &Head,
    unread: Unread,
    reject: &Reject,
) -> Result<Flow, Gone> {
    let keep = may_keep(head, unread);
    conn.reject(reject, Reply::to(head, keep)).await?;
    Ok(flow(keep))
}

fn io_error(what: &str, error: &impl Display) -> Reject {
    log::warn!("{what}: {error}");
    Reject::new(Status::InternalError, format!("{what}: {error}"))
}

async fn put<T: Read + Write, C: Clock, D: BlockDevice + 'static>(
    conn: &mut Conn<'_, T, C>,
    store: &Store<D>,
    key: &str,
    head: &Head,
    unread: &mut Unread,
) -> Result<Flow, Gone> {
    let len = match head.body {
        Body::Length(len) => len,
        Body::Absent => {
            return refuse(
                conn,
                head,
                *unread,
                &Reject::new(Status::LengthRequired, "PUT needs a Content-Length"),
            )
            .await;
        }
        // Space is reserved before the first byte, so the length must be known.
        Body::Chunked => {
            let why = "PUT needs a Content-Length; chunked bodies are not taken";
            return refuse(conn, head, *unread, &Reject::new(Status::LengthRequired, why)).await;
        }
    };
    if len > MAX_VALUE {
        let why = format!("value is over {MAX_VALUE} bytes");
        return refuse(conn, head, *unread, &Reject::new(Status::ContentTooLarge, why)).await;
    }
    let mut put = match store.begin_put(key, len) {
        Ok(put) => put,
        Err(e) => return refuse(conn, head, *unread, &put_refusal(&e)).await,
    };
    if unread.waiting {
        unread.waiting = false;
        // A client that did not wait after all needs no leave any more.
        if conn.input.bytes().is_empty() {
            conn.out.clear();
            let _ = conn.out.write_str("HTTP/1.1 100 Continue\r\n\r\n");
            conn.send().await?;
        }
    }
    let mut left = len;
    while left > 0 {
        // A buffer at a time, so that the disk sees few and large writes.
        let want = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        while conn.input.bytes().len() < want {
            if conn.fill().await? == 0 {
                // Dropping `put` gives the space back.
                drop(put);
                unread.bytes = Some(0);
                let missing = left.saturating_sub(conn.input.bytes().len() as u64);
                let reject =
                    Reject::new(Status::BadRequest, format!("the body ends {missing} bytes early"));
                conn.reject(&reject, Reply::to(head, false)).await?;
                return Ok(Flow::Close);
            }
        }
        let written = put.write(conn.input.first(want)).await;
        conn.input.consume(want);
        left = left.saturating_sub(want as u64);
        unread.bytes = Some(left);
        if let Err(e) = written {
            drop(put);
            return refuse(conn, head, *unread, &io_error("writing the value failed", &e)).await;
        }
    }
    conn.allow(0);
    match put.commit().await {
        Ok(committed) => {
            let keep = may_keep(head, *unread);
            let status = match committed {
                kv_store::Committed::Created => Status::Created,
                kv_store::Committed::Replaced => Status::NoContent,
            };
            conn.empty(status, Reply::to(head, keep)).await?;
            Ok(flow(keep))
        }
        Err(e) => refuse(conn, head, *unread, &io_error("storing the value failed", &e)).await,
    }
}

fn put_refusal(error: &PutError) -> Reject {
    match error {
        PutError::KeyTooLong => {
            Reject::new(Status::UriTooLong, format!("key is over {MAX_KEY} bytes"))
        }
        PutError::BadKey => Reject::new(
            Status::BadRequest,
            "a key has no `/` and no control characters, and is not `.` or `..`",
        ),
        PutError::TooLarge => {
            Reject::new(Status::ContentTooLarge, format!("value is over {MAX_VALUE} bytes"))
        }
        PutError::Full => Reject::new(Status::InsufficientStorage, "the volume is full"),
    }
}

async fn get<T: Read + Write, C: Clock, D: BlockDevice + 'static>(
    conn: &mut Conn<'_, T, C>,
    store: &Store<D>,
    key: &str,
    head: &Head,
    unread: Unread,
) -> Result<Flow, Gone> {
    let Some(mut value) = store.get(key) else {
        return refuse(conn, head, unread, &Reject::new(Status::NotFound, "no such key")).await;
    };
    let keep = may_keep(head, unread);
    let reply = Reply::to(head, keep);
    let len = value.len();
    conn.allow(len);
    let headers =
        [("Content-Type", "application/octet-stream"), ("Accept-Ranges", "none"), NO_STORE];
    conn.put_head(Status::Ok, reply, &Framing::Length(len), &headers);
    if reply.head_only {
        conn.send().await?;
        return Ok(flow(keep));
    }
    let mut left = len;
    while left > 0 {
        let room = conn.out.room();
        // All of it or whole blocks: the first buffer holds the head as well,
        // and must not make every later read begin within a block.
        let want = match usize::try_from(left) {
            Ok(left) if left <= room.len() => left,
            _ => room.len() - room.len() % kv_store::BLOCK,
        };
        let Some(room) = room.get_mut(..want) else { return Ok(Flow::Abort) };
        let error = match value.read(room).await {
            Ok(n) if n > 0 && n <= want => {
                conn.out.advance(n);
                left = left.saturating_sub(n as u64);
                None
            }
            Ok(_) => Some(Reject::new(Status::InternalError, "the value ends early")),
            Err(e) => Some(io_error("reading the value failed", &e)),
        };
        if let Some(reject) = error {
            // As long as nothing was sent the client can be told.
            if left == len {
                return refuse(conn, head, unread, &reject).await;
            }
            return Ok(Flow::Abort);
        }
        conn.send().await?;
    }
    if len == 0 {
        conn.send().await?;
    }
    Ok(flow(keep))
}

async fn delete<T: Read + Write, C: Clock, D: BlockDevice + 'static>(
    conn: &mut Conn<'_, T, C>,
    store: &Store<D>,
    key: &str,
    head: &Head,
    unread: Unread,
) -> Result<Flow, Gone> {
    let outcome = store.delete(key).await;
    conn.allow(unread.bytes.unwrap_or(0));
    match outcome {
        Ok(true) => {
            let keep = may_keep(head, unread);
            conn.empty(Status::NoContent, Reply::to(head, keep)).await?;
            Ok(flow(keep))
        }
        Ok(false) => {
            refuse(conn, head, unread, &Reject::new(Status::NotFound, "no such key")).await
        }
        Err(e) => refuse(conn, head, unread, &io_error("deleting the key failed", &e)).await,
    }
}

async fn health<T: Read + Write, C: Clock, D: BlockDevice + 'static>(
    conn: &mut Conn<'_, T, C>,
    store: &Store<D>,
    head: &Head,
    unread: Unread,
) -> Result<Flow, Gone> {
    let keep = may_keep(head, unread);
    let s = store.stats();
    let body = format!(
        "ok\n{{\"keys\":{},\"used_bytes\":{},\"free_bytes\":{}}}\n",
        s.keys, s.used_bytes, s.free_bytes
    );
    conn.text(Status::Ok, Reply::to(head, keep), &[TEXT, NO_STORE], &body).await?;
    Ok(flow(keep))
}
