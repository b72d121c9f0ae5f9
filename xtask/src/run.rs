//! `cargo xtask run`: a node for people and scripts to talk to.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::disk::Disk;
use crate::manifest::{self, Manifest};
use crate::qemu::{Accel, Iommu, NodeConfig, OnLine, RunningNode, Verdict, install};
use crate::say::say;
use crate::{build, size, workspace};

/// How long the node may take until its service answers.
const READY_PATIENCE: Duration = Duration::from_secs(120);

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Node manifest
    #[arg(long, value_name = "FILE", default_value_os_t = manifest::default_path())]
    pub manifest: PathBuf,
    /// Disk image, made if there is none [default: run/MANIFEST.img]
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Port on 127.0.0.1 for the node's HTTP; 0 = any free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub http: u16,
    /// Unix socket for nodectl [default: run/control.sock]
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Cores [default: what the manifest says, else 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub smp: Option<u16>,
    /// Memory of the node, such as 256MiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "512MiB")]
    pub memory: u64,
    /// tcg, kvm, or auto: KVM where nested SVM is there
    #[arg(long, value_name = "ACCEL", default_value = "auto")]
    pub accel: Accel,
    /// amd (AMD-Vi) or intel (VT-d)
    #[arg(long, value_name = "IOMMU", default_value = "amd")]
    pub iommu: Iommu,
    /// QEMU's CPU model
    #[arg(long, value_name = "MODEL", default_value = "EPYC")]
    pub cpu: String,
    /// For scripts: no log on the terminal, only in run/serial.log (or beside SOCKET)
    #[arg(long)]
    pub headless: bool,
    /// Write {"url", "control", "qemu_pid"} there once the service answers
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// Builds and runs a node until it ends or a signal comes.
///
/// # Errors
///
/// It can't be built or started, is not ready in time, or ends by itself other
/// than in order.
pub fn run(options: &Options) -> Result<()> {
    let dir = workspace::run_dir();
    let manifest = Manifest::load(&options.manifest)?;
    for warning in &manifest.warnings {
        eprintln!("warning: {}: {warning}", options.manifest.display());
    }
    let absolute =
        |path: &PathBuf| std::path::absolute(path).context("can't tell the folder we are in");
    let defaults = NodeConfig::new(&options.manifest, &dir);
    let disk = match &options.disk {
        Some(disk) => absolute(disk)?,
        None => dir.join(format!("{}.img", manifest.stem())),
    };
    // Two nodes at a time differ in their control sockets, and so do their logs.
    let (control_socket, serial_log, qemu_log) = match &options.control {
        Some(control) => {
            let control = absolute(control)?;
            let logs = (control.with_extension("serial.log"), control.with_extension("qemu.log"));
            (control, logs.0, logs.1)
        }
        None => (
            defaults.control_socket.clone(),
            defaults.serial_log.clone(),
            defaults.qemu_log.clone(),
        ),
    };
    let config = NodeConfig {
        disk,
        control_socket,
        serial_log,
        qemu_log,
        http_port: options.http,
        smp: options.smp,
        cpu: options.cpu.clone(),
        memory: options.memory,
        accel: options.accel,
        iommu: options.iommu,
        on_line: (!options.headless).then(printer),
        ..defaults
    };

    // All that needs no build first: a build takes long, an error is wanted soon.
    install::ensure()?;
    config.check_host()?;
    let (_, made) = Disk::open(&config.disk, &manifest.volumes)?;
    if made {
        say(&format!("made the disk image {}", workspace::show(&config.disk)));
    }
    if let Some(file) = &options.ready_file
        && let Err(error) = std::fs::remove_file(file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("can't replace {}", file.display()));
    }
    let built = build::build(&manifest)?;

    let node = Arc::new(config.launch_built(&built)?);
    let signals = stop_on_signals(&node)?;
    let outcome = serve(options, &config, &node);
    if signals.load(Ordering::SeqCst) != 0 {
        // Whatever that made of the work at hand is no error.
        node.wait(None);
        say("stopped");
        return Ok(());
    }
    outcome
}

fn serve(options: &Options, config: &NodeConfig, node: &RunningNode) -> Result<()> {
    node.wait_ready(READY_PATIENCE)?;
    if let Some(file) = &options.ready_file {
        let ready = json!({
            "url": node.url(),
            "control": node.control(),
            "qemu_pid": node.pid(),
        });
        build::write_atomically(file, format!("{ready}\n").as_bytes())?;
    }
    say(&ready_text(options, config, node));
    match node.wait(None) {
        Some(Verdict::Orderly) => {
            say("the node shut down");
            Ok(())
        }
        Some(verdict) => bail!("{verdict}; its log is in {}", workspace::show(node.log_path())),
        None => bail!("can't wait for QEMU"),
    }
}

/// The URL, and what to do with it.
fn ready_text(options: &Options, config: &NodeConfig, node: &RunningNode) -> String {
    let url = node.url();
    if options.headless {
        return format!("ready at {url}");
    }
    let mut nodectl = "cargo run --quiet --package nodectl --".to_owned();
    if options.control.is_some() {
        nodectl += &format!(" --control {}", workspace::show(node.control()));
    }
    format!(
        "\nThe node serves {url}. In another terminal:\n\
         \n    curl -T README.md {url}/readme      store a file\
         \n    curl {url}/readme                   read it back\
         \n    {nodectl} list\
         \n    {nodectl} crash blk --how panic\
         \n\nCtrl-C stops it; what was stored stays in {}.\n",
        workspace::show(&config.disk)
    )
}

/// Stops the node at the first signal, kills it at the next. The count of
/// signals tells the main thread.
fn stop_on_signals(node: &Arc<RunningNode>) -> Result<Arc<AtomicU32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("can't wait for signals")?;
    let count = Arc::new(AtomicU32::new(0));
    let (seen, node) = (count.clone(), node.clone());
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let node = node.clone();
            match seen.fetch_add(1, Ordering::SeqCst) {
                0 => drop(std::thread::spawn(move || node.stop())),
                _ => drop(std::thread::spawn(move || node.kill())),
            }
        }
    });
    Ok(count)
}

/// Prints the node's lines, each domain's tag in a colour of its own.
fn printer() -> OnLine {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let palette = Mutex::new(Vec::<String>::new());
    Arc::new(move |line| {
        if colour {
            let mut tags = palette.lock().unwrap_or_else(PoisonError::into_inner);
            say(&coloured(line, &mut tags));
        } else {
            say(line);
        }
    })
}

/// `[tag] text` with a colour by the order in which tags first came.
fn coloured(line: &str, tags: &mut Vec<String>) -> String {
    const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
    let Some((tag, text)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return line.to_owned();
    };
    let place = tags.iter().position(|known| known == tag).unwrap_or_else(|| {
        tags.push(tag.to_owned());
        tags.len() - 1
    });
    let colour = COLOURS.get(place % COLOURS.len()).unwrap_or(&0);
    format!("\x1b[{colour}m[{tag}]\x1b[0m{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_colour() {
        let mut tags = Vec::new();
        let mut paint = |line| coloured(line, &mut tags);
        assert_eq!(paint("[hv] up"), "\x1b[36m[hv]\x1b[0m up");
        assert_eq!(paint("[kv] up"), "\x1b[33m[kv]\x1b[0m up");
        assert_eq!(paint("[hv] down"), "\x1b[36m[hv]\x1b[0m down");
        assert_eq!(paint("plain"), "plain");
    }
}
