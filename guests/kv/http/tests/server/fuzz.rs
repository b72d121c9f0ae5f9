//! Hostile input: random bytes and mangled requests. The server must neither
//! panic nor get stuck, and must serve the next client.
//!
//! `KV_HTTP_FUZZ_SEED` repeats a run, `KV_HTTP_FUZZ_ROUNDS` makes it longer.

use embedded_io_async::Write;

use crate::harness::{Client, Fixture, Random, pipe, read_all};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    let seed = setting("KV_HTTP_FUZZ_SEED").unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |d| d.as_nanos() as u64)
    });
    println!("KV_HTTP_FUZZ_SEED={seed}");
    seed
}

const PIECES: &[&[u8]] = &[
    b"GET ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"POST ",
    b"/",
    b"/a",
    b"/b",
    b"/health",
    b"/%",
    b"/%41",
    b"?format=json",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/1.1\n",
    b"Host: kv\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 40000\r\n",
    b"Content-Length: 99999999\r\n",
    b"Content-Length: -",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Accept: application/json\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"hello",
    b"\0",
    b"\xff",
    b"PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /a HTTP/1.1\r\nHost: kv\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: kv\r\n\r\n",
    b"DELETE /a HTTP/1.1\r\nHost: kv\r\n\r\n",
];

fn hostile(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.below(8) == 0 {
        let len = random.below(40_000);
        bytes.extend((0..len).map(|_| random.next() as u8));
        return bytes;
    }
    for _ in 0..1 + random.below(30) {
        bytes.extend_from_slice(PIECES[random.below(PIECES.len())]);
        if random.below(40) == 0 {
            let byte = random.next() as u8;
            bytes.extend(std::iter::repeat_n(byte, random.below(20_000)));
        }
    }
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len());
        bytes[at] = random.next() as u8;
    }
    bytes
}

#[test]
fn hostile_bytes_do_no_harm() {
    let mut random = Random(seed());
    let f = Fixture::new(8);
    for _ in 0..setting("KV_HTTP_FUZZ_ROUNDS").unwrap_or(5000) {
        let bytes = hostile(&mut random);
        let (mut ours, theirs) = pipe(&f.world, 1 + random.below(1 << 16));
        ours.reads = (0..8).map(|_| 1 + random.below(3000)).collect();
        let ends = random.below(2) == 0;
        f.talk_over(ours, theirs, async |mut s| {
            // A client that never reads while it sends may be cut off; that is fine.
            let _ = s.write_all(&bytes).await;
            if ends {
                s.end();
            }
            let got = read_all(&mut s).await;
            let start = b"HTTP/1.1 ";
            let n = got.len().min(start.len());
            assert_eq!(got[..n], start[..n]);
        });
    }
    f.talk(async |s| {
        let mut c = Client::new(s);
        assert!(c.put("/a", b"fine").await.status < 300);
        assert_eq!(c.request("GET", "/a").await.text(), "fine");
    });
}
