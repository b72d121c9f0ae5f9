//! `cargo xtask check`: what must hold for every commit beside the tests.

mod unsafe_code;

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::workspace::{self, Metadata};
use crate::{build, clauses, deny};

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only checks whose name contains this
    pub filter: Option<String>,
    /// Write the tables of the book that are made from code, and check nothing
    #[arg(long, conflicts_with = "filter")]
    pub write: bool,
}

/// Runs all checks, also after one failed.
///
/// # Errors
///
/// A check failed, or none has such a name.
pub fn check(options: &Options) -> Result<()> {
    if options.write {
        return unsafe_code::write();
    }
    let metadata = Metadata::load(None)?;
    let bare = metadata.bare_packages();
    let host = metadata.host_packages();
    for package in LENIENT {
        ensure!(
            host.contains(&package) || bare.contains(&package),
            "LENIENT names {package}, which is no package"
        );
    }
    let mut failed = Vec::new();
    let mut ran = 0;
    let mut step = |name: &'static str, work: &mut dyn FnMut() -> Result<()>| {
        if options.filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
            return;
        }
        ran += 1;
        eprintln!("\n== {name}");
        let begin = Instant::now();
        match work() {
            Ok(()) => eprintln!("{name}: ok ({:.1} s)", begin.elapsed().as_secs_f64()),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(name);
            }
        }
    };
    step("format", &mut || run(workspace::cargo().args(["fmt", "--all", "--check"])));
    step("clippy, host", &mut || {
        run(workspace::cargo().args(["clippy", "--locked", "--all-targets"]).args(DENY_WARNINGS))
    });
    step("clippy, bare metal", &mut || {
        // Not all targets: bare crates have no tests of their own to build.
        run(bare_cargo("clippy", &bare).arg("--features=hv/selftest").args(DENY_WARNINGS))
    });
    step("clippy, foreign values, host", &mut || {
        run(strict(workspace::cargo().args(["clippy", "--locked"]), &host))
    });
    step("clippy, foreign values, bare metal", &mut || {
        run(strict(&mut bare_cargo("clippy", &[]), &bare))
    });
    step("documentation, host", &mut || {
        run(workspace::cargo().args(["doc", "--locked", "--no-deps"]).env(DOC_FLAGS.0, DOC_FLAGS.1))
    });
    step("documentation, bare metal", &mut || {
        run(bare_cargo("doc", &bare).arg("--no-deps").env(DOC_FLAGS.0, DOC_FLAGS.1))
    });
    step("unsafe code", &mut unsafe_code::unsafe_code);
    step("clauses of the specification", &mut clauses::clauses);
    step("licences, bans and sources", &mut deny::deny);
    ensure!(ran > 0, "no check has such a name");
    if !failed.is_empty() {
        bail!("{} failed: {}", failed.len(), failed.join("; "));
    }
    eprintln!("\n{ran} checks passed");
    Ok(())
}

/// What code that meets foreign values must do without, or argue for by `#[expect]`.
const STRICT: [&str; 9] = [
    "clippy::unwrap_used",
    "clippy::expect_used",
    "clippy::indexing_slicing",
    "clippy::cast_possible_truncation",
    "clippy::cast_sign_loss",
    "clippy::arithmetic_side_effects",
    "clippy::panic",
    "clippy::unreachable",
    "clippy::todo",
];
/// Packages that may do it: host tools, tests, attackers, and guests, which hurt nobody but
/// themselves. Every other package, so each new one, may not.
const LENIENT: [&str; 14] = [
    "attacks",
    "fault",
    "fuzz-targets",
    "guest-bench",
    "guest-download",
    "guest-files",
    "guest-judge",
    "guest-kv",
    "kv-http",
    "kv-store",
    "nodectl",
    "sim",
    "system-tests",
    "xtask",
];

const DENY_WARNINGS: [&str; 3] = ["--", "--deny", "warnings"];
const DOC_FLAGS: (&str, &str) = ("RUSTDOCFLAGS", "--deny warnings");

/// A cargo command about the bare-metal crates, apart from the host crates so
/// that features do not mix.
fn bare_cargo(subcommand: &str, packages: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.args([subcommand, "--locked", "--target-dir"]).arg(workspace::bare_target_dir());
    command.env("RUSTFLAGS", build::RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    for package in packages {
        command.args(["--package", package]);
    }
    command
}

/// Has clippy deny [`STRICT`] in those of `packages` that are not [`LENIENT`], and all warnings;
/// their tests are left out, and features that only tests build with.
fn strict<'a>(command: &'a mut Command, packages: &[&str]) -> &'a mut Command {
    for package in packages.iter().filter(|package| !LENIENT.contains(package)) {
        command.args(["--package", package]);
    }
    // Else what they depend on would be held to it too.
    command.arg("--no-deps").args(DENY_WARNINGS);
    command.args(STRICT.iter().flat_map(|lint| ["--deny", lint]))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("failed ({status})");
    }
    Ok(())
}
