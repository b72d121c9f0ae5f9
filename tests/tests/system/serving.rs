//! The service as its clients see it, nothing going wrong.

use std::{sync::Barrier, thread::ScopedJoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use system_tests::{
    bench::{Bench, Node},
    http::Connection,
    values::{MAX, value},
    workload::check,
};

/// Puts, gets, lists and deletes one key; the least that a node must do.
pub fn smoke(node: &Node) -> Result<()> {
    let mut connection = node.connect()?;
    connection.put("smoke", b"a value")?;
    let got = connection.get("smoke")?;
    ensure!(got.as_deref() == Some(b"a value"), "GET /smoke: {got:?}");
    let list = connection.request("GET", "", None)?;
    ensure!(list.text().contains("smoke"), "GET /: {}", list.text());
    let deleted = connection.request("DELETE", "smoke", None)?;
    ensure!(deleted.status == 204, "DELETE /smoke: {}", deleted.status);
    ensure!(connection.get("smoke")?.is_none(), "a deleted key is still there");
    Ok(())
}

pub fn boots_and_serves(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            smoke(node)?;
            let domains = node.control()?.domains()?;
            for name in ["supervisor", "blk", "net", "kv"] {
                let domain = domains.iter().find(|domain| domain.name == name);
                let domain = domain.with_context(|| format!("there is no domain {name}"))?;
                ensure!(domain.deaths == 0, "{name} died {} times", domain.deaths);
            }
            Ok(())
        },
    )
}

pub fn values_of_all_sizes_come_back(bench: &Bench) -> Result<()> {
    let sizes = [0, 1, 4095, 4096, 4097, 64 << 10, (64 << 10) + 1, 1 << 20, MAX - 1, MAX];
    bench.with_node(
        |_| (),
        |node| {
            let mut connection = node.connect()?;
            // Each size written and replaced by another value.
            for round in 0..2 {
                for (seed, &len) in (1 + 100 * round..).zip(&sizes) {
                    connection.put(&format!("size-{len}"), &value(seed, len))?;
                }
                for (seed, &len) in (1 + 100 * round..).zip(&sizes) {
                    check(&mut connection, &format!("size-{len}"), seed, len)
                        .with_context(|| format!("round {round}"))?;
                }
            }
            let head = connection.request("HEAD", "size-4096", None)?;
            ensure!(head.status == 200 && head.body.is_empty(), "HEAD: {head:?}");
            Ok(())
        },
    )
}

pub fn bad_requests_get_clear_answers(bench: &Bench) -> Result<()> {
    let long_key = "k".repeat(1500);
    let long_field = "x".repeat(20 << 10);
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("no HTTP at all", "what is this?\r\n\r\n".to_owned(), &[400, 505]),
        ("a future version", "GET / HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(), &[400, 505]),
        ("a missing key", "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[404]),
        (
            "deleting a missing key",
            "DELETE /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            &[404],
        ),
        ("no length", "PUT /k HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[411]),
        (
            "a silly length",
            "PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n".to_owned(),
            &[400],
        ),
        (
            "a value too large",
            format!("PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", MAX + 1),
            &[413],
        ),
        (
            "a key too long",
            format!("PUT /{long_key} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"),
            &[414],
        ),
        ("a head too large", format!("GET / HTTP/1.1\r\nX: {long_field}\r\n\r\n"), &[431]),
        ("a method of its own", "BREW /k HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[405, 501]),
        (
            "putting the list",
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_owned(),
            &[405],
        ),
    ];
    bench.with_node(
        |_| (),
        |node| {
            for (what, request, statuses) in &cases {
                let answer =
                    node.connect()?.raw(request.as_bytes()).with_context(|| (*what).to_owned())?;
                ensure!(
                    statuses.contains(&answer.status),
                    "{what}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
            // A client that goes away within its PUT leaves nothing behind.
            let mut quitter = node.connect()?;
            quitter.send(b"PUT /half HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12345")?;
            drop(quitter);
            ensure!(node.connect()?.get("half")?.is_none(), "half a value was stored");
            smoke(node)
        },
    )
}

/// Puts and gets values of client `number`.
fn exchange(mut connection: Connection, number: usize) -> Result<()> {
    for round in 0..5u64 {
        let key = format!("many-{number}-{round}");
        let (seed, len) = (number as u64 * 1000 + round + 1, 10_000 * (1 + number));
        connection.put(&key, &value(seed, len))?;
        check(&mut connection, &key, seed, len)?;
    }
    Ok(())
}

pub fn many_connections_at_a_time(bench: &Bench) -> Result<()> {
    const CONNECTIONS: usize = 16;
    bench.with_node(
        |_| (),
        |node| {
            let together = Barrier::new(CONNECTIONS);
            let client = |number: usize| -> Result<()> {
                // All wait for all, even one that had no luck.
                let connection = node.connect().and_then(|mut connection| {
                    connection.put(&format!("hello-{number}"), b"hello")?;
                    Ok(connection)
                });
                together.wait();
                let result = connection.and_then(|connection| exchange(connection, number));
                together.wait();
                result
            };
            let client = &client;
            let results: Vec<Result<()>> = std::thread::scope(|scope| {
                let spawn = |number| scope.spawn(move || client(number));
                let threads: Vec<_> = (0..CONNECTIONS).map(spawn).collect();
                let join = |(number, thread): (usize, ScopedJoinHandle<'_, Result<()>>)| {
                    let result = thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked")));
                    result.with_context(|| format!("client {number}"))
                };
                threads.into_iter().enumerate().map(join).collect()
            });
            results.into_iter().collect()
        },
    )
}

pub fn a_full_volume_is_said_and_recovers(bench: &Bench) -> Result<()> {
    let manifest = bench.dir().join("small.toml");
    let demo = std::fs::read_to_string(xtask::manifest::default_path())?;
    let small = demo.replace("size = \"256MiB\"", "size = \"32MiB\"");
    ensure!(small != demo, "the demo's volume has another size than this test thinks");
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&manifest, small)?;
    bench.with_node(
        |config| config.manifest = manifest,
        |node| {
            let mut connection = node.connect()?;
            let mut stored = 0;
            loop {
                ensure!(stored < 32, "{stored} MiB fit into a volume of 32 MiB");
                let bytes = value(stored + 1, 1 << 20);
                let answer = connection.request("PUT", &format!("fill-{stored}"), Some(&bytes))?;
                match answer.status {
                    201 => stored += 1,
                    507 => break,
                    other => bail!("PUT: {other} {}", answer.text()),
                }
            }
            ensure!(stored > 16, "a volume of 32 MiB was full with {stored} MiB");
            let mut connection = node.connect()?;
            for number in 0..stored {
                check(&mut connection, &format!("fill-{number}"), number + 1, 1 << 20)?;
            }
            let deleted = connection.request("DELETE", "fill-0", None)?;
            ensure!(deleted.status == 204, "DELETE: {}", deleted.status);
            connection.put("fill-again", &value(99, 1 << 20))
        },
    )
}
