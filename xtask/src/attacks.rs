//! The attacks: a program, a system test, a row of the book's table and at
//! least one patch each, all found by the attack's name.
//!
//! | what | where |
//! |---|---|
//! | program | `tests/domains/attacks/src/bin/attack-NAME.rs` |
//! | test | a function `gN_attack_NAME` (with `_` for `-`) in `tests/tests/system/` |
//! | row | one that begins with the name in code quotes, in `docs/src/attacks.md` |
//! | patch | `tests/defences/NAME.patch`, or several `NAME+VARIANT.patch` |

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::build::ATTACK;

const PROGRAMS: &str = "tests/domains/attacks/src/bin";
const TESTS: &str = "tests/tests/system";
const TABLE: &str = "docs/src/attacks.md";
const PATCHES: &str = "tests/defences";
/// Between an attack's name and what distinguishes one of its patches.
const VARIANT: char = '+';

/// A patch that takes a defence away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Name without extension: `NAME` or `NAME+VARIANT`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

impl Patch {
    /// The attack that the defence stops.
    #[must_use]
    pub fn attack(&self) -> &str {
        self.name.split(VARIANT).next().unwrap_or_default()
    }

    /// Applies it to the tree in `root`, or with `check` only says whether it would.
    ///
    /// # Errors
    ///
    /// It does not apply.
    pub fn apply(&self, root: &Path, check: bool) -> Result<()> {
        let mut command = Command::new("git");
        // A patch without context finds its place by the lines that it replaces, and so outlives
        // changes around them.
        command.args(["apply", "--unidiff-zero"]).args(check.then_some("--check"));
        command.arg(&self.path).current_dir(root);
        // The tree may be a copy inside of a repository, which is not meant.
        command.env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(root));
        let Output { status, stderr, .. } =
            command.stdin(Stdio::null()).output().context("can't run git")?;
        if !status.success() {
            let why = String::from_utf8_lossy(&stderr);
            bail!("{} does not apply:\n{}", self.path.display(), why.trim_end());
        }
        Ok(())
    }
}

/// All that is there, by the attacks' names.
#[derive(Clone, Debug, Default)]
pub struct Attacks {
    /// Names of the programs.
    pub programs: BTreeSet<String>,
    /// Tests of each attack.
    pub tests: BTreeMap<String, Vec<String>>,
    /// Attacks in the table of the book.
    pub rows: BTreeSet<String>,
    /// All patches, by name.
    pub patches: Vec<Patch>,
}

impl Attacks {
    /// Reads the tree in `root`.
    ///
    /// # Errors
    ///
    /// A folder or file is missing.
    pub fn load(root: &Path) -> Result<Self> {
        let mut this = Self::default();
        for path in files(&root.join(PROGRAMS), "rs")? {
            this.programs.extend(stem(&path).strip_prefix(ATTACK).map(str::to_owned));
        }
        for path in files(&root.join(TESTS), "rs")? {
            for test in read(&path)?.lines().filter_map(test_name) {
                // As in the name of a program, where no `_` occurs.
                let name = test.split_once("_attack_").map_or("", |(_, name)| name);
                this.tests.entry(name.replace('_', "-")).or_default().push(test.to_owned());
            }
        }
        for line in read(&root.join(TABLE))?.lines() {
            let cell = line.strip_prefix("| `").and_then(|rest| rest.split_once("` |"));
            this.rows.extend(cell.map(|(name, _)| name.to_owned()));
        }
        this.patches = patches(&root.join(PATCHES))?;
        Ok(this)
    }

    /// What is missing, one sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let patched: BTreeSet<&str> = self.patches.iter().map(Patch::attack).collect();
        let mut names: BTreeSet<&str> = patched.clone();
        names.extend(self.programs.iter().map(String::as_str));
        names.extend(self.tests.keys().map(String::as_str));
        names.extend(self.rows.iter().map(String::as_str));
        let mut problems = Vec::new();
        for name in names {
            let mut need = |there: bool, what: &str, place: &str| {
                if !there {
                    problems.push(format!("attack `{name}` has no {what} in {place}"));
                }
            };
            need(self.programs.contains(name), "program", PROGRAMS);
            need(self.tests.contains_key(name), "test", TESTS);
            need(self.rows.contains(name), "row", TABLE);
            need(patched.contains(name), "patch", PATCHES);
            if let Some([_, second, ..]) = self.tests.get(name).map(Vec::as_slice) {
                problems.push(format!("attack `{name}` has a second test {second}"));
            }
        }
        problems
    }

    /// The test of an attack.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn test(&self, attack: &str) -> Result<&str> {
        let tests = self.tests.get(attack);
        let test = tests.and_then(|tests| tests.first());
        test.map(String::as_str).ok_or_else(|| anyhow!("attack `{attack}` has no test in {TESTS}"))
    }
}

/// The patches of a folder, by name.
///
/// # Errors
///
/// The folder can't be read.
pub fn patches(dir: &Path) -> Result<Vec<Patch>> {
    let paths = files(dir, "patch")?;
    Ok(paths.into_iter().map(|path| Patch { name: stem(&path), path }).collect())
}

/// The name of an attack's test, if a line begins its function.
fn test_name(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches("pub ").strip_prefix("fn ")?;
    let (name, _) = rest.split_once('(')?;
    let (guarantee, _) = name.strip_prefix('g')?.split_once("_attack_")?;
    (!guarantee.is_empty() && guarantee.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

/// Files of a folder with an extension, in order.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_by_their_names() {
        assert_eq!(test_name("fn g1_attack_a_b(bench: &Bench)"), Some("g1_attack_a_b"));
        assert_eq!(test_name("pub fn g14_attack_x(b: &Bench)"), Some("g14_attack_x"));
        assert_eq!(test_name("fn g_attack_x(b: &Bench)"), None);
        assert_eq!(test_name("fn attack(b: &Bench)"), None);
        assert_eq!(test_name("    fn g1_attack_x(b: &Bench)"), None);
    }

    #[test]
    fn what_an_attack_lacks_is_said() {
        let mut all = Attacks::default();
        all.programs.insert("one".to_owned());
        all.tests.insert("one".to_owned(), vec!["g1_attack_one".to_owned()]);
        all.rows.insert("one".to_owned());
        let patch = |name: &str| Patch { name: name.to_owned(), path: PathBuf::new() };
        all.patches.push(patch("one+a"));
        all.patches.push(patch("one+b"));
        assert_eq!(all.problems(), Vec::<String>::new());
        all.patches.push(patch("two"));
        let missing = [("program", PROGRAMS), ("test", TESTS), ("row", TABLE)];
        let expected =
            missing.map(|(what, place)| format!("attack `two` has no {what} in {place}"));
        assert_eq!(all.problems(), expected);
    }
}
