//! VT-d instead of AMD-Vi. What it reports, and what comes of that, is shown by
//! the attack `dma-fault`.

use anyhow::{Result, ensure};
use system_tests::bench::Bench;
use xtask::qemu::Iommu;

use crate::recovery::serves_after_all;

/// The demo node boots, serves, and recovers from crashes of its drivers.
pub fn machine_vt_d(bench: &Bench) -> Result<()> {
    bench.with_node(
        |config| config.iommu = Iommu::Intel,
        |node| {
            let lines = node.machine().log().lines();
            ensure!(lines.iter().any(|line| line.ends_with("IOMMU VT-d")), "VT-d is not in use");
            serves_after_all(node)
        },
    )
}
