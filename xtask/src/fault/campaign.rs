//! Runs a campaign: nodes side by side, each with one trial after the other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fault::class::Class;
use fault::plan::{Plan, Whom};
use fault::record::Trial;
use fault::report::campaign::Campaign;
use fault::report::log::Log;
use fault::verdict::Verdict;
use indicatif::{ProgressBar, ProgressStyle};
use judge_orders::Orders;
use serde::{Deserialize, Serialize};

use super::account::Frame;
use super::profile::profile;
use super::rig::{Kind, Rig};
use super::second::Instants;
use super::target::{Target, program};
use super::trial::{self, Done};
use super::{choose, instants, node, rig, second};
use crate::build::Built;

/// Rounds that profile: the more, the more functions are found.
const PROFILE_ROUNDS: u64 = 3;
/// Rounds in which a driver dies to show what is executed then.
const DEATHS: u64 = 2;
/// Requests of a round that profiles.
const PROFILE_REQUESTS: u64 = 96;
/// Nodes that may fail to come up, or to be worked with, one after the other.
const FAILURES: u32 = 3;
/// A host that let a node wait for so long, half of what its frontends bear, may be what broke a
/// promise in a trial.
const STARVED: Duration = Duration::from_millis(20);
/// Times that such a trial is run again, on another node. What it comes to then counts.
const AGAIN: u32 = 2;
/// Wall seconds between two notes of what the campaign cost so far.
const SAVE: Duration = Duration::from_secs(10);

/// Nodes that are tried.
pub type Nodes = BTreeMap<Kind, Built>;

/// What is executed of a driver, and for it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Profile {
    /// Addresses of functions that run while it serves.
    pub serving: BTreeSet<u64>,
    /// What is executed while it is recovered, by whom; as far as the campaign needs it.
    pub recovery: BTreeMap<Whom, Instants>,
}

/// That of each driver, by its name.
pub type Profiles = BTreeMap<String, Profile>;

/// Finds out what drivers execute, on nodes that are used for nothing else: all the stops take
/// their time, and the watchdog counts it.
///
/// # Errors
///
/// A node does not come up.
pub fn profiles(
    nodes: &Nodes,
    dir: &Path,
    targets: &[String],
    classes: &[Class],
) -> Result<Profiles> {
    let mut profiles = Profiles::new();
    for (&kind, built) in nodes {
        let here = || classes.iter().filter(|&&class| Kind::of(class) == kind);
        if kind != Kind::Plain && !here().any(|&class| second::whom(class).is_some()) {
            continue;
        }
        let mut rig = Rig::boot(built, kind, dir)?;
        for name in targets {
            let target = Target::find(&rig, built, name, &Profiles::new())?;
            let known = profiles.entry(name.clone()).or_default();
            for round in 0..if kind == Kind::Plain { PROFILE_ROUNDS } else { 0 } {
                let orders = trial::orders(round, PROFILE_REQUESTS);
                profile(&mut rig, &target, &orders, &mut known.serving)?;
            }
            for whom in here().filter_map(|&class| second::whom(class)) {
                let victim = target.victims.get(&whom).context("nobody to strike")?.domain;
                let runs = if whom == Whom::Supervisor { victim } else { target.domain };
                let program = program(built, &rig.bundle.domains[usize::from(runs)].name)?;
                let mut seen = BTreeSet::new();
                for round in 0..DEATHS {
                    let hold = choose::REQUESTS / 2;
                    let orders = trial::orders(round, choose::REQUESTS);
                    let orders = Orders { moment: 1, hold, ..orders };
                    let watched = (whom, victim, &program);
                    instants::watch(&mut rig, &target, watched, &orders, &mut seen)?;
                }
                known.recovery.insert(whom, instants::straight(&program, &seen));
            }
        }
    }
    Ok(profiles)
}

/// What takes turns in a campaign: each class with each target that it can strike.
///
/// # Errors
///
/// The node is none for a campaign.
pub fn pairs(built: &Built, classes: &[Class], targets: &[String]) -> Result<Vec<(Class, String)>> {
    let judged = node::judged(&built.manifest)?;
    let all =
        classes.iter().flat_map(|&class| targets.iter().map(move |name| (class, name.clone())));
    let strikes = |(class, target): &(Class, String)| {
        judged.iter().any(|one| choose::strikes(*class, one, target))
    };
    Ok(all.filter(strikes).collect())
}

/// A node under test with what is known of its drivers.
pub struct Bench {
    /// The node.
    pub rig: Rig,
    /// Its drivers that are struck.
    pub targets: Vec<Target>,
}

impl Bench {
    /// Boots a node.
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub fn boot(
        built: &Built,
        kind: Kind,
        dir: &Path,
        targets: &[String],
        known: &Profiles,
    ) -> Result<Self> {
        let rig = Rig::boot(built, kind, dir)?;
        let find = |name: &String| Target::find(&rig, built, name, known);
        let targets = targets.iter().map(find).collect::<Result<_>>()?;
        Ok(Self { rig, targets })
    }

    /// What trial `number` does, and the place of the target that it does it to.
    ///
    /// # Errors
    ///
    /// The target has no place for its class.
    pub fn plan(&self, pairs: &[(Class, String)], seed: u64, number: u64) -> Result<(usize, Plan)> {
        let (class, name) = &pairs[usize::try_from(number % pairs.len() as u64)?];
        let place = self.targets.iter().position(|target| target.name == *name);
        let place = place.with_context(|| format!("no target {name}"))?;
        let plan = choose::choose(*class, &self.targets[place], &mut choose::random(seed, number));
        Ok((place, plan.with_context(|| format!("{name} has no place for `{class}`"))?))
    }
}

/// How a campaign is run; nothing of it changes what a trial does.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Nodes side by side.
    pub jobs: u32,
    /// End after this time.
    pub time: Option<Duration>,
    /// Where nodes have their disks and logs.
    pub scratch: PathBuf,
}

/// What is shared by all jobs.
struct Shared<'a> {
    campaign: &'a Campaign,
    pairs: &'a [(Class, String)],
    nodes: &'a Nodes,
    known: &'a Profiles,
    effort: &'a Effort,
    next: AtomicU64,
    stop: Arc<AtomicBool>,
    deadline: Option<Instant>,
    log: Mutex<(Log, Instant)>,
    bar: ProgressBar,
    counts: Mutex<[u64; Verdict::ALL.len()]>,
}

/// Runs all trials that are not done yet; returns how many it ran.
///
/// # Errors
///
/// Nodes do not come up, or the log can't be written.
pub fn run(
    campaign: &Campaign,
    log: Log,
    nodes: &Nodes,
    known: &Profiles,
    effort: &Effort,
    stop: Arc<AtomicBool>,
) -> Result<u64> {
    let plain = nodes.get(&Kind::Plain).context("the plain node is not built")?;
    let pairs = pairs(plain, &campaign.classes, &campaign.targets)?;
    if pairs.is_empty() {
        bail!("there is no class that fits a target");
    }
    let bar = match campaign.trials {
        Some(trials) => ProgressBar::new(trials.div_ceil(u64::from(campaign.shard.of()))),
        None => ProgressBar::new_spinner(),
    };
    bar.set_style(ProgressStyle::with_template(
        "{elapsed_precise} [{wide_bar}] {pos}/{len} trials, {per_sec}, {eta} left\n{msg}",
    )?);
    let shared = Shared {
        campaign,
        pairs: &pairs,
        nodes,
        known,
        effort,
        next: AtomicU64::new(0),
        stop,
        deadline: effort.time.map(|time| Instant::now() + time),
        log: Mutex::new((log, Instant::now())),
        bar,
        counts: Mutex::new([0; Verdict::ALL.len()]),
    };
    let results: Vec<Result<u64>> = std::thread::scope(|scope| {
        let job = |number| {
            let shared = &shared;
            scope.spawn(move || {
                let result = shared.work(number);
                if result.is_err() {
                    shared.stop.store(true, Ordering::SeqCst);
                }
                result
            })
        };
        let jobs: Vec<_> = (0..effort.jobs).map(job).collect();
        jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| bail!("a job panicked"))).collect()
    });
    shared.bar.finish();
    let mut ran = 0;
    for result in results {
        ran += result?;
    }
    shared.spend(0, true)?;
    Ok(ran)
}

impl Shared<'_> {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The next trial of this shard that is not done.
    fn next(&self) -> Option<u64> {
        loop {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            if self.is_over() || self.campaign.trials.is_some_and(|trials| number >= trials) {
                return None;
            }
            let done = self.log.lock().unwrap_or_else(PoisonError::into_inner).0.has(number);
            if self.campaign.shard.holds(number) && !done {
                return Some(number);
            }
        }
    }

    /// One job: nodes one after the other, at most one of each kind at a time. Only one of them
    /// runs.
    fn work(&self, job: u32) -> Result<u64> {
        let mut benches: BTreeMap<Kind, Bench> = BTreeMap::new();
        let mut running = None;
        let mut ran = 0;
        let mut boots = 0;
        let mut failures = 0;
        let mut starved = 0;
        let mut pending: Option<u64> = None;
        while let Some(number) = pending.take().filter(|_| !self.is_over()).or_else(|| self.next())
        {
            let pairs = self.pairs.len() as u64;
            let (class, _) = &self.pairs[usize::try_from(number % pairs)?];
            let kind = Kind::of(*class);
            if let Some(last) = running.replace(kind).filter(|last| *last != kind)
                && let Some(bench) = benches.get_mut(&last)
                && bench.rig.rest().is_err()
            {
                benches.remove(&last);
            }
            let bench = match benches.entry(kind) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(free) => {
                    boots += 1;
                    let built = self.nodes.get(&kind);
                    let built =
                        built.with_context(|| format!("node `{}` is not built", kind.name()))?;
                    let dir = self.effort.scratch.join(format!("job{job}-{}", kind.name()));
                    match Bench::boot(built, kind, &dir, &self.campaign.targets, self.known) {
                        Ok(bench) => {
                            self.spend(1, false)?;
                            free.insert(bench)
                        }
                        Err(why) if failures < FAILURES => {
                            failures += 1;
                            pending = Some(number);
                            self.say(&format!("a node does not come up: {why:#}"));
                            continue;
                        }
                        Err(why) => return Err(why).context("no node comes up"),
                    }
                }
            };
            let (target, plan) = bench.plan(self.pairs, self.campaign.seed, number)?;
            let Campaign { seed, workload, .. } = *self.campaign;
            let frame = Frame { number, seed, workload, node: boots };
            match trial::run(&mut bench.rig, &bench.targets[target], &plan, frame) {
                Ok(Done { trial, trusted, waited, .. }) => {
                    failures = 0;
                    if trial.verdict > Verdict::Corrupted && waited >= STARVED && starved < AGAIN {
                        starved += 1;
                        pending = Some(number);
                        self.set_aside(&bench.rig, &trial, waited)?;
                        benches.remove(&kind);
                        continue;
                    }
                    starved = 0;
                    ran += 1;
                    self.record(&trial)?;
                    if !trusted {
                        self.keep_log(&bench.rig, &trial)?;
                        benches.remove(&kind);
                    }
                }
                // Nothing was learnt: once more on another node.
                Err(why) if failures < FAILURES => {
                    failures += 1;
                    pending = Some(number);
                    self.say(&format!("trial {number} can't be run: {why:#}"));
                    benches.remove(&kind);
                }
                Err(why) => return Err(why).with_context(|| format!("trial {number}")),
            }
        }
        Ok(ran)
    }

    /// Says something between two looks of the progress bar, also where there is none.
    fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }

    fn record(&self, trial: &Trial) -> Result<()> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).0.append(trial)?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Verdict::ALL.iter().position(|verdict| *verdict == trial.verdict);
        if let Some(count) = place.and_then(|place| counts.get_mut(place)) {
            *count += 1;
        }
        let named = Verdict::ALL.iter().zip(*counts).filter(|(_, count)| *count > 0);
        let text: Vec<String> =
            named.map(|(verdict, count)| format!("{verdict} {count}")).collect();
        self.bar.set_message(text.join(", "));
        self.bar.inc(1);
        drop(counts);
        self.spend(0, false)
    }

    /// Notes what the campaign cost.
    fn spend(&self, boots: u64, at_once: bool) -> Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = log.1.elapsed();
        if boots > 0 || at_once || passed >= SAVE {
            log.1 = Instant::now();
            log.0.spend(passed.as_secs_f64(), boots)?;
        }
        Ok(())
    }

    /// A trial that may be the host's doing does not count, but it is told and kept.
    fn set_aside(&self, rig: &rig::Rig, trial: &Trial, waited: Duration) -> Result<()> {
        self.say(&format!(
            "trial {} is run again: {}, while the host let the node wait for {} ms",
            trial.trial,
            trial.verdict,
            waited.as_millis()
        ));
        self.log.lock().unwrap_or_else(PoisonError::into_inner).0.set_aside(trial)?;
        self.keep_log(rig, trial)
    }

    /// Keeps the log of a node that can't be used any more, and what QEMU said last.
    fn keep_log(&self, rig: &rig::Rig, trial: &Trial) -> Result<()> {
        let path = self.effort.scratch.join(format!("trial{}.log", trial.trial));
        let lines = [rig.last_lines(200), rig.last_messages(20)].concat();
        std::fs::write(&path, lines.join("\n") + "\n").context("the node's log")
    }
}
