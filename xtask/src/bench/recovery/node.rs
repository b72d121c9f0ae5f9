//! One node, and the deaths of one of its drivers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nodectl::control::{CrashEntry, How};
use nodectl::{Client, names, report};
use ring_proto::crash::{Rebuild, Timeline};
use ring_proto::hypercall::LogHeader;
use serde::Deserialize;
use zerocopy::FromBytes;

use super::{Case, Death, Driver, Kind, Mode};
use crate::bench::devices;
use crate::build;
use crate::manifest::Manifest;
use crate::qemu::{NodeConfig, RunningNode, Verdict};
use crate::workspace;

// Wall time says nothing on a busy machine, so limits are far off.
/// For the node to come up, and to go down.
const BOOT: Duration = Duration::from_secs(300);
/// For one death, until the guest has told what it cost.
const DEATH: Duration = Duration::from_secs(60);
/// Pause between two looks at something that is not there yet.
const PAUSE: Duration = Duration::from_millis(20);
/// Deaths between two lines about the progress.
const TELL: u32 = 50;

/// A line of the guest.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Record {
    Outage { outage: u64, first_ns: u64, replayed: u64, lost: u64 },
    Failed { failed: String },
}

/// Runs one node and has its driver die `deaths` times of each kind.
pub(super) fn measure(
    manifest: &Manifest,
    driver: Driver,
    mode: Mode,
    kinds: &[Kind],
    deaths: u32,
) -> Result<Vec<Case>> {
    let name = format!("bench-recovery-{}-{}", driver.name(), mode.name());
    let mut manifest = manifest.clone();
    let guest = manifest.domains.iter_mut().find(|domain| domain.spec.name == "bench");
    let guest = guest.ok_or_else(|| anyhow!("the manifest has no bench"))?;
    guest.spec.args =
        heapless::String::try_from(format!("mode=recovery-{}", driver.name()).as_str())
            .map_err(|_| anyhow!("too many words"))?;
    if mode == Mode::Cold {
        // They are the last ones, so the others keep their numbers.
        manifest.domains.retain(|domain| domain.spec.spare_of.is_none());
    }
    let built = build::build(&manifest)?;
    let dir = workspace::run_dir().join(&name);
    std::fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
    let socket = format!("{name}-{}.sock", std::process::id());
    let config = NodeConfig {
        smp: Some(1),
        icount: true,
        devices: Some(devices(&dir)?),
        control_socket: std::env::temp_dir().join(socket),
        ..NodeConfig::new(manifest.path(), &dir)
    };
    let node = config.launch_built(&built)?;
    let result = Run { node: &node, driver, mode, cursor: 0 }.run(kinds, deaths);
    drop(std::fs::remove_file(&config.control_socket));
    result.with_context(|| format!("{name}; log: {}", workspace::show(&config.serial_log)))
}

struct Run<'a> {
    node: &'a RunningNode,
    driver: Driver,
    mode: Mode,
    /// How far the log was read.
    cursor: u64,
}

impl Run<'_> {
    fn run(mut self, kinds: &[Kind], deaths: u32) -> Result<Vec<Case>> {
        let mut client = self.wait_serving()?;
        let mut cases = Vec::new();
        // The number of the next death, as the hypervisor counts and as the guest does.
        let (mut record, mut outage) = (0, 1);
        for &kind in kinds {
            let name = Case::name(self.driver, self.mode, kind);
            let mut case = Case { driver: self.driver, mode: self.mode, kind, deaths: Vec::new() };
            for number in 1..=deaths {
                let death = self.death(&mut client, kind, record, outage);
                let death = death
                    .with_context(|| format!("{name}, death {number}\n{}", state(&mut client)));
                case.deaths.push(death?);
                (record, outage) = (record + 1, outage + 1);
                if number.is_multiple_of(TELL) || number == deaths {
                    eprintln!("{name}: {number} of {deaths} deaths");
                }
            }
            cases.push(case);
        }
        let audit = client.audit()?;
        ensure!(report::is_clean(&audit), "the audit found violations:\n{}", report::audit(&audit));
        client.shutdown()?;
        match self.node.wait(Some(BOOT)) {
            Some(Verdict::Orderly) => Ok(cases),
            Some(verdict) => bail!("at the end: {verdict}"),
            None => bail!("the node does not end"),
        }
    }

    /// Waits until the guest's load runs.
    fn wait_serving(&self) -> Result<Client> {
        let mut client = Client::connect(self.node.control(), BOOT)?;
        let begin = Instant::now();
        loop {
            let guest = client.domain("bench")?.context("there is no bench")?;
            if guest.ready {
                return Ok(client);
            }
            ensure!(guest.deaths == 0, "the load died");
            ensure!(begin.elapsed() < BOOT, "the load does not begin");
            std::thread::sleep(PAUSE);
        }
    }

    /// Brings one death about.
    fn death(
        &mut self,
        client: &mut Client,
        kind: Kind,
        record: u64,
        outage: u64,
    ) -> Result<Death> {
        let how = match kind {
            Kind::Panic => How::Panic,
            Kind::Exception => How::Exception,
            Kind::Hang => How::Loop,
        };
        if self.mode == Mode::Warm {
            self.wait_spare(client)?;
        }
        client.crash(self.driver.name(), how, DEATH)?;
        let (first_ns, replayed, lost) = self.outage(client, outage)?;
        let records = client.crashes(record)?;
        let [entry] = &records[..] else { bail!("{} deaths instead of one", records.len()) };
        ensure!(entry.sequence == record && entry.name == self.driver.name(), "another death");
        check(entry, self.mode, kind, first_ns)?;
        Ok(Death { times: entry.times, served: first_ns, replayed, lost })
    }

    /// Waits until the driver's spare stands by.
    fn wait_spare(&self, client: &mut Client) -> Result<()> {
        let name = format!("{}-spare", self.driver.name());
        let begin = Instant::now();
        while begin.elapsed() < DEATH {
            let spare = client.domain(&name)?.with_context(|| format!("there is no {name}"))?;
            if spare.ready && names::domain_state(spare.state) == "running" {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("{name} does not stand by")
    }

    /// Waits for the guest's line about an outage. It is read from the
    /// hypervisor's log: the serial line takes only so much from a domain.
    fn outage(&mut self, client: &mut Client, number: u64) -> Result<(u64, u64, u64)> {
        let begin = Instant::now();
        while begin.elapsed() < DEATH {
            let page = client.log_page(self.cursor)?;
            if page.next == self.cursor {
                std::thread::sleep(PAUSE);
                continue;
            }
            self.cursor = page.next;
            let mut rest = &page.bytes[..];
            while let Ok((header, after)) = LogHeader::read_from_prefix(rest) {
                let (text, after) = after.split_at_checked(header.len.into()).unwrap_or_default();
                rest = after;
                let text = String::from_utf8_lossy(text);
                let Some((_, json)) = text.split_once("record ") else { continue };
                let record: Record = serde_json::from_str(json)
                    .with_context(|| format!("a strange record: {text}"))?;
                match record {
                    Record::Failed { failed } => bail!("the load failed: {failed}"),
                    Record::Outage { outage, first_ns, replayed, lost } if outage == number => {
                        return Ok((first_ns, replayed, lost));
                    }
                    Record::Outage { outage, .. } => {
                        bail!("the guest tells of outage {outage}, not {number}")
                    }
                }
            }
        }
        bail!("the guest does not say that it is served again")
    }
}

/// What the supervisor can still tell of a node that failed.
fn state(client: &mut Client) -> String {
    match client.domains().and_then(|domains| Ok((domains, client.connections()?))) {
        Ok((domains, connections)) => report::list(&domains, &connections),
        Err(error) => format!("the supervisor tells nothing: {error}"),
    }
}

/// The record is that of the death that was ordered, and complete.
fn check(entry: &CrashEntry, mode: Mode, kind: Kind, first_ns: u64) -> Result<()> {
    let reason = names::reason(entry.reason);
    let wanted = match kind {
        Kind::Panic => "panic",
        Kind::Exception => "exception",
        Kind::Hang => "watchdog",
    };
    ensure!(reason == wanted, "it died of {reason}");
    let wanted = match mode {
        Mode::Cold => Rebuild::Cold,
        Mode::Warm => Rebuild::Spare,
    };
    ensure!(entry.rebuild == wanted as u16, "it was replaced in another way");
    let Timeline { died, detected, quiesced, told, decided, restored, entered, enabled, .. } =
        entry.times;
    let times = [died, detected, quiesced, told, decided, restored, entered, enabled, first_ns];
    ensure!(times.is_sorted() && !times.contains(&0), "times out of order: {times:?}");
    // The hypervisor sees it at the driver's next `wait`, when guests may have answers already.
    ensure!(entry.times.ready > entered, "it is not ready");
    Ok(())
}
