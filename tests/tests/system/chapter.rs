//! The book's chapter "Test your driver" does what it says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use system_tests::bench::Bench;
use xtask::workspace;

const CHAPTER: &str = "docs/src/test-your-driver.md";
/// What stands in front of the blocks of commands that are followed.
const MARK: &str = "<!-- followed by a test -->\n```sh\n";
/// The name that the chapter gives the copy.
const NAME: &str = "mydisk";
/// For all of it, builds among it.
const PATIENCE: &str = "600s";

/// A copy of the example under a name of its own: it is built, and some trials are run with it.
pub fn the_chapter_on_ones_own_driver_holds(bench: &Bench) -> Result<()> {
    let root = workspace::root();
    let chapter = fs::read_to_string(root.join(CHAPTER)).context(CHAPTER)?;
    let commands: Vec<&str> =
        chapter.split(MARK).skip(1).filter_map(|rest| rest.split("```").next()).collect();
    ensure!(commands.len() == 2, "{CHAPTER} has {} blocks to follow", commands.len());
    // Somebody may have followed the chapter here before.
    let name = format!("chapter{}", std::process::id());
    let script = commands.concat().replace(NAME, &name);
    ensure!(script.contains("cp -r") && script.contains("cargo xtask fault"), "{script}");

    let copy = Copy::new(root, &name)?;
    let log = bench.dir().join("chapter.log");
    fs::create_dir_all(bench.dir())?;
    let output = fs::File::create(&log)?;
    // It ends whatever they began, too.
    let mut commands = Command::new("timeout");
    commands.args([PATIENCE, "sh", "-eux", "-c", &script]).current_dir(root).stdin(Stdio::null());
    let status = commands.stdout(output.try_clone()?).stderr(output).status().context("timeout")?;
    let text = fs::read_to_string(&log)?;
    ensure!(status.success(), "{status}; all of it is in {}:\n{text}", log.display());
    // It is the copy that is built and tried.
    let compiling = format!("Compiling driver-{name} ");
    for said in [&compiling, "left out, as they do not fit disk: ", "link-down", "the report is "] {
        ensure!(text.contains(said), "nothing of {said:?} in {}", log.display());
    }
    let summary = fs::read(copy.results.join("summary.json"))?;
    let summary: serde_json::Value = serde_json::from_slice(&summary)?;
    let number = |key| summary.get(key).and_then(serde_json::Value::as_u64);
    ensure!(number("trials") == Some(20), "{summary}");
    ensure!(number("activated").is_some_and(|activated| activated >= 10), "{summary}");
    Ok(())
}

/// What the chapter makes; gone when this is.
struct Copy {
    folder: PathBuf,
    results: PathBuf,
    lock: PathBuf,
    locked: Vec<u8>,
}

impl Copy {
    fn new(root: &Path, name: &str) -> Result<Self> {
        let lock = root.join("Cargo.lock");
        let locked = fs::read(&lock).context("Cargo.lock")?;
        let folder = root.join("examples").join(name);
        Ok(Self { folder, results: workspace::run_dir().join(name), lock, locked })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Of commands that failed there may be less.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.results);
        let _ = fs::write(&self.lock, &self.locked);
    }
}
