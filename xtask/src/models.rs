//! The models: tests in which every interleaving is explored, with memory that
//! the explorer keeps in the place of the real one.
//!
//! A `--cfg` chooses that memory (`ring-proto/src/sync.rs`), so each model has a
//! build of its own.

use std::path::Path;
use std::process::Command;

use crate::workspace;

/// A test program with such models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Models {
    package: &'static str,
    /// Name of the test program, and of its target directory.
    pub test: &'static str,
    /// Where its tests are.
    pub file: &'static str,
    cfg: &'static str,
}

/// All of them.
pub const MODELS: [Models; 2] = [
    Models { package: "ring-proto", test: "loom", file: "ring-proto/tests/loom.rs", cfg: "loom" },
    Models {
        package: "ring-ends",
        test: "model",
        file: "ring-ends/tests/model/main.rs",
        cfg: "stepped",
    },
];

impl Models {
    /// `cargo test` of the tree in `root`, with builds below `target`.
    #[must_use]
    pub fn command(&self, root: &Path, target: &Path) -> Command {
        let mut command = workspace::cargo();
        command.args(["test", "--package", self.package, "--test", self.test, "--release"]);
        command.arg("--target-dir").arg(target.join(self.test)).current_dir(root);
        command.env("RUSTFLAGS", format!("--cfg {}", self.cfg));
        command.env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    }
}
