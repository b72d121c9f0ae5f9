//! A second fault, while the first one is being recovered from.
//!
//! Who is to die of it comes to an instruction that is part of the recovery, and
//! goes on at the place in its own runtime where misbehaviour is carried out. So
//! the death is as real as one that is ordered, its program stays as it is, and
//! it can strike where nobody looks for orders: before there is a heap, in the
//! midst of a reset of the device, between two hypercalls of the supervisor.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fault::class::Class;
use fault::mutate::Program;
use fault::plan::{Fault, Whom};
use nodectl::control::CrashEntry;
use ring_proto::DomainId;
use ring_proto::event::{Inject, SERVED};
use ring_proto::layout::IMAGE_BASE;

use super::gdb::{RDI, RIP, RSP, Registers};
use super::machine::Machine;
use super::target::Target;

/// Kinds of misbehaviour that end whoever misbehaves, whatever else there is.
const DEADLY: [Inject; 7] = [
    Inject::Panic,
    Inject::NullWrite,
    Inject::Loop,
    Inject::Exception,
    Inject::StackOverflow,
    Inject::TripleFault,
    Inject::OutOfMemory,
];

/// Where a program carries misbehaviour out, with the kind in RDI.
const MISBEHAVE: &str = "domain_rt::misbehave::carry_out";
/// Instructions, and the function that each lies in.
pub type Instants = BTreeMap<u64, String>;

/// Whom the second fault of a class strikes.
pub fn whom(class: Class) -> Option<Whom> {
    match class {
        Class::SecondFault => Some(Whom::Driver),
        Class::SpareFault => Some(Whom::Spare),
        Class::SupervisorFault => Some(Whom::Supervisor),
        _ => None,
    }
}

/// What a trial of this class does; `None`: nothing is known that this target's recovery
/// executes.
pub fn choose(
    class: Class,
    target: &Target,
    rng: &mut fastrand::Rng,
) -> Option<(Fault, Option<String>, String)> {
    let whom = whom(class)?;
    let [first, kind] = [rng.choice(DEADLY)?, rng.choice(DEADLY)?];
    let instants = target.recovery.get(&whom)?;
    let (&address, function) = instants.iter().nth(rng.usize(..instants.len().max(1)))?;
    let text = format!("{first:?} ordered, then {kind:?} of the {whom:?}, in {function}");
    let fault = Fault::Second { first: first as u32, whom, address, kind: kind as u32 };
    // Functions are counted by target, and the supervisor's are none of these.
    let function = (whom != Whom::Supervisor).then(|| function.clone());
    Some((fault, function, text))
}

/// Who may die of a second fault, and where its runtime misbehaves.
#[derive(Clone, Copy, Debug)]
pub struct Victim {
    /// Its domain, while it is recovering.
    pub domain: DomainId,
    pub(super) misbehave: u64,
}

impl Victim {
    /// The domain of this number, which runs `program`.
    ///
    /// # Errors
    ///
    /// There is no such function in it.
    pub fn of(domain: DomainId, program: &Program) -> Result<Self> {
        let misbehave = program.symbol(MISBEHAVE);
        let misbehave = misbehave.with_context(|| format!("there is no `{MISBEHAVE}`"))?;
        Ok(Self { domain, misbehave })
    }

    /// Has it misbehave instead of executing its next instruction.
    fn divert(self, kind: u32, registers: &Registers, machine: &mut Machine) -> Result<()> {
        // As a call leaves it; what lies below the stack pointer may be in use, and nobody
        // comes back to use it.
        let rsp = (registers.general[RSP] & !15).wrapping_sub(8);
        machine.gdb.set_register(RDI, u64::from(kind))?;
        machine.gdb.set_register(RSP, rsp)?;
        machine.gdb.set_register(RIP, self.misbehave)
    }
}

/// A step of a recovery that the hypervisor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The driver's life ended.
    Death,
    /// Its next generation begins.
    Birth,
    /// Its spare takes its place.
    Takeover,
}

/// How far a recovery has come.
#[derive(Debug, Default)]
pub struct Progress {
    steps: Vec<Step>,
}

impl Progress {
    /// Something happened; whether it is that after which `whom` may be struck.
    pub fn take(&mut self, step: Step, whom: Whom) -> bool {
        let awaited = match whom {
            Whom::Driver => Step::Birth,
            Whom::Spare => Step::Takeover,
            Whom::Supervisor => Step::Death,
        };
        let is_first = !self.steps.contains(&step);
        self.steps.push(step);
        step == awaited && is_first
    }

    /// Whether the driver has died and has not served since.
    ///
    /// # Errors
    ///
    /// Its memory can't be read.
    pub fn is_recovering(&self, machine: &Machine, driver: DomainId) -> Result<bool> {
        // Until somebody is in its place, its page is that of the dead.
        let is_back = matches!(self.steps.last(), Some(Step::Birth | Step::Takeover));
        let has_served = is_back && machine.ready(driver)? == SERVED;
        Ok(self.steps.contains(&Step::Death) && !has_served)
    }
}

/// Has the machine stop at each step of a recovery.
///
/// # Errors
///
/// The machine can't be worked with.
pub fn watch(machine: &mut Machine) -> Result<()> {
    for place in [machine.death, machine.takeover, IMAGE_BASE] {
        machine.gdb.insert(place)?;
    }
    Ok(())
}

/// The second fault of a round.
#[derive(Debug)]
pub struct Second {
    victim: Victim,
    whom: Whom,
    address: u64,
    kind: u32,
    driver: DomainId,
    progress: Progress,
    is_armed: bool,
}

impl Second {
    /// That of a fault, if it has one.
    ///
    /// # Errors
    ///
    /// This node has nobody whom it could strike.
    pub fn of(fault: &Fault, target: &Target) -> Result<Option<Self>> {
        let Fault::Second { whom, address, kind, .. } = *fault else { return Ok(None) };
        let victim = *target.victims.get(&whom).context("nobody to strike")?;
        ensure!(Inject::from_raw(kind).is_some(), "no misbehaviour has the number {kind}");
        let progress = Progress::default();
        let (driver, is_armed) = (target.domain, false);
        Ok(Some(Self { victim, whom, address, kind, driver, progress, is_armed }))
    }

    /// Whether the machine must stop at this address whoever comes there.
    pub fn needs(&self, address: u64, machine: &Machine) -> bool {
        [machine.takeover, IMAGE_BASE].contains(&address)
    }

    /// A step of the recovery is taken, after the moment.
    ///
    /// # Errors
    ///
    /// The machine can't be worked with.
    pub fn step(&mut self, step: Step, machine: &mut Machine) -> Result<()> {
        if self.progress.take(step, self.whom) {
            self.is_armed = true;
            machine.gdb.insert(self.address)?;
        }
        Ok(())
    }

    /// Whether this stop is at the instruction where the second fault strikes.
    pub fn is_at(&self, rip: u64, who: Option<DomainId>) -> bool {
        self.is_armed && rip == self.address && who == Some(self.victim.domain)
    }

    /// Strikes, unless the recovery is over; whether it did.
    ///
    /// # Errors
    ///
    /// The machine can't be worked with.
    pub fn strike(&mut self, registers: &Registers, machine: &mut Machine) -> Result<bool> {
        self.is_armed = false;
        let is_time = self.progress.is_recovering(machine, self.driver)?;
        if is_time {
            self.victim.divert(self.kind, registers, machine)?;
        }
        Ok(is_time)
    }
}

/// The death that shows the fault of a trial, of all deaths in it: of a second fault that of whom
/// it struck. If it struck nobody, the first death was only its prelude, `if_well`.
pub fn told<'a>(
    fault: &Fault,
    target: &Target,
    struck: bool,
    if_well: bool,
    deaths: &'a [CrashEntry],
) -> Option<&'a CrashEntry> {
    let mut own = deaths.iter().filter(|death| death.domain == target.domain);
    match fault {
        Fault::Second { whom: Whom::Supervisor, .. } if struck => {
            deaths.iter().find(|death| is_expected(fault, target, struck, death))
        }
        Fault::Second { .. } if struck => own.nth(1),
        Fault::Second { .. } if if_well => None,
        _ => own.next(),
    }
}

/// How often the target dies of a fault, if it dies of it at all.
pub fn deaths(fault: &Fault, struck: bool) -> usize {
    let is_own = !matches!(fault, Fault::Second { whom: Whom::Supervisor, .. });
    if matches!(fault, Fault::Second { .. }) && struck && is_own { 2 } else { 1 }
}

/// Whether somebody who is not the target is to die of this fault.
pub fn is_expected(fault: &Fault, target: &Target, struck: bool, death: &CrashEntry) -> bool {
    let whom = Whom::Supervisor;
    struck
        && matches!(fault, Fault::Second { whom: Whom::Supervisor, .. })
        && target.victims.get(&whom).is_some_and(|victim| victim.domain == death.domain)
}

#[cfg(test)]
mod tests {
    use super::super::choose::random;
    use super::super::target::samples;
    use super::*;

    #[test]
    fn both_faults_and_the_instant_are_random_and_deadly() {
        let target = samples::blk();
        let (mut first, mut kinds, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for trial in 0..200 {
            let mut rng = random(1, trial);
            let (fault, function, _) = choose(Class::SecondFault, &target, &mut rng).unwrap();
            let Fault::Second { first: one, whom, address, kind } = fault else {
                panic!("{fault:?}")
            };
            assert_eq!(whom, Whom::Driver);
            assert_eq!(function.as_ref(), target.recovery[&whom].get(&address));
            first.push(one);
            kinds.push(kind);
            places.push(address);
        }
        for all in [&mut first, &mut kinds] {
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), DEADLY.len());
        }
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 150, "{}", places.len());
    }

    #[test]
    fn a_target_without_instants_has_no_place() {
        let mut target = samples::blk();
        let choose = |class| choose(class, &target, &mut random(1, 1)).is_some();
        assert!(choose(Class::SupervisorFault) && !choose(Class::Panic));
        target.recovery.insert(Whom::Supervisor, Instants::new());
        target.recovery.remove(&Whom::Spare);
        let choose = |class| super::choose(class, &target, &mut random(1, 1)).is_some();
        assert!(!choose(Class::SupervisorFault) && !choose(Class::SpareFault));
    }

    #[test]
    fn each_is_struck_after_its_own_step_and_once() {
        use Step::{Birth, Death, Takeover};
        let armed = |whom, steps: &[Step]| {
            let mut progress = Progress::default();
            steps.iter().map(|step| progress.take(*step, whom)).collect::<Vec<_>>()
        };
        let steps = [Death, Birth, Death, Birth];
        assert_eq!(armed(Whom::Driver, &steps), [false, true, false, false]);
        assert_eq!(armed(Whom::Supervisor, &steps), [true, false, false, false]);
        assert_eq!(armed(Whom::Spare, &steps), [false; 4], "no spare stood by");
        assert_eq!(armed(Whom::Spare, &[Death, Takeover]), [false, true]);
    }
}
