//! A driver that is struck: its program, and where faults can be made in it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use fault::mutate::Program;
use fault::plan::{Fault, Whom};
use ring_proto::DomainId;
use ring_proto::hypercall::Nr;

use super::campaign::Profiles;
use super::node;
use super::queue;
use super::reuse::Allocator;
use super::rig::Rig;
use super::second::{Instants, Victim};
use crate::build::Built;

/// The instruction of a hypercall.
pub const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

/// Hypercalls of a driver that serves at which another domain may get its core: after these its
/// answers may have been taken.
const GIVING_WAY: [u64; 3] = [Nr::Wait as u64, Nr::Notify as u64, Nr::Yield as u64];

/// A driver.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `blk` or `net`: what it serves.
    pub kind: &'static str,
    /// Its place in [`Rig::judged`], and its judge's.
    pub index: usize,
    /// Its domain.
    pub domain: DomainId,
    /// What it runs.
    pub program: Program,
    /// End of its stack.
    pub stack_top: u64,
    /// Where it keeps the time of its last `wait`.
    pub last_wait: u64,
    /// Its hypercalls, with their numbers as far as its code tells.
    calls: Vec<(u64, Option<u64>)>,
    /// Where it has shown its device a chain, and not yet told it.
    pub shows: Vec<u64>,
    /// Its allocator.
    pub allocator: Allocator,
    /// Functions that were seen to run while it serves, by address.
    pub seen: BTreeSet<u64>,
    /// What is executed while it is recovered, by whom.
    pub recovery: BTreeMap<Whom, Instants>,
    /// Its spare, if it has one.
    pub spare: Option<DomainId>,
    /// Who can be struck while it is recovered.
    pub victims: BTreeMap<Whom, Victim>,
}

impl Target {
    /// The driver of this name.
    ///
    /// # Errors
    ///
    /// The node has none, or its program can't be read.
    pub fn find(rig: &Rig, built: &Built, name: &str, known: &Profiles) -> Result<Self> {
        let index = rig.judged.iter().position(|judged| judged.driver == name);
        let index = index.with_context(|| format!("nobody judges `{name}`"))?;
        let domain = rig.domain(name)?;
        let program = program(built, name)?;
        let symbol = |symbol: &str| {
            let address = program.symbol(symbol);
            address.with_context(|| {
                format!(
                    "the program of `{name}` has no symbol `{symbol}`; it must be over domain-rt, \
                     and not stripped"
                )
            })
        };
        let spare = rig.bundle.domains.iter().position(|other| other.spare_of == Some(domain));
        let spare = spare.map(DomainId::try_from).transpose()?;
        // The spare that has taken over is the driver.
        let own = Victim::of(domain, &program)?;
        let supervisor = node::supervisor(&built.manifest)?;
        let supervisor = Victim::of(rig.domain(supervisor)?, &self::program(built, supervisor)?)?;
        let mut victims = BTreeMap::from([(Whom::Driver, own), (Whom::Supervisor, supervisor)]);
        victims.extend(spare.map(|_| (Whom::Spare, own)));
        let known = known.get(name).cloned().unwrap_or_default();
        let calls = program.vmmcalls().map(|instruction| instruction.ip());
        let calls = calls.map(|at| (at, program.vmmcall_number(at))).collect();
        Ok(Self {
            name: name.to_owned(),
            kind: rig.judged[index].kind,
            index,
            domain,
            stack_top: symbol("__stack_top")?,
            last_wait: symbol("domain_rt::events::LAST_WAIT")?,
            shows: queue::shows(&program),
            allocator: Allocator::find(&program).with_context(|| name.to_owned())?,
            program,
            calls,
            seen: known.serving,
            recovery: known.recovery,
            spare,
            victims,
        })
    }

    /// Where the machine must stop for a fault, once the moment has come.
    pub fn places(&self, fault: &Fault) -> Vec<u64> {
        match fault {
            Fault::Text { address, .. }
            | Fault::Register { address, .. }
            | Fault::Store { address, .. }
            | Fault::Stack { address, .. }
            | Fault::Reuse { address, .. } => vec![*address],
            Fault::Heap { .. }
            | Fault::Order { .. }
            | Fault::Disk { .. }
            | Fault::Wire { .. }
            | Fault::Link { .. }
            | Fault::Pull { .. }
            | Fault::LoseInterrupt { .. }
            | Fault::Control { .. }
            // Where its second fault strikes is not watched before it can.
            | Fault::Second { .. } => Vec::new(),
            Fault::SkipCall { call, .. } => {
                let may_be = self.calls.iter().filter(|(_, nr)| nr.is_none_or(|nr| nr == *call));
                may_be.map(|(at, _)| *at).collect()
            }
            Fault::Descriptor { .. } => self.shows.clone(),
            Fault::Call { .. } => self.calls.iter().map(|(at, _)| *at).collect(),
            Fault::Answer { .. } => {
                let may_be = |nr: &u64| GIVING_WAY.contains(nr);
                let calls = self.calls.iter().filter(|(_, nr)| nr.as_ref().is_none_or(may_be));
                calls.map(|(at, _)| *at).collect()
            }
        }
    }

    /// Whether faults are made at this address: in a function that runs while the driver serves.
    pub fn is_live(&self, address: u64) -> bool {
        let function = self.program.function_at(address);
        function.is_some_and(|function| self.seen.contains(&function.address))
    }
}

/// The program that the domain of this name runs.
///
/// # Errors
///
/// There is none, or it can't be read.
pub fn program(built: &Built, name: &str) -> Result<Program> {
    let domain = built.manifest.domains.iter().find(|domain| domain.spec.name == name);
    let domain = domain.with_context(|| format!("the node has no domain `{name}`"))?;
    let image = built.images.iter().find(|image| image.name == domain.image);
    let elf = &image.with_context(|| format!("`{name}` has no image"))?.elf;
    let file = std::fs::read(elf).with_context(|| format!("can't read {}", elf.display()))?;
    Program::read(&file).with_context(|| elf.display().to_string())
}

#[cfg(test)]
pub(super) mod samples {
    use super::*;

    /// `blk`, and as its program that of this test: some real one.
    pub fn blk() -> Target {
        let elf = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let program = Program::read(&elf).unwrap();
        let seen = program.functions().iter().map(|function| function.address).collect();
        let instants = super::super::instants::straight(&program, &seen);
        let recovery = Whom::ALL.map(|whom| (whom, instants.clone())).into();
        let victim = |domain| Victim { domain, misbehave: 0 };
        let victims = [(Whom::Driver, 1), (Whom::Spare, 1), (Whom::Supervisor, 0)];
        Target {
            name: "blk".to_owned(),
            kind: "blk",
            index: 0,
            domain: 1,
            program,
            stack_top: 0,
            last_wait: 0,
            calls: Vec::new(),
            shows: vec![0x1000],
            allocator: Allocator::sample(),
            seen,
            recovery,
            spare: Some(5),
            victims: victims.map(|(whom, domain)| (whom, victim(domain))).into(),
        }
    }
}
