//! Time: slow clients are cut off, a slow disk is waited for.

use embedded_io_async::{Read, Write};
use kv_http::{CLIENT_IDLE_MS, Clock, End};

use crate::harness::{Client, Fixture, pattern, read_all, take_answer};

#[test]
fn silence_ends_the_connection() {
    let f = Fixture::new(8);
    let (got, end) = f.talk(async |mut s| read_all(&mut s).await);
    assert_eq!((got.len(), end), (0, End::Close));
    assert_eq!(f.world.now(), CLIENT_IDLE_MS);
}

#[test]
fn a_head_that_does_not_come_is_408() {
    let f = Fixture::new(8);
    let (mut got, _) = f.talk(async |mut s| {
        // A byte every ten seconds does not buy more time.
        for byte in b"GET /abcdefgh" {
            if s.write_all(&[*byte]).await.is_err() {
                break;
            }
            f.world.sleep_ms(10_000).await;
        }
        read_all(&mut s).await
    });
    assert_eq!(take_answer(&mut got, false).expect("an answer").status, 408);
    assert!(f.world.now() <= 3 * CLIENT_IDLE_MS);
}

#[test]
fn a_trickling_body_is_cut_off_and_its_space_given_back() {
    let f = Fixture::new(24);
    let free = f.store.stats().free_bytes;
    let (_, end) = f.talk(async |mut s| {
        s.write_all(b"PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 8388608\r\n\r\n")
            .await
            .expect("send");
        while s.write_all(b"x").await.is_ok() {
            f.world.sleep_ms(30_000).await;
        }
    });
    assert_eq!(end, End::Abort);
    assert!(f.world.now() < 30 * 60_000);
    assert_eq!(f.store.stats().free_bytes, free);
}

#[test]
fn a_reader_that_stops_is_cut_off() {
    let f = Fixture::new(24);
    let value = pattern(1, 4 << 20);
    let (_, end) = f.talk(async |s| {
        let mut c = Client::new(s);
        assert_eq!(c.put("/a", &value).await.status, 201);
        c.send("GET /a HTTP/1.1\r\nHost: kv\r\n\r\n").await;
        let mut some = [0; 1000];
        c.stream.read_exact(&mut some).await.expect("the beginning");
        f.world.sleep_ms(30 * 60_000).await;
    });
    assert_eq!(end, End::Abort);
}

#[test]
fn a_slow_but_steady_client_is_served() {
    let f = Fixture::new(24);
    let value = pattern(2, 1 << 20);
    f.talk(async |s| {
        let mut c = Client::new(s);
        c.send("PUT /a HTTP/1.1\r\nHost: kv\r\nContent-Length: 1048576\r\n\r\n").await;
        for piece in value.chunks(16 << 10) {
            f.world.sleep_ms(1500).await;
            c.send(piece).await;
        }
        assert_eq!(c.answer().await.expect("an answer").status, 201);
    });
}

#[test]
fn a_disk_that_pauses_is_waited_for() {
    let f = Fixture::new(24);
    let value = pattern(3, 1 << 20);
    f.talk(async |s| {
        let mut c = Client::new(s);
        for step in 0..3 {
            f.faults.paused_until.set(f.world.now() + 60 * 60_000);
            match step {
                0 => assert_eq!(c.put("/a", &value).await.status, 201),
                1 => assert!(c.request("GET", "/a").await.body == value),
                _ => assert_eq!(c.request("DELETE", "/a").await.status, 204),
            }
        }
    });
    assert!(f.world.now() >= 3 * 60 * 60_000);
}
