//! Licences, bans and sources of all dependencies, by `deny.toml`.
//!
//! `cargo-deny` does this where it is installed. Building it takes many
//! minutes, so without it the parts of `deny.toml` that this repository uses
//! are checked here, by the same SPDX library.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::workspace::{self, Metadata, Package};

/// Where crates may come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// What we build for; dependencies for other systems do not count.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What of `deny.toml` is checked here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    package: String,
    allow: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: String,
    deny: Vec<Ban>,
    skip: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    package: String,
}

/// Checks the dependencies.
///
/// # Errors
///
/// Something is not allowed.
pub fn deny() -> Result<()> {
    let mut probe = workspace::cargo();
    probe.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        let status =
            workspace::cargo().args(["deny", "check", "licenses", "bans", "sources"]).status()?;
        if !status.success() {
            bail!("cargo-deny refuses");
        }
        return Ok(());
    }
    eprintln!("cargo-deny is not installed; checking licences, bans and sources without it");
    let path = workspace::root().join("deny.toml");
    let config = load(&path)?;
    let problems = judge(&config, &Metadata::load(Some(PLATFORM))?.packages);
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    if !problems.is_empty() {
        bail!("{} dependencies are not allowed", problems.len());
    }
    Ok(())
}

fn load(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).context("can't read deny.toml")?;
    toml::from_str(&text).context("deny.toml is wrong")
}

/// All that is wrong, one line each.
fn judge(config: &Config, packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let Package { name, version, .. } = package;
        versions.entry(name).or_default().insert(version);
        if let Err(why) = licence(config, package) {
            problems.push(format!("{name} {version}: {why}"));
        }
        if config.bans.deny.iter().any(|ban| ban.package == *name) {
            problems.push(format!("{name} {version}: banned"));
        }
        if package.source.as_deref().is_some_and(|source| source != CRATES_IO) {
            problems.push(format!("{name} {version}: not from crates.io"));
        }
    }
    for (name, versions) in versions {
        let skipped = config.bans.skip.iter().any(|skip| skip.package == name);
        if versions.len() > 1 && !skipped {
            let all: Vec<&str> = versions.into_iter().collect();
            let line = format!("{name}: several versions, {}", all.join(" and "));
            match config.bans.multiple_versions.as_str() {
                "deny" => problems.push(line),
                "allow" => {}
                _ => eprintln!("warning: {line}"),
            }
        }
    }
    problems
}

fn licence(config: &Config, package: &Package) -> Result<(), String> {
    let text = package.license.as_deref().ok_or("no licence is given")?;
    // Old crates write "MIT/Apache-2.0".
    let expression = Expression::parse_mode(text, ParseMode::LAX)
        .map_err(|why| format!("the licence `{text}` can't be read: {}", why.reason))?;
    let exceptions = config.licenses.exceptions.iter();
    let exceptions = exceptions.filter(|exception| exception.package == package.name);
    let allowed: Vec<&String> =
        config.licenses.allow.iter().chain(exceptions.flat_map(|e| &e.allow)).collect();
    let fits = expression.evaluate(|wanted| {
        let wanted = wanted.to_string();
        allowed.iter().any(|allowed| **allowed == wanted)
    });
    if fits { Ok(()) } else { Err(format!("the licence `{text}` is not allowed")) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn package(name: &str, license: Option<&str>, source: Option<&str>) -> Package {
        Package {
            manifest_path: PathBuf::new(),
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
            targets: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let config: Config = toml::from_str(
            "[licenses]\nallow = [\"MIT\", \"Apache-2.0 WITH LLVM-exception\"]\n\
             exceptions = [{ crate = \"odd\", allow = [\"Zlib\"] }]\n\
             [bans]\nmultiple-versions = \"deny\"\ndeny = [{ crate = \"bad\" }]\n",
        )
        .unwrap();
        let io = Some(CRATES_IO);
        let mut twice = package("good", Some("MIT"), io);
        twice.version = "2.0.0".to_owned();
        let packages = [
            package("good", Some("MIT/GPL-2.0"), io),
            package("llvm", Some("Apache-2.0 WITH LLVM-exception"), io),
            package("odd", Some("Zlib AND MIT"), io),
            package("gpl", Some("GPL-3.0-only"), io),
            package("none", None, io),
            package("bad", Some("MIT"), io),
            package("git", Some("MIT"), Some("git+https://example.org/git")),
            twice,
        ];
        assert_eq!(
            judge(&config, &packages),
            [
                "gpl 1.0.0: the licence `GPL-3.0-only` is not allowed",
                "none 1.0.0: no licence is given",
                "bad 1.0.0: banned",
                "git 1.0.0: not from crates.io",
                "good: several versions, 1.0.0 and 2.0.0",
            ]
        );
    }

    #[test]
    fn our_own_deny_toml_is_read() {
        let config = load(&workspace::root().join("deny.toml")).unwrap();
        assert!(config.licenses.allow.iter().any(|licence| licence == "MIT"));
    }
}
