//! Finding QEMU, and installing it where that is ours to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// The program.
const PROGRAM: &str = "qemu-system-x86_64";

/// A distribution's way to install QEMU for x86.
struct Manager {
    /// Its program.
    program: &'static str,
    /// Commands to run, one after the other.
    commands: &'static [&'static str],
}

const MANAGERS: &[Manager] = &[
    Manager {
        program: "apt-get",
        commands: &[
            "apt-get update",
            "apt-get install --yes --no-install-recommends qemu-system-x86",
        ],
    },
    Manager { program: "dnf", commands: &["dnf install --assumeyes qemu-system-x86-core"] },
    Manager { program: "pacman", commands: &["pacman --sync --noconfirm qemu-system-x86"] },
    Manager { program: "zypper", commands: &["zypper --non-interactive install qemu-x86"] },
    Manager { program: "apk", commands: &["apk add qemu-system-x86_64"] },
];

/// Where QEMU is.
///
/// # Errors
///
/// It is missing.
pub fn find() -> Result<PathBuf> {
    on_path(PROGRAM).ok_or_else(|| anyhow!("QEMU is missing: there is no {PROGRAM}"))
}

/// Installs QEMU if it is missing and we may (as root, or in CI), and else says
/// what to type.
///
/// # Errors
///
/// It is missing and was not installed.
pub fn ensure() -> Result<()> {
    if on_path(PROGRAM).is_some() {
        return Ok(());
    }
    let Some(manager) = MANAGERS.iter().find(|manager| on_path(manager.program).is_some()) else {
        bail!("QEMU is missing: install {PROGRAM} by your distribution's package manager");
    };
    let root = rustix::process::geteuid().is_root();
    let sudo = on_path("sudo").is_some();
    let may = root || (in_ci() && sudo);
    if !may {
        bail!("QEMU is missing; type: {}", advice(manager, true));
    }
    eprintln!("QEMU is missing; installing it: {}", advice(manager, !root));
    for command in manager.commands {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        let mut command_line = if root {
            Command::new(program)
        } else {
            let mut sudo = Command::new("sudo");
            sudo.args(["--non-interactive", program]);
            sudo
        };
        let status = command_line
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            // Scripts read our output, not the package manager's.
            .stdout(std::io::stderr())
            .status()
            .with_context(|| format!("can't run `{command}`"))?;
        // An update that fails in part may do all the same; the last command decides.
        if !status.success() && Some(command) == manager.commands.last() {
            bail!("QEMU is missing, and `{command}` failed");
        }
    }
    find().map(|_| ())
}

/// We run in continuous integration.
#[must_use]
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

fn advice(manager: &Manager, sudo: bool) -> String {
    let prefix = if sudo { "sudo " } else { "" };
    let commands: Vec<String> =
        manager.commands.iter().map(|command| format!("{prefix}{command}")).collect();
    commands.join(" && ")
}

/// Where `program` is on the path.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
