//! `cargo xtask fault`: fault-injection campaigns.
//!
//! Faults are made from outside, by QEMU's gdbstub and in the machine's memory,
//! which is a file: the node under test is byte for byte the one that runs. The
//! crate `fault` says what faults there are and how a trial is judged; the book's
//! chapter on fault injection explains it all.
//!
//! | module | does |
//! |---|---|
//! | [`gdb`], [`machine`] | the machine from outside: processor, memory, whose an instruction is |
//! | [`node`] | what a manifest must have for that, who is struck and who judges |
//! | [`rig`] | the node with all that is needed to test it |
//! | [`host`] | how long the host let it wait |
//! | [`disk`], [`wire`] | its disk and its wire, which fail when they are to |
//! | [`target`], [`profile`], [`choose`] | a driver, what of it runs, what a trial does to it |
//! | [`rings`] | the answers of a driver, as its peer will find them |
//! | [`monitor`], [`queue`] | QEMU's monitor, and what a driver shows its device |
//! | [`reuse`] | its allocator, which hands a block out twice |
//! | [`instants`], [`second`] | what is executed while a driver is recovered, and a fault there |
//! | [`strike`], [`trial`], [`account`] | the round with the fault, the trial around it, its record |
//! | [`campaign`] | many trials |
//! | [`planted`] | campaigns against bugs that were put in |

pub mod account;
pub mod campaign;
pub mod choose;
pub mod disk;
pub mod gdb;
pub mod host;
pub mod instants;
pub mod machine;
pub mod monitor;
pub mod node;
pub mod planted;
pub mod profile;
pub mod queue;
pub mod reuse;
pub mod rig;
pub mod rings;
pub mod second;
pub mod slot;
pub mod strike;
pub mod target;
pub mod trial;
pub mod wire;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use fault::class::{Class, Group};
use fault::record::SCHEMA;
use fault::report;
use fault::report::campaign::{Campaign, Shard};
use fault::report::log::Log;
use fault::report::merge::Together;
use fault::workload::Workload;
use nodectl::crashes;

use self::campaign::{Nodes, Profiles};
use self::node::Judged;
use self::rig::Kind;
use crate::build::{self, Built};
use crate::figures;
use crate::fuzz::duration;
use crate::manifest::Manifest;
use crate::qemu::install;
use crate::workspace;

/// The node under test, unless another one is named.
const MANIFEST: &str = "nodes/fault.toml";

/// Lines of a log that a replay shows.
const LAST_LINES: usize = 30;

/// Options.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    run: Run,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Run one trial again, as its record says, and tell what happens
    Replay {
        /// Directory of the campaign
        dir: PathBuf,
        /// Number of the trial
        trial: u64,
        /// How often
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        times: u32,
    },
    /// Join the results of shards
    Merge {
        /// Directory for all of it
        out: PathBuf,
        /// Directories of the shards
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Trials may be missing
        #[arg(long)]
        partial: bool,
        /// The shards ran one after the other, not side by side
        #[arg(long)]
        in_turn: bool,
    },
    /// Make the report of a campaign anew
    Report {
        /// Directory of the campaign
        dir: PathBuf,
    },
    /// List the classes of faults
    Classes,
    /// Plant bugs, one after the other, and see each exposed by a campaign
    Planted(planted::Options),
}

#[derive(Clone, Debug, Args)]
struct Run {
    /// Classes or groups of faults, such as `software,panic`; all that can be brought about
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    classes: Vec<String>,
    /// Manifest of the node that is tried
    #[arg(long, value_name = "FILE", default_value_os_t = default_node())]
    manifest: PathBuf,
    /// Drivers that they strike, by the names of their domains [default: all with a judge]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    targets: Vec<String>,
    /// Trials, over all shards [default: 1000 without --time, else as many as there is time for]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    trials: Option<u64>,
    /// End after this time, such as `90s`, `10m`, `2h`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Decides all that is random
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Run the trials only whose number leaves I when divided by N
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// What the guests do meanwhile: mixed, read or write
    #[arg(long, value_name = "NAME", default_value_t = Workload::Mixed)]
    workload: Workload,
    /// Nodes side by side [default: two for each of the host's cores]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Directory for the results; a campaign that is there already goes on [default: run/fault]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
///
/// What can't be done, and why.
pub fn fault(options: &Options) -> Result<()> {
    match &options.what {
        None => campaign_of(&options.run),
        Some(What::Replay { dir, trial, times }) => replay(dir, *trial, *times),
        Some(What::Merge { out, dirs, partial, in_turn }) => {
            let together = if *in_turn { Together::InTurn } else { Together::AtOnce };
            let merged = report::merge::merge(dirs, out, together, *partial)?;
            merged.torn.iter().for_each(|torn| eprintln!("{torn}"));
            tell(out, None)
        }
        Some(What::Report { dir }) => tell(dir, None),
        Some(What::Classes) => {
            for class in Class::ALL {
                println!("{:<10} {:<22} {}", class.group(), class, class.definition());
            }
            Ok(())
        }
        Some(What::Planted(options)) => planted::planted(options),
    }
}

fn campaign_of(run: &Run) -> Result<()> {
    let classes = classes(&run.classes)?;
    let manifest = Manifest::load(&run.manifest)?;
    let judged = node::judged(&manifest)?;
    let targets = targets(&judged, &run.targets)?;
    let classes = fitting(classes, &judged, &targets)?;
    install::ensure()?;
    let nodes = nodes(&manifest, &classes)?;
    let out = run.out.clone().unwrap_or_else(|| workspace::run_dir().join("fault"));
    let campaign = Campaign {
        schema: SCHEMA,
        program: program(&nodes)?,
        manifest: named(&run.manifest)?,
        seed: run.seed,
        classes,
        workload: run.workload,
        trials: run.trials.or_else(|| run.time.is_none().then_some(1000)),
        bound_ns: node::bound_ns(&manifest),
        functions: functions(plain(&nodes)?, &targets)?,
        targets,
        shard: run.shard,
    };
    let (log, before) = Log::open(&out, &campaign)?;
    if let Some(torn) = &before.torn {
        eprintln!("{torn}");
    }
    if !before.trials.is_empty() {
        eprintln!("{} trials were done before", before.trials.len());
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let effort = campaign::Effort {
        // A node is idle at times, while its disk and its control line are the host's.
        jobs: run.jobs.unwrap_or(u32::try_from(2 * cores)?),
        time: run.time,
        scratch: out.join("nodes"),
    };
    std::fs::create_dir_all(&effort.scratch).context("the nodes' directory")?;
    let known = known(&out, &nodes, &effort.scratch, &campaign)?;
    campaign::run(&campaign, log, &nodes, &known, &effort, stop_on_signal()?)?;
    tell(&out, run.json.as_deref())
}

/// The manifest of the node of our own drivers.
fn default_node() -> PathBuf {
    workspace::relative(&workspace::root().join(MANIFEST))
}

/// A manifest as records name it: from the root of the checkout, if it is below.
fn named(manifest: &Path) -> Result<String> {
    let absolute = manifest.canonicalize().context("the manifest")?;
    let root = workspace::root().canonicalize().context("the root of the checkout")?;
    Ok(absolute.strip_prefix(root).unwrap_or(&absolute).display().to_string())
}

/// The drivers that are to be struck: those that were named, or all that have a judge.
fn targets(judged: &[Judged], names: &[String]) -> Result<Vec<String>> {
    let known: Vec<String> = judged.iter().map(|one| one.driver.clone()).collect();
    if names.is_empty() {
        return Ok(known);
    }
    for name in names {
        ensure!(
            known.contains(name),
            "`{name}` is no driver with a judge; there is {}",
            known.join(", ")
        );
    }
    Ok(names.to_owned())
}

/// Those of the classes that can strike one of the targets; says which can't.
fn fitting(classes: Vec<Class>, judged: &[Judged], targets: &[String]) -> Result<Vec<Class>> {
    let strikes = |class: &Class| {
        let one = |one| targets.iter().any(|target| choose::strikes(*class, one, target));
        judged.iter().any(one)
    };
    let (fitting, others): (Vec<Class>, Vec<Class>) = classes.into_iter().partition(strikes);
    let names: Vec<&str> = others.iter().map(|class| class.name()).collect();
    let names = names.join(", ");
    ensure!(!fitting.is_empty(), "no class fits {}: {names}", targets.join(", "));
    if !names.is_empty() {
        eprintln!("left out, as they do not fit {}: {names}", targets.join(", "));
    }
    Ok(fitting)
}

/// What of the drivers runs: as it was found when the campaign began, so that all its trials
/// are chosen from the same.
fn known(out: &Path, nodes: &Nodes, scratch: &Path, campaign: &Campaign) -> Result<Profiles> {
    let path = out.join("profiles.json");
    if let Ok(text) = std::fs::read(&path) {
        return serde_json::from_slice(&text).with_context(|| path.display().to_string());
    }
    eprintln!("finding out what the drivers execute …");
    let found =
        campaign::profiles(nodes, &scratch.join("profile"), &campaign.targets, &campaign.classes)?;
    build::write_atomically(&path, &serde_json::to_vec(&found)?)?;
    Ok(found)
}

/// Writes the report, prints its table, and fails if a promise was broken.
fn tell(dir: &Path, json: Option<&Path>) -> Result<()> {
    let written = report::write(dir)?;
    if let Some(torn) = &written.torn {
        eprintln!("{torn}");
    }
    println!("{}", written.table);
    println!("the report is {}", workspace::show(&dir.join("report.html")));
    let summary = written.summary;
    if let Some(path) = json {
        figures::write(path, &summary.figures())?;
    }
    let broken = [
        ("the hypervisor took harm", summary.hypervisor_failures),
        ("a neighbour took harm", summary.neighbour_failures),
        ("acknowledged data was lost", summary.acknowledged_data_lost),
        ("nothing explains what happened", summary.unexplained),
    ];
    let broken = broken.iter().filter(|(_, trials)| *trials > 0);
    let texts: Vec<String> =
        broken.map(|(what, trials)| format!("{what} in {trials} trials")).collect();
    ensure!(texts.is_empty(), "{}", texts.join("; "));
    Ok(())
}

fn replay(dir: &Path, number: u64, times: u32) -> Result<()> {
    let results = report::log::read(dir)?;
    let trial = results.trials.iter().find(|trial| trial.trial == number);
    let trial = trial.with_context(|| format!("{} has no trial {number}", dir.display()))?;
    println!("{}", serde_json::to_string_pretty(trial)?);
    install::ensure()?;
    let manifest = Manifest::load(&workspace::root().join(&results.campaign.manifest))?;
    let nodes = nodes(&manifest, &results.campaign.classes)?;
    let kind = Kind::of(trial.class);
    let built = nodes.get(&kind).with_context(|| format!("node `{}` is not built", kind.name()))?;
    if program(&nodes)? != results.campaign.program {
        eprintln!("warning: these are not the programs of the campaign; addresses may mean others");
    }
    let scratch = workspace::run_dir().join(format!("replay{number}"));
    let targets = [trial.target.clone()];
    let mut same = 0;
    for time in 1..=times {
        let mut bench = campaign::Bench::boot(built, kind, &scratch, &targets, &Profiles::new())?;
        let target = bench.targets.first().context("no target")?;
        let frame = account::Frame { number, seed: trial.seed, workload: trial.workload, node: 1 };
        let done = trial::run(&mut bench.rig, target, &trial.plan, frame)?;
        let is_same =
            done.trial.verdict == trial.verdict && done.trial.manifestation == trial.manifestation;
        same += u32::from(is_same);
        println!("{}", serde_json::to_string_pretty(&done.trial)?);
        println!("stops of the machine:");
        done.stops.iter().for_each(|stop| println!("  {stop}"));
        for death in 0..bench.rig.next_death {
            let story = bench.rig.client.story(death, &workspace::node_dir(), LAST_LINES)?;
            println!("{}", crashes::show(&story));
        }
        println!("end of the node's log:");
        bench.rig.last_lines(LAST_LINES).iter().for_each(|line| println!("  {line}"));
        let word = if is_same { "the same" } else { "another" };
        println!("{time} of {times}: {word} verdict: {}", done.trial.verdict);
    }
    ensure!(same == times, "{same} of {times} gave the recorded verdict");
    Ok(())
}

/// The nodes that these classes are tried on, built; and the plain one, which tells most.
fn nodes(manifest: &Manifest, classes: &[Class]) -> Result<Nodes> {
    let mut nodes = Nodes::new();
    let wanted = classes.iter().map(|&class| Kind::of(class));
    for kind in std::iter::once(Kind::Plain).chain(wanted) {
        if let Entry::Vacant(free) = nodes.entry(kind) {
            free.insert(build::build(&kind.manifest(manifest)?)?);
        }
    }
    Ok(nodes)
}

fn plain(nodes: &Nodes) -> Result<&Built> {
    nodes.get(&Kind::Plain).context("the plain node is not built")
}

/// How many functions the program of each target has.
fn functions(built: &Built, targets: &[String]) -> Result<BTreeMap<String, u64>> {
    let count =
        |name: &String| Ok((name.clone(), target::program(built, name)?.functions().len() as u64));
    targets.iter().map(count).collect()
}

/// What names the programs under test: a checksum over all that is booted.
fn program(nodes: &Nodes) -> Result<String> {
    let mut sum = crc32fast::Hasher::new();
    for file in nodes.values().flat_map(|built| [&built.hv, &built.bundle]) {
        sum.update(&std::fs::read(file).with_context(|| file.display().to_string())?);
    }
    Ok(format!("{:08x}", sum.finalize()))
}

fn classes(words: &[String]) -> Result<Vec<Class>> {
    let all = || Class::ALL.iter().copied();
    if words.is_empty() {
        return Ok(all().collect());
    }
    let mut chosen = Vec::new();
    for word in words {
        match Group::ALL.into_iter().find(|group| group.name() == word) {
            Some(group) => chosen.extend(all().filter(|class| class.group() == group)),
            None => {
                let class: Class = word.parse().map_err(|why| {
                    anyhow::anyhow!("{why}; `cargo xtask fault classes` lists them")
                })?;
                chosen.push(class);
            }
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Set by the first Ctrl-C or SIGTERM; the second one ends this program as usual.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
    ])?;
    let flag = stop.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("ending after the trials that run; once more ends at once");
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<Class>> {
        classes(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn groups_and_classes_may_be_named() {
        let software = words("software").unwrap();
        assert!(software.iter().all(|class| class.group() == Group::Software));
        let mixed = words("panic,software,panic").unwrap();
        assert_eq!(mixed.len(), software.len() + 1, "each once");
        assert_eq!(
            classes(&[]).unwrap().len(),
            words("software,control,interface,device,recovery").unwrap().len()
        );
    }

    #[test]
    fn classes_that_do_not_fit_are_left_out() {
        let manifest = Manifest::load(&default_node()).unwrap();
        let judged = node::judged(&manifest).unwrap();
        let all = classes(&[]).unwrap();
        let both = targets(&judged, &[]).unwrap();
        assert_eq!(both, ["blk", "net"]);
        assert_eq!(fitting(all.clone(), &judged, &both).unwrap(), all);
        let net = targets(&judged, &["net".to_owned()]).unwrap();
        let left = fitting(all, &judged, &net).unwrap();
        assert!(left.contains(&Class::LinkDown) && !left.contains(&Class::LostWrite), "{left:?}");
        let error = fitting(vec![Class::LostWrite], &judged, &net).unwrap_err().to_string();
        assert_eq!(error, "no class fits net: lost-write");
        let error = targets(&judged, &["disk".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "`disk` is no driver with a judge; there is blk, net");
    }

    #[test]
    fn what_is_no_class_is_said() {
        let error = |text: &str| format!("{:#}", words(text).unwrap_err());
        assert!(error("panik").contains("no class of faults `panik`"), "{}", error("panik"));
    }
}
