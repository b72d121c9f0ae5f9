//! Live updates of drivers: clients see a pause at most, and what does not come
//! up is taken back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nodectl::{
    Client, Error,
    control::Updated,
    elf::{Flat, FlatSegment, flatten},
    image,
};
use ring_proto::{PAGE_SIZE, layout};
use system_tests::{bench::Bench, workload::Workload};

use crate::recovery::{PATIENCE, rounds, under_load};

/// Code that sleeps for ever and never says that it is ready:
/// `mov eax, 1; mov rdi, -1; vmmcall; jmp` to the first of them.
const SLEEPS: [u8; 17] =
    [0xb8, 1, 0, 0, 0, 0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x01, 0xd9, 0xeb, 0xef];
/// `ud2`
const DIES: [u8; 2] = [0x0f, 0x0b];
/// `jmp` to itself, which does not even wait.
const HANGS: [u8; 2] = [0xeb, 0xfe];

/// A driver's program as it was built.
fn program(driver: &str) -> Result<Flat> {
    let elf = xtask::workspace::node_dir().join(format!("{driver}.elf"));
    flatten(&std::fs::read(&elf).with_context(|| elf.display().to_string())?)
}

/// Another build of it: with more read-only data behind all else, which tells `number`.
fn another(flat: &Flat, number: usize) -> Flat {
    let mut other = flat.clone();
    let end = flat.segments.last().map_or(0, |s| s.address + s.memory_len);
    let pages = 1 + number % 7;
    let data: Vec<u8> = (0..pages * PAGE_SIZE).map(|at| (at ^ number) as u8).collect();
    let memory_len = data.len() as u64;
    let segment = FlatSegment { address: end, memory_len, data, write: false, execute: false };
    other.segments.push(segment);
    other
}

/// A program of so little code.
fn only(code: &[u8]) -> Flat {
    let (address, memory_len) = (layout::IMAGE_BASE, PAGE_SIZE as u64);
    let data = code.to_vec();
    let segment = FlatSegment { address, memory_len, data, write: false, execute: true };
    Flat { entry: address, segments: vec![segment] }
}

fn update(client: &mut Client, driver: &str, flat: &Flat) -> Result<(u32, Updated)> {
    let file = image::of(driver, flat)?;
    let (begin, mut sent) = (Instant::now(), Duration::ZERO);
    let done = client.update(driver, &file, &mut |_| sent = begin.elapsed())?;
    let all = begin.elapsed();
    eprintln!("{driver}: {} bytes sent in {sent:.1?}, all done in {all:.1?}", file.bytes.len());
    Ok(done)
}

/// What the list of domains says that the driver runs, and is to run.
fn runs(client: &mut Client, driver: &str) -> Result<(u32, u32)> {
    let status = client.domain(driver)?.with_context(|| format!("there is no {driver}"))?;
    Ok((status.image_crc, status.good_crc))
}

fn updates(workload: &Workload, client: &mut Client, times: usize) -> Result<()> {
    for round in 0..rounds(times) {
        let driver = ["blk", "net"][round % 2];
        let what = || format!("update {round}, of {driver}");
        let built = program(driver)?;
        let flat = if round / 2 % 2 == 0 { another(&built, round) } else { built };
        let old = runs(client, driver)?.0;
        let (before, updated) = update(client, driver, &flat).with_context(what)?;
        ensure!(updated.kept, "{}: {}", what(), updated.why);
        ensure!(
            before == old && updated.image_crc == flat.crc() && old != flat.crc(),
            "{}",
            what()
        );
        ensure!(runs(client, driver)? == (flat.crc(), flat.crc()), "{}: another runs", what());
        let record = updated.record.with_context(what)?;
        let record = client.crash_record(record).with_context(what)?;
        ensure!(record.ordered && record.image_crc == old, "{}: {record:?}", what());
        eprintln!(
            "{}: {old:08x} -> {:08x}, paused {} us, {:?} in flight",
            what(),
            flat.crc(),
            record.times.ready.saturating_sub(record.times.detected) / 1000,
            record.in_flight
        );
        // Drained: nothing was left to be replayed.
        ensure!(
            record.in_flight.is_none_or(|n| n == 0) || driver == "net",
            "{}: {record:?}",
            what()
        );
        workload.wait_progress(1, PATIENCE).with_context(what)?;
    }
    Ok(())
}

/// With a warm spare, which tries first: no request and no connection is lost.
pub fn g3_live_updates_under_load_lose_nothing(bench: &Bench) -> Result<()> {
    bench.with_node(|_| (), |node| under_load(node, 4, |load, client| updates(load, client, 2)))
}

/// The same where the driver itself is rebuilt.
pub fn g3_live_updates_without_a_spare_lose_nothing(bench: &Bench) -> Result<()> {
    let path = bench.dir().join("no-spare.toml");
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&path, system_tests::attack::demo()?)?;
    bench.with_node(
        |config| config.manifest = path,
        |node| under_load(node, 4, |load, client| updates(load, client, 1)),
    )
}

/// Each way in which an image can be broken; clients notice none of them.
pub fn g3_broken_images_are_rolled_back_under_load(bench: &Bench) -> Result<()> {
    bench.with_node(
        |_| (),
        |node| {
            under_load(node, 4, |workload, client| {
                let broken = [
                    ("blk", "dies", &DIES[..]),
                    ("net", "hangs", &HANGS),
                    ("blk", "sleeps", &SLEEPS),
                ];
                for (driver, why, code) in broken {
                    let what = || format!("{driver}, its image {why}");
                    let good = program(driver)?;
                    let deaths = client.domain(driver)?.map(|status| status.deaths);
                    let (_, updated) = update(client, driver, &only(code)).with_context(what)?;
                    ensure!(!updated.kept, "{}: it was kept", what());
                    ensure!(runs(client, driver)? == (good.crc(), good.crc()), "{}", what());
                    // Its spare took all the harm.
                    let after = client.domain(driver)?.map(|status| status.deaths);
                    ensure!(deaths == after, "{}: it died: {deaths:?}, {after:?}", what());
                    workload.wait_progress(1, PATIENCE).with_context(what)?;
                }
                let mut file = image::of("net", &program("net")?)?;
                file.bytes.truncate(PAGE_SIZE);
                match client.update("net", &file, &mut |_| ()) {
                    Err(Error::Refused(why)) => {
                        ensure!(why.text.ends_with("the file is cut off"), "{why:?}")
                    }
                    other => bail!("half an image: {other:?}"),
                }
                Ok(())
            })
        },
    )
}
