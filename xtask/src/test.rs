//! `cargo xtask test`: all tests, host and system, with one summary at the end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::manifest::{self, Manifest};
use crate::models::MODELS;
use crate::qemu::install;
use crate::say::say;
use crate::without;
use crate::workspace::{self, Metadata};
use crate::{build, fuzz};

/// The package whose tests boot nodes.
const SYSTEM: &str = "system-tests";
/// Host tools: their tests are short, and they are built in the dev profile anyway.
const TOOLS: &[&str] = &["nodectl", "xtask"];

/// Bare-metal crates whose libraries have tests that run on the host.
const BARE_LIBRARIES: &[&str] =
    &["bare-support", "domain-rt", "driver-blk", "driver-net", "driver-nvme", "guest-io"];

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Run only tests whose name contains one of these
    pub filter: Vec<String>,
    /// Run only the tests on the host, or only those that boot nodes
    #[arg(long, value_name = "KIND")]
    pub only: Option<Kind>,
    /// Instead, take the defence against an attack away and see the attack's test fail, or break
    /// what a model holds and see it find that; `models` for all of these, `all` for everything
    #[arg(long, value_name = "NAME", conflicts_with_all = ["filter", "only"])]
    pub without: Vec<String>,
}

/// Kinds of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Unit, property and model tests.
    Host,
    /// Tests that boot a node.
    System,
}

/// Counts of tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Names of those that failed, and test programs that did not come to an end.
    failures: Vec<String>,
}

/// Runs the tests.
///
/// # Errors
///
/// One failed, or they could not be built.
pub fn test(options: &Options) -> Result<()> {
    if !options.without.is_empty() {
        return without::without(&options.without);
    }
    let begin = Instant::now();
    let metadata = Metadata::load(None)?;
    let mut tally = Tally::default();
    if options.only != Some(Kind::System) {
        let host = metadata.host_packages();
        let (tools, mut libraries): (Vec<&str>, Vec<&str>) =
            host.into_iter().partition(|package| TOOLS.contains(package));
        libraries.retain(|package| *package != SYSTEM);
        // Random walks of millions of steps want an optimiser, and tests want their assertions.
        let mut command = packages(&libraries);
        for setting in ["debug-assertions", "overflow-checks"] {
            command.args(["--config", &format!("profile.release.{setting}=true")]);
        }
        command.arg("--release");
        tally.phase("libraries", command, &options.filter)?;
        // In an invocation of their own, as everything bare-metal.
        let mut command = packages(BARE_LIBRARIES);
        command.args(["--lib", "--release"]);
        tally.phase("libraries of domains", command, &options.filter)?;
        for models in MODELS {
            let command = models.command(workspace::root(), &workspace::target_dir());
            tally.phase(&format!("models: {}", models.test), command, &options.filter)?;
        }
        tally.phase("tools", packages(&tools), &options.filter)?;
        say("\n== fuzz targets");
        fuzz::short(&options.filter, |name, passed| tally.one(&format!("fuzz::{name}"), passed))?;
    }
    if options.only != Some(Kind::Host) {
        install::ensure()?;
        build::build(&Manifest::load(&manifest::default_path())?)?;
        let mut command = packages(&[SYSTEM]);
        // A node uses all cores by itself; two at a time would only disturb each other.
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            command.env("RUST_TEST_THREADS", "1");
        }
        tally.phase("system tests", command, &options.filter)?;
    }

    for failure in &tally.failures {
        say(&format!("failed: {failure}"));
    }
    let Tally { passed, failed, ignored, .. } = tally;
    let ignored = if ignored == 0 { String::new() } else { format!(", {ignored} ignored") };
    let seconds = begin.elapsed().as_secs();
    say(&format!("{passed} passed, {failed} failed{ignored} in {seconds} s"));
    if failed != 0 {
        bail!("{failed} tests failed");
    }
    if passed == 0 {
        bail!("no test matches");
    }
    Ok(())
}

fn packages(names: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.args(["test", "--no-fail-fast"]);
    for name in names {
        command.args(["--package", name]);
    }
    command
}

impl Tally {
    /// Runs one `cargo test`, shows its output and counts.
    fn phase(&mut self, name: &str, mut command: Command, filter: &[String]) -> Result<()> {
        say(&format!("\n== {name}"));
        command.arg("--").args(filter).stdout(Stdio::piped());
        let mut child = command.spawn().context("can't run cargo")?;
        let failed_before = self.failed;
        let output = child.stdout.take().context("cargo has no output")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("can't read cargo's output")?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            self.line(&line);
        }
        let status = child.wait().context("can't wait for cargo")?;
        if !status.success() && self.failed == failed_before {
            // It did not build, or a test program died without a result.
            self.failed += 1;
            self.failures.push(format!("{name}: {status}; see above"));
        }
        Ok(())
    }

    /// Counts a test that is no cargo test.
    fn one(&mut self, name: &str, passed: bool) {
        say(&format!("test {name} ... {}", if passed { "ok" } else { "FAILED" }));
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }

    /// Counts what a line of output says.
    fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
            for count in counts.split("; ") {
                let Some((number, what)) = count.split_once(' ') else {
                    continue;
                };
                let number = number.parse().unwrap_or(0);
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut tally = Tally::default();
        let output = "running 3 tests\n\
             test one ... ok\n\
             test two::three ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s\n\
             test result: ok. 11 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        output.lines().for_each(|line| tally.line(line));
        let failures = vec!["two::three".to_owned()];
        assert_eq!(tally, Tally { passed: 12, failed: 1, ignored: 1, failures });
    }
}
