//! The judges of the fault campaigns: that they find nothing where nothing is, and
//! everything that somebody put there.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use judge_orders::{
    MAX_REQUESTS, Orders, Outcome, VERIFY, VERIFY_ALL, VERIFY_BEFORE, state, wrong,
};
use nodectl::control::How;
use system_tests::{
    bench::Bench,
    judges::{Tap, carry_out, finish, is_intact, round, with_judges},
    runner::wait_for,
};
use xtask::{disk, judge::Judge, qemu::PEER_MAC, workspace};

use crate::recovery::{PATIENCE, crash};

/// Bytes of a block of the judge.
const BLOCK: usize = 4096;

/// A round in whose middle a driver dies.
const LONG: u64 = 20_000;

/// Rounds without a fault, then rounds in which both drivers die in the middle: all
/// data is what it must be.
pub fn g3_judges_see_no_harm_when_drivers_die(bench: &Bench) -> Result<()> {
    with_judges(
        bench,
        |_| (),
        |_, client, judges| {
            for number in 1..=8 {
                let orders = Orders { seed: number, moment: 32, ..round(64) };
                let begin = Instant::now();
                let outcomes = judges.both(orders)?;
                let took = begin.elapsed();
                for outcome in outcomes {
                    is_intact(&orders, &outcome)?;
                    ensure!(
                        outcome.lost == 0 && outcome.moment_ns > outcome.begun_ns,
                        "{outcome:?}"
                    );
                }
                let [blk, net] = outcomes.map(|o| (o.ended_ns - o.begun_ns) / 1000);
                eprintln!("round {number}: blk {blk} us, net {net} us, {took:?} of the host");
                ensure!(outcomes[0].verified > 0, "nothing was read back: {:?}", outcomes[0]);
            }
            refuses(&mut judges.blk)?;
            refuses(&mut judges.net)?;
            for how in [How::Panic, How::Loop] {
                let orders = Orders { moment: LONG / 2, ..round(LONG) };
                for (driver, judge) in [("blk", &mut judges.blk), ("net", &mut judges.net)] {
                    let what = || format!("{how:?} of {driver}");
                    let number = judge.order(orders)?;
                    wait_for("some progress", PATIENCE, || {
                        let seen = judge.outcome()?;
                        Ok((seen.round == number && seen.completed > 0).then_some(()))
                    })?;
                    crash(client, driver, how)?;
                    let outcome = finish(judge).with_context(what)?;
                    is_intact(&orders, &outcome).with_context(what)?;
                    let seen = (outcome.disconnects, outcome.connects, outcome.replayed > 0);
                    ensure!(seen == (1, 1, true), "{}: {outcome:?}", what());
                    ensure!(outcome.first_after_ns > outcome.begun_ns, "{}: {outcome:?}", what());
                }
            }
            let orders = Orders { flags: VERIFY_ALL, ..round(0) };
            let outcome = carry_out(&mut judges.blk, orders)?;
            is_intact(&orders, &outcome)
        },
    )
}

/// The example of a driver of one's own: it serves, and so does each of its next generations.
pub fn g3_the_example_driver_serves_and_outlives_its_deaths(bench: &Bench) -> Result<()> {
    with_judges(
        bench,
        |config| config.manifest = workspace::root().join("examples/nvme/node.toml"),
        |_, client, judges| {
            let judge = &mut judges.blk;
            let orders = round(1000);
            let outcome = carry_out(judge, orders)?;
            is_intact(&orders, &outcome)?;
            ensure!(outcome.verified > 0, "nothing was read back: {outcome:?}");
            for how in [How::Panic, How::Loop, How::NullWrite] {
                let orders = Orders { moment: LONG / 2, ..round(LONG) };
                let number = judge.order(orders)?;
                wait_for("some progress", PATIENCE, || {
                    let seen = judge.outcome()?;
                    Ok((seen.round == number && seen.completed > 0).then_some(()))
                })?;
                crash(client, "disk", how)?;
                let outcome = finish(judge).with_context(|| format!("{how:?}"))?;
                is_intact(&orders, &outcome).with_context(|| format!("{how:?}"))?;
                let seen = (outcome.disconnects, outcome.connects, outcome.replayed > 0);
                ensure!(seen == (1, 1, true), "{how:?}: {outcome:?}");
            }
            let orders = Orders { flags: VERIFY_ALL, ..round(0) };
            let outcome = carry_out(judge, orders)?;
            is_intact(&orders, &outcome)
        },
    )
}

/// Orders that are none are answered so, and the next ones are carried out.
fn refuses(judge: &mut Judge) -> Result<()> {
    judge.order(Orders { requests: MAX_REQUESTS + 1, ..round(0) })?;
    let outcome = judge.wait(PATIENCE)?;
    ensure!(outcome.state == state::REFUSED, "{outcome:?}");
    // Nobody can send so many in so short a time.
    judge.order(Orders { limit_ns: 1, ..round(MAX_REQUESTS) })?;
    let outcome = judge.wait(PATIENCE)?;
    ensure!(outcome.state == state::LIMIT && outcome.completed < MAX_REQUESTS, "{outcome:?}");
    let orders = round(16);
    let outcome = carry_out(judge, orders)?;
    is_intact(&orders, &outcome)
}

/// A byte of a block is another, a block is where another was, a write is lost: the
/// judge says which, once, and mends it.
pub fn judges_find_corrupt_data(bench: &Bench) -> Result<()> {
    with_judges(
        bench,
        |_| (),
        |_, _, judges| {
            let volume = Volume::open(&bench.dir().join("disk.img"))?;
            let judge = &mut judges.blk;
            let all = Orders { flags: VERIFY_ALL, ..round(0) };
            let outcome = carry_out(judge, all)?;
            is_intact(&all, &outcome)?;
            ensure!(outcome.verified as usize == volume.used(), "{outcome:?}");

            for offset in [0, 31, 32, BLOCK - 1] {
                let mut block = volume.read(77)?;
                block[offset] ^= 0x40;
                volume.write(77, &block)?;
                let first = carry_out(judge, all)?.first_wrong;
                let what = if offset < 32 { wrong::NO_LABEL } else { wrong::BYTES };
                let at = if offset < 32 { 0 } else { offset as u64 };
                ensure!((first.what, first.place, first.offset) == (what, 77, at), "{first:?}");
                is_intact(&all, &carry_out(judge, all)?).context("it was not mended")?;
            }

            volume.write(3, &volume.read(2000)?)?;
            let outcome = carry_out(judge, all)?;
            let first = outcome.first_wrong;
            ensure!((outcome.wrong, outcome.stale) == (1, 0), "{outcome:?}");
            let seen = (first.what, first.place, first.found_place);
            ensure!(seen == (wrong::PLACE, 3, 2000), "{first:?}");
            is_intact(&all, &carry_out(judge, all)?).context("it was not mended")?;

            let before = volume.all()?;
            let orders = Orders { flags: VERIFY, ..round(64) };
            is_intact(&orders, &carry_out(judge, orders)?)?;
            let after = volume.all()?;
            let mut blocks = before.chunks(BLOCK).zip(after.chunks(BLOCK));
            let block = blocks.position(|(before, after)| before != after);
            let block = block.context("the round wrote nothing")?;
            volume.write(block, &before[block * BLOCK..][..BLOCK])?;
            // What it wrote, and no more.
            let orders = Orders { flags: VERIFY_BEFORE, ..round(0) };
            let outcome = carry_out(judge, orders)?;
            ensure!((1..256).contains(&outcome.verified), "{outcome:?}");
            ensure!((outcome.wrong, outcome.stale) == (0, 1), "{outcome:?}");
            let first = outcome.first_wrong;
            let is_older = first.found_version < first.oldest;
            ensure!(
                (first.what, first.place) == (wrong::STALE, block as u64) && is_older,
                "{first:?}"
            );
            is_intact(&all, &carry_out(judge, all)?).context("it was not mended")
        },
    )
}

/// Where a datagram's data begins in a frame, and the UDP checksum.
const DATA: usize = 14 + 20 + 8;
const CHECKSUM: usize = 14 + 20 + 6;
/// Where the version is in labelled data.
const VERSION: Range<usize> = DATA + 16..DATA + 24;
/// Rounds that are tried until all forged frames come within one.
const TRIES: u32 = 5;

/// Frames that nobody sent: the judge says of each what it is.
pub fn judges_find_corrupt_datagrams(bench: &Bench) -> Result<()> {
    let tap = Tap::new(bench)?;
    let connect = |config: &mut _| tap.connect(config);
    with_judges(bench, connect, |_, _, judges| {
        let judge = &mut judges.net;
        let mut last = Outcome::default();
        for _ in 0..TRIES {
            let number = judge.order(round(16))?;
            let old = answer(&tap, number)?;
            finish(judge)?;
            // In the quiet at its end; should the host be too slow for that, in the next one's.
            let number = judge.order(Orders { quiet_ns: 500_000_000, ..round(16) })?;
            let new = answer(&tap, number)?;
            let forged = |at: usize, with_checksum: bool| {
                let mut frame = old.clone();
                frame[at] ^= 1;
                if with_checksum {
                    // None: IPv4 allows that.
                    frame[CHECKSUM..CHECKSUM + 2].fill(0);
                }
                frame
            };
            for frame in [
                &old,
                &new,
                &forged(DATA + 40, false),
                &forged(DATA + 40, true),
                &forged(DATA, true),
            ] {
                tap.send(frame)?;
            }
            last = finish(judge)?;
            let first = last.first_wrong;
            let seen = (last.late, last.duplicate, last.damaged, last.wrong, last.lost);
            if seen == (1, 1, 1, 2, 0) {
                ensure!((first.what, first.offset) == (wrong::BYTES, 40), "{last:?}");
                let orders = round(64);
                return is_intact(&orders, &carry_out(judge, orders)?);
            }
        }
        bail!("not all of it was seen: {last:?}")
    })
}

/// The first datagram of a round that comes back from the peer.
fn answer(tap: &Tap, round: u64) -> Result<Vec<u8>> {
    wait_for("a datagram", PATIENCE, || {
        while let Some(frame) = tap.hear()? {
            let is_back = frame.get(6..12) == Some(&PEER_MAC);
            let version = frame.get(VERSION).and_then(|bytes| bytes.first_chunk());
            if is_back && version.map(|bytes| u64::from_le_bytes(*bytes)) == Some(round) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    })
}

/// The judge's volume in the disk's image, behind the node's back.
struct Volume {
    image: File,
    place: Range<u64>,
}

impl Volume {
    fn open(image: &std::path::Path) -> Result<Self> {
        let place = disk::place(image, "judged")?;
        let image = File::options().read(true).write(true).open(image)?;
        Ok(Self { image, place })
    }

    fn at(&self, block: usize) -> u64 {
        self.place.start + (block * BLOCK) as u64
    }

    fn read(&self, block: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; BLOCK];
        self.image.read_exact_at(&mut data, self.at(block))?;
        Ok(data)
    }

    fn write(&self, block: usize, data: &[u8]) -> Result<()> {
        Ok(self.image.write_all_at(data, self.at(block))?)
    }

    fn all(&self) -> Result<Vec<u8>> {
        let mut data = vec![0; (self.place.end - self.place.start) as usize];
        self.image.read_exact_at(&mut data, self.place.start)?;
        Ok(data)
    }

    /// Blocks that somebody ever wrote.
    fn used(&self) -> usize {
        let blocks = self.all().unwrap_or_default();
        blocks.chunks(BLOCK).filter(|block| block.iter().any(|&byte| byte != 0)).count()
    }
}
