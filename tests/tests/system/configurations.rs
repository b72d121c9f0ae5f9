//! The same node on other machines: cores, CPU models, memory.

use anyhow::{Result, ensure};
use system_tests::{
    bench::{Bench, Node},
    runner::Test,
};

use crate::recovery::serves_after_all;

const MIB: u64 = 1 << 20;

/// A smoke test and crashes in all ways on one machine.
macro_rules! machines {
    ($($name:ident: $cores:expr, $cpu:expr, $memory:expr;)*) => {
        vec![$(Test {
            name: stringify!($name).to_owned(),
            body: |bench| on_machine(bench, $cores, $cpu, $memory),
        }),*]
    };
}

/// All of them.
pub fn all() -> Vec<Test> {
    machines! {
        machine_smp1_epyc_256m: 1, "EPYC", 256 * MIB;
        machine_smp1_epyc_4g: 1, "EPYC", 4096 * MIB;
        machine_smp1_max_256m: 1, "max", 256 * MIB;
        machine_smp1_max_4g: 1, "max", 4096 * MIB;
        machine_smp2_epyc_256m: 2, "EPYC", 256 * MIB;
        machine_smp2_epyc_4g: 2, "EPYC", 4096 * MIB;
        machine_smp2_max_256m: 2, "max", 256 * MIB;
        machine_smp2_max_4g: 2, "max", 4096 * MIB;
        machine_smp4_epyc_256m: 4, "EPYC", 256 * MIB;
        machine_smp4_epyc_4g: 4, "EPYC", 4096 * MIB;
        machine_smp4_max_256m: 4, "max", 256 * MIB;
        machine_smp4_max_4g: 4, "max", 4096 * MIB;
    }
}

fn on_machine(bench: &Bench, cores: u16, cpu: &str, memory: u64) -> Result<()> {
    let configure = |config: &mut xtask::qemu::NodeConfig| {
        config.smp = Some(cores);
        config.cpu = cpu.to_owned();
        config.memory = memory;
    };
    bench.with_node(configure, |node| {
        is_the_machine(node, cores, memory)?;
        serves_after_all(node)
    })
}

/// The hypervisor uses what there is.
fn is_the_machine(node: &Node, cores: u16, memory: u64) -> Result<()> {
    let info = node.control()?.info()?;
    ensure!(info.cores == u32::from(cores), "{} of {cores} cores are in use", info.cores);
    // Firmware keeps a little for itself.
    let missing = memory.saturating_sub(info.memory);
    ensure!(missing < 16 * MIB, "{} MiB of {} MiB are missing", missing / MIB, memory / MIB);
    Ok(())
}
