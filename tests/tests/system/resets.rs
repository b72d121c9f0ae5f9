//! The ladder of resets, and a device that does not come back. Under VT-d, behind
//! a root port: on the root bus QEMU's virtio devices have no function-level reset.

use std::{
    cell::OnceCell,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nodectl::{Client, control::How, names};
use system_tests::{
    attack::demo,
    bench::{Bench, RECOVERY},
    runner::wait_for,
};
use xtask::qemu::Iommu;

use crate::recovery::{PATIENCE, is_idle, under_load};

/// How long QEMU's monitor may take to answer.
const MONITOR: Duration = Duration::from_secs(60);

/// How blk began its last life, its state, and its deaths.
fn blk(client: &mut Client) -> Result<(String, String, u32)> {
    let blk = client.domain("blk")?.context("there is no blk")?;
    Ok((names::reset(blk.reset), names::domain_state(blk.state), blk.deaths))
}

/// A driver whose own reset never helps, with a disk that has `properties`: its
/// next life but one begins with the reset `rung`, and works.
fn is_reset_by(bench: &Bench, rung: &str, properties: &str) -> Result<()> {
    let spare = "device = \"disk0\"\nspare = true";
    let text = demo()?
        .replace("image = \"blk\"", "image = \"crasher\"\nargs = \"reset\"")
        .replace(spare, "device = \"disk0\"");
    ensure!(text.matches("crasher").count() == 1, "the demo node is another");
    let path = bench.dir().join("crasher.toml");
    std::fs::create_dir_all(bench.dir())?;
    std::fs::write(&path, text)?;
    bench.with_node(
        |config| {
            config.manifest = path;
            config.iommu = Iommu::Intel;
            config.disk_behind_port = Some(properties.to_owned());
        },
        |node| {
            under_load(node, 2, |workload, client| {
                let (.., before) = blk(client)?;
                let first = client.domain("blk")?.context("there is no blk")?.resets;
                for round in 1..=2 {
                    client.crash("blk", How::Panic, RECOVERY)?;
                    workload.wait_progress(2, PATIENCE)?;
                    let found = blk(client)?;
                    // The ordered death, and that of the driver which found its disk used.
                    let wanted = (rung.to_owned(), "running".to_owned(), before + 2 * round);
                    ensure!(found == wanted, "{found:?} instead of {wanted:?}");
                }
                let resets = client.domain("blk")?.context("there is no blk")?.resets;
                ensure!(resets == first + 2, "{resets} resets after {first}");
                Ok(())
            })
        },
    )
}

/// Rung 1: the function-level reset does what the driver's own does not.
pub fn g6_a_function_is_reset_where_the_driver_does_not_help(bench: &Bench) -> Result<()> {
    is_reset_by(bench, "function", "")
}

/// Rung 2, of a function that has no reset of its own.
pub fn g6_a_bus_is_reset_where_the_function_cannot_be(bench: &Bench) -> Result<()> {
    is_reset_by(bench, "bus", ",x-pcie-flr-init=off")
}

/// Has QEMU's monitor carry out a command; returns what it said.
fn monitor(socket: &Path, command: &str) -> Result<String> {
    const PROMPT: &[u8] = b"(qemu) ";
    let mut stream = UnixStream::connect(socket).context("QEMU's monitor")?;
    stream.set_read_timeout(Some(MONITOR))?;
    let mut said = Vec::new();
    for line in [Some(command), None] {
        said.clear();
        while !said.ends_with(PROMPT) {
            let mut byte = [0];
            ensure!(stream.read(&mut byte)? == 1, "QEMU's monitor hung up");
            said.extend(byte);
        }
        if let Some(line) = line {
            writeln!(stream, "{line}")?;
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The disk is pulled under load and plugged in again: its driver is held
/// meanwhile, nobody sees an error or burns CPU time, and a release is all it takes.
pub fn g6_a_disk_that_is_pulled_is_held_until_it_is_back(bench: &Bench) -> Result<()> {
    let socket = std::env::temp_dir().join(format!("bulkhead-hmp-{}.sock", std::process::id()));
    let image = OnceCell::new();
    bench.with_node(
        |config| {
            config.iommu = Iommu::Intel;
            config.disk_behind_port = Some(String::new());
            let place = format!("unix:{},server=on,wait=off", socket.display());
            config.extra_args = ["-monitor".into(), place.into()].into();
            let _ = image.set(config.disk.clone());
        },
        |node| {
            under_load(node, 2, |workload, client| {
                // What an operating system would do to have the slot of the root port
                // emptied: bus 0 of ACPI's hot-plug registers, slot 0. The machine stands
                // still meanwhile: before 8.2 a processor of QEMU's that is under way may go
                // by the memory map of before, and QEMU ends by SIGSEGV.
                for command in ["stop", "o /w 0xcd0 0", "o /w 0xcc8 1", "cont"] {
                    monitor(&socket, command)?;
                }
                wait_for("blk to be held", RECOVERY, || {
                    let (reset, state, _) = blk(client)?;
                    Ok((reset == "device gone" && state == "held").then_some(()))
                })?;
                is_idle(client)?;
                ensure!(client.release("blk", RECOVERY).is_err(), "it serves without a disk");
                let (.., deaths) = blk(client)?;
                let image = image.get().context("there is no image")?.display();
                for command in [
                    "stop".to_owned(),
                    format!("drive_add 0 if=none,id=again,format=raw,file={image}"),
                    "device_add virtio-blk-pci,drive=again,bus=rp,disable-legacy=on,iommu_platform=on"
                        .to_owned(),
                    "cont".to_owned(),
                ] {
                    let said = monitor(&socket, &command)?;
                    ensure!(!said.contains("Error"), "{command}: {said}");
                }
                client.release("blk", RECOVERY)?;
                workload.wait_progress(4, PATIENCE)?;
                let found = blk(client)?;
                let wanted = ("driver".to_owned(), "running".to_owned(), deaths);
                ensure!(found == wanted, "{found:?} instead of {wanted:?}");
                Ok(())
            })
        },
    )
}
