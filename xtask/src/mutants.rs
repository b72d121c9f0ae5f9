//! Mutants: what the models of [`crate::models`] must find.
//!
//! Each patch in `tests/mutants` breaks the handshake, or takes a fence or a
//! memory order away that a model says is needed. Its first line says what,
//! its second which test finds it: `Found by NAME`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};

use crate::attacks::{self, Patch};
use crate::models::{MODELS, Models};

const PATCHES: &str = "tests/mutants";
const FOUND_BY: &str = "Found by ";

/// A patch, and the test that fails with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// The patch.
    pub patch: Patch,
    /// The test's name.
    pub test: String,
    /// The test program that it is in.
    pub models: Models,
}

/// All mutants of the tree in `root`.
///
/// # Errors
///
/// A patch names no test, or one that is no model.
pub fn load(root: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for patch in attacks::patches(&root.join(PATCHES))? {
        let text = attacks::read(&patch.path)?;
        let test = text.lines().nth(1).and_then(|line| line.strip_prefix(FOUND_BY));
        let test = test.ok_or_else(|| anyhow!("{} names no test", patch.path.display()))?;
        let mut found = None;
        for models in MODELS {
            if attacks::read(&root.join(models.file))?.contains(&format!("\nfn {test}()")) {
                found = Some(models);
            }
        }
        let models = found
            .ok_or_else(|| anyhow!("{} names `{test}`, which is no model", patch.path.display()))?;
        mutants.push(Mutant { test: test.to_owned(), models, patch });
    }
    if mutants.is_empty() {
        bail!("{PATCHES} has no patch");
    }
    Ok(mutants)
}

impl Mutant {
    /// Runs the test in `tree`, which has the patch. Calls `line` with each
    /// line that it prints. Returns whether it passed; `None` if it did not run.
    ///
    /// # Errors
    ///
    /// cargo can't be run.
    pub fn run(&self, tree: &Path, target: &Path, line: impl Fn(&str)) -> Result<Option<bool>> {
        let mut command = self.models.command(tree, target);
        command.args(["--", "--exact", &self.test]).stdout(Stdio::piped());
        let mut child = command.spawn().context("can't run cargo")?;
        let output = child.stdout.take().context("cargo has no output")?;
        let begin = format!("test {} ... ", self.test);
        let (mut begun, mut passed) = (false, None);
        for text in BufReader::new(output).split(b'\n') {
            let text = text.context("can't read cargo's output")?;
            let text = String::from_utf8_lossy(&text);
            line(&text);
            begun |= text == "running 1 test";
            match text.strip_prefix(&begin) {
                Some("ok") => passed = Some(true),
                Some("FAILED") => passed = Some(false),
                _ => {}
            }
        }
        let status = child.wait().context("can't wait for cargo")?;
        // loom gives up over a deadlock in such a way that the program is aborted.
        let aborted = begun && !status.success();
        Ok(passed.or(aborted.then_some(false)))
    }
}
