//! `cargo xtask fault planted`: puts bugs in, one after the other, and sees each
//! exposed by a campaign.
//!
//! A bug is a patch `tests/planted/NAME.patch`. It is applied to a copy of the tree,
//! the node is built there, and works a few rounds without a fault, which must show
//! nothing. Then trials of all classes take their turns, as in any campaign, until one
//! breaks a promise that it does not break on the node as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fault::class::{Class, Group};
use fault::record::Trial;
use fault::report::story;
use fault::verdict::Verdict;
use fault::workload::Workload;
use indicatif::{ProgressBar, ProgressStyle};
use judge_orders::{Outcome, state};

use super::account::Frame;
use super::campaign::{self, Bench, Nodes, Profiles, pairs};
use super::node;
use super::rig::{Kind, Rig};
use super::trial;
use crate::attacks::{self, Patch};
use crate::build::{self, Built};
use crate::elf::Flat;
use crate::figures::{self, Figure};
use crate::manifest::Manifest;
use crate::qemu::install;
use crate::say::say;
use crate::{without, workspace};

const PATCHES: &str = "tests/planted";
/// Has the list of planted bugs, below this heading.
const CHAPTER: &str = "docs/src/faults.md";
const LIST: &str = "## Planted bugs";
/// Stands for all of them.
const ALL: &str = "all";
/// Rounds without a fault, which no bug may show in.
const ROUNDS: u64 = 8;
/// Requests of such a round: as of one that profiles.
const REQUESTS: u64 = 96;
/// Nodes that may fail to come up, or to be worked with, one after the other.
const FAILURES: u32 = 3;
/// Times that a trial is tried by itself. Once does not do: a bug may show by the state of a node
/// that worked for long, such as the order of its free slots, and by the host's clock.
const TRIES: u32 = 10;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bugs to plant, or `all`
    #[arg(value_name = "NAME", default_value = ALL)]
    names: Vec<String>,
    /// Trials after which a bug counts as not exposed
    #[arg(long, value_name = "NUMBER", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    trials: u64,
    /// Decides all that is random
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// All planted bugs of the tree in `root`.
///
/// # Errors
///
/// The book's list and the patches do not agree.
pub fn bugs(root: &Path) -> Result<Vec<Patch>> {
    let chapter = root.join(CHAPTER);
    let text = fs::read_to_string(&chapter)
        .with_context(|| format!("can't read {}", chapter.display()))?;
    let list = text.lines().skip_while(|line| *line != LIST).skip(1);
    let lines = list.take_while(|line| !line.starts_with("## "));
    let names = lines.filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut rows: BTreeSet<&str> = names.map(|(name, _)| name).collect();
    let patches = attacks::patches(&root.join(PATCHES))?;
    for patch in &patches {
        ensure!(rows.remove(patch.name.as_str()), "bug `{}` has no row in {CHAPTER}", patch.name);
    }
    if let Some(name) = rows.first() {
        bail!("bug `{name}` has no patch in {PATCHES}");
    }
    Ok(patches)
}

/// Runs the command.
///
/// # Errors
///
/// A bug is not exposed, or shows without a fault; nodes do not build or do not come up.
pub fn planted(options: &Options) -> Result<()> {
    let bugs = bugs(workspace::root())?;
    let fits = |name: &String, patch: &Patch| name == ALL || *name == patch.name;
    for name in &options.names {
        if !bugs.iter().any(|patch| fits(name, patch)) {
            bail!("there is no patch {PATCHES}/{name}.patch");
        }
    }
    install::ensure()?;
    let scratch = workspace::run_dir().join("planted");
    fs::create_dir_all(&scratch).context("the nodes' directory")?;
    eprintln!("the node as it is …");
    let manifest = super::default_node();
    let built = build::build(&Manifest::load(&manifest)?)?;
    let sound = Subject::new(built, scratch.join("sound"), options.seed, None)?;
    let copy = without::Tree::new();
    let (mut figures, mut missed) = (Vec::new(), 0);
    for patch in &bugs {
        let name = &patch.name;
        if !options.names.iter().any(|wanted| fits(wanted, patch)) {
            continue;
        }
        eprintln!("{name} …");
        copy.patch(patch)?;
        let built = build::build_elsewhere(Path::new(super::MANIFEST), &copy.tree, &copy.target)?;
        let buggy = Subject::new(built, scratch.join(name), options.seed, Some(&sound))
            .with_context(|| format!("with `{name}`"))?;
        match buggy.expose(&sound, options.trials)? {
            Some(exposed) => {
                let trials = exposed.trial.trial + 1;
                figures.push(Figure::timeless("fault.planted", name, trials, "trials"));
                say(&exposed.tell(name));
            }
            None => {
                missed += 1;
                say(&format!("{name:<18} NOT EXPOSED within {} trials", options.trials));
            }
        }
    }
    if let Some(path) = &options.json {
        figures::write(path, &figures)?;
    }
    ensure!(missed == 0, "{missed} planted bugs were not exposed");
    Ok(())
}

/// A node to be tried, with or without a bug.
struct Subject {
    built: Built,
    dir: PathBuf,
    targets: Vec<String>,
    known: Profiles,
    pairs: Vec<(Class, String)>,
    seed: u64,
}

/// A trial that broke a promise.
struct Exposed {
    trial: Trial,
    /// The same by itself, on a fresh node: the try that broke a promise, or the last one.
    alone: Verdict,
    /// The same without the bug.
    sound: Verdict,
}

impl Subject {
    /// Finds out what its drivers execute, and that it works as long as there is no fault.
    fn new(built: Built, dir: PathBuf, seed: u64, like: Option<&Self>) -> Result<Self> {
        let judged = node::judged(&built.manifest)?;
        let targets: Vec<String> = judged.iter().map(|one| one.driver.clone()).collect();
        // Faults during a recovery take a look at it before the first trial, and those of another
        // kind of node take another node.
        let tried =
            |class: &Class| class.group() != Group::Recovery && Kind::of(*class) == Kind::Plain;
        let classes: Vec<Class> = Class::ALL.iter().copied().filter(tried).collect();
        let mut nodes = Nodes::from([(Kind::Plain, built)]);
        // Who looks so closely makes drivers seem to hang, which a bug in the hypervisor may not
        // take well; and it has the same drivers.
        let known = match like.filter(|like| has_same_images(&like.built, &nodes[&Kind::Plain])) {
            Some(like) => like.known.clone(),
            None => campaign::profiles(&nodes, &dir, &targets, &classes)?,
        };
        let built = nodes.remove(&Kind::Plain).context("the node is gone")?;
        let pairs = pairs(&built, &classes, &targets)?;
        let this = Self { built, dir, targets, known, pairs, seed };
        works(&mut this.boot()?.rig).context("without a fault")?;
        Ok(this)
    }

    fn boot(&self) -> Result<Bench> {
        Bench::boot(&self.built, Kind::Plain, &self.dir, &self.targets, &self.known)
    }

    /// Runs trial `number` on `bench`.
    fn run(&self, bench: &mut Bench, number: u64, node: u32) -> Result<trial::Done> {
        let (target, plan) = bench.plan(&self.pairs, self.seed, number)?;
        let frame = Frame { number, seed: self.seed, workload: Workload::Mixed, node };
        trial::run(&mut bench.rig, &bench.targets[target], &plan, frame)
    }

    /// Runs it on nodes of its own until it breaks a promise. Returns the last try.
    fn run_alone(&self, number: u64) -> Result<Trial> {
        let (mut bench, mut failures, mut tries) = (None, 0, 0);
        loop {
            let tried = match bench.take() {
                Some(bench) => Ok(bench),
                None => self.boot(),
            };
            match tried.and_then(|mut bench| Ok((self.run(&mut bench, number, 1)?, bench))) {
                Ok((done, used)) => {
                    tries += 1;
                    if done.trial.verdict.falls_short() || tries == TRIES {
                        return Ok(done.trial);
                    }
                    bench = done.trusted.then_some(used);
                }
                Err(why) if failures == FAILURES => {
                    return Err(why).with_context(|| format!("trial {number}"));
                }
                Err(_) => failures += 1,
            }
        }
    }

    /// Runs trials until one breaks a promise, breaks one again by itself, and does not on the node
    /// `sound`.
    fn expose(&self, sound: &Self, trials: u64) -> Result<Option<Exposed>> {
        let (mut number, mut node, mut failures) = (0, 0, 0);
        let bar = ProgressBar::new(trials);
        bar.set_style(ProgressStyle::with_template(
            "{elapsed_precise} {pos}/{len} trials, {per_sec}",
        )?);
        'boots: while number < trials {
            node += 1;
            let mut bench = match self.boot() {
                Ok(bench) => bench,
                Err(why) if failures < FAILURES => {
                    failures += 1;
                    bar.suspend(|| eprintln!("a node does not come up: {why:#}"));
                    continue;
                }
                Err(why) => return Err(why).context("no node comes up"),
            };
            while number < trials {
                bar.set_position(number);
                let done = match self.run(&mut bench, number, node) {
                    Ok(done) => done,
                    // Nothing was learnt: once more on another node.
                    Err(why) if failures < FAILURES => {
                        failures += 1;
                        bar.suspend(|| eprintln!("trial {number} can't be run: {why:#}"));
                        continue 'boots;
                    }
                    Err(why) => return Err(why).with_context(|| format!("trial {number}")),
                };
                failures = 0;
                if done.trial.verdict.falls_short() {
                    drop(bench);
                    let alone = self.run_alone(number)?.verdict;
                    let sound = sound.run_alone(number)?.verdict;
                    let exposed = Exposed { trial: done.trial, alone, sound };
                    if alone.falls_short() && !sound.falls_short() {
                        return Ok(Some(exposed));
                    }
                    bar.suspend(|| eprintln!("not counted: {}", exposed.tell("")));
                    number += 1;
                    continue 'boots;
                }
                number += 1;
                if !done.trusted {
                    continue 'boots;
                }
            }
        }
        Ok(None)
    }
}

fn has_same_images(one: &Built, other: &Built) -> bool {
    let images = |built: &Built| -> Vec<Flat> {
        built.images.iter().map(|image| image.flat.clone()).collect()
    };
    images(one) == images(other)
}

impl Exposed {
    fn tell(&self, name: &str) -> String {
        let Trial { trial, class, target, verdict, .. } = &self.trial;
        let mut lines = vec![
            format!(
                "{name:<18} exposed after {} trials: {class} in {target}: {verdict}",
                trial + 1
            ),
            story::change(&self.trial),
            story::outcome(&self.trial),
        ];
        let Trial { hypervisor, neighbours, note, .. } = &self.trial;
        lines.extend([hypervisor, neighbours, note].into_iter().flatten().cloned());
        lines.push(format!("by itself {}, without the bug {}", self.alone, self.sound));
        lines.join("\n  ")
    }
}

/// Checks that nothing is seen where there is no fault.
fn works(rig: &mut Rig) -> Result<()> {
    for round in 0..ROUNDS {
        let outcomes = rig.round(&trial::orders(round, REQUESTS))?;
        for outcome in &outcomes {
            ensure!(is_spotless(outcome), "round {round}: a judge saw {outcome:?}");
        }
    }
    let deaths = rig.deaths()?;
    ensure!(deaths.is_empty(), "domains died: {deaths:?}");
    match rig.audit()? {
        Some(found) => bail!("the audit found violations: {found}"),
        None => Ok(()),
    }
}

fn is_spotless(seen: &Outcome) -> bool {
    let bad = [seen.errors, seen.wrong, seen.stale, seen.damaged];
    let odd = [seen.disconnects, seen.complaints, seen.misbehaviours];
    seen.state == state::DONE && bad.into_iter().chain(odd).all(|count| count == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_without_a_fault_shows_nothing() {
        let good = Outcome { state: state::DONE, completed: 9, lost: 1, ..Outcome::default() };
        assert!(is_spotless(&good));
        let bad: [fn(&mut Outcome); 8] = [
            |seen| seen.state = state::LIMIT,
            |seen| seen.errors = 1,
            |seen| seen.wrong = 1,
            |seen| seen.stale = 1,
            |seen| seen.damaged = 1,
            |seen| seen.disconnects = 1,
            |seen| seen.complaints = 1,
            |seen| seen.misbehaviours = 1,
        ];
        for change in bad {
            let mut seen = good;
            change(&mut seen);
            assert!(!is_spotless(&seen), "{seen:?}");
        }
    }
}
