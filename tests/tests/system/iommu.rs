//! VT-d instead of AMD-Vi. QEMU's model of it reports what it refuses, so here
//! is shown what a refusal leads to.

use std::fs;

use anyhow::{Context, Result, ensure};
use nodectl::{control::How, names};
use system_tests::{
    bench::{BOOT, Bench, RECOVERY},
    runner::wait_for,
};
use xtask::{
    qemu::{Iommu, NodeConfig},
    workspace,
};

use crate::{recovery::crash, serving::smoke};

/// The demo node boots, serves, and recovers from crashes of its drivers.
pub fn machine_vt_d(bench: &Bench) -> Result<()> {
    bench.with_node(
        |config| config.iommu = Iommu::Intel,
        |node| {
            let lines = node.machine().log().lines();
            ensure!(lines.iter().any(|line| line.ends_with("IOMMU VT-d")), "VT-d is not in use");
            smoke(node)?;
            let mut client = node.control()?;
            for how in [How::Panic, How::NullWrite, How::Loop] {
                for domain in ["blk", "net"] {
                    crash(&mut client, domain, how)?;
                    smoke(node)?;
                }
            }
            Ok(())
        },
    )
}

/// The rogue's first wild access ends its generation; the record says whose
/// device it was and where it reached, and QEMU's own record agrees.
fn fault(bench: &Bench, kind: &str, neighbour: &str, bdf: &str, first: u64) -> Result<()> {
    let refused = bench.dir().join("refused.log");
    let configure = |config: &mut NodeConfig| {
        config.iommu = Iommu::Intel;
        config.manifest = workspace::root().join(format!("tests/manifests/rogue-{kind}.toml"));
        config.extra_args.extend(["-trace".into(), "vtd_dmar_fault".into(), "-D".into()]);
        config.extra_args.push(refused.clone().into());
    };
    bench.with_node(configure, |node| {
        let mut client = node.control()?;
        let death = wait_for("the record of the rogue's death", BOOT, || {
            Ok(client.crashes(0)?.into_iter().find(|entry| entry.name == "rogue"))
        })?;
        let reason = names::reason(death.reason);
        ensure!(reason == "iommu-fault", "the rogue died of {reason}: {}", death.message);
        ensure!(death.generation == 1, "the first one seen is of {}", death.generation);
        let (address, message) = (death.fault_address, death.message.as_str());
        ensure!(address == first, "the record has address {address:#x}, not {first:#x}");
        ensure!(
            message.contains(bdf) && message.contains(&format!("{address:#x} ")),
            "the record names neither {bdf} nor {address:#x}: {message}"
        );
        // However often the rogue comes back, its neighbour does not notice.
        wait_for("the end of the rogue's second generation", RECOVERY, || {
            let again = |e: &_| matches!(e, nodectl::control::CrashEntry { generation: 2, .. });
            Ok(client.crashes(0)?.iter().any(again).then_some(()))
        })?;
        node.wait_running(&mut client, neighbour, 1)?;
        let recovery = client.crash(neighbour, How::Panic, BOOT)?;
        ensure!(recovery.generation == 2, "{neighbour} came back as {}", recovery.generation);
        Ok(())
    })?;
    let text = fs::read_to_string(&refused).context("QEMU's record of faults")?;
    let seen = text.lines().any(|line| line.contains(&format!("{first:x} ")));
    ensure!(seen, "QEMU saw no refused access at {first:#x}");
    Ok(())
}

pub fn g2_a_disk_that_reaches_too_far_ends_its_domain(bench: &Bench) -> Result<()> {
    fault(bench, "disk", "net", "00:04.0", 0x1000)
}

pub fn g2_a_nic_that_reaches_too_far_ends_its_domain(bench: &Bench) -> Result<()> {
    fault(bench, "nic", "blk", "00:05.0", 0x1000)
}
