//! A volume that was damaged or forged, mounted and used.

use arbitrary::{Arbitrary, Result, Unstructured};
use kv_store::{BLOCK, MIN_BLOCKS, MountError, Store};

use crate::store_sim::{self, Disk, Rng, run_one};

/// Blocks of a metadata area of the smallest volume, and where they begin.
const AREA: u64 = 48;
const AREAS: [u64; 2] = [32, 32 + AREA];

/// A store with a snapshot in one area and some journal behind it.
fn sample() -> Disk {
    let mut rng = Rng::new(7);
    let disk = Disk::new(MIN_BLOCKS);
    let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
    for n in 0..30 {
        let key = format!("key{}", n % 11);
        if n % 5 == 4 {
            run_one(&disk, &mut rng, store.delete(&key)).unwrap().unwrap();
        } else {
            let data = rng.bytes(n * 331);
            run_one(&disk, &mut rng, store_sim::put(&store, &key, &data, 4096)).unwrap().unwrap();
        }
    }
    drop(store);
    disk.copy()
}

thread_local! {
    static SAMPLE: Disk = sample();
}

/// Changes to blocks of the sample, each sealed with a right checksum or not.
pub fn run(data: &[u8]) {
    let disk = SAMPLE.with(Disk::copy);
    let mut input = Unstructured::new(data);
    while !input.is_empty() && change(&disk, &mut input).is_ok() {}
    let mut rng = Rng::new(1);
    let before = disk.counts().writes;
    match use_it(&disk, &mut rng) {
        Ok(()) => {}
        Err(_) => assert_eq!(disk.counts().writes, before, "a refused volume was written to"),
    }
}

fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

fn change(disk: &Disk, input: &mut Unstructured<'_>) -> Result<()> {
    let what = u8::arbitrary(input)?;
    let block = match what % 8 {
        0 => 0,
        1 | 2 => AREAS[usize::from(what / 8 % 2)],
        _ => 32 + u64::from(u8::arbitrary(input)?) % (2 * AREA),
    };
    let at = usize::from(u16::arbitrary(input)?) % BLOCK;
    let at = if what & 0x40 == 0 { at % 64 } else { at };
    let len = usize::from(u8::arbitrary(input)? % 16).min(BLOCK - at).min(input.len());
    let bytes = input.bytes(len)?;
    disk.edit(block, |to| {
        to[at..at + len].copy_from_slice(bytes);
        if what & 0x80 != 0 {
            return;
        }
        let seal = |to: &mut [u8; BLOCK], seed, fields: usize| {
            let sum = crc(seed, &to[..fields]);
            to[fields..fields + 4].copy_from_slice(&sum.to_le_bytes());
        };
        match what % 8 {
            0 => seal(to, 0, 32),
            1 | 2 => seal(to, crc(0, &MIN_BLOCKS.to_le_bytes()), 44),
            _ => {
                // A batch of one block.
                let len = u32::from_le_bytes(to[32..36].try_into().unwrap()) as usize;
                let sum = crc(0, &to[8..36 + len.min(BLOCK - 36)]);
                to[4..8].copy_from_slice(&sum.to_le_bytes());
            }
        }
    });
    // A snapshot's checksum stands in the header before it.
    if what & 0x20 != 0 {
        for area in AREAS {
            let header = disk.peek(area);
            let len = u32::from_le_bytes(header[32..36].try_into().unwrap()) as usize;
            let len = len.min(40 * BLOCK);
            let mut snapshot = Vec::new();
            for n in 0..len.div_ceil(BLOCK) as u64 {
                snapshot.extend(disk.peek(area + 1 + n));
            }
            disk.edit(area, |header| {
                header[40..44].copy_from_slice(&crc(0, &snapshot[..len]).to_le_bytes());
                let sum = crc(crc(0, &MIN_BLOCKS.to_le_bytes()), &header[..44]);
                header[44..48].copy_from_slice(&sum.to_le_bytes());
            });
        }
    }
    Ok(())
}

/// Mounts and, if that works, uses everything.
fn use_it(disk: &Disk, rng: &mut Rng) -> std::result::Result<(), MountError> {
    let store = run_one(disk, rng, Store::mount(disk.clone())).unwrap()?;
    for (key, _) in store_sim::list(&store) {
        let _ = run_one(disk, rng, store_sim::get(&store, &key, 10_000)).unwrap();
    }
    for n in 0..3 {
        let (key, data) = (format!("key{n}"), rng.bytes(5000));
        if let Ok(mut put) = store.begin_put(&key, 5000) {
            let written = run_one(disk, rng, async {
                put.write(&data).await?;
                put.commit().await
            });
            written.unwrap().unwrap();
            let found = run_one(disk, rng, store_sim::get(&store, &key, 10_000)).unwrap();
            assert_eq!(found, Some(Ok(data)));
        }
    }
    for (key, _) in store_sim::list(&store) {
        run_one(disk, rng, store.delete(&key)).unwrap().unwrap();
    }
    store_sim::assert_no_leak(&store);
    assert_eq!(store.stats().used_bytes, 0);
    Ok(())
}
