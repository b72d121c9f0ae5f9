//! Builds the hypervisor and a manifest's images and bundles them.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::elf::{self, Flat};
use crate::manifest::{Domain, Manifest};
use crate::workspace::{self, Metadata, Package};
use crate::{bundle, size};

/// The cargo profile of bare-metal code.
pub const PROFILE: &str = "bare";
/// Flags for all of it: backtraces of dead domains follow frame pointers.
pub const RUSTFLAGS: &str = "-C force-frame-pointers=yes";
/// What the hypervisor and images of driver domains must stay below, bytes to load.
pub const IMAGE_BUDGET: u64 = 512 * size::KIB;

/// A node that is ready to boot.
#[derive(Clone, Debug)]
pub struct Built {
    /// What it was made from.
    pub manifest: Manifest,
    /// The hypervisor, an ELF file.
    pub hv: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// The manifest's images, in the order of [`Manifest::image_names`].
    pub images: Vec<BuiltImage>,
}

/// An image.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// Name in the manifest.
    pub name: String,
    /// The ELF file with symbols.
    pub elf: PathBuf,
    /// What goes into the bundle.
    pub flat: Flat,
}

/// Builds what `manifest` needs.
///
/// Cargo shows its progress on stderr. Within one process each package is
/// built once, so tests that boot many nodes do not run cargo for each.
///
/// # Errors
///
/// A package is missing or does not build, an image breaks a rule or is too
/// large for its domain.
pub fn build(manifest: &Manifest) -> Result<Built> {
    let metadata = Metadata::load(None)?;
    let mut programs = Vec::new();
    for domain in &manifest.domains {
        let Program { package, bin } = program_of(&domain.image, &metadata);
        if metadata.member(&package).is_none_or(|found| !found.bins().any(|name| name == bin)) {
            let known = known_images(&metadata);
            let why = format!(
                "there is no image `{}` (no program `{bin}` in a package `{package}`); there is {}",
                domain.image,
                known.join(", ")
            );
            return Err(manifest.error(&domain.image_at, why).into());
        }
    }
    for name in manifest.image_names() {
        programs.push((name, program_of(name, &metadata)));
    }

    let out = workspace::node_dir();
    std::fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    let hv = out.join("hv");
    compile(&Program::alone("hv"), None, &hv)?;
    let mut images = Vec::new();
    for (name, program) in programs {
        let elf = out.join(format!("{name}.elf"));
        compile(&program, None, &elf)?;
        let file = std::fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
        let flat = elf::flatten(&file).map_err(|why| anyhow!("image `{name}`: {why}"))?;
        let driver = |domain: &Domain| domain.image == name && !domain.spec.devices.is_empty();
        if flat.file_len() >= IMAGE_BUDGET && manifest.domains.iter().any(driver) {
            bail!(
                "image `{name}` is too large: {} KiB, and a driver domain's must be below {} KiB",
                flat.file_len().div_ceil(size::KIB),
                IMAGE_BUDGET / size::KIB
            );
        }
        images.push(BuiltImage { name: name.to_owned(), elf, flat });
    }
    let flats: Vec<Flat> = images.iter().map(|image| image.flat.clone()).collect();
    let bytes = bundle::make(manifest, &flats)?;
    let bundle = out.join(format!("{}.bundle", manifest.stem()));
    write_atomically(&bundle, &bytes)?;
    Ok(Built { manifest: manifest.clone(), hv, bundle, images })
}

/// The same, built from another tree into a target directory of its own.
///
/// # Errors
///
/// As of [`build`]; cargo's messages are on stderr.
pub fn build_elsewhere(manifest: &Path, tree: &Path, target: &Path) -> Result<Built> {
    // Where things are is settled once in a process.
    let mut command = Command::new(std::env::current_exe().context("this program")?);
    command.arg("build").arg("--manifest").arg(tree.join(manifest)).current_dir(tree);
    command.env(workspace::TREE, tree).env("CARGO_TARGET_DIR", target);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !status.context("can't build")?.success() {
        bail!("{} does not build in {}", manifest.display(), tree.display());
    }
    let manifest = Manifest::load(&tree.join(manifest))?;
    let out = target.join("node");
    let images = manifest.image_names().into_iter().map(|name| {
        let elf = out.join(format!("{name}.elf"));
        let file = std::fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
        let flat = elf::flatten(&file).map_err(|why| anyhow!("image `{name}`: {why}"))?;
        Ok(BuiltImage { name: name.to_owned(), elf, flat })
    });
    let images = images.collect::<Result<_>>()?;
    let bundle = out.join(format!("{}.bundle", manifest.stem()));
    Ok(Built { hv: out.join("hv"), bundle, images, manifest })
}

/// Builds a hypervisor with its feature `selftest`, and says where it is.
///
/// # Errors
///
/// It does not build.
pub fn failing_hypervisor() -> Result<PathBuf> {
    let hv = workspace::node_dir().join("hv-selftest");
    compile(&Program::alone("hv"), Some("selftest"), &hv)?;
    Ok(hv)
}

/// A program of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// The package that has it.
    pub package: String,
    /// Its name.
    pub bin: String,
}

impl Program {
    /// The program of a package that has one, and it is named as the package.
    fn alone(package: impl Into<String>) -> Self {
        let package = package.into();
        Self { bin: package.clone(), package }
    }
}

/// The package of all attack programs.
pub const ATTACKS: &str = "attacks";
/// What the names of attack programs, and of their images, begin with.
pub const ATTACK: &str = "attack-";

/// The program that an image is made of: that of the package `driver-…` if there is such a
/// driver, else of `guest-…`.
#[must_use]
pub fn program_of(image: &str, metadata: &Metadata) -> Program {
    let driver = format!("driver-{image}");
    match image {
        _ if metadata.member(&driver).is_some() => Program::alone(driver),
        "supervisor" => Program::alone(image),
        attack if attack.starts_with(ATTACK) => {
            Program { package: ATTACKS.to_owned(), bin: attack.to_owned() }
        }
        guest => Program::alone(format!("guest-{guest}")),
    }
}

/// Names of all images that could be built.
fn known_images(metadata: &Metadata) -> Vec<String> {
    let bare = metadata.bare_packages().into_iter().filter_map(|name| metadata.member(name));
    let image = |program: &str| match program {
        "supervisor" => Some(program.to_owned()),
        attack if attack.starts_with(ATTACK) => Some(program.to_owned()),
        _ => ["driver-", "guest-"]
            .iter()
            .find_map(|prefix| program.strip_prefix(prefix))
            .map(str::to_owned),
    };
    bare.flat_map(Package::bins).filter_map(image).collect()
}

/// A line of cargo's messages, as far as they matter here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
}

/// Builds one bare-metal program, perhaps with a feature of its own, and copies it.
///
/// Each is an invocation of its own: its dependencies then have exactly the
/// features its package asks for, whatever else the manifest names.
fn compile(program: &Program, feature: Option<&str>, to: &Path) -> Result<()> {
    static DONE: Mutex<Option<HashMap<Program, PathBuf>>> = Mutex::new(None);
    // Holding the lock also keeps two tests from waiting for cargo's lock, and a
    // program with a feature from being taken for the one without.
    let mut done = DONE.lock().map_err(|_| anyhow!("an earlier build panicked"))?;
    let done = done.get_or_insert_default();
    if let (Some(built), None) = (done.get(program), feature) {
        return publish(built, to);
    }
    let Program { package, bin } = program;
    let mut command = workspace::cargo();
    command
        .args(["build", "--profile", PROFILE, "--package", package, "--bin", bin])
        .args(feature.map(|feature| format!("--features={feature}")))
        .arg("--target-dir")
        .arg(workspace::bare_target_dir())
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let built = executable(command, &format!("`{bin}`"))?;
    publish(&built, to)?;
    match feature {
        None => done.insert(program.clone(), built),
        // It lies where the one without was.
        Some(_) => done.remove(program),
    };
    Ok(())
}

/// Runs a cargo command that builds one program and says where that is.
///
/// # Errors
///
/// `what` does not build.
pub fn executable(mut command: Command, what: &str) -> Result<PathBuf> {
    command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = command.output().context("can't run cargo")?;
    if !output.status.success() {
        bail!("{what} does not build; cargo's messages above say why");
    }
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .find_map(|message| message.executable)
        .ok_or_else(|| anyhow!("cargo built no program of {what}"))
}

/// Copies a built file to a stable place unless it is there already.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    write_atomically(to, &bytes)
}

/// Writes a file so that a reader sees the old or the new one, and never a half.
///
/// # Errors
///
/// It can't be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("can't write {}", path.display()))
}
