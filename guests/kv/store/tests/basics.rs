//! What the store does when nothing goes wrong, and its limits.

mod sim;

use std::cell::RefCell;

use kv_store::{
    BLOCK, Committed, Error, MAX_KEY, MAX_VALUE, MIN_BLOCKS, MountError, PutError, Store,
};
use sim::{Disk, Exec, Rng, run_one};

const MIB: u64 = 1 << 20;

/// A disk with a way to run one call to its end.
struct Rig {
    disk: Disk,
    rng: RefCell<Rng>,
}

impl Rig {
    fn new(bytes: u64) -> Self {
        Self::on(Disk::new(bytes / BLOCK as u64))
    }

    fn on(disk: Disk) -> Self {
        Self { disk, rng: RefCell::new(Rng::new(7)) }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        run_one(&self.disk, &mut self.rng.borrow_mut(), future).expect("no power cut")
    }

    fn mount(&self) -> Store<Disk> {
        self.run(Store::mount(self.disk.clone())).unwrap()
    }

    fn put(&self, store: &Store<Disk>, key: &str, data: &[u8]) -> Committed {
        self.run(sim::put(store, key, data, 10_000)).unwrap()
    }

    fn get(&self, store: &Store<Disk>, key: &str) -> Option<Vec<u8>> {
        self.run(sim::get(store, key, 10_000)).map(Result::unwrap)
    }
}

#[test]
fn create_replace_delete_and_list() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    assert!(store.get("a").is_none());
    assert_eq!(rig.put(&store, "a", b"one"), Committed::Created);
    assert_eq!(rig.put(&store, "a", b"two!"), Committed::Replaced);
    assert_eq!(rig.put(&store, "empty", b""), Committed::Created);
    assert_eq!(rig.put(&store, "größe", &[9; 5000]), Committed::Created);
    for n in 0..7 {
        rig.put(&store, &format!("n{n}"), &[n; 10]);
    }
    let expect = |store: &Store<Disk>| {
        assert_eq!(rig.get(store, "a").unwrap(), b"two!");
        assert_eq!(rig.get(store, "empty").unwrap(), b"");
        assert_eq!(rig.get(store, "größe").unwrap(), [9; 5000]);
        assert_eq!(store.stats().keys, 10);
        assert_eq!(sim::list(store)[..2], [("a".into(), 4), ("empty".into(), 0)]);
        sim::assert_no_leak(store);
    };
    expect(&store);
    drop(store);
    let store = rig.mount();
    expect(&store);
    assert_eq!(rig.run(store.delete("a")), Ok(true));
    assert_eq!(rig.run(store.delete("a")), Ok(false));
    assert_eq!(rig.run(store.delete("no/key")), Ok(false));
    assert_eq!(rig.run(store.delete(&"k".repeat(300))), Ok(false));
    drop(store);
    assert!(rig.mount().get("a").is_none());
}

#[test]
fn sizes_around_every_border() {
    let rig = Rig::new(24 * MIB);
    let store = rig.mount();
    let mut sizes: Vec<u64> = vec![0, 1, MAX_VALUE - 1, MAX_VALUE];
    for border in [512, 4096, 8192, 65536, 131072, 1 << 20] {
        sizes.extend([border - 1, border, border + 1]);
    }
    for (n, &size) in sizes.iter().enumerate() {
        let data = sim::model::content(n as u64, size as usize);
        for step in [1 + size as usize / 3, 4096, 65536, 100_000] {
            rig.run(sim::put(&store, "v", &data, step)).unwrap();
        }
        for step in [1 + size as usize / 7, 4096, 300_000] {
            let found = rig.run(sim::get(&store, "v", step)).unwrap().unwrap();
            assert!(found == data, "size {size} read by {step}");
        }
    }
    sim::assert_no_leak(&store);
}

#[test]
fn a_large_put_costs_its_data_and_two_flushes() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    let data = sim::model::content(1, MAX_VALUE as usize);
    let before = rig.disk.counts();
    rig.run(sim::put(&store, "v", &data, 1460)).unwrap();
    let after = rig.disk.counts();
    assert_eq!(after.flushes - before.flushes, 2);
    assert_eq!(after.writes - before.writes, 128 + 1);
    assert_eq!(after.written_blocks - before.written_blocks, 2048 + 1);
    let before = after;
    rig.run(sim::get(&store, "v", 1460)).unwrap().unwrap();
    assert_eq!(rig.disk.counts().reads - before.reads, 128);
}

#[test]
fn concurrent_commits_share_flushes() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    let before = rig.disk.counts();
    let mut exec = Exec::default();
    let (tasks, puts) = (16, 20);
    for task in 0..tasks {
        let store = &store;
        exec.spawn(async move {
            for n in 0..puts {
                sim::put(store, &format!("{task}-{n}"), &[task; 100], 100).await.unwrap();
            }
        });
    }
    exec.run(&rig.disk, &mut Rng::new(3));
    let flushes = rig.disk.counts().flushes - before.flushes;
    println!("{flushes} flushes for {} puts", u64::from(tasks) * puts);
    assert!(flushes < u64::from(tasks) * puts / 3, "{flushes} flushes");
    assert_eq!(store.stats().keys, u64::from(tasks) * puts);
}

#[test]
fn wrong_use_is_refused() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    let refused = |key: &str, len| store.begin_put(key, len).map(drop).unwrap_err();
    assert_eq!(refused("", 1), PutError::BadKey);
    assert_eq!(refused("a/b", 1), PutError::BadKey);
    assert_eq!(refused("a\n", 1), PutError::BadKey);
    assert_eq!(refused(&"k".repeat(MAX_KEY + 1), 1), PutError::KeyTooLong);
    assert_eq!(refused("k", MAX_VALUE + 1), PutError::TooLarge);
    assert_eq!(refused("k", u64::MAX), PutError::TooLarge);

    let mut put = store.begin_put("k", 10).unwrap();
    assert_eq!(rig.run(put.write(&[0; 11])), Err(Error::TooMuchData));
    assert_eq!(rig.run(put.write(&[0; 1])), Err(Error::Aborted));
    assert_eq!(rig.run(put.commit()), Err(Error::Aborted));
    let mut put = store.begin_put("k", 10).unwrap();
    rig.run(put.write(&[0; 9])).unwrap();
    assert_eq!(rig.run(put.commit()), Err(Error::TooLittleData));
    assert!(store.get("k").is_none());
    sim::assert_no_leak(&store);
}

#[test]
fn full_volume() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    let free = store.stats().free_bytes;
    rig.put(&store, "half", &vec![1; MAX_VALUE as usize]);
    let rest = free - MAX_VALUE;
    assert_eq!(store.begin_put("rest", rest + 1).map(drop).unwrap_err(), PutError::Full);
    let put = store.begin_put("rest", rest).unwrap();
    assert_eq!(store.stats().free_bytes, 0);
    assert_eq!(store.begin_put("one", 1).map(drop).unwrap_err(), PutError::Full);
    // An aborted put gives its space back; empty values need none.
    drop(put);
    rig.put(&store, "rest", &vec![2; rest as usize]);
    rig.put(&store, "empty", b"");
    // Replacing needs space for both; deleting gives it back.
    assert_eq!(store.begin_put("half", 1).map(drop).unwrap_err(), PutError::Full);
    assert_eq!(rig.run(store.delete("half")), Ok(true));
    rig.put(&store, "half", &vec![3; MAX_VALUE as usize]);
    sim::assert_no_leak(&store);
}

#[test]
fn fragmented_volume() {
    let rig = Rig::new(18 * MIB);
    let store = rig.mount();
    let blocks = store.stats().free_bytes / BLOCK as u64;
    for n in 0..blocks {
        rig.put(&store, &format!("{n:05}"), &[n as u8; BLOCK]);
    }
    assert_eq!(store.begin_put("more", 1).map(drop).unwrap_err(), PutError::Full);
    for n in (0..blocks).step_by(2) {
        rig.run(store.delete(&format!("{n:05}"))).unwrap();
    }
    // Only single blocks are free: 2048 extents.
    let data = sim::model::content(5, MAX_VALUE as usize);
    assert!(store.stats().free_bytes >= MAX_VALUE);
    rig.put(&store, "more", &data);
    drop(store);
    let store = rig.mount();
    assert_eq!(rig.get(&store, "more").unwrap(), data);
    assert_eq!(rig.get(&store, "00001").unwrap(), [1; BLOCK]);
    sim::assert_no_leak(&store);
}

/// Many keys until the metadata is full; then replacing and deleting go on,
/// through many compactions.
#[test]
fn full_metadata() {
    let rig = Rig::new(4 * MIB);
    let store = rig.mount();
    let key = |n: u64| format!("{n:0>200}");
    let mut keys = 0;
    while let Ok(put) = store.begin_put(&key(keys), 0) {
        rig.run(put.commit()).unwrap();
        keys += 1;
    }
    println!("{keys} keys");
    assert!(keys > 400 && store.stats().free_bytes > 0);
    assert_eq!(store.begin_put(&key(keys), 0).map(drop).unwrap_err(), PutError::Full);
    for n in 0..200 {
        assert_eq!(rig.run(store.delete(&key(n))), Ok(true));
        rig.put(&store, &key(n), b"");
    }
    drop(store);
    let store = rig.mount();
    assert_eq!(store.stats().keys, keys);
    assert_eq!(store.begin_put(&key(keys), 0).map(drop).unwrap_err(), PutError::Full);
    for n in 0..keys {
        assert_eq!(rig.run(store.delete(&key(n))), Ok(true));
    }
    assert_eq!(store.stats().keys, 0);
    drop(store);
    assert_eq!(rig.mount().stats().keys, 0);
}

#[test]
fn index_memory_is_limited() {
    let rig = Rig::new(16 * MIB);
    let mount = |memory| rig.run(Store::mount_with(rig.disk.clone(), memory));
    let store = mount(10_000).unwrap();
    let mut keys = 0;
    while let Ok(put) = store.begin_put(&format!("{keys}"), 0) {
        rig.run(put.commit()).unwrap();
        keys += 1;
    }
    assert_eq!(keys, 10_000 / 146);
    drop(store);
    assert_eq!(mount(5000).err(), Some(MountError::IndexMemory { limit: 5000 }));
    assert_eq!(mount(10_000).unwrap().stats().keys, keys);
}

#[test]
fn readers_keep_their_value() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    let free = store.stats().free_bytes;
    let old = sim::model::content(1, 1 << 20);
    rig.put(&store, "v", &old);
    let mut value = store.get("v").unwrap();
    rig.put(&store, "v", b"new");
    assert_eq!(rig.run(store.delete("v")), Ok(true));
    // All other space is overwritten meanwhile.
    let rest = store.stats().free_bytes;
    assert_eq!(rest, free - (1 << 20));
    rig.put(&store, "fill 1", &vec![7; MAX_VALUE as usize]);
    rig.put(&store, "fill 2", &vec![7; (rest - MAX_VALUE) as usize]);
    let mut found = vec![0; 1 << 20];
    let mut at = 0;
    while at < found.len() {
        at += rig.run(value.read(&mut found[at..])).unwrap();
    }
    assert!(found == old);
    assert_eq!(store.stats().free_bytes, 0);
    drop(value);
    assert_eq!(store.stats().free_bytes, 1 << 20);
}

#[test]
fn damaged_values_are_reported() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    rig.put(&store, "v", &vec![0x55; 300_000]);
    let data_start = 32 + 2 * 128;
    for (block, byte) in [(0, 0), (40, 17), (73, 991)] {
        rig.disk.edit(data_start + block, |bytes| bytes[byte] ^= 4);
        assert_eq!(rig.run(sim::get(&store, "v", 5000)), Some(Err(Error::Corrupt)));
        rig.disk.edit(data_start + block, |bytes| bytes[byte] ^= 4);
    }
    // Padding behind the value does not count.
    rig.disk.edit(data_start + 73, |bytes| bytes[992] ^= 4);
    assert!(rig.get(&store, "v").is_some());
    rig.disk.reads_fail(true);
    assert_eq!(rig.run(sim::get(&store, "v", 5000)), Some(Err(Error::Device)));
}

#[test]
fn only_empty_volumes_are_formatted() {
    let mount = |disk: &Disk| Rig::on(disk.clone()).run(Store::mount(disk.clone())).map(drop);
    // The last bytes of the superblock area count too.
    for (block, byte) in [(0, 0), (0, 510), (0, 1080), (8, 4), (16, 64), (31, 4095)] {
        let disk = Disk::new(MIN_BLOCKS);
        disk.edit(block, |bytes| bytes[byte] = 1);
        assert_eq!(mount(&disk), Err(MountError::NotAStore), "byte {byte} of block {block}");
        assert_eq!(disk.counts().writes, 0);
    }
    let small = MountError::TooSmall { blocks: MIN_BLOCKS - 1, needed: MIN_BLOCKS };
    assert_eq!(mount(&Disk::new(MIN_BLOCKS - 1)), Err(small));
    assert!(matches!(mount(&Disk::new(0)), Err(MountError::TooSmall { .. })));

    let disk = Disk::new(1000);
    assert_eq!(mount(&disk), Ok(()));
    assert_eq!(mount(&disk.resized(2000)), Ok(()), "a grown volume is used as it was");
    let shrunk = MountError::Shrunk { blocks: 999, formatted: 1000 };
    assert_eq!(mount(&disk.resized(999)), Err(shrunk));
}

/// Wiping the superblock makes an empty store, also while the rest of the old
/// one is still there.
#[test]
fn an_old_store_does_not_shine_through() {
    for wiped in [32, 33, 34, 40] {
        let rig = Rig::new(16 * MIB);
        let store = rig.mount();
        for n in 0..30 {
            rig.put(&store, &format!("{n}"), b"old");
        }
        drop(store);
        for block in 0..wiped {
            rig.disk.edit(block, |bytes| bytes.fill(0));
        }
        let store = rig.mount();
        assert_eq!(store.stats().keys, 0);
        for n in 0..10 {
            rig.put(&store, &format!("{n}"), b"old");
        }
        drop(store);
        assert_eq!(rig.mount().stats().keys, 10);
    }
}

/// Many GiB cost no memory and no time in themselves.
#[test]
fn large_volume() {
    let rig = Rig::new(4096 << 30);
    let store = rig.mount();
    rig.put(&store, "v", &vec![1; MAX_VALUE as usize]);
    drop(store);
    let store = rig.mount();
    assert_eq!(rig.get(&store, "v").unwrap().len() as u64, MAX_VALUE);
    assert!(store.stats().free_bytes > 4095 << 30);
}

/// A bad block in the journal moves the store to the other area.
#[test]
fn bad_block_in_the_journal() {
    let rig = Rig::new(16 * MIB);
    let store = rig.mount();
    let free = store.stats().free_bytes;
    rig.put(&store, "a", b"1");
    rig.disk.add_bad_block(34);
    assert_eq!(rig.run(sim::put(&store, "b", b"2", 1)), Err(Error::Device));
    assert!(store.get("b").is_none());
    rig.put(&store, "c", b"3");
    assert_eq!(rig.run(store.delete("a")), Ok(true));
    assert_eq!(store.stats().free_bytes, free - BLOCK as u64);
    drop(store);
    let store = rig.mount();
    assert_eq!(sim::list(&store), [("c".to_string(), 1)]);
    sim::assert_no_leak(&store);
}
