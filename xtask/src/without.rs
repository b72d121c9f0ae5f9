//! `cargo xtask test --without NAME`: takes a defence away and sees the test of
//! the attack that it stops fail.
//!
//! The tree is copied to `target/without/tree`, `tests/defences/NAME.patch` is
//! applied there, and the attack's test, which stays as it is, boots a node that
//! is built from there. A test that passes without the defence proves nothing,
//! nor does one that fails for any other reason than the attack: a build that
//! fails, a node that does not boot.
//!
//! The patches in `tests/mutants` break what a model holds; the model, which is
//! in the copy too, must find it.
//!
//! All patches share one copy, in which only files that differ are written, and
//! one target directory: after the first, a run builds little.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::attacks::{Attacks, Patch};
use crate::mutants::{self, Mutant};
use crate::qemu::install;
use crate::say::say;
use crate::{build, workspace};

/// What the error of a system test begins with if the attack was under way.
pub const UNDER_ATTACK: &str = "under attack";
/// Stands for all patches.
const ALL: &str = "all";
/// Stands for all of `tests/mutants`.
const ALL_MUTANTS: &str = "models";
/// Folders of the copy that are its own.
const OWN: [&str; 2] = ["target", "run"];

/// What a test said about an attack without the defence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It failed, and of the attack.
    Missed,
    /// It passed: something else stops the attack, or the test looks away.
    Passed,
    /// It failed before the attack, or did not run.
    Nothing,
}

/// Runs the tests of `names` (attacks, patches, `models` or `all`) without
/// their defences, and prints what came of each.
///
/// # Errors
///
/// A test did not fail as it should.
pub fn without(names: &[String]) -> Result<()> {
    let root = workspace::root();
    let attacks = Attacks::load(root)?;
    let mutants = mutants::load(root)?;
    let mut chosen: Vec<Change<'_>> = Vec::new();
    for name in names {
        let before = chosen.len();
        for patch in &attacks.patches {
            if name == ALL || *name == patch.name || name == patch.attack() {
                chosen.push(Change::Defence(patch, attacks.test(patch.attack())?));
            }
        }
        let fits = |m: &&Mutant| name == ALL || name == ALL_MUTANTS || *name == m.patch.name;
        chosen.extend(mutants.iter().filter(fits).map(Change::Mutant));
        if chosen.len() == before {
            bail!("there is no patch tests/defences/{name}.patch or tests/mutants/{name}.patch");
        }
    }
    let mut copy = Copy { of: Tree::new(), tests: None };
    if chosen.iter().any(|change| matches!(change, Change::Defence(..))) {
        install::ensure()?;
        copy.tests = Some(tests()?);
    }
    let mut rows = Vec::new();
    for change in chosen {
        let begin = Instant::now();
        say(&format!("\n== without {}: {}", change.name(), change.test()));
        let outcome = copy.run(change)?;
        rows.push((change, outcome, begin.elapsed().as_secs()));
    }
    say("");
    let width = rows.iter().map(|row| row.0.name().len()).max().unwrap_or(0);
    let mut bad = 0;
    for (change, outcome, seconds) in &rows {
        let text = match (outcome, change) {
            (Outcome::Missed, Change::Defence(..)) => "fails under attack, as it should",
            (Outcome::Missed, Change::Mutant(_)) => "fails, as it should",
            (Outcome::Passed, _) => "PASSES: the test cannot tell that the defence is gone",
            (Outcome::Nothing, _) => "SAYS NOTHING: it failed before the attack; see above",
        };
        bad += usize::from(*outcome != Outcome::Missed);
        let (name, test) = (change.name(), change.test());
        say(&format!("without {name:width$}  {test} {text} ({seconds} s)"));
    }
    if bad != 0 {
        bail!("{bad} of {} tests did not fail as they should", rows.len());
    }
    Ok(())
}

/// A patch, and the test that is to fail with it.
#[derive(Clone, Copy)]
enum Change<'a> {
    /// Of a node's defence; the test of an attack.
    Defence(&'a Patch, &'a str),
    /// Of what a model holds.
    Mutant(&'a Mutant),
}

impl Change<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Defence(patch, _) => &patch.name,
            Self::Mutant(mutant) => &mutant.patch.name,
        }
    }

    fn test(&self) -> &str {
        match self {
            Self::Defence(_, test) => test,
            Self::Mutant(mutant) => &mutant.test,
        }
    }
}

/// Builds the system tests and says where their program is.
fn tests() -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["test", "--package", "system-tests", "--test", "system", "--no-run"]);
    build::executable(command, "the system tests")
}

/// The copy of the tree that patches are applied to.
pub struct Tree {
    /// Where it is.
    pub tree: PathBuf,
    /// The target directory of its builds.
    pub target: PathBuf,
}

impl Tree {
    /// The copy, which may not be there yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "there is one")]
    pub fn new() -> Self {
        let dir = workspace::target_dir().join("without");
        Self { tree: dir.join("tree"), target: dir.join("target") }
    }

    /// Makes it a copy of the present tree with `patch` applied.
    ///
    /// # Errors
    ///
    /// It can't be written, or the patch does not apply.
    pub fn patch(&self, patch: &Patch) -> Result<()> {
        sync(workspace::root(), &self.tree)?;
        patch.apply(&self.tree, false)
    }
}

/// The copy, and what tests it.
struct Copy {
    of: Tree,
    /// The program of the system tests, if they are needed.
    tests: Option<PathBuf>,
}

impl Copy {
    fn run(&self, change: Change<'_>) -> Result<Outcome> {
        match change {
            Change::Defence(patch, test) => {
                self.of.patch(patch)?;
                self.attack(test)
            }
            Change::Mutant(mutant) => {
                self.of.patch(&mutant.patch)?;
                Ok(match mutant.run(&self.of.tree, &self.of.target, say)? {
                    Some(false) => Outcome::Missed,
                    Some(true) => Outcome::Passed,
                    None => Outcome::Nothing,
                })
            }
        }
    }

    /// Runs the test of an attack on a node that is built from the copy.
    fn attack(&self, test: &str) -> Result<Outcome> {
        let program = self.tests.as_ref().context("the system tests were not built")?;
        let Tree { tree, target } = &self.of;
        let mut command = Command::new(program);
        command.args(["--exact", test]).current_dir(tree);
        command.env(workspace::TREE, tree).env("CARGO_TARGET_DIR", target);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("can't run the system tests")?;
        let output = child.stdout.take().context("the system tests have no output")?;
        let mut judge = Judge::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("can't read what the system tests print")?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            judge.line(test, &line);
        }
        child.wait().context("can't wait for the system tests")?;
        Ok(judge.outcome())
    }
}

/// Reads what the system tests print.
#[derive(Debug, Default)]
struct Judge {
    passed: bool,
    failed: bool,
    under_attack: bool,
}

impl Judge {
    fn line(&mut self, test: &str, line: &str) {
        if let Some(verdict) = line.strip_prefix("test ").and_then(|rest| rest.strip_prefix(test)) {
            self.passed |= verdict.starts_with(" ... ok");
            // A machine that a successful attack reset leaves no verdict.
            self.failed |= [" ... FAILED", " ... UNKNOWN"].contains(&verdict.trim_end());
        } else if self.failed {
            self.under_attack |= line.contains(&format!(": {UNDER_ATTACK}: "));
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self { passed: true, .. } => Outcome::Passed,
            Self { failed: true, under_attack: true, .. } => Outcome::Missed,
            _ => Outcome::Nothing,
        }
    }
}

/// Makes `to` a copy of the files in `from` that git tracks or would track.
fn sync(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = command.current_dir(from).output().context("can't run git")?;
    if !output.status.success() {
        bail!("`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let mut wanted = HashSet::new();
    for name in output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).context("a file's name is no UTF-8")?;
        // Deleted and not yet committed.
        if from.join(name).is_file() {
            wanted.insert(PathBuf::from(name));
        }
    }
    for name in &wanted {
        let (source, copy) = (from.join(name), to.join(name));
        let update = || -> std::io::Result<()> {
            let bytes = fs::read(&source)?;
            if !fs::read(&copy).is_ok_and(|old| old == bytes) {
                fs::create_dir_all(copy.parent().unwrap_or(to))?;
                fs::copy(&source, &copy)?;
            }
            Ok(())
        };
        update().with_context(|| format!("can't copy {}", name.display()))?;
    }
    remove_others(to, to, &wanted).context("can't clear the copy")
}

/// Removes files that are not `wanted`.
fn remove_others(tree: &Path, dir: &Path, wanted: &HashSet<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.strip_prefix(tree).unwrap_or(&path);
        if OWN.iter().any(|own| name == Path::new(own)) {
            continue;
        }
        if path.is_dir() {
            remove_others(tree, &path, wanted)?;
        } else if !wanted.contains(name) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        let mut judge = Judge::default();
        text.lines().for_each(|line| judge.line("g1_attack_x", line));
        judge.outcome()
    }

    #[test]
    fn only_a_failure_under_attack_counts() {
        let failed =
            "test g1_attack_x ... FAILED\n    after 3.1 s: under attack: it went through\n";
        assert_eq!(outcome(failed), Outcome::Missed);
        assert_eq!(outcome(&failed.replace("FAILED", "UNKNOWN")), Outcome::Missed);
        assert_eq!(outcome("test g1_attack_x ... ok (3.1 s)\n"), Outcome::Passed);
        let early = failed.replace("under attack: ", "");
        assert_eq!(outcome(&early), Outcome::Nothing);
        assert_eq!(outcome(&failed.replace("attack_x", "attack_y")), Outcome::Nothing);
        assert_eq!(outcome("running 0 tests\n"), Outcome::Nothing);
    }

    #[test]
    fn a_copy_follows_its_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        let git = Command::new("git").args(["init", "-q"]).current_dir(&from).status().unwrap();
        assert!(git.success());
        fs::write(from.join("a/one"), "1").unwrap();
        fs::write(from.join("two"), "2").unwrap();
        sync(&from, &to).unwrap();
        let stamp = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let before = stamp("two");
        // As a patch and a build would leave it.
        fs::write(to.join("a/one"), "patched").unwrap();
        fs::write(to.join("a/new"), "patched").unwrap();
        fs::create_dir_all(to.join("target")).unwrap();
        fs::write(to.join("target/kept"), "").unwrap();
        sync(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/one")).unwrap(), "1");
        assert!(!to.join("a/new").exists());
        assert!(to.join("target/kept").exists());
        assert_eq!(stamp("two"), before, "what did not change is not built again");
    }
}
