//! What guests do over a driver domain, as they would over a driver of their
//! own: files on a FAT volume, and one long TCP download. Their drivers die all
//! the while, and no guest may see an error.
//!
//! `BULKHEAD_DEATHS` says how many each test brings about; by default few:
//!
//! ```sh
//! BULKHEAD_DEATHS=1000 cargo xtask test --only system g3_files
//! ```

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nodectl::{Client, control::How, names};
use system_tests::{
    bench::{BOOT, Bench, Node, RECOVERY},
    download::Download,
    fat,
    files::{Progress, Told, Tree},
};
use xtask::{disk, manifest::Manifest};

use crate::{
    control::is_reason,
    endurance::wanted,
    recovery::{PATIENCE, crash},
    spares::standby,
};

/// Deaths of a test unless `BULKHEAD_DEATHS` says otherwise.
const DEATHS: usize = 12;
/// Deaths between two lines about the progress.
const TELL: usize = 100;
/// Label of the volume.
const VOLUME: &str = "files";
/// Bound of a hang, ms: three times the usual one. The clock goes on while a busy host
/// does not run the cores, and must not bring a death about that nobody ordered.
const WATCHDOG_MS: u32 = 1500;
/// Until a guest complains, ms: so much later that no hang is taken for a stall.
const STALL_MS: u32 = 2500;
/// Names the stream that is downloaded.
const SEED: u64 = 4;
/// How long the guest may take to read all its files when it is to end.
const DRAIN: Duration = Duration::from_secs(60);
const DRIVERS: [&str; 2] = ["blk", "net"];

/// Without spares: who died is started again.
pub fn g3_files_and_a_download_outlive_their_drivers(bench: &Bench) -> Result<()> {
    outlive(bench, false)
}

/// A warm spare takes the place of each that dies.
pub fn g3_files_and_a_download_outlive_their_drivers_with_spares(bench: &Bench) -> Result<()> {
    outlive(bench, true)
}

fn outlive(bench: &Bench, spares: bool) -> Result<()> {
    let wanted = wanted(DEATHS)?;
    let download = Download::new(SEED)?;
    fs::create_dir_all(bench.dir())?;
    let path = bench.dir().join("workloads.toml");
    fs::write(&path, manifest(spares, download.port()?))?;
    let image = bench.dir().join("disk.img");
    disk::create(&image, &Manifest::load(&path)?.volumes)?;
    fat::format(&image, VOLUME)?;

    let told = Arc::new(Told::default());
    let tree = bench.with_node(
        |config| {
            config.manifest = path;
            told.listen(config);
        },
        |node| {
            std::thread::scope(|scope| {
                scope.spawn(|| download.serve(PATIENCE));
                let life = Life { node, told: &told, download: &download, spares, deaths: [0; 2] };
                let tree = life.run(wanted);
                download.give_up();
                tree
            })
        },
    )?;
    let found = fat::check(&image, VOLUME).context("the volume after all")?;
    ensure!(found.files == tree.files, "files: told {:?}, found {:?}", tree.files, found.files);
    // `embedded-sdmmc` does not give back the first cluster of a file that is deleted.
    let (lost, deleted) = (found.lost, tree.deleted);
    ensure!(lost == deleted, "{lost} clusters are lost, and {deleted} files were deleted");
    Ok(())
}

/// A node with both guests.
fn manifest(spare: bool, port: u16) -> String {
    let driver = |(name, device)| {
        format!(
            r#"
[domain.{name}]
image = "{name}"
memory = "4MiB"
dma_pool = "1MiB"
device = "{device}"
spare = {spare}
watchdog_ms = {WATCHDOG_MS}
restart = {{ floor_ms = 0, backoff = 1.0, budget = 0 }}
"#
        )
    };
    let drivers = [("blk", "disk0"), ("net", "nic0")].map(driver).concat();
    format!(
        r#"
[device.disk0]
match = {{ class = "storage", index = 0 }}

[device.nic0]
match = {{ class = "network", index = 0 }}

[domain.supervisor]
image = "supervisor"
memory = "4MiB"
capabilities = ["supervisor", "control-uart"]
watchdog_ms = {WATCHDOG_MS}
{drivers}
[domain.files]
image = "files"
memory = "4MiB"
watchdog_ms = {WATCHDOG_MS}

[domain.download]
image = "download"
memory = "4MiB"
watchdog_ms = {WATCHDOG_MS}
args = "ip=10.0.2.15/24 gw=10.0.2.2 server=10.0.2.2 port={port} seed={SEED}"

[[connection]]
protocol = "blk"
frontend = "files"
backend = "blk"
volume = "{VOLUME}"
stall_ms = {STALL_MS}

[[connection]]
protocol = "net"
frontend = "download"
backend = "net"
addresses = ["10.0.2.15"]
stall_ms = {STALL_MS}

[volume.{VOLUME}]
size = "160MiB"
"#
    )
}

/// The life of a node whose drivers die.
struct Life<'a> {
    node: &'a Node,
    told: &'a Told,
    download: &'a Download,
    spares: bool,
    /// Of each of [`DRIVERS`].
    deaths: [usize; 2],
}

impl Life<'_> {
    /// Has drivers die `wanted` times or once more; gives the files at the end.
    fn run(mut self, wanted: usize) -> Result<Tree> {
        self.told.wait_progress(1, BOOT)?;
        self.download.wait_progress(BOOT)?;
        let mut client = self.node.control()?;
        let begin = Instant::now();
        let ways = How::ALL.into_iter().chain([How::Stall]).cycle();
        // There are eight ways and three kinds of victims: after 24 rounds each met each.
        let victims = [&DRIVERS[..1], &DRIVERS[1..], &DRIVERS].into_iter().cycle();
        for (how, victims) in ways.zip(victims) {
            let before = self.all_deaths();
            if before >= wanted {
                break;
            }
            let what = || format!("{how:?} of {} after {before} deaths", victims.join(" and "));
            self.kill(&mut client, victims, how).with_context(what)?;
            self.wait_progress().with_context(what)?;
            let after = self.all_deaths();
            if after / TELL > before / TELL {
                eprintln!("{after} deaths of {wanted} in {} s", begin.elapsed().as_secs());
            }
        }
        self.finish(&mut client)
    }

    fn all_deaths(&self) -> usize {
        self.deaths.iter().sum()
    }

    fn kill(&mut self, client: &mut Client, victims: &[&str], how: How) -> Result<()> {
        for (driver, deaths) in DRIVERS.into_iter().zip(&mut self.deaths) {
            if victims.contains(&driver) {
                *deaths += 1;
                if self.spares {
                    standby(client, driver)?;
                }
            }
        }
        let [driver] = victims else {
            for recovery in client.crash_all(victims, how, RECOVERY)? {
                let reason = names::reason(recovery.reason);
                ensure!(is_reason(how, &reason), "one died of {reason}");
            }
            return Ok(());
        };
        crash(client, driver, how)
    }

    /// Both guests get something done over the drivers that serve now: a round
    /// that began when so many drivers had come, bytes that were sent from here on.
    fn wait_progress(&self) -> Result<()> {
        let [blk, _] = self.deaths;
        self.told.wait_progress(blk as u64 + 1, PATIENCE)?;
        self.download.wait_progress(PATIENCE)?;
        self.told.no_failure()
    }

    /// Ends both guests' work and judges it.
    fn finish(&self, client: &mut Client) -> Result<Tree> {
        let bytes = self.download.end(PATIENCE)?;
        let drained = client.drain("files", DRAIN, RECOVERY)?;
        ensure!(drained.drained, "the guest did not finish its work: {drained:?}");
        let [first, second] = [0, 1].map(|number| self.told.wait_tree(number, PATIENCE));
        let (tree, again) = (first?, second?);
        ensure!(tree.files == again.files, "told {:?}, then {:?}", tree.files, again.files);
        ensure!(!tree.files.is_empty(), "there are no files");

        let [blk, net] = self.deaths;
        let Progress { done, connects, replayed } = self.told.progress();
        ensure!(connects == blk as u64 + 1, "blk died {blk} times, and came {connects} times");
        // Else it had nothing to lose.
        ensure!(replayed > 0, "no driver died with a request in flight");
        for domain in client.domains()? {
            let wanted = match domain.name.as_str() {
                "blk" => blk,
                "net" => net,
                "files" => continue,
                _ => 0,
            };
            let (name, died) = (&domain.name, domain.deaths);
            ensure!(died as usize == wanted, "{name} died {died} times instead of {wanted}");
        }
        eprintln!(
            "blk died {blk} times, net {net} times; {done} rounds of changes, {replayed} requests \
             sent again, {} files at the end, {} deleted; {bytes} bytes over one connection",
            tree.files.len(),
            tree.deleted
        );
        self.told.no_failure()?;
        Ok(tree)
    }
}
