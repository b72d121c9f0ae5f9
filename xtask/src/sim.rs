//! `cargo xtask sim`: simulates nodes, one for each seed, by the program of the
//! package `sim`; and with `--planted`, sees it find bugs that are planted.
//!
//! A planted bug is a patch `tests/bugs/NAME.patch` to the code that is
//! simulated. It is applied to a copy of the tree (as for `test --without`), the
//! simulation is built there, and within the number of seeds that the book's
//! list says it has to find a violation.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::attacks::{self, Patch};
use crate::figures::{self, Figure};
use crate::without;
use crate::{build, workspace};

/// The package, and its program.
const PACKAGE: &str = "sim";
const BUGS: &str = "tests/bugs";
/// Has the list of planted bugs, below this heading.
const CHAPTER: &str = "docs/src/simulation.md";
const LIST: &str = "## Planted bugs";
/// Stands for all planted bugs.
const ALL: &str = "all";
/// What the program says before it says what is wrong.
const VIOLATION: &str = "violation: seed ";

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Run this seed alone, and show what happens step by step
    #[arg(long, value_name = "N", conflicts_with_all = ["runs", "first", "jobs", "json"])]
    pub seed: Option<u64>,
    /// Seeds to run
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub runs: u64,
    /// First seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub first: u64,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Instead, plant a bug and see it found; `all` for all bugs
    #[arg(long, value_name = "NAME", conflicts_with_all = ["seed", "runs", "first", "json"])]
    pub planted: Vec<String>,
}

/// Runs the command.
///
/// # Errors
///
/// A violation; a planted bug that is not found; the simulation does not build.
pub fn sim(options: &Options) -> Result<()> {
    if !options.planted.is_empty() {
        return planted(options);
    }
    let mut command = Command::new(build(workspace::root(), None)?);
    if let Some(seed) = options.seed {
        command.args(["--seed", &seed.to_string()]);
        let status = command.status().context("can't run the simulation")?;
        ensure!(status.success(), "seed {seed} ends in a violation");
        return Ok(());
    }
    arguments(&mut command, options, options.runs);
    let outcome = run(&mut command, true)?;
    if let Some(path) = &options.json {
        figures::write(path, &outcome.figures())?;
    }
    match outcome.violation {
        Some(seed) => bail!("seed {seed} ends in a violation"),
        None => Ok(()),
    }
}

fn arguments(command: &mut Command, options: &Options, runs: u64) {
    let Options { first, jobs, .. } = options;
    for (name, value) in [("--runs", runs), ("--first", *first), ("--jobs", *jobs)] {
        command.args([name, &value.to_string()]);
    }
}

/// Builds the program from the tree in `root`.
fn build(root: &Path, target: Option<&Path>) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.current_dir(root).args(["build", "--package", PACKAGE, "--profile", "sim"]);
    if let Some(target) = target {
        command.arg("--target-dir").arg(target);
    }
    build::executable(command, "the simulation")
}

/// What a series came to.
#[derive(Clone, Debug, Default)]
struct Outcome {
    /// Counts, by their names.
    counts: Vec<(String, u64)>,
    /// The seed that ended in a violation.
    violation: Option<u64>,
    /// What the program said of it.
    what: String,
}

impl Outcome {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix(VIOLATION) {
            let (seed, what) = rest.split_once(',').unwrap_or((rest, ""));
            self.violation = seed.parse().ok();
            self.what = what.trim().to_owned();
        } else if let Some((name, value)) = line.split_once(' ')
            && let Ok(value) = value.trim().parse()
        {
            self.counts.push((name.to_owned(), value));
        }
    }

    fn figures(&self) -> Vec<Figure> {
        let counts = self.counts.iter().map(|(name, value)| (name.as_str(), *value));
        let violations = u64::from(self.violation.is_some());
        let all = counts.chain([("violations", violations)]);
        all.map(|(name, value)| Figure::timeless("sim", name, value, "count")).collect()
    }
}

/// Runs a series and reads what it says.
fn run(command: &mut Command, show: bool) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("can't run the simulation")?;
    let output = child.stdout.take().context("the simulation has no output")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("can't read what the simulation prints")?;
        if show {
            println!("{line}");
        }
        outcome.line(&line);
    }
    let status = child.wait().context("can't wait for the simulation")?;
    // One that dies of a signal has said nothing, and that is no success.
    let told = status.success() == outcome.violation.is_none();
    ensure!(told && !outcome.counts.is_empty(), "the simulation ended with {status}");
    Ok(outcome)
}

/// All planted bugs of the tree in `root`, with the seeds within which the book
/// says that each is found.
///
/// # Errors
///
/// The book's list and the patches do not agree.
pub fn bugs(root: &Path) -> Result<Vec<(Patch, u64)>> {
    let chapter = root.join(CHAPTER);
    let text = fs::read_to_string(&chapter)
        .with_context(|| format!("can't read {}", chapter.display()))?;
    let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
    let list = text.lines().skip_while(|line| *line != LIST).skip(1);
    for line in list.take_while(|line| !line.starts_with("## ")) {
        let Some((name, rest)) = line.strip_prefix("| `").and_then(|r| r.split_once("` |")) else {
            continue;
        };
        let bound = rest.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        let bound = bound.trim().replace(',', "").parse().ok();
        rows.insert(name, bound.ok_or_else(|| anyhow!("{CHAPTER}: `{name}`: within what?"))?);
    }
    let mut bugs = Vec::new();
    for patch in attacks::patches(&root.join(BUGS))? {
        let bound = rows.remove(patch.name.as_str());
        let bound = bound.ok_or_else(|| anyhow!("bug `{}` has no row in {CHAPTER}", patch.name))?;
        bugs.push((patch, bound));
    }
    if let Some((name, _)) = rows.first_key_value() {
        bail!("bug `{name}` has no patch in {BUGS}");
    }
    Ok(bugs)
}

/// Plants bugs, one after the other, and sees them found.
fn planted(options: &Options) -> Result<()> {
    let bugs = bugs(workspace::root())?;
    let fits = |name: &String, patch: &Patch| name == ALL || *name == patch.name;
    for name in &options.planted {
        if !bugs.iter().any(|(patch, _)| fits(name, patch)) {
            bail!("there is no patch {BUGS}/{name}.patch");
        }
    }
    let copy = without::Tree::new();
    let mut missed = 0;
    for (patch, bound) in &bugs {
        let name = &patch.name;
        if !options.planted.iter().any(|wanted| fits(wanted, patch)) {
            continue;
        }
        copy.patch(patch)?;
        let mut command = Command::new(build(&copy.tree, Some(&copy.target))?);
        arguments(&mut command, options, *bound);
        let outcome = run(&mut command, false)?;
        match outcome.violation {
            Some(seed) => {
                println!("{name:<18} found after {} seeds: {}", seed + 1, outcome.what);
            }
            None => {
                missed += 1;
                println!("{name:<18} NOT FOUND within {bound} seeds");
            }
        }
    }
    ensure!(missed == 0, "{missed} planted bugs were not found");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_simulation_says_is_understood() {
        let mut outcome = Outcome::default();
        outcome.line("runs         12");
        outcome.line("12 runs in 0.1 s (120 a second)");
        outcome.line("violation: seed 11, step 7: everybody sleeps for ever: 3, 4");
        assert_eq!(outcome.counts, [("runs".to_owned(), 12)]);
        assert_eq!(outcome.violation, Some(11));
        assert_eq!(outcome.what, "step 7: everybody sleeps for ever: 3, 4");
        assert_eq!(outcome.figures().len(), 2);
    }
}
