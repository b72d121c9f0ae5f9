//! Which functions of a driver run while it serves: only faults there have a
//! chance to be activated.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use judge_orders::Orders;

use super::gdb::Wait;
use super::rig::Rig;
use super::target::Target;

/// Wall time for the round.
const PATIENCE: Duration = Duration::from_secs(60);
/// Stops of other programs at one address until it is given up for this round: a function that
/// nobody saw the target run is not one that it runs.
const STRANGERS: u32 = 8;

/// Runs a round and adds all functions of the target that are called to `seen`.
///
/// # Errors
///
/// The machine can't be worked with.
pub fn profile(
    rig: &mut Rig,
    target: &Target,
    orders: &Orders,
    seen: &mut BTreeSet<u64>,
) -> Result<()> {
    ensure!(rig.machine.gdb.interrupt()? == Wait::Stopped, "the machine ended");
    for function in target.program.functions() {
        if !seen.contains(&function.address) {
            rig.machine.gdb.insert(function.address)?;
        }
    }
    let mut strangers = HashMap::<u64, u32>::new();
    rig.order([orders, orders])?;
    rig.machine.gdb.resume()?;
    let begin = Instant::now();
    while rig.outcomes()?.is_none() {
        ensure!(begin.elapsed() < PATIENCE, "the round for the profile does not end");
        match rig.machine.gdb.wait(Duration::from_millis(1))? {
            Wait::Time => continue,
            Wait::Ended => anyhow::bail!("the machine ended without a fault"),
            Wait::Stopped => {}
        }
        let registers = rig.machine.gdb.registers()?;
        let rip = registers.rip();
        if rig.machine.current(&registers)? == Some(target.domain) {
            seen.insert(rip);
            rig.machine.gdb.remove(rip)?;
        } else {
            let count = strangers.entry(rip).or_default();
            *count += 1;
            if *count > STRANGERS {
                rig.machine.gdb.remove(rip)?;
            }
        }
        rig.machine.gdb.go_on()?;
    }
    rig.set_free()
}
