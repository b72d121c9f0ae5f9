//! What is executed while a driver is recovered: where a second fault can strike.
//!
//! A driver is killed on a node that is used for nothing else, again and again. The
//! first time it is noted what functions are called before it serves again, and
//! where they are called from; later on, which of the blocks of these functions are
//! executed: all instructions up to a branch are, if the first one is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fault::mutate::{FlowControl, Program};
use fault::plan::Whom;
use judge_orders::Orders;
use ring_proto::DomainId;
use ring_proto::event::Inject;
use ring_proto::layout::IMAGE_BASE;

use super::gdb::{RSP, Wait};
use super::rig::Rig;
use super::second::{self, Instants, Progress, Step};
use super::target::Target;

/// Wall time for the round.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks that are watched in one round: QEMU looks for each of them at every instruction.
const BLOCKS: usize = 256;
/// Most instructions that are followed from one place on.
const STRAIGHT: usize = 64;

/// Runs a round in which the target dies, and adds to `seen` which instructions that begin a
/// block of `program`, which is that of the domain `watched`, are executed while it is recovered.
///
/// # Errors
///
/// The machine can't be worked with, or the recovery was not seen.
pub fn watch(
    rig: &mut Rig,
    target: &Target,
    (whom, watched, program): (Whom, DomainId, &Program),
    orders: &Orders,
    seen: &mut BTreeSet<u64>,
) -> Result<()> {
    rig.settle(target)?;
    let mut blocks: Vec<u64> = blocks(program, seen).into_iter().collect();
    fastrand::Rng::with_seed(orders.seed).shuffle(&mut blocks);
    blocks.truncate(BLOCKS);
    let (death, takeover) = (rig.machine.death, rig.machine.takeover);
    let places = [death, takeover, IMAGE_BASE];
    let quiet = Orders { moment: u64::MAX, ..*orders };
    let mut both = [&quiet; 2];
    both[target.index] = orders;
    rig.order(both)?;
    let (mut progress, mut is_ordered, mut is_watching) = (Progress::default(), false, false);
    let begin = Instant::now();
    while rig.outcomes()?.is_none() {
        ensure!(begin.elapsed() < PATIENCE, "the round with a death in it does not end");
        match rig.machine.gdb.wait(Duration::from_millis(1))? {
            Wait::Time if !is_ordered => {
                if rig.is_at_moment(target.index)? {
                    rig.pause()?;
                    second::watch(&mut rig.machine)?;
                    rig.machine.order(target.domain, Inject::Panic as u32)?;
                    is_ordered = true;
                    rig.let_go(target.index)?;
                    rig.machine.gdb.go_on()?;
                }
                continue;
            }
            Wait::Time => {
                // All that is watched makes QEMU slow, so it does not wait for the next stop.
                if is_watching && !progress.is_recovering(&rig.machine, target.domain)? {
                    is_watching = false;
                    rig.set_free()?;
                }
                continue;
            }
            Wait::Ended => anyhow::bail!("the machine ended"),
            Wait::Stopped => {}
        }
        let registers = rig.machine.gdb.registers()?;
        let (rip, who) = (registers.rip(), rig.machine.current(&registers)?);
        let mut step = None;
        if rip == death && who.is_none() {
            step = Some(Step::Death);
        } else if rip == takeover && who.is_none() {
            rig.machine.exchange(target.domain, target.spare.context("a spare of nobody")?);
            step = Some(Step::Takeover);
        } else if rip == IMAGE_BASE && who == Some(target.domain) {
            step = Some(Step::Birth);
        } else if is_watching && !progress.is_recovering(&rig.machine, target.domain)? {
            is_watching = false;
            rig.machine.gdb.clear()?;
        } else if is_watching && !places.contains(&rip) {
            // Each place is watched once: to go on from it costs QEMU all that it has translated.
            rig.machine.gdb.remove(rip)?;
            if who == Some(watched) {
                if program.function_at(rip).is_some_and(|function| function.address == rip) {
                    let caller = rig.machine.read_word(watched, registers.general[RSP]).ok();
                    seen.extend(caller.filter(|at| program.instruction_at(*at).is_some()));
                }
                seen.insert(rip);
            }
        }
        if step.is_some_and(|step| progress.take(step, whom)) {
            is_watching = true;
            for &place in &blocks {
                rig.machine.gdb.insert(place)?;
            }
        }
        rig.machine.gdb.go_on()?;
    }
    rig.set_free()?;
    // The next one begins with a driver that serves, and a spare that stands by.
    rig.deaths()?;
    Ok(())
}

/// Where to look for what is executed beside what was seen: all functions at first, then all blocks
/// of those that were seen to be executed.
fn blocks(program: &Program, seen: &BTreeSet<u64>) -> BTreeSet<u64> {
    let mut found: BTreeSet<u64> = program.functions().iter().map(|f| f.address).collect();
    let executed = seen.iter().filter_map(|at| program.function_at(*at));
    let executed: BTreeMap<u64, _> =
        executed.map(|function| (function.address, function)).collect();
    for instruction in executed.values().flat_map(|function| program.instructions_of(function)) {
        let target = instruction.near_branch_target();
        let ends = match instruction.flow_control() {
            FlowControl::ConditionalBranch => vec![target, instruction.next_ip()],
            FlowControl::UnconditionalBranch => vec![target],
            _ => Vec::new(),
        };
        found.extend(ends.into_iter().filter(|at| program.instruction_at(*at).is_some()));
    }
    &found - seen
}

/// All instructions that are executed if those at `seen` are, and the functions that they are in.
pub fn straight(program: &Program, seen: &BTreeSet<u64>) -> Instants {
    let mut found = Instants::new();
    for &begin in seen {
        let mut at = begin;
        for _ in 0..STRAIGHT {
            let Some(instruction) = program.instruction_at(at) else { break };
            let Some(function) = program.function_at(at) else { break };
            found.insert(at, function.name.clone());
            at = match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                    instruction.next_ip()
                }
                FlowControl::UnconditionalBranch => instruction.near_branch_target(),
                _ => break,
            };
        }
    }
    found
}
