//! The server as a client sees it.

mod errors;
mod fuzz;
mod harness;
mod slow;

use embedded_io_async::Write;
use harness::{Client, Fixture, Random, pattern, pipe, read_all, take_answer};
use kv_http::End;

#[test]
fn a_value_lives_and_dies() {
    let f = Fixture::new(8);
    let (_, end) = f.talk(async |s| {
        let mut c = Client::new(s);
        assert_eq!(c.request("GET", "/a").await.status, 404);
        assert_eq!(c.put("/a", b"one").await.status, 201);
        assert_eq!(c.put("/a", b"two!").await.status, 204);
        let got = c.request("GET", "/a").await;
        assert_eq!((got.status, got.text()), (200, "two!"));
        assert_eq!(got.header("accept-ranges"), Some("none"));
        let head = c.request("HEAD", "/a").await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("4")));
        assert_eq!(c.request("DELETE", "/a").await.status, 204);
        assert_eq!(c.request("DELETE", "/a").await.status, 404);
        assert_eq!(c.request("GET", "/a").await.status, 404);
        assert_eq!(c.request("HEAD", "/a").await.status, 404);
    });
    assert_eq!(end, End::Close);
}

#[test]
fn values_of_all_sizes_come_back() {
    let f = Fixture::new(64);
    f.talk(async |s| {
        let mut c = Client::new(s);
        for len in [
            0,
            1,
            2,
            511,
            4095,
            4096,
            4097,
            32_000,
            32_767,
            32_768,
            32_769,
            65_537,
            1_000_003,
            8 << 20,
        ] {
            let value = pattern(len as u64, len);
            assert_eq!(c.put(&format!("/v{len}"), &value).await.status, 201, "{len}");
            let got = c.request("GET", &format!("/v{len}")).await;
            assert_eq!(got.status, 200);
            assert!(got.body == value, "{len}");
        }
    });
}

#[test]
fn keys_are_decoded() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        assert_eq!(c.put("/a%20b,%c3%a9+x?version=1", b"v").await.status, 201);
        // Another spelling, and a target in absolute form.
        assert_eq!(c.request("GET", "/%61%20b%2C%C3%A9%2Bx").await.text(), "v");
        assert_eq!(c.request("GET", "http://kv/a%20b,%c3%a9+x").await.text(), "v");
        assert_eq!(c.request("GET", "/").await.text(), "a b,é+x\t1\n");
        let longest = format!("/{}", "%6B".repeat(255));
        assert_eq!(c.put(&longest, b"w").await.status, 201);
        assert_eq!(c.request("GET", &format!("/{}", "k".repeat(255))).await.text(), "w");
    });
}

#[test]
fn the_list_is_complete_and_in_order() {
    let f = Fixture::new(32);
    let mut keys: Vec<String> = (0..1500)
        .map(|i| format!("key-{:05}-{}", i * 7919 % 10_007, "x".repeat(i % 200)))
        .collect();
    f.talk(async |s| {
        let mut c = Client::new(s);
        assert_eq!(c.request("GET", "/").await.text(), "");
        assert_eq!(c.request("GET", "/?format=json").await.text(), "[\n]\n");
        for key in &keys {
            assert_eq!(c.put(&format!("/{key}"), b"12345").await.status, 201);
        }
        keys.sort();
        let expected: String = keys.iter().map(|k| format!("{k}\t5\n")).collect();
        assert_eq!(c.request("GET", "/").await.text(), expected);
        let head = c.request("HEAD", "/").await;
        assert_eq!(
            (head.status, head.header("content-type")),
            (200, Some("text/plain; charset=utf-8"))
        );
        let entries: Vec<String> =
            keys.iter().map(|k| format!("{{\"key\":\"{k}\",\"length\":5}}")).collect();
        let json = c.request("GET", "/?a=b&format=json").await;
        assert_eq!(json.text(), format!("[\n{}\n]\n", entries.join(",\n")));
        assert_eq!(json.header("content-type"), Some("application/json"));
        c.send("GET / HTTP/1.1\r\nHost: kv\r\nAccept: text/html, application/json;q=0.9\r\n\r\n")
            .await;
        assert_eq!(
            c.answer().await.expect("list").header("content-type"),
            Some("application/json")
        );
    });
    // HTTP/1.0 knows no chunks.
    let mut bytes = f.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let old = take_answer(&mut bytes, false).expect("an answer");
    assert_eq!((old.header("transfer-encoding"), old.header("connection")), (None, Some("close")));
    assert_eq!(old.text().lines().count(), keys.len());
}

#[test]
fn a_key_cannot_forge_an_entry_of_the_list() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        assert_eq!(c.put("/a%09%0ab", b"v").await.status, 400);
        assert_eq!(c.put("/a%25%22%5c", b"v").await.status, 201);
        assert_eq!(c.request("GET", "/").await.text(), "a%25\"\\\t1\n");
        let json = c.request("GET", "/?format=json").await;
        assert_eq!(json.text(), "[\n{\"key\":\"a%\\\"\\\\\",\"length\":1}\n]\n");
    });
}

#[test]
fn health_tells_figures() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        c.put("/a", &[0; 5000]).await;
        let health = c.request("GET", "/health").await;
        assert_eq!(health.status, 200);
        let text = health.text();
        assert!(text.starts_with("ok\n{\"keys\":1,\"used_bytes\":"), "{text}");
        // The same thing under another spelling.
        assert_eq!(c.request("GET", "/%68ealth").await.status, 200);
    });
}

#[test]
fn a_body_is_invited_with_100_continue() {
    let f = Fixture::new(8);
    f.talk(async |s| {
        let mut c = Client::new(s);
        c.send("PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .await;
        let go = c.answer().await.expect("leave to go on");
        assert_eq!((go.status, go.body.len()), (100, 0));
        c.send("hello").await;
        assert_eq!(c.answer().await.expect("an answer").status, 201);
        assert_eq!(c.request("GET", "/a").await.text(), "hello");
        // A client that does not wait gets no interim answer.
        c.send(
            "PUT /b HTTP/1.1\r\nHost: kv\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi",
        )
        .await;
        assert_eq!(c.answer().await.expect("an answer").status, 201);
        // Nothing to wait for.
        c.send("PUT /c HTTP/1.1\r\nHost: kv\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(c.answer().await.expect("an answer").status, 201);
    });
}

#[test]
fn the_connection_is_kept_or_not_as_asked() {
    let f = Fixture::new(8);
    for (request, kept) in [
        ("GET /health HTTP/1.1\r\nHost: kv\r\n\r\n", true),
        ("GET /health HTTP/1.1\r\nHost: kv\r\nConnection: foo, Close\r\n\r\n", false),
        ("GET /health HTTP/1.0\r\n\r\n", false),
        ("GET /health HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("PUT /x HTTP/1.1\r\nHost: kv\r\nContent-Length: 1\r\nConnection: close\r\n\r\nv", false),
        ("GET /none HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n", false),
    ] {
        f.talk(async |s| {
            let mut c = Client::new(s);
            c.send(request).await;
            let answer = c.answer().await.expect("an answer");
            assert_eq!(answer.header("connection") != Some("close"), kept, "{request}");
            if kept {
                assert_eq!(c.request("GET", "/health").await.status, 200, "{request}");
            } else {
                assert_eq!(c.answer().await, None, "{request}");
            }
        });
    }
}

/// What a busy client sends in one go.
fn script() -> Vec<u8> {
    let mut script = Vec::new();
    script.extend_from_slice(
        b"PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 12\r\n\r\nhello\r\n\r\nyou",
    );
    script.extend_from_slice(b"\r\nGET /a HTTP/1.1\r\nHost: kv\r\n\r\n");
    script.extend_from_slice(
        b"PUT /b HTTP/1.1\r\nhost:kv\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
    );
    script.extend_from_slice(b"POST /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 6\r\n\r\nGET / ");
    script.extend_from_slice(b"GET / HTTP/1.1\r\nHost: kv\r\n\r\nHEAD /a HTTP/1.1\nHost: kv\n\n");
    script.extend_from_slice(
        b"DELETE /a HTTP/1.1\r\nHost: kv\r\n\r\nGET /a%zz HTTP/1.1\r\nHost: kv\r\n\r\n",
    );
    script.extend_from_slice(b"DELETE /b HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n");
    script
}

/// The answers to it, without the interim ones, which depend on timing.
fn answers(mut bytes: Vec<u8>) -> Vec<harness::Answer> {
    let mut all = Vec::new();
    let mut heads = 0;
    while !bytes.is_empty() {
        let answer = take_answer(&mut bytes, heads == 5).expect("a complete answer");
        if answer.status != 100 {
            heads += 1;
            all.push(answer);
        }
    }
    all
}

#[test]
fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
    let script = script();
    let f = Fixture::new(8);
    let expected = answers(f.exchange(&script));
    let statuses: Vec<u16> = expected.iter().map(|a| a.status).collect();
    assert_eq!(statuses, [201, 200, 201, 405, 200, 200, 204, 400, 204]);
    let cut = |reads: Vec<usize>, writes: usize| {
        let (mut ours, theirs) = pipe(&f.world, 1 << 16);
        ours.reads = reads.into();
        ours.writes = writes;
        let (got, _) = f.talk_over(ours, theirs, async |mut s| {
            s.write_all(&script).await.expect("send");
            read_all(&mut s).await
        });
        answers(got)
    };
    for at in 1..script.len() {
        assert_eq!(cut(vec![at, usize::MAX], usize::MAX), expected, "cut at {at}");
        assert_eq!(cut(vec![at, 1, usize::MAX], 7), expected, "cut at {at} and behind");
    }
    assert_eq!(cut(vec![1], 1), expected);
    let mut random = Random(7);
    for _ in 0..200 {
        let reads = (0..40).map(|_| 1 + random.below(60)).collect();
        assert_eq!(cut(reads, 1 + random.below(50)), expected);
    }
}
