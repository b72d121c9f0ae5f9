//! `cargo xtask fuzz`: the fuzz targets of the package `fuzz-targets`, driven by
//! libFuzzer.
//!
//! libFuzzer is C++ and comes with the crate `libfuzzer-sys`; the stable
//! compiler instruments by LLVM's coverage pass. What a target is, its package
//! says; here it is built, run and reported on. Inputs that reached something
//! new are kept in `target/fuzz-work`, so that the next run goes on from there.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::figures::{self, Figure};
use crate::workspace;

/// The package of the targets, and its program.
const PACKAGE: &str = "fuzz-targets";
const PROGRAM: &str = "fuzz";
/// The target that must fail; see the package.
const PLANTED: &str = "planted";
/// Executions within which it has to. It takes some ten thousand.
const PLANTED_RUNS: u64 = 20_000_000;
/// The platform is named so that cargo does not instrument build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Counters at every edge, with their addresses, and comparisons traced:
/// what libFuzzer is guided by. No sanitizer: those need a nightly compiler.
const RUSTFLAGS: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer than this, in seconds, is a finding.
const INPUT_SECONDS: u32 = 20;
/// Memory of a target beyond which the input is a finding, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Lines of a target's output that are shown over a finding.
const SAID: usize = 3;
/// Of a short run: executions of a target, and seconds at most.
const SHORT_RUNS: u64 = 4_000;
const SHORT_SECONDS: u64 = 4;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Targets; without any, all
    pub targets: Vec<String>,
    /// How long each runs, such as 30s, 10m or 2h
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub time: Duration,
    /// Seed of the search
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u32,
    /// Only list the targets
    #[arg(long)]
    pub list: bool,
    /// Run the one target on this input and nothing else: repeats a finding
    #[arg(long, value_name = "FILE", conflicts_with_all = ["list", "time", "json"])]
    pub input: Option<PathBuf>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Reads `90`, `90s`, `10m` or `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time, such as 30s, 10m or 2h");
    let digits = text.trim_end_matches(['s', 'm', 'h']);
    let unit = match text.get(digits.len()..) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(unit) {
        Some(seconds @ 1..=1_000_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

/// What a run of a target came to.
#[derive(Clone, Debug, Default)]
struct Outcome {
    executions: u64,
    /// Edges of the program that were reached.
    coverage: u64,
    seconds: f64,
    finding: Option<Finding>,
}

/// An input that a target failed over.
#[derive(Clone, Debug)]
struct Finding {
    /// What was said last before the end.
    what: String,
    /// The input, if libFuzzer could keep it.
    input: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
///
/// A finding; something is missing; the targets can't be built.
pub fn fuzz(options: &Options) -> Result<()> {
    let targets = targets()?;
    if options.list {
        for name in &targets {
            println!("{name}");
        }
        return Ok(());
    }
    for name in &options.targets {
        if !targets.contains(name) && name != PLANTED {
            bail!("there is no fuzz target `{name}`; `cargo xtask fuzz --list` lists them");
        }
    }
    let chosen = if options.targets.is_empty() { &targets } else { &options.targets };
    let program = build()?;
    if let Some(input) = &options.input {
        let [name] = chosen.as_slice() else { bail!("--input needs the name of one target") };
        return repeat(&program, name, input);
    }
    guided(&program)?;
    let mut figures = Vec::new();
    let mut findings = 0;
    for name in chosen {
        let limit = Limit { seconds: options.time.as_secs(), runs: None };
        let outcome = run(&program, name, options.seed, limit)?;
        report(name, &outcome);
        findings += usize::from(outcome.finding.is_some());
        figures.extend(outcome.figures(name));
    }
    if let Some(path) = &options.json {
        figures::write(path, &figures)?;
    }
    if findings != 0 {
        bail!("{findings} of {} fuzz targets have a finding", chosen.len());
    }
    Ok(())
}

/// The short run that is part of all tests: every target whose name contains
/// one of `filter` with a fixed seed. Calls `done` with each name and whether
/// it passed.
///
/// # Errors
///
/// The targets can't be built or run.
pub fn short(filter: &[String], mut done: impl FnMut(&str, bool)) -> Result<()> {
    let fits = |name: &str| {
        let name = format!("fuzz::{name}");
        filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str()))
    };
    let targets = targets()?;
    let chosen: Vec<&String> = targets.iter().filter(|name| fits(name)).collect();
    if chosen.is_empty() && !fits(PLANTED) {
        return Ok(());
    }
    let program = build()?;
    let found = guided(&program);
    if let Err(error) = &found {
        eprintln!("{error:#}");
    }
    done(PLANTED, found.is_ok());
    for name in chosen {
        let limit = Limit { seconds: SHORT_SECONDS, runs: Some(SHORT_RUNS) };
        let outcome = run(&program, name, 1, limit)?;
        report(name, &outcome);
        done(name, outcome.finding.is_none());
    }
    Ok(())
}

/// Names of all targets: the folders of their corpora. (The package's tests
/// hold the two together.)
///
/// # Errors
///
/// The folder can't be read.
pub fn targets() -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/corpus");
    let entries = fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds the program with libFuzzer; returns where it is.
fn build() -> Result<PathBuf> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let there = Command::new(&compiler).arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        bail!(
            "no C++ compiler `{}`, which libFuzzer needs: install one (`apt-get install g++`) \
             or name it in CXX",
            compiler.display()
        );
    }
    let dir = workspace::target_dir().join("fuzz");
    let mut command = workspace::cargo();
    command.args(["build", "--profile", "fuzz", "--features", "engine", "--package", PACKAGE]);
    command.args(["--bin", PROGRAM, "--target", PLATFORM, "--target-dir"]).arg(&dir);
    command.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().context("can't run cargo")?;
    if !status.success() {
        bail!("the fuzz targets can't be built ({status})");
    }
    Ok(dir.join(PLATFORM).join("fuzz").join(PROGRAM))
}

/// Checks that coverage guides the search: the planted value is found.
fn guided(program: &Path) -> Result<()> {
    let limit = Limit { seconds: 120, runs: Some(PLANTED_RUNS) };
    // Nothing is kept of it: the next run has to find it again.
    let _ = fs::remove_dir_all(work_dir(PLANTED));
    let outcome = run(program, PLANTED, 1, limit)?;
    match outcome.finding {
        Some(finding) if finding.what.contains("planted value was found") => Ok(()),
        Some(finding) => {
            bail!("the target `{PLANTED}` failed over something else: {}", finding.what)
        }
        None => bail!(
            "the planted value was not found in {} executions: coverage does not guide the search",
            outcome.executions
        ),
    }
}

#[derive(Clone, Copy)]
struct Limit {
    seconds: u64,
    runs: Option<u64>,
}

fn work_dir(name: &str) -> PathBuf {
    workspace::target_dir().join("fuzz-work").join(name)
}

/// Runs a target to its limit or its first finding.
fn run(program: &Path, name: &str, seed: u32, limit: Limit) -> Result<Outcome> {
    let work = work_dir(name);
    let (corpus, findings) = (work.join("corpus"), work.join("findings"));
    // A short run repeats, so it does not go on from what others found.
    if limit.runs.is_some() && corpus.exists() {
        fs::remove_dir_all(&corpus)?;
    }
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&findings)?;
    let mut log = File::create(work.join("log"))?;
    let mut command = Command::new(program);
    command.env("BULKHEAD_FUZZ_TARGET", name).current_dir(workspace::root());
    command.arg(format!("-seed={seed}")).arg(format!("-max_total_time={}", limit.seconds));
    if let Some(runs) = limit.runs {
        command.arg(format!("-runs={runs}"));
    }
    command.arg(format!("-timeout={INPUT_SECONDS}")).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    command.arg(format!("-artifact_prefix={}/", findings.display()));
    command.args(["-print_final_stats=1", "-max_len=8192", "-use_value_profile=1"]);
    command.arg(&corpus);
    let seeds = workspace::root().join("fuzz/corpus").join(name);
    if seeds.exists() {
        command.arg(seeds);
    }
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't run {}", program.display()))?;
    let output = child.stderr.take().context("the fuzzer has no output")?;
    let mut outcome = Outcome::default();
    let mut tail: VecDeque<String> = VecDeque::new();
    let (mut what, mut input) = (Vec::new(), None);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        outcome.line(&line);
        if let Some(path) = line.split_once("Test unit written to ") {
            input = Some(PathBuf::from(path.1.trim()));
        }
        let begins = line.contains("panicked at") || line.contains("ERROR: libFuzzer");
        if line.starts_with('#') {
            progress(name, &outcome, begin.elapsed());
        } else if begins && what.is_empty() || (1..SAID).contains(&what.len()) {
            what.push(line);
        } else {
            tail.push_back(line);
            if tail.len() > SAID {
                tail.pop_front();
            }
        }
    }
    clear_progress();
    let status = child.wait().context("can't wait for the fuzzer")?;
    outcome.seconds = begin.elapsed().as_secs_f64();
    if !status.success() {
        // It ended without saying why in words that are known.
        if what.is_empty() {
            what.extend(tail);
        }
        outcome.finding = Some(Finding { what: what.join("\n"), input });
    }
    Ok(outcome)
}

impl Outcome {
    /// Takes what libFuzzer says: `#123 NEW cov: 4 ft: 5 …`, or final counts.
    fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(number) = first.strip_prefix('#').and_then(|n| n.parse().ok()) {
            self.executions = number;
            let after = words.skip_while(|word| *word != "cov:").nth(1);
            self.coverage = after.and_then(|n| n.parse().ok()).unwrap_or(self.coverage);
        } else if first == "stat::number_of_executed_units:" {
            self.executions = words.next().and_then(|n| n.parse().ok()).unwrap_or(self.executions);
        }
    }

    fn figures(&self, name: &str) -> [Figure; 3] {
        let name = format!("fuzz.{name}");
        let found = u64::from(self.finding.is_some());
        [
            Figure::timeless(&name, "executions", self.executions, "inputs"),
            Figure::timeless(&name, "coverage", self.coverage, "edges"),
            Figure::timeless(&name, "findings", found, "inputs"),
        ]
    }
}

fn report(name: &str, outcome: &Outcome) {
    let Outcome { executions, coverage, seconds, finding } = outcome;
    let per_second = *executions as f64 / seconds.max(0.001);
    println!(
        "{name:<20} {executions:>10} inputs in {seconds:>6.1} s ({per_second:>7.0}/s), \
         {coverage:>6} edges, {}",
        if finding.is_some() { "FINDING" } else { "no finding" }
    );
    if let Some(finding) = finding {
        println!("{}", finding.what);
        match &finding.input {
            Some(input) => {
                println!("again: cargo xtask fuzz {name} --input {}", workspace::show(input));
            }
            None => println!("log: {}", workspace::show(&work_dir(name).join("log"))),
        }
    }
}

/// A line that is written over, for people who watch.
fn progress(name: &str, outcome: &Outcome, so_far: Duration) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(
            out,
            "\r{name}: {} inputs, {} edges, {} s \x1b[K",
            outcome.executions,
            outcome.coverage,
            so_far.as_secs()
        );
        let _ = out.flush();
    }
}

fn clear_progress() {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K");
    }
}

/// One input, with all output.
fn repeat(program: &Path, name: &str, input: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.env("BULKHEAD_FUZZ_TARGET", name).env("RUST_BACKTRACE", "1").arg(input);
    let status = command.status().with_context(|| format!("can't run {}", program.display()))?;
    if !status.success() {
        bail!("the input is a finding of `{name}` ({status})");
    }
    println!("no finding");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "m", "0s", "ten", "1d", "5ms", "-3s", "99999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let mut outcome = Outcome::default();
        outcome.line("#4096\tpulse  cov: 812 ft: 3100 corp: 90/5kb exec/s: 2048 rss: 60Mb");
        assert_eq!((outcome.executions, outcome.coverage), (4096, 812));
        outcome.line("#4100 REDUCE ft: 3");
        outcome.line("stat::number_of_executed_units: 5000");
        assert_eq!((outcome.executions, outcome.coverage), (5000, 812));
    }
}
