//! A node in QEMU: how to start one, talk to it and judge its end.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use xtask::qemu::{NodeConfig, Verdict};
//!
//! let node = NodeConfig::new("nodes/demo.toml", "run/example").launch()?;
//! node.wait_ready(Duration::from_secs(60))?;
//! println!("{} {}", node.url(), node.control().display());
//! assert_eq!(node.stop(), Verdict::Stopped);
//! # Ok(())
//! # }
//! ```

mod accel;
mod command;
mod devices;
mod explain;
pub mod install;
mod log;
mod node;
mod process;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

pub use accel::Accel;
pub use command::Iommu;
pub(crate) use command::with_path;
pub use devices::PEER_MAC;
pub(crate) use devices::{Place, plugged, port, under_test, with_peer};
pub use log::Log;
pub use node::{RunningNode, Verdict};

use crate::build::{self, Built};
use crate::disk::Disk;
use crate::manifest::Manifest;
use crate::size::{self, MIB};

/// Called with each line of the node's log, from a thread of its own.
pub type OnLine = Arc<dyn Fn(&str) + Send + Sync>;

/// Memory that the hypervisor needs beside the domains and the bundle: its
/// own image, tables, and what firmware keeps.
const HYPERVISOR_MEMORY: u64 = 32 * MIB;
/// How long QEMU may take until the hypervisor's first output; past it the
/// caller finds out by itself what is wrong.
const FIRST_OUTPUT: Duration = Duration::from_secs(10);
/// How often a free port is looked for, in case another process is quicker.
const PORT_ATTEMPTS: u32 = 5;
/// Longest path of a Unix socket, without the NUL.
const SOCKET_PATH_MAX: usize = 107;

/// How to start a node.
#[derive(Clone)]
pub struct NodeConfig {
    /// The node manifest.
    pub manifest: PathBuf,
    /// The disk image; made if it is missing.
    pub disk: PathBuf,
    /// Port on 127.0.0.1 that leads to port 80 of the node; 0 = any free one.
    pub http_port: u16,
    /// Unix socket that leads to the control UART.
    pub control_socket: PathBuf,
    /// Cores; `None` = as many as the manifest names, else 2.
    pub smp: Option<u16>,
    /// QEMU's CPU model.
    pub cpu: String,
    /// Memory of the machine, bytes.
    pub memory: u64,
    /// A file that is the machine's memory, made if it is missing: what the host writes
    /// there is in the machine at once. `None` = memory that only QEMU has.
    pub ram: Option<PathBuf>,
    /// Who executes the machine's instructions.
    pub accel: Accel,
    /// What stands between devices and memory.
    pub iommu: Iommu,
    /// Count instructions: one is one nanosecond. Repeatable, and slow.
    pub icount: bool,
    /// Where the node's log goes, as it comes.
    pub serial_log: PathBuf,
    /// Where QEMU's own messages go.
    pub qemu_log: PathBuf,
    /// Called with each line of the node's log.
    pub on_line: Option<OnLine>,
    /// Arguments that put disk and NIC into the machine; `None` = one virtio
    /// disk with the image, one virtio NIC with the user network.
    pub devices: Option<Vec<OsString>>,
    /// The disk sits behind a root port, with these further properties of QEMU's.
    /// Not under AMD-Vi, see [`Iommu::Amd`].
    pub disk_behind_port: Option<String>,
    /// Further arguments for QEMU.
    pub extra_args: Vec<OsString>,
}

impl NodeConfig {
    /// A node with its disk, socket and logs in `dir` and any free HTTP port.
    pub fn new(manifest: impl Into<PathBuf>, dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref();
        Self {
            manifest: manifest.into(),
            disk: dir.join("disk.img"),
            http_port: 0,
            control_socket: dir.join("control.sock"),
            smp: None,
            cpu: "EPYC".to_owned(),
            memory: 512 * MIB,
            ram: None,
            accel: Accel::Tcg,
            iommu: Iommu::Amd,
            icount: false,
            serial_log: dir.join("serial.log"),
            qemu_log: dir.join("qemu.log"),
            on_line: None,
            devices: None,
            disk_behind_port: None,
            extra_args: Vec::new(),
        }
    }

    /// Checks what can be checked before the build, which takes its time.
    ///
    /// # Errors
    ///
    /// The port is taken, the socket's path too long or in use.
    pub fn check_host(&self) -> Result<()> {
        if self.http_port != 0 {
            TcpListener::bind((Ipv4Addr::LOCALHOST, self.http_port))
                .map_err(|why| anyhow!("{}", explain::port(self.http_port, &why.to_string())))?;
        }
        let socket = &self.control_socket;
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "the control socket's path {} is longer than {SOCKET_PATH_MAX} bytes; choose another with --control",
                socket.display()
            );
        }
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            bail!(
                "the control socket {} belongs to a running node; stop that or choose another with --control",
                socket.display()
            );
        }
        Ok(())
    }

    /// Builds the node, makes its disk if there is none, and starts it.
    ///
    /// # Errors
    ///
    /// One line that names the cause; if the manifest is wrong, a
    /// [`crate::manifest::ManifestError`].
    pub fn launch(&self) -> Result<RunningNode> {
        let built = build::build(&Manifest::load(&self.manifest)?)?;
        self.launch_built(&built)
    }

    /// Starts a node that is built already.
    ///
    /// # Errors
    ///
    /// As [`NodeConfig::launch`].
    pub fn launch_built(&self, built: &Built) -> Result<RunningNode> {
        let qemu = install::find()?;
        self.check_host()?;
        let cores = self.cores(&built.manifest)?;
        self.check_memory(built)?;
        for file in [&self.serial_log, &self.qemu_log, &self.control_socket] {
            if let Some(dir) = file.parent() {
                std::fs::create_dir_all(dir)
                    .with_context(|| format!("can't create {}", dir.display()))?;
            }
        }
        let (disk, _) = Disk::open(&self.disk, &built.manifest.volumes)?;
        let disk = Arc::new(disk);
        for attempt in 1.. {
            let port = match self.http_port {
                0 => free_port()?,
                port => port,
            };
            let command = command::command(&qemu, self, built, cores, port)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let node = RunningNode::start(command, self, address, disk.clone())?;
            node.log().wait_started(FIRST_OUTPUT);
            let Some(messages) = node.failed_to_start() else {
                return Ok(node);
            };
            let lost_port = self.http_port == 0 && explain::is_port(&messages);
            if !lost_port || attempt == PORT_ATTEMPTS {
                bail!("{}", explain::start(&messages, self, port));
            }
        }
        bail!("QEMU did not start")
    }

    fn cores(&self, manifest: &Manifest) -> Result<u16> {
        let cores = self.smp.unwrap_or(if manifest.cores == 0 { 2 } else { manifest.cores });
        if cores == 0 {
            bail!("a node needs at least one core; --smp is 0");
        }
        if manifest.cores > cores {
            bail!(
                "{} wants {} cores, and --smp gives {cores}",
                manifest.path().display(),
                manifest.cores
            );
        }
        if let Some(domain) =
            manifest.domains.iter().find(|d| d.spec.core.is_some_and(|core| core >= cores))
        {
            bail!(
                "[domain.{}] is bound to core {}, and the machine has {cores}",
                domain.spec.name,
                domain.spec.core.unwrap_or_default()
            );
        }
        Ok(cores)
    }

    fn check_memory(&self, built: &Built) -> Result<()> {
        let bundle = built.bundle.metadata().map_or(0, |file| file.len());
        let needed =
            (built.manifest.domain_memory() + bundle + HYPERVISOR_MEMORY).next_multiple_of(MIB);
        if self.memory < needed {
            bail!(
                "too little memory: {} needs at least {}, and --memory gives {}",
                built.manifest.path().display(),
                size::show(needed),
                size::show(self.memory)
            );
        }
        Ok(())
    }
}

/// A port that nobody listens on right now.
fn free_port() -> Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no free TCP port")?;
    Ok(probe.local_addr()?.port())
}
