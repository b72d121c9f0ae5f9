//! VT-d instead of AMD-Vi. What it reports, and what comes of that, is shown by
//! the attack `dma-fault`.

use anyhow::{Result, ensure};
use nodectl::control::How;
use system_tests::bench::Bench;
use xtask::qemu::Iommu;

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
            for how in How::ALL {
                for domain in ["blk", "net"] {
                    crash(&mut client, domain, how)?;
                    smoke(node)?;
                }
            }
            Ok(())
        },
    )
}
