//! A simulated disk, a deterministic executor, and a model of what the store
//! may answer. One seed makes one run.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub mod disk;
pub mod exec;
pub mod model;
pub mod rng;

pub use disk::Disk;
pub use exec::{End, Exec, run_one};
pub use model::Model;
pub use rng::Rng;

use kv_store::{BlockDevice, Committed, Error, Store};

/// Settings of a test with random runs: `KV_SEED` replays one seed, `KV_RUNS`
/// sets the number of seeds.
pub fn seeds(default_runs: u64) -> std::ops::Range<u64> {
    let var = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    match var("KV_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..var("KV_RUNS").unwrap_or(default_runs),
    }
}

/// Stores `data` in steps of `step` bytes.
pub async fn put<D: BlockDevice>(
    store: &Store<D>,
    key: &str,
    data: &[u8],
    step: usize,
) -> Result<Committed, Error> {
    let mut put = store.begin_put(key, data.len() as u64).expect("room for the value");
    for piece in data.chunks(step.max(1)) {
        put.write(piece).await?;
    }
    put.commit().await
}

/// Reads a whole value in steps of `step` bytes.
pub async fn get<D: BlockDevice>(
    store: &Store<D>,
    key: &str,
    step: usize,
) -> Option<Result<Vec<u8>, Error>> {
    let mut value = store.get(key)?;
    let mut data = Vec::new();
    let mut buf = vec![0; step];
    loop {
        match value.read(&mut buf).await {
            Ok(0) => break,
            Ok(n) => data.extend_from_slice(&buf[..n]),
            Err(error) => return Some(Err(error)),
        }
    }
    assert_eq!(data.len() as u64, value.len());
    Some(Ok(data))
}

/// All keys with their lengths, listed a few at a time.
pub fn list<D: BlockDevice>(store: &Store<D>) -> Vec<(String, u64)> {
    let mut all: Vec<(String, u64)> = Vec::new();
    loop {
        let before = all.len();
        let after = all.last().map(|(key, _)| key.clone());
        store.list(after.as_deref(), |key, len| {
            all.push((key.to_string(), len));
            all.len() < before + 3
        });
        if all.len() == before {
            assert!(all.is_sorted_by(|a, b| a.0 < b.0));
            return all;
        }
    }
}

/// No block is used that no value accounts for. Holds when nothing is under way.
pub fn assert_no_leak<D: BlockDevice>(store: &Store<D>) {
    let blocks: u64 = list(store).iter().map(|(_, len)| len.div_ceil(4096)).sum();
    assert_eq!(store.stats().used_bytes, blocks * 4096, "blocks in use");
    assert_eq!(store.stats().keys, list(store).len() as u64);
}
