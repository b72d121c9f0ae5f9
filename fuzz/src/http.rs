//! A stranger's bytes to the HTTP server, in pieces of any size.

use embedded_io_async::Write;

use crate::harness::{Client, Fixture, pipe, read_all};

thread_local! {
    static FIXTURE: Fixture = Fixture::new(2);
}

/// Three bytes about sizes, then what the client sends. The server ends the
/// conversation, answers in HTTP or not at all, and serves the next client.
pub fn run(data: &[u8]) {
    let Some((&[room, step, ends], bytes)) = data.split_first_chunk::<3>() else { return };
    FIXTURE.with(|fixture| {
        let (mut ours, theirs) = pipe(&fixture.world, 1 + usize::from(room) * 97);
        ours.reads = [1 + usize::from(step) * 11, usize::MAX].into_iter().collect();
        fixture.talk_over(ours, theirs, async |mut stream| {
            // Who never reads while he sends may be cut off.
            let _ = stream.write_all(bytes).await;
            if ends & 1 != 0 {
                stream.end();
            }
            let got = read_all(&mut stream).await;
            let start = b"HTTP/1.1 ";
            let n = got.len().min(start.len());
            assert_eq!(got[..n], start[..n]);
        });
        fixture.talk(async |stream| {
            let mut client = Client::new(stream);
            let put = client.put("/honest", b"fine").await;
            // A stranger may have filled the volume; then he is told so.
            assert!(put.status < 300 || put.status == 507, "{put:?}");
            let got = client.request("DELETE", "/honest").await;
            assert!(got.status == 204 || got.status == 404, "{got:?}");
            for key in ["/a", "/b", "/A"] {
                let _ = client.request("DELETE", key).await;
            }
        });
    });
}
