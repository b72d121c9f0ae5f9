//! Bad requests and bad disks.

use embedded_io_async::Write;
use kv_http::{Buffers, End, Service, serve};

use crate::harness::{Client, Fixture, pattern, pipe, read_all, take_answer};

/// Sends one request; checks status, text and whether the connection goes on.
#[track_caller]
fn check(f: &Fixture, request: &str, status: u16, why: &str, kept: bool) {
    let mut bytes = f.exchange(request.as_bytes());
    let head = request.starts_with("HEAD ");
    let answer =
        take_answer(&mut bytes, head).unwrap_or_else(|| panic!("no answer to {request:?}"));
    assert_eq!(answer.status, status, "{request:?}: {answer:?}");
    assert_eq!(answer.header("connection") != Some("close"), kept, "{request:?}: {answer:?}");
    if !head {
        assert!(answer.text().contains(why), "{request:?}: {:?}", answer.text());
        assert!(
            answer.text().ends_with('\n') && answer.text().lines().count() == 1,
            "{:?}",
            answer.text()
        );
    }
}

#[test]
fn every_bad_request_is_named() {
    let f = Fixture::new(8);
    let line =
        |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: kv\r\n\r\n");
    let put = |headers: &str| format!("PUT /a HTTP/1.1\r\nHost: kv\r\n{headers}\r\n");
    for (request, status, why, kept) in [
        // Framing in doubt: the connection ends.
        ("\x16\x03\x01\x02\0\x01\0\x01\n".into(), 400, "malformed", false),
        ("GET\r\n\r\n".into(), 400, "malformed", false),
        ("GET / HTTP/1.1\r\nHost kv\r\n\r\n".into(), 400, "malformed", false),
        ("GET / HTTP/1.1\r\n Host: kv\r\n\r\n".into(), 400, "malformed", false),
        ("GET / HTTP/1.1\r\nHo".into(), 400, "early", false),
        ("GET / HTTP/2.0\r\n\r\n".into(), 505, "HTTP/1.1", false),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400, "Host", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400, "Host", false),
        (put("Content-Length: 5x\r\n"), 400, "Content-Length", false),
        (put("Content-Length: +5\r\n"), 400, "Content-Length", false),
        (put("Content-Length: -1\r\n"), 400, "Content-Length", false),
        (put("Content-Length: \r\n"), 400, "Content-Length", false),
        (put("Content-Length: 3, 3\r\n"), 400, "Content-Length", false),
        (put("Content-Length: 3\r\nContent-Length: 4\r\n"), 400, "contradictory", false),
        (put("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400, "both", false),
        (put("Transfer-Encoding: gzip, chunked\r\n"), 501, "coding", false),
        (put("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 501, "coding", false),
        ("PUT /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "HTTP/1.0", false),
        (put("Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\n0\r\n\r\n", 411, "chunked", false),
        (line("GET", &format!("/{}", "a".repeat(2100))), 414, "target", false),
        (line("GET", &format!("/{}", "a".repeat(100_000))), 414, "target", false),
        (
            format!("GET / HTTP/1.1\r\nHost: kv\r\nX: {}\r\n\r\n", "a".repeat(20_000)),
            431,
            "head",
            false,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: kv\r\n{}\r\n", "X: y\r\n".repeat(70)),
            431,
            "fields",
            false,
        ),
        // Lengths: no body follows, so a huge one must not be waited for.
        (put("Content-Length: 8388609\r\n"), 413, "8388608", false),
        (put("Content-Length: 99999999999999999999999\r\n"), 413, "8388608", false),
        (put(""), 411, "Content-Length", true),
        // Meaning: the connection goes on.
        (line("GET", &format!("/{}", "a".repeat(256))), 414, "key", true),
        (line("GET", &format!("/{}", "%61".repeat(256))), 414, "key", true),
        (line("GET", "/%"), 400, "escape", true),
        (line("GET", "/%4"), 400, "escape", true),
        (line("GET", "/%g0"), 400, "escape", true),
        (line("GET", "/%ff"), 400, "UTF-8", true),
        ("PUT /a/b HTTP/1.1\r\nHost: kv\r\nContent-Length: 1\r\n\r\nv".into(), 400, "`/`", true),
        ("PUT /.. HTTP/1.1\r\nHost: kv\r\nContent-Length: 1\r\n\r\nv".into(), 400, "`..`", true),
        (line("GET", "a"), 400, "begin with /", true),
        (line("OPTIONS", "*"), 400, "begin with /", true),
        (line("GET", "/none"), 404, "no such key", true),
        (line("HEAD", "/none"), 404, "", true),
        (line("DELETE", "/none"), 404, "no such key", true),
        (line("POST", "/a"), 405, "method", true),
        (line("BREW", "/a"), 405, "method", true),
        (line("PUT", "/"), 405, "method", true),
        (line("DELETE", "/"), 405, "method", true),
        (line("DELETE", "/health"), 405, "method", true),
        (put("Content-Length: 0\r\nContent-Range: bytes 0-0/5\r\n"), 400, "Content-Range", true),
        (put("Content-Length: 0\r\nExpect: a-miracle\r\n"), 417, "100-continue", true),
    ] {
        check(&f, &request, status, why, kept);
    }
    assert_eq!(f.store.stats().keys, 0);
}

#[test]
fn a_405_names_what_is_allowed() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        assert_eq!(c.request("PATCH", "/a").await.header("allow"), Some("GET, HEAD, PUT, DELETE"));
        assert_eq!(c.request("DELETE", "/").await.header("allow"), Some("GET, HEAD"));
        assert_eq!(c.request("DELETE", "/health").await.header("allow"), Some("GET, HEAD"));
    });
}

#[test]
fn a_refused_body_does_not_become_a_request() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        let body = b"GET /health HTTP/1.1\r\nHost: kv\r\n\r\n".repeat(3000);
        for request in ["PUT /%zz", "PUT /health", "POST /a", "DELETE /none", "GET /none"] {
            c.send(format!(
                "{request} HTTP/1.1\r\nHost: kv\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .await;
            c.send(&body).await;
            assert!(c.answer().await.expect("an answer").status >= 400);
            assert!(c.received.is_empty());
            assert_eq!(c.request("GET", "/none").await.status, 404);
        }
    });
}

#[test]
fn a_refused_client_that_asked_first_is_told_at_once() {
    let f = Fixture::new(8);
    for (target, length, status) in [("/a", 9 << 20, 413), ("/%zz", 5, 400), ("/health", 5, 405)] {
        let began = f.world.now();
        f.talk(async |s| {
            let mut c = Client::new(s);
            let head = format!("PUT {target} HTTP/1.1\r\nHost: kv\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n");
            c.send(head).await;
            let answer = c.answer().await.expect("an answer");
            assert_eq!((answer.status, answer.header("connection")), (status, Some("close")));
            assert_eq!(c.answer().await, None);
        });
        assert!(f.world.now() - began <= kv_http::LINGER_IDLE_MS);
    }
}

#[test]
fn a_client_that_sends_a_huge_body_regardless_still_reads_the_answer() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        let body = vec![b'x'; 9 << 20];
        // Reads nothing until everything is sent.
        assert_eq!(c.put("/a", &body).await.status, 413);
        assert_eq!(c.answer().await, None);
    });
    // And one that never ends is cut off.
    let (sent, end) = f.talk(async |mut s| {
        let _ = s
            .write_all(b"PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 999999999999\r\n\r\n")
            .await;
        let mut sent = 0u64;
        while let Ok(n) = s.write(&[b'x'; 4096]).await {
            sent += n as u64;
        }
        sent
    });
    assert!(sent < kv_http::MAX_LINGER + (1 << 20));
    assert_eq!(end, End::Close);
}

#[test]
fn a_body_that_ends_early_leaves_nothing() {
    let f = Fixture::new(24);
    f.talk(async |s| {
        assert_eq!(Client::new(s).put("/a", b"old").await.status, 201);
    });
    let free = f.store.stats().free_bytes;
    for (sent, len) in [(0, 1), (4, 5), (5000, 5001), (100_000, 8 << 20), (8 << 20, (8 << 20) + 1)]
    {
        let mut bytes =
            format!("PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: {len}\r\n\r\n").into_bytes();
        bytes.extend_from_slice(&pattern(1, sent));
        // Ends in good order, and by a client that is gone at once.
        let mut answer = f.exchange(&bytes);
        let answer = take_answer(&mut answer, false).expect("an answer");
        assert!(answer.status == 400 || answer.status == 413);
        f.talk(async |mut s| {
            let _ = s.write_all(&bytes).await;
        });
        // The store may still be busy with the writes; the next call ends them.
        f.talk(async |s| assert_eq!(Client::new(s).put("/a", b"old").await.status, 204));
        assert_eq!(f.store.stats().free_bytes, free);
    }
    f.talk(async |s| {
        assert_eq!(Client::new(s).request("GET", "/a").await.text(), "old");
    });
}

#[test]
fn a_full_volume_is_507_and_recovers() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        let value = pattern(3, 1 << 20);
        let mut stored = 0;
        loop {
            let answer = c.put(&format!("/v{stored}"), &value).await;
            if answer.status == 507 {
                assert!(answer.text().contains("full"));
                break;
            }
            assert_eq!(answer.status, 201);
            stored += 1;
            assert!(stored < 9);
        }
        assert!(stored > 2);
        assert_eq!(c.request("DELETE", "/v1").await.status, 204);
        assert_eq!(c.put("/again", &value).await.status, 201);
        assert!(c.request("GET", "/again").await.body == value);
    });
}

#[test]
fn a_broken_disk_is_500_with_the_reason() {
    let f = Fixture::new(16);
    f.talk(async |s| {
        let mut c = Client::new(s);
        let value = pattern(4, 100_000);
        assert_eq!(c.put("/a", &value).await.status, 201);
        f.faults.reads_fail.set(true);
        let answer = c.request("GET", "/a").await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains("the device failed"), "{}", answer.text());
        f.faults.reads_fail.set(false);
        assert!(c.request("GET", "/a").await.body == value);
    });
    let f = Fixture::new(16);
    f.talk(async |s| {
        let mut c = Client::new(s);
        f.faults.writes_fail.set(true);
        for len in [10, 100_000] {
            let answer = c.put("/b", &pattern(5, len)).await;
            assert_eq!(answer.status, 500);
            assert!(answer.text().contains("the device failed"), "{}", answer.text());
            assert_eq!(c.request("GET", "/b").await.status, 404);
        }
    });
}

#[test]
fn a_value_that_cannot_be_completed_is_not_passed_off_as_complete() {
    let f = Fixture::new(16);
    let value = pattern(6, 1 << 20);
    f.talk(async |s| {
        assert_eq!(Client::new(s).put("/a", &value).await.status, 201);
    });
    let (got, end) = f.talk(async |mut s| {
        s.write_all(b"GET /a HTTP/1.1\r\nHost: kv\r\n\r\n").await.expect("send");
        let mut first = vec![0; 100_000];
        embedded_io_async::Read::read_exact(&mut s, &mut first).await.expect("the first part");
        f.faults.reads_fail.set(true);
        first.extend(read_all(&mut s).await);
        first
    });
    assert_eq!(end, End::Abort);
    assert!(got.len() < value.len());
}

#[test]
fn without_a_store_everything_is_503() {
    let f = Fixture::new(8);
    let (mut ours, theirs) = pipe(&f.world, 1 << 16);
    let mut buffers = Buffers::new();
    let server = async {
        let service = Service::<crate::harness::Disk>::Unavailable("no such volume");
        let end = serve(&mut ours, &*f.world, &mut buffers, service).await;
        drop(ours);
        end
    };
    let client = async {
        let mut c = Client::new(theirs);
        for (method, target) in
            [("GET", "/"), ("GET", "/health"), ("GET", "/a"), ("DELETE", "/a"), ("GET", "/%zz")]
        {
            let answer = c.request(method, target).await;
            assert_eq!(
                (answer.status, answer.text()),
                (503, "the store is not available: no such volume\n")
            );
        }
        assert_eq!(c.put("/a", b"value").await.status, 503);
        assert_eq!(c.request("GET", "/").await.status, 503);
    };
    f.world.run(embassy_futures::join::join(server, client));
}
