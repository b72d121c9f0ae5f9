//! `cargo xtask`: see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::manifest::{self, Manifest, ManifestError};
use xtask::{bench, build, check, fault, fuzz, run, sim, sizes, test, workspace};

/// Builds, runs, tests and measures Bulkhead
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the hypervisor and a node's images, and bundle them
    Build {
        /// Node manifest
        #[arg(long, value_name = "FILE", default_value_os_t = manifest::default_path())]
        manifest: PathBuf,
    },
    /// Build a node, run it in QEMU and show its log
    Run(run::Options),
    /// Run all tests: on the host, then those that boot nodes
    Test(test::Options),
    /// Check format, lints, documentation, unsafe code, and licences of dependencies
    Check(check::Options),
    /// Search the parsers of foreign bytes for inputs that break them
    Fuzz(fuzz::Options),
    /// Simulate nodes, one for each seed, with faults at every step
    Sim(sim::Options),
    /// Measure blk and net through driver domains, beside the drivers linked into the guest
    Bench(bench::Options),
    /// Strike drivers with faults while guests work, and see what becomes of it
    Fault(Box<fault::Options>),
    /// Print sizes of images and of the hypervisor against their budgets
    Sizes(sizes::Options),
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(error) = error.downcast_ref::<ManifestError>() {
                eprintln!("{}", error.snippet());
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Build { manifest } => {
            let manifest = Manifest::load(&manifest)?;
            for warning in &manifest.warnings {
                eprintln!("warning: {}: {warning}", manifest.path().display());
            }
            let built = build::build(&manifest)?;
            println!("hypervisor {}", workspace::show(&built.hv));
            println!("bundle     {}", workspace::show(&built.bundle));
            Ok(())
        }
        Command::Run(options) => run::run(&options),
        Command::Test(options) => test::test(&options),
        Command::Check(options) => check::check(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Sim(options) => sim::sim(&options),
        Command::Bench(options) => bench::bench(&options),
        Command::Fault(options) => fault::fault(&options),
        Command::Sizes(options) => sizes::sizes(&options),
    }
}
