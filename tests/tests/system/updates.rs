//! Live updates of drivers: clients see a pause at most, and what does not come
//! up is taken back.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nodectl::{
    Client, Error,
    control::{CrashEntry, How, Updated},
    elf::{Flat, FlatSegment, flatten},
    image,
    symbols::Missing,
};
use ring_proto::{PAGE_SIZE, hypercall::Trial, layout};
use system_tests::{
    bench::{Bench, RECOVERY},
    runner::wait_for,
    workload::Workload,
};
use xtask::{manifest, workspace};

use crate::{
    control::nodectl,
    recovery::{PATIENCE, beside, rounds, under_load},
};

/// Code that sleeps for ever and never says that it is ready:
/// `mov eax, 1; mov rdi, -1; vmmcall; jmp` to the first of them.
const SLEEPS: [u8; 17] =
    [0xb8, 1, 0, 0, 0, 0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x01, 0xd9, 0xeb, 0xef];
/// `ud2`
const DIES: [u8; 2] = [0x0f, 0x0b];
/// `jmp` to itself, which does not even wait.
const HANGS: [u8; 2] = [0xeb, 0xfe];

/// For the crasher: generation 2 dies with its second answers. It is the first
/// of a new image, with or without a spare.
const DIES_SERVING: &str = "2 2 2";

fn elf(image: &str) -> PathBuf {
    workspace::node_dir().join(format!("{image}.elf"))
}

/// A driver's program as it was built.
fn program(driver: &str) -> Result<Flat> {
    let elf = elf(driver);
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
    for round in 0..rounds(times)? {
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

/// Has the demo node, whose manifest is `text`, tell `blk` which generations of
/// the crasher die, and when: a build of `blk` that it can be updated to.
/// Returns the path of that manifest, and of the ELF file.
fn beside_a_crasher(bench: &Bench, text: &str, args: &str) -> Result<[PathBuf; 2]> {
    let blk = "image = \"blk\"\n";
    ensure!(text.contains(blk), "the demo node is another");
    let text = text.replace(blk, &format!("{blk}args = \"{args}\"\n"))
        + "\n[domain.unused]\nimage = \"crasher\"\nmemory = \"4MiB\"\nautostart = false\n";
    let path = bench.dir().join("crasher.toml");
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&path, text)?;
    Ok([path, elf("crasher")])
}

/// The record of a death on trial: of a generation that had served.
fn died_on_trial(client: &mut Client, new: u32) -> Result<CrashEntry> {
    let records = client.crashes(0)?;
    let died = records.iter().find(|r| r.name == "blk" && !r.ordered);
    let died = died.context("blk did not die of itself")?.clone();
    ensure!(
        died.message.contains("a bug in generation") && died.image_crc == new,
        "it died of something else: {died:?}"
    );
    let before = records.iter().find(|r| r.name == "blk" && r.generation + 1 == died.generation);
    let before = before.context("blk was not told to go")?;
    ensure!(before.ordered && before.image_crc != new, "it was not the old one: {before:?}");
    ensure!(before.times.served != 0, "the new one died before it had served: {before:?}");
    Ok(died)
}

/// The same where the driver itself is rebuilt: of an image that serves and
/// dies on trial, and then of some that work.
pub fn g3_live_updates_without_a_spare_lose_nothing(bench: &Bench) -> Result<()> {
    let [path, crasher] = beside_a_crasher(bench, &system_tests::attack::demo()?, DIES_SERVING)?;
    bench.with_node(
        |config| config.manifest = path,
        |node| {
            beside(Workload::default(), node, 4, |load| {
                let file = crasher.to_str().context("its path is no text")?;
                let (code, out) = nodectl(node, &["update", "blk", "--image", file])?;
                ensure!(
                    code == Some(1) && out.contains("again") && out.contains("it died on trial"),
                    "exit code {code:?}, and it says: {out}"
                );
                load.wait_progress(4, PATIENCE)?;
                let client = &mut node.control()?;
                let (old, new) = (program("blk")?.crc(), program("crasher")?.crc());
                ensure!(runs(client, "blk")? == (old, old), "blk does not run its old image");
                let died = died_on_trial(client, new)?;
                for (images, right) in
                    [(&workspace::node_dir(), true), (&crasher, true), (&elf("blk"), false)]
                {
                    let found = client.story(died.sequence, images, 10)?.backtrace;
                    let mut names = found.frames.iter().flat_map(|(_, functions)| functions);
                    let named = names.any(|frame| frame.function.contains("crasher"));
                    let refused = matches!(found.program, Err(Missing::OtherFile(..)));
                    ensure!(
                        named == right && refused != right,
                        "symbols of {}: {found:?}",
                        images.display()
                    );
                }
                updates(load, client, 1)
            })
        },
    )
}

/// The supervisor dies while an image is sent, and over and over while it is on
/// trial. What somebody left half sent before is nothing to it.
pub fn g7_the_supervisor_may_die_during_an_update(bench: &Bench) -> Result<()> {
    let text = std::fs::read_to_string(manifest::default_path())?;
    let [path, crasher] = beside_a_crasher(bench, &text, DIES_SERVING)?;
    bench.with_node(
        |config| config.manifest = path,
        |node| {
            under_load(node, 4, |load, client| {
                let file = image::of_elf("blk", &std::fs::read(&crasher)?)?;
                let (old, new) = (program("blk")?.crc(), file.crc);
                client.stage("blk", &image::of("blk", &only(&DIES))?, 0)?;
                let (mut at, mut generation) = (0, None);
                while at < file.bytes.len() {
                    if generation.is_none() && at >= file.bytes.len() / 2 {
                        generation = Some(client.supervisor_generation());
                        client.order_crash("supervisor", How::Panic)?;
                    }
                    at = client.stage("blk", &file, at)?;
                }
                let now = client.supervisor_generation();
                ensure!(generation.is_some_and(|before| now == before + 1), "it did not die");

                // The spare is rebuilt, stands by, takes over, serves, and dies.
                let updated = client.try_image("blk", new)?;
                ensure!(!updated.kept && updated.why == "it died on trial", "{updated:?}");
                ensure!(runs(client, "blk")? == (old, old), "blk does not run its old image");
                died_on_trial(client, new)?;
                load.wait_progress(4, PATIENCE)?;

                // It still has the image, whose later generations live. Nobody asks any more.
                client.order_update("blk")?;
                wait_for("the end of the trial", RECOVERY, || {
                    client.crash("supervisor", How::Panic, RECOVERY)?;
                    let blk = client.domain("blk")?.context("there is no blk")?;
                    Ok((blk.trial == Trial::None as u32).then_some(()))
                })?;
                ensure!(runs(client, "blk")? == (new, new), "the new image was not kept");
                // Its spare is to be of the same.
                wait_for("blk-spare to stand by", RECOVERY, || {
                    let spare = client.domain("blk-spare")?.context("there is no blk-spare")?;
                    Ok((spare.ready && spare.image_crc == new).then_some(()))
                })?;
                load.wait_progress(4, PATIENCE)
            })
        },
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
