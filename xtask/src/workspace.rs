//! Where things are, and which packages there are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Names another tree that nodes are to be built from, see [`root`].
pub const TREE: &str = "BULKHEAD_TREE";

/// The root of the checkout that nodes are built from: that of this program,
/// or another if [`TREE`] is set.
#[must_use]
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::env::var_os(TREE).map_or(here.parent().unwrap_or(here).to_owned(), PathBuf::from)
    })
}

/// Cargo's target directory for host code.
#[must_use]
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Cargo's target directory for bare-metal code.
///
/// Bare and host crates share one target triple and differ in features and
/// flags; a directory of their own keeps them from rebuilding each other.
#[must_use]
pub fn bare_target_dir() -> PathBuf {
    target_dir().join("bare")
}

/// Where built nodes go: bundles and the images with their symbols.
#[must_use]
pub fn node_dir() -> PathBuf {
    target_dir().join("node")
}

/// Where running nodes leave their disks, sockets and logs.
#[must_use]
pub fn run_dir() -> PathBuf {
    root().join("run")
}

/// `path` as people like to read it: relative to where they stand, if it is below.
#[must_use]
pub fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).to_owned()
}

/// [`relative`] as text.
#[must_use]
pub fn show(path: &Path) -> String {
    relative(path).display().to_string()
}

/// Cargo, in the root of the workspace.
#[must_use]
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// What `cargo metadata` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    /// All packages; with dependencies if they were asked for.
    pub packages: Vec<Package>,
    /// Ids of the packages of this workspace.
    pub workspace_members: Vec<String>,
    /// Ids of those that plain `cargo` commands are about: the host crates.
    pub workspace_default_members: Vec<String>,
}

/// A package.
#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    /// Unique.
    pub id: String,
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SPDX expression.
    pub license: Option<String>,
    /// Registry or repository; none for packages of the workspace.
    pub source: Option<String>,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// What can be built from it.
    pub targets: Vec<Target>,
}

/// Something that cargo builds.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Name.
    pub name: String,
    /// `bin`, `lib`, `test` and so on.
    pub kind: Vec<String>,
}

impl Package {
    /// Names of its programs.
    pub fn bins(&self) -> impl Iterator<Item = &str> {
        let is_bin = |target: &&Target| target.kind.iter().any(|kind| kind == "bin");
        self.targets.iter().filter(is_bin).map(|target| target.name.as_str())
    }
}

impl Metadata {
    /// Asks cargo about the workspace, and if a platform is given about all dependencies for it.
    ///
    /// # Errors
    ///
    /// Cargo can't be run or fails.
    pub fn load(dependencies_for: Option<&str>) -> Result<Self> {
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1", "--quiet"]);
        match dependencies_for {
            Some(platform) => command.args(["--filter-platform", platform]),
            None => command.arg("--no-deps"),
        };
        let output = command.stderr(Stdio::inherit()).output().context("can't run cargo")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed");
        }
        serde_json::from_slice(&output.stdout).context("can't read what `cargo metadata` says")
    }

    /// Names of the host crates.
    #[must_use]
    pub fn host_packages(&self) -> Vec<&str> {
        self.members(|id| self.workspace_default_members.contains(id))
    }

    /// Names of the bare-metal crates.
    #[must_use]
    pub fn bare_packages(&self) -> Vec<&str> {
        self.members(|id| {
            self.workspace_members.contains(id) && !self.workspace_default_members.contains(id)
        })
    }

    fn members(&self, wanted: impl Fn(&String) -> bool) -> Vec<&str> {
        let members = self.packages.iter().filter(|package| wanted(&package.id));
        members.map(|package| package.name.as_str()).collect()
    }

    /// The package of the workspace with this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Package> {
        self.packages
            .iter()
            .find(|package| package.name == name && self.workspace_members.contains(&package.id))
    }
}
