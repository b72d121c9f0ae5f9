//! Power cuts at every step, under concurrent puts, gets and deletes.

mod sim;

use std::cell::RefCell;

use kv_store::{Error, PutError, Store};
use sim::exec::give_up_after;
use sim::{Disk, End, Exec, Model, Rng, run_one, seeds};

const KEYS: u64 = 6;
const BLOCKS: u64 = 256;

/// What the tasks of a run do.
#[derive(Clone, Copy)]
struct Plan {
    tasks: u64,
    ops: u64,
    /// Most blocks of a value.
    blocks: u64,
    /// Percentage of writes and flushes that fail.
    errors: u64,
}

fn random_len(rng: &mut Rng, blocks: u64) -> usize {
    let len = match rng.below(8) {
        0 => 0,
        1 => rng.below(4),
        2 | 3 => 4096 * (1 + rng.below(blocks)) + rng.below(3) - 1,
        _ => rng.below(4096 * blocks),
    };
    len as usize
}

/// One client: random operations, each checked against the model.
async fn client(store: &Store<Disk>, model: &RefCell<Model>, plan: Plan, mut rng: Rng) {
    for _ in 0..plan.ops {
        let key = format!("key{}", rng.below(KEYS));
        match rng.below(10) {
            0..5 => put(store, model, plan, &mut rng, &key).await,
            5 | 6 => {
                let token = model.borrow_mut().delete(&key);
                match store.delete(&key).await {
                    Ok(_) => model.borrow_mut().acknowledge(&key, token),
                    Err(error) => assert!(plan.errors > 0 && error == Error::Device, "{error}"),
                }
            }
            7 => {
                let polls = 1 + rng.below(6);
                give_up_after(polls, put(store, model, plan, &mut rng, &key)).await;
            }
            _ => {
                let since = model.borrow_mut().now();
                let step = 1 + rng.below(20_000) as usize;
                let found = match sim::get(store, &key, step).await {
                    Some(Ok(bytes)) => Some(bytes),
                    Some(Err(error)) => panic!("get of {key}: {error}"),
                    None => None,
                };
                model.borrow().check(&key, found.as_deref(), since).unwrap();
            }
        }
    }
}

async fn put(store: &Store<Disk>, model: &RefCell<Model>, plan: Plan, rng: &mut Rng, key: &str) {
    let len = random_len(rng, plan.blocks);
    let mut put = match store.begin_put(key, len as u64) {
        Ok(put) => put,
        Err(PutError::Full) => return,
        Err(error) => panic!("put of {key}: {error}"),
    };
    let (data, token) = model.borrow_mut().put(key, len);
    let abort_at = rng.chance(10).then(|| rng.below(len as u64 + 1) as usize);
    let step = 1 + rng.below(30_000) as usize;
    let mut sent = 0;
    for piece in data.chunks(step) {
        if abort_at.is_some_and(|at| sent >= at) {
            model.borrow_mut().abort(key, token);
            return;
        }
        if let Err(error) = put.write(piece).await {
            assert!(plan.errors > 0 && error == Error::Device, "{error}");
            model.borrow_mut().abort(key, token);
            return;
        }
        sent += piece.len();
    }
    match put.commit().await {
        Ok(_) => model.borrow_mut().acknowledge(key, token),
        Err(error) => assert!(plan.errors > 0 && error == Error::Device, "{error}"),
    }
}

/// Mounts what a power cut left, with more power cuts during the mount.
fn recover(mut disk: Disk, rng: &mut Rng) -> (Disk, Store<Disk>) {
    while rng.chance(30) {
        disk.cut_at(disk.events() + rng.below(14));
        let mounted = run_one(&disk, rng, Store::mount(disk.clone()));
        drop(mounted);
        disk = disk.after_power_cut(rng);
    }
    disk.never_cut();
    let mounted = run_one(&disk, rng, Store::mount(disk.clone())).expect("no power cut");
    let store = mounted.unwrap_or_else(|error| panic!("mount: {error}"));
    (disk, store)
}

/// Checks everything that a power cut left, and makes it the new truth.
fn check_recovered(disk: &Disk, store: &Store<Disk>, model: &RefCell<Model>, rng: &mut Rng) {
    let listed: Vec<String> = sim::list(store).into_iter().map(|(key, _)| key).collect();
    let mut keys = model.borrow().keys();
    keys.extend(listed.iter().filter(|key| !keys.contains(key)).cloned().collect::<Vec<_>>());
    for key in keys {
        let found = run_one(disk, rng, sim::get(store, &key, 50_000)).expect("no power cut");
        let found = found.map(|result| result.unwrap_or_else(|error| panic!("{key}: {error}")));
        assert_eq!(found.is_some(), listed.contains(&key));
        let mut model = model.borrow_mut();
        let now = model.now();
        model.check(&key, found.as_deref(), now).unwrap();
        model.settle(&key, found.as_deref());
    }
    sim::assert_no_leak(store);
}

/// One life of the store: from mount to power cut or until all tasks end.
fn live(
    disk: &Disk,
    store: &Store<Disk>,
    model: &RefCell<Model>,
    plan: Plan,
    rng: &mut Rng,
) -> End {
    let mut exec = Exec::default();
    for _ in 0..plan.tasks {
        exec.spawn(client(store, model, plan, Rng::new(rng.next())));
    }
    exec.run(disk, rng)
}

/// The same run again and again from `disk`, cut after each of its steps, with
/// `samples` images of each cut.
fn cut_at_every_step(seed: u64, disk: &Disk, model_of: &dyn Fn() -> Model, plan: Plan) -> u64 {
    let mut cuts = 0;
    for cut in 1.. {
        let mut rng = Rng::new(seed);
        let disk = disk.copy();
        let model = RefCell::new(model_of());
        let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
        disk.fail_percent(plan.errors);
        disk.cut_at(disk.events() + cut);
        let end = live(&disk, &store, &model, plan, &mut rng);
        drop(store);
        cuts += 1;
        let mut rng = Rng::new(seed ^ cut << 32);
        let (disk, store) = recover(disk.after_power_cut(&mut rng), &mut rng);
        check_recovered(&disk, &store, &model, &mut rng);
        if end == End::Finished {
            break;
        }
    }
    cuts
}

#[test]
fn every_step_of_formatting() {
    for seed in seeds(12) {
        println!("KV_SEED={seed}");
        for cut in 0..30 {
            let mut rng = Rng::new(seed << 8 | cut);
            let disk = Disk::new(BLOCKS);
            disk.cut_at(cut);
            let _ = run_one(&disk, &mut rng, Store::mount(disk.clone()));
            let (_, store) = recover(disk.after_power_cut(&mut rng), &mut rng);
            assert_eq!(store.stats().keys, 0);
        }
    }
}

#[test]
fn every_step_of_short_histories() {
    let mut cuts = 0;
    for seed in seeds(12) {
        println!("KV_SEED={seed}");
        let mut rng = Rng::new(seed);
        let disk = Disk::new(BLOCKS);
        run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
        let plan = Plan { tasks: 1 + seed % 4, ops: 6, blocks: 12, errors: 0 };
        cuts += cut_at_every_step(seed, &disk, &Model::default, plan);
    }
    println!("{cuts} power cuts");
}

/// Puts of small values until the journal of a new volume is about full.
const FILL: u64 = 42;

fn almost_full_journal(rng: &mut Rng) -> Disk {
    let mut model = Model::default();
    let disk = Disk::new(BLOCKS);
    let store = run_one(&disk, rng, Store::mount(disk.clone())).unwrap().unwrap();
    for n in 0..FILL {
        let key = format!("key{}", n % KEYS);
        let (data, _) = model.put(&key, 900);
        run_one(&disk, rng, sim::put(&store, &key, &data, 512)).unwrap().unwrap();
    }
    drop(store);
    disk
}

/// What [`almost_full_journal`] put.
fn filled_model() -> Model {
    let mut model = Model::default();
    for n in 0..FILL {
        let key = format!("key{}", n % KEYS);
        let (_, token) = model.put(&key, 900);
        model.acknowledge(&key, token);
    }
    model
}

#[test]
fn every_step_of_compaction() {
    let mut cuts = 0;
    for seed in seeds(8) {
        println!("KV_SEED={seed}");
        let disk = almost_full_journal(&mut Rng::new(seed));
        let plan = Plan { tasks: 1 + seed % 3, ops: 10, blocks: 3, errors: 0 };
        cuts += cut_at_every_step(seed, &disk, &filled_model, plan);
    }
    println!("{cuts} power cuts");
}

/// Errors in the middle of compaction, and compaction again and again.
#[test]
fn every_step_of_compaction_with_device_errors() {
    let mut cuts = 0;
    for seed in seeds(12) {
        println!("KV_SEED={seed}");
        let disk = almost_full_journal(&mut Rng::new(seed));
        let plan = Plan { tasks: 1 + seed % 3, ops: 8, blocks: 2, errors: 15 };
        cuts += cut_at_every_step(seed, &disk, &filled_model, plan);
    }
    println!("{cuts} power cuts");
}

/// Several lives of one volume. Each ends with a power cut at a random step, or
/// with a restart of the store while the disk goes on.
fn lives(seed: u64, plan: Plan, rounds: u64) -> u64 {
    let mut rng = Rng::new(seed);
    let model = RefCell::new(Model::default());
    let mut disk = Disk::new(BLOCKS);
    let mut cuts = 0;
    for _ in 0..rounds {
        let (mounted, store) = recover(disk, &mut rng);
        disk = mounted;
        check_recovered(&disk, &store, &model, &mut rng);
        disk.fail_percent(plan.errors);
        disk.cut_at(disk.events() + rng.below(1500));
        let end = live(&disk, &store, &model, plan, &mut rng);
        disk.fail_percent(0);
        cuts += u64::from(end == End::PowerCut);
        if end == End::Finished && plan.errors == 0 {
            disk.never_cut();
            finish_background(&disk, &store, &model, &mut rng);
            sim::assert_no_leak(&store);
        }
        drop(store);
        if rng.chance(30) {
            // The backend ends what is in flight before a new client connects.
            disk.never_cut();
            while disk.has_pending() {
                disk.step(&mut rng);
            }
        } else {
            disk = disk.after_power_cut(&mut rng);
        }
    }
    cuts
}

/// Brings aborted puts to their end, by calls that poll them.
fn finish_background(disk: &Disk, store: &Store<Disk>, model: &RefCell<Model>, rng: &mut Rng) {
    let (data, token) = model.borrow_mut().put("last", 1);
    run_one(disk, rng, sim::put(store, "last", &data, 1)).unwrap().unwrap();
    model.borrow_mut().acknowledge("last", token);
    while disk.has_pending() {
        disk.step(rng);
    }
    run_one(disk, rng, sim::get(store, "last", 1)).unwrap().unwrap().unwrap();
}

#[test]
fn random_lives() {
    let mut cuts = 0;
    for seed in seeds(15) {
        println!("KV_SEED={seed}");
        let plan = Plan { tasks: 1 + seed % 6, ops: 60, blocks: 20, errors: 0 };
        cuts += lives(seed, plan, 8);
    }
    println!("{cuts} power cuts");
}

#[test]
fn random_lives_with_device_errors() {
    let mut cuts = 0;
    for seed in seeds(15) {
        println!("KV_SEED={seed}");
        let plan = Plan { tasks: 1 + seed % 6, ops: 60, blocks: 12, errors: 4 };
        cuts += lives(seed, plan, 8);
    }
    println!("{cuts} power cuts");
}

/// A torn batch of one life must not come back when a later, likewise torn
/// batch happens to write the sectors that it lacked.
#[test]
fn torn_batch_is_not_completed_by_a_later_one() {
    let mut rng = Rng::new(1);
    let disk = Disk::new(BLOCKS);
    let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
    // Leave only single blocks free, so that the record of the next put has
    // its key and checksum in the first sector, and extents in the second.
    let blocks = store.stats().free_bytes / 4096;
    for n in 0..blocks {
        run_one(&disk, &mut rng, sim::put(&store, &format!("{n}"), b"x", 1)).unwrap().unwrap();
    }
    for n in (0..blocks).step_by(2) {
        run_one(&disk, &mut rng, store.delete(&format!("{n}"))).unwrap().unwrap();
    }
    drop(store);
    let torn_put = |disk: Disk, byte: u8, kept: fn(usize) -> bool| {
        let mut rng = Rng::new(2);
        let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
        assert!(store.get("torn").is_none(), "a put of an earlier life came back");
        // The power fails at the second flush, the one behind the record.
        let flushes = disk.counts().flushes;
        let mut exec = Exec::default();
        exec.spawn(async {
            let data = vec![byte; store.stats().free_bytes as usize];
            sim::put(&store, "torn", &data, 4096).await.unwrap();
        });
        exec.run_until(&disk, &mut rng, || disk.counts().flushes == flushes + 2);
        disk.after_power_cut_keeping(|_, sector| kept(sector))
    };
    let disk = torn_put(disk, 1, |sector| sector == 0);
    let disk = torn_put(disk, 2, |sector| sector > 0);
    let disk = torn_put(disk, 3, |_| true);
    // And a whole record is a committed put.
    let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
    let data = run_one(&disk, &mut rng, sim::get(&store, "torn", 4096)).unwrap().unwrap();
    assert!(data.unwrap().iter().all(|&byte| byte == 3));
}

/// A record that a restarted store finds in the disk's cache is a committed
/// put: a power cut after the restart must not take it back.
#[test]
fn what_a_restart_finds_is_durable() {
    let mut rng = Rng::new(1);
    let disk = Disk::new(BLOCKS);
    let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
    let flushes = disk.counts().flushes;
    let mut exec = Exec::default();
    exec.spawn(async {
        let _ = sim::put(&store, "k", b"value", 5).await;
    });
    exec.run_until(&disk, &mut rng, || disk.counts().flushes == flushes + 2);
    disk.forget_pending();
    drop(store);
    let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
    assert!(store.get("k").is_some());
    drop(store);
    let disk = disk.after_power_cut_keeping(|_, _| false);
    let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
    assert!(store.get("k").is_some());
}

/// If the header of a new snapshot may be on the volume, the old journal is
/// closed, although a small record would still fit.
#[test]
fn old_journal_is_closed_once_the_new_header_is_written() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let disk = Disk::new(BLOCKS);
        let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
        // Of 47 blocks of journal, 45 are used by these.
        let key = |n: u64| format!("{n:0>250}");
        for n in 0..45 {
            run_one(&disk, &mut rng, sim::put(&store, &key(n), b"", 1)).unwrap().unwrap();
        }
        // One delete goes alone; the others together need two blocks more.
        let other_header = 32 + 48;
        disk.add_bad_block(other_header);
        let mut exec = Exec::default();
        for n in 0..18 {
            let (store, key) = (&store, key(n));
            exec.spawn(async move {
                let _ = store.delete(&key).await;
            });
        }
        exec.run(&disk, &mut rng);
        if seed % 2 == 0 {
            disk.heal_bad_blocks();
        }
        let last = run_one(&disk, &mut rng, sim::put(&store, "last", b"", 1)).unwrap();
        match last {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        drop(store);
        let disk = disk.after_power_cut(&mut rng);
        let store = run_one(&disk, &mut rng, Store::mount(disk.clone())).unwrap().unwrap();
        assert!(last.is_err() || store.get("last").is_some(), "seed {seed}");
    }
    assert_eq!((accepted, refused), (10, 10));
}
