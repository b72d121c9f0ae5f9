//! QEMU's command line.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::anyhow;

use super::{NodeConfig, devices};
use crate::build::Built;
use crate::manifest::Plugged;
use crate::size::KIB;

/// What stands between devices and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// AMD-Vi. QEMU 7.2's remaps interrupts, but never writes an event log.
    Amd,
    /// VT-d. QEMU 7.2's reports faults, but lets interrupt messages of the old format through.
    Intel,
}

impl FromStr for Iommu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "amd" => Ok(Self::Amd),
            "intel" => Ok(Self::Intel),
            other => Err(format!("`{other}` is not `amd` or `intel`")),
        }
    }
}

impl Iommu {
    /// QEMU's device, which must come before those that it confines.
    fn device(self) -> &'static str {
        match self {
            Self::Amd => "amd-iommu,intremap=on",
            Self::Intel => "intel-iommu,intremap=on,aw-bits=48",
        }
    }
}

/// The command for a node.
///
/// The disk and the NIC sit on the root bus: QEMU 7.2's AMD IOMMU takes a device's bus number
/// before the firmware has given it one, and would mistake both of two devices behind root ports
/// for 00:00.0. (So they have no function-level reset.) Without `iommu_platform` a virtio device
/// would bypass the IOMMU silently.
pub fn command(
    qemu: &Path,
    config: &NodeConfig,
    built: &Built,
    cores: u16,
    port: u16,
) -> anyhow::Result<Command> {
    let kvm = config.accel.use_kvm().map_err(|why| anyhow!("KVM can't be used: {why}"))?;
    let accel = match (kvm, config.icount) {
        (true, true) => return Err(anyhow!("instructions can be counted with --accel tcg only")),
        (true, false) => "kvm,kernel-irqchip=split",
        (false, true) => "tcg,thread=single",
        (false, false) => "tcg,thread=multi",
    };
    let machine = "q35,smbus=off,sata=off,vmport=off";
    let mut command = Command::new(qemu);
    match &config.ram {
        None => command.args(["-M", machine]),
        Some(path) => {
            let backend = format!(
                "memory-backend-file,id=ram,size={}K,share=on,mem-path=",
                config.memory / KIB
            );
            command
                .arg("-object")
                .arg(with_path(&backend, path))
                .args(["-M", &format!("{machine},memory-backend=ram")])
        }
    };
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-vga", "none"])
        .args(["-cpu", &config.cpu, "-accel", accel, "-smp", &cores.to_string()])
        .args(["-m", &format!("{}K", config.memory / KIB)])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-kernel")
        .arg(&built.hv)
        .arg("-initrd")
        .arg(with_path("", &built.bundle))
        .args(["-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"])
        .arg("-chardev")
        .arg(with_path("socket,id=com2,server=on,wait=off,path=", &config.control_socket))
        .args(["-serial", "chardev:com2"])
        .args(["-device", config.iommu.device()])
        .args(
            config
                .devices
                .clone()
                .unwrap_or_else(|| ordinary(config, &built.manifest.plugged, port)),
        );
    // A machine that resets itself says nothing on any console; this keeps its last state.
    command
        .args(["-d", "cpu_reset,guest_errors", "-D"])
        .arg(config.qemu_log.with_extension("machine.log"));
    if config.icount {
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    command
        .args(&config.extra_args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// The disk with its image, and the NIC with the user network.
fn ordinary(config: &NodeConfig, plugged: &Plugged, port: u16) -> Vec<OsString> {
    let (mut all, place) = match &config.disk_behind_port {
        Some(more) => (
            vec!["-device".into(), "pcie-root-port,id=rp,chassis=1,addr=6".into()],
            format!("bus=rp,id=plugged{more}"),
        ),
        None => (Vec::new(), "addr=4".to_owned()),
    };
    all.extend([
        "-drive".into(),
        with_path(
            "if=none,id=disk,format=raw,cache=writeback,discard=unmap,file.locking=on,file.filename=",
            &config.disk,
        ),
        "-device".into(),
        devices::disk(plugged, &place, "").into(),
        "-netdev".into(),
        format!("user,id=wire,hostfwd=tcp:127.0.0.1:{port}-:80").into(),
        "-device".into(),
        devices::nic(plugged, "wire,addr=5", "").into(),
    ]);
    all
}

/// An option with a path in it, where QEMU wants commas doubled.
pub fn with_path(before: &str, path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = before.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}
