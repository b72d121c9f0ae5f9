//! Foreign bytes on the volume: whatever they are, the store says so or copes,
//! and never panics.

mod sim;

use kv_store::{BLOCK, MIN_BLOCKS, MountError, Store};
use sim::{Disk, Rng, run_one, seeds};

/// Blocks of a metadata area of the smallest volume.
const AREA: u64 = 48;
const AREAS: [u64; 2] = [32, 32 + AREA];

/// A store with a snapshot in one area and some journal behind it.
fn sample(rng: &mut Rng) -> Disk {
    let disk = Disk::new(MIN_BLOCKS);
    let store = run_one(&disk, rng, Store::mount(disk.clone())).unwrap().unwrap();
    for n in 0..60 + rng.below(60) {
        let key = format!("key{}", n % 23);
        if rng.chance(20) {
            run_one(&disk, rng, store.delete(&key)).unwrap().unwrap();
        } else {
            let data = rng.bytes(n as usize * 97);
            run_one(&disk, rng, sim::put(&store, &key, &data, 4096)).unwrap().unwrap();
        }
    }
    drop(store);
    disk.copy()
}

/// Mounts and, if that works, uses everything. Results do not matter.
fn use_it(disk: &Disk, rng: &mut Rng) -> Result<(), MountError> {
    let store = run_one(disk, rng, Store::mount(disk.clone())).unwrap()?;
    for (key, _) in sim::list(&store) {
        let _ = run_one(disk, rng, sim::get(&store, &key, 10_000)).unwrap();
    }
    for n in 0..10 {
        let (key, data) = (format!("key{n}"), rng.bytes(5000));
        if let Ok(mut put) = store.begin_put(&key, 5000) {
            let result = run_one(disk, rng, async {
                put.write(&data).await?;
                put.commit().await
            });
            result.unwrap().unwrap();
            let found = run_one(disk, rng, sim::get(&store, &key, 10_000)).unwrap();
            assert_eq!(found, Some(Ok(data)));
        }
    }
    for (key, _) in sim::list(&store) {
        run_one(disk, rng, store.delete(&key)).unwrap().unwrap();
    }
    sim::assert_no_leak(&store);
    assert_eq!(store.stats().used_bytes, 0);
    Ok(())
}

fn damage(rng: &mut Rng, bytes: &mut [u8]) {
    for _ in 0..1 + rng.below(4) {
        // Mostly near the start, where the fields are.
        let range = [48, 512, bytes.len() as u64][rng.below(3) as usize];
        let at = rng.below(range.min(bytes.len() as u64)) as usize;
        bytes[at] = match rng.below(4) {
            0 => bytes[at] ^ 1 << rng.below(8),
            1 => 0xff,
            2 => 0,
            _ => rng.next() as u8,
        };
    }
}

#[test]
fn random_damage() {
    let mut refused = 0;
    let runs = seeds(1500);
    let count = runs.end - runs.start;
    let sample = sample(&mut Rng::new(1));
    for seed in runs {
        println!("KV_SEED={seed}");
        let mut rng = Rng::new(seed);
        let disk = sample.copy();
        for _ in 0..1 + rng.below(3) {
            let block = match rng.below(4) {
                0 => 0,
                1 => AREAS[rng.below(2) as usize],
                _ => 32 + rng.below(2 * AREA),
            };
            disk.edit(block, |bytes| match rng.below(8) {
                0 => bytes.copy_from_slice(&rng.bytes(BLOCK)),
                1 => bytes.fill(0),
                _ => damage(&mut rng, bytes),
            });
        }
        refused += u64::from(use_it(&disk, &mut rng).is_err());
    }
    println!("{refused} of {count} refused");
}

fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Makes the checksum of a damaged superblock or area header right.
fn reseal_sector(bytes: &mut [u8; BLOCK], seed: u32, fields: usize) {
    let sum = crc(seed, &bytes[..fields]);
    bytes[fields..fields + 4].copy_from_slice(&sum.to_le_bytes());
}

fn reseal_header(bytes: &mut [u8; BLOCK]) {
    reseal_sector(bytes, crc(0, &MIN_BLOCKS.to_le_bytes()), 44);
}

/// Makes the checksum of a damaged batch of one block right.
fn reseal_batch(bytes: &mut [u8; BLOCK]) {
    let end = 36 + u32_at(bytes, 32).min(BLOCK - 36);
    let sum = crc(0, &bytes[8..end]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Makes header and snapshot of an area agree again.
fn reseal_snapshot(disk: &Disk, area: u64) {
    let header = disk.peek(area);
    let bytes = u32_at(&header, 32).min(40 * BLOCK);
    let mut snapshot = Vec::new();
    for n in 0..bytes.div_ceil(BLOCK) as u64 {
        snapshot.extend(disk.peek(area + 1 + n));
    }
    disk.edit(area, |header| {
        header[40..44].copy_from_slice(&crc(0, &snapshot[..bytes]).to_le_bytes());
        reseal_header(header);
    });
}

/// The area in force.
fn area(disk: &Disk) -> u64 {
    let in_force = |area: &u64| disk.peek(*area)[0] != 0;
    AREAS.into_iter().find(in_force).unwrap()
}

/// Damage with right checksums: somebody knows the format and means harm.
#[test]
fn forged_metadata() {
    let mut refused = 0;
    let runs = seeds(3000);
    let count = runs.end - runs.start;
    let sample = sample(&mut Rng::new(2));
    let area = area(&sample);
    let snapshot_blocks = u32_at(&sample.peek(area), 32).div_ceil(BLOCK) as u64;
    for seed in runs {
        println!("KV_SEED={seed}");
        let mut rng = Rng::new(seed);
        let disk = sample.copy();
        match rng.below(5) {
            0 => disk.edit(0, |bytes| {
                damage(&mut rng, &mut bytes[..36]);
                reseal_sector(bytes, 0, 32);
            }),
            1 => disk.edit(area, |bytes| {
                damage(&mut rng, &mut bytes[8..44]);
                reseal_header(bytes);
            }),
            2 => {
                disk.edit(area + 1 + rng.below(snapshot_blocks), |bytes| damage(&mut rng, bytes));
                reseal_snapshot(&disk, area);
            }
            _ => {
                let batch = area + 1 + snapshot_blocks + rng.below(4);
                disk.edit(batch, |bytes| {
                    damage(&mut rng, &mut bytes[8..]);
                    reseal_batch(bytes);
                });
            }
        }
        refused += u64::from(use_it(&disk, &mut rng).is_err());
    }
    println!("{refused} of {count} refused");
}

/// Each check by its message.
#[test]
fn damage_is_named() {
    let mut rng = Rng::new(3);
    let sample = sample(&mut rng);
    let area = area(&sample);
    let first_batch = area + 1 + u32_at(&sample.peek(area), 32).div_ceil(BLOCK) as u64;
    let other = AREAS[0] + AREAS[1] - area;
    type Edit<'a> = &'a dyn Fn(&Disk);
    let cases: &[(&str, Edit<'_>)] = &[
        ("superblock checksum", &|disk| disk.edit(0, |b| b[20] ^= 1)),
        ("superblock geometry", &|disk| {
            disk.edit(0, |b| {
                b[24] += 1;
                reseal_sector(b, 0, 32);
            })
        }),
        ("header of a metadata area", &|disk| disk.edit(area, |b| b[9] ^= 1)),
        ("header of a metadata area", &|disk| disk.edit(other, |b| b[511] ^= 1)),
        ("no metadata area has a header", &|disk| disk.edit(area, |b| b.fill(0))),
        ("both metadata areas have the same epoch", &|disk| {
            let header = disk.peek(area);
            disk.edit(other, |b| b.copy_from_slice(&header));
        }),
        ("snapshot checksum", &|disk| {
            // The value checksum of the first entry.
            let key_len = usize::from(disk.peek(area + 1)[0]);
            disk.edit(area + 1, |b| b[1 + key_len + 4] ^= 1);
        }),
        ("snapshot is not in order", &|disk| {
            disk.edit(area + 1, |b| b[1] = b'z');
            reseal_snapshot(disk, area);
        }),
        ("snapshot entry is malformed", &|disk| {
            disk.edit(area + 1, |b| b[1] = b'/');
            reseal_snapshot(disk, area);
        }),
        ("extents overlap or lie outside the data blocks", &|disk| {
            // The start of the first extent, into the other area.
            let key_len = usize::from(disk.peek(area + 1)[0]);
            let at = 1 + key_len + 10 + 2;
            disk.edit(area + 1, |b| b[at..at + 6].copy_from_slice(&other.to_le_bytes()[..6]));
            reseal_snapshot(disk, area);
        }),
        ("journal record in the middle is damaged", &|disk| {
            disk.edit(first_batch, |b| b[40] ^= 1);
        }),
        ("journal record in the middle is damaged", &|disk| {
            // Right in itself, but not the successor of the one before.
            disk.edit(first_batch, |b| {
                b[8] ^= 1;
                reseal_batch(b);
            });
        }),
        ("journal record is malformed", &|disk| {
            disk.edit(first_batch, |b| {
                b[36] = 9;
                reseal_batch(b);
            });
        }),
    ];
    for (message, edit) in cases {
        let disk = sample.copy();
        edit(&disk);
        let before = disk.counts().writes;
        let refused = use_it(&disk, &mut rng);
        assert_eq!(refused, Err(MountError::Corrupt(message)));
        assert_eq!(disk.counts().writes, before, "{message}: the volume was written to");
    }
    let disk = sample.copy();
    disk.edit(0, |b| {
        b[8] = 2;
        reseal_sector(b, 0, 32);
    });
    assert_eq!(use_it(&disk, &mut rng), Err(MountError::Version(2)));
    assert_eq!(use_it(&sample, &mut rng), Ok(()));
}
