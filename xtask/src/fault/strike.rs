//! One round with a fault in it: from the orders to the judges until both are
//! done, with every stop of the machine on the way.

use std::mem::offset_of;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fault::plan::{Fault, Plan};
use fault::{disk, wire};
use judge_orders::{Orders, Outcome};
use ring_proto::DomainId;
use ring_proto::event::{EventPage, Inject, PORT_IRQ};
use ring_proto::hypercall::Nr;
use ring_proto::layout::{EVENT_PAGE, IMAGE_BASE};

use super::gdb::{Access, RAX, RIP, RSP, Registers, Wait};
use super::queue::{Queue, Wanted};
use super::reuse::{Blocks, Step};
use super::rig::Rig;
use super::rings::Ring;
use super::second::{self, Second};
use super::target::Target;

/// Wall time that a round with a fault may take: far off, as the machine bounds it by its own
/// clock.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a machine that can't be debugged any more may take to end.
const ENDING: Duration = Duration::from_secs(2);
/// Pause between two looks at the judges.
const LOOK: Duration = Duration::from_micros(200);
/// Pause between two questions whether a driver is held whose device is there again. Each is
/// work for the supervisor and for QEMU, which has its serial line byte by byte.
const ASK: Duration = Duration::from_millis(15);
/// Stops at a place for the sake of other programs, until it is watched no more.
const STRANGERS: u32 = 8;
/// The same where it is watched for the short time of a recovery only.
const STRANGERS_MEANWHILE: u32 = 64;
/// Longest instruction.
const INSTRUCTION: u64 = 15;
/// The word in which a domain is told of its device's interrupts, and their bit.
const INTERRUPTS: u64 =
    EVENT_PAGE + offset_of!(EventPage, pending) as u64 + (PORT_IRQ / 64) as u64 * 8;
const IRQ: u64 = 1 << (PORT_IRQ % 64);

/// What a round with a fault came to.
#[derive(Debug)]
pub struct Round {
    /// The moment came and it was done: the node's clock as the driver last saw it.
    pub injected: Option<u64>,
    /// The node's clock when the fault was activated, as the driver last saw it.
    pub activated: Option<u64>,
    /// Whether the fault may have been activated unseen: other programs came to the same address
    /// too often to watch it.
    pub unwatched: bool,
    /// What the judges saw; `None`: they did not come to an end.
    pub outcomes: Option<[Outcome; 2]>,
    /// QEMU ended.
    pub ended: bool,
    /// Where the machine was stopped, and why.
    pub stops: Vec<String>,
}

/// What is done at a stop.
enum Stage {
    /// The moment has not come.
    Before,
    /// The fault is in the program, or waits for the driver to come to an instruction.
    Armed,
    /// It is done.
    Over,
}

struct Strike<'a> {
    rig: &'a mut Rig,
    target: &'a Target,
    plan: &'a Plan,
    stage: Stage,
    /// Hypercalls or interrupts to come before the one that is struck.
    left: u32,
    /// The fault after the fault.
    second: Option<Second>,
    /// How many answers the driver had shown when it last gave way.
    shown: Option<u32>,
    /// The program is not what it was.
    changed: bool,
    strangers: u32,
    /// What the driver took from its heap.
    blocks: Blocks,
    /// The queue in which a chain is struck.
    queue: Option<Queue>,
    /// When the supervisor was asked last whether the driver is held.
    looked: Instant,
    round: Round,
}

/// Runs a round with the fault of `plan`; the machine runs before and after, with the driver's
/// program as it was.
///
/// # Errors
///
/// The machine can't be worked with any more. What became of the node is no error.
pub fn strike(rig: &mut Rig, target: &Target, plan: &Plan, orders: [&Orders; 2]) -> Result<Round> {
    let round = Round {
        injected: None,
        activated: None,
        unwatched: false,
        outcomes: None,
        ended: false,
        stops: Vec::new(),
    };
    let stage = Stage::Before;
    let (left, shown, changed, strangers) = (0, None, false, 0);
    let (blocks, queue) = (Blocks::default(), None);
    let second = Second::of(&plan.fault, target)?;
    let mut strike = Strike {
        rig,
        target,
        plan,
        stage,
        left,
        second,
        shown,
        changed,
        strangers,
        blocks,
        queue,
        looked: Instant::now(),
        round,
    };
    match strike.run(orders) {
        Ok(()) => {}
        // A machine that ended in the midst of it can't be debugged: that is no fault of ours.
        Err(_) if strike.rig.ends_within(ENDING) => strike.round.ended = true,
        Err(why) => return Err(why),
    }
    Ok(strike.round)
}

impl Strike<'_> {
    fn run(&mut self, orders: [&Orders; 2]) -> Result<()> {
        self.rig.settle(self.target)?;
        self.rig.order(orders)?;
        let begin = Instant::now();
        loop {
            match self.rig.machine.gdb.wait(LOOK)? {
                Wait::Ended => {
                    self.round.ended = true;
                    return Ok(());
                }
                Wait::Stopped => self.stop()?,
                Wait::Time => {}
            }
            if matches!(self.stage, Stage::Before)
                && self.rig.is_at_moment(self.target.index)?
                && !self.moment()?
            {
                self.round.ended = true;
                return Ok(());
            }
            self.look_outside()?;
            if let Some(outcomes) = self.rig.outcomes()? {
                self.round.outcomes = Some(outcomes);
                break;
            }
            if begin.elapsed() > PATIENCE {
                break;
            }
        }
        self.look_outside()?;
        self.rig.put_back(true)?;
        self.rig.disk.arm(None);
        self.rig.tap.disarm()?;
        if self.rig.machine.gdb.is_free() && !self.changed {
            return Ok(());
        }
        if self.rig.machine.gdb.interrupt()? == Wait::Ended {
            self.round.ended = true;
            return Ok(());
        }
        self.put_back()?;
        self.rig.set_free()
    }

    /// Whether a fault outside of the machine met what it waits for.
    fn look_outside(&mut self) -> Result<()> {
        self.rig.tap.look(false)?;
        let has_struck = match self.plan.fault {
            Fault::Disk { .. } => self.rig.disk.has_struck(),
            Fault::Wire { .. } => self.rig.tap.has_struck(),
            Fault::Pull { .. } => {
                self.bring_back()?;
                false
            }
            Fault::Descriptor { .. } => match &self.queue {
                Some(queue) if matches!(self.stage, Stage::Armed) => {
                    queue.is_taken(self.rig.tap.monitor()?)?
                }
                _ => false,
            },
            _ => false,
        };
        if has_struck && matches!(self.stage, Stage::Armed) {
            self.activate()?;
            self.stage = Stage::Over;
        }
        Ok(())
    }

    /// Does what people do whose device was pulled: puts it back, and releases the driver if it
    /// is held by then. One that is not may be so later, if it has not yet missed its device.
    fn bring_back(&mut self) -> Result<()> {
        let is_struck = matches!(self.stage, Stage::Over);
        if !is_struck || self.looked.elapsed() < ASK || !self.rig.put_back(false)? {
            return Ok(());
        }
        self.looked = Instant::now();
        // One that does not come back then is for the judges to miss.
        match self.rig.release_held(self.target.index) {
            Ok(false) => {}
            Ok(true) => self.tell_outside("its device is there again, and it is released"),
            Err(why) => self.tell_outside(&format!("it can't be released: {why:#}")),
        }
        Ok(())
    }

    /// The machine stands still: finds out why, acts, and lets it go on.
    fn stop(&mut self) -> Result<()> {
        let registers = self.rig.machine.gdb.registers()?;
        let (rip, who) = (registers.rip(), self.rig.machine.current(&registers)?);
        let is_target = who == Some(self.target.domain);
        let why = if self.rig.machine.gdb.is_at_watched()
            && matches!(self.plan.fault, Fault::LoseInterrupt { .. })
        {
            self.lose_interrupt()?
        } else if self.rig.machine.gdb.is_at_watched() {
            if is_target {
                self.activate()?;
                self.rig.machine.gdb.forget()?;
                self.stage = Stage::Over;
                "reads the changed word"
            } else {
                self.stranger(rip)?
            }
        } else if let Some(step) = self.step(rip, who)? {
            step
        } else if self.second.as_ref().is_some_and(|second| second.is_at(rip, who)) {
            self.strike_again(&registers)?
        } else if rip == self.rig.machine.death && who.is_none() {
            self.put_back()?;
            self.disarm()?;
            "the hypervisor ends a domain"
        } else if is_target && self.second.is_none() && matches!(self.stage, Stage::Armed) {
            self.arrive(&registers)?;
            match self.stage {
                Stage::Over => "the fault is activated",
                _ => "not yet",
            }
        } else {
            self.stranger(rip)?
        };
        self.tell(rip, who, why);
        self.rig.machine.gdb.go_on()
    }

    fn tell(&mut self, rip: u64, who: Option<DomainId>, why: &str) {
        let domain = who.and_then(|id| self.rig.bundle.domains.get(usize::from(id)));
        let name = domain.map_or("hypervisor", |domain| &domain.name);
        let function = if who == Some(self.target.domain) {
            self.target.program.function_at(rip).map(|function| format!(" in {}", function.name))
        } else {
            None
        };
        self.round.stops.push(format!("{name} at {rip:#x}{}: {why}", function.unwrap_or_default()));
    }

    /// The same of what is done while the machine runs.
    fn tell_outside(&mut self, what: &str) {
        self.round.stops.push(format!("outside: {what}"));
    }

    /// Strikes one of the chains that the driver has shown its device since the last look, if it is
    /// there: then true.
    fn shows(&mut self) -> Result<bool> {
        let (Fault::Descriptor { after, fraction, written, value, .. }, Some(queue)) =
            (&self.plan.fault, &mut self.queue)
        else {
            return Ok(false);
        };
        let wanted = Wanted { after: *after, fraction: *fraction, written: *written };
        let (domain, machine) = (self.target.domain, &mut self.rig.machine);
        let Some(place) = queue.look(|address| machine.read_word(domain, address), &wanted)? else {
            return Ok(false);
        };
        machine.write(domain, place, &value.to_le_bytes())?;
        self.round.stops.push(format!("the address at {place:#x} is another: {queue:?}"));
        // That the device takes it is seen from outside.
        machine.gdb.clear()?;
        Ok(true)
    }

    /// Another program came to an address that is watched.
    fn stranger(&mut self, rip: u64) -> Result<&'static str> {
        // Answers are known not to be taken only if the driver is seen whenever it gives way.
        let is_needed =
            self.second.as_ref().is_some_and(|second| second.needs(rip, &self.rig.machine));
        let is_death = rip == self.rig.machine.death;
        if is_death || is_needed || matches!(self.plan.fault, Fault::Answer { .. }) {
            return Ok("somebody else");
        }
        self.strangers += 1;
        let limit = if self.second.is_some() { STRANGERS_MEANWHILE } else { STRANGERS };
        if self.strangers > limit {
            self.round.unwatched = true;
            self.rig.machine.gdb.forget()?;
            self.rig.machine.gdb.remove(rip)?;
        }
        Ok("somebody else, at an address that is watched")
    }

    /// The fault is over with the life that it struck.
    fn disarm(&mut self) -> Result<()> {
        self.stage = Stage::Over;
        self.rig.machine.gdb.clear()
    }

    /// The hypervisor goes a step in the recovery from the first fault, for which a second one may
    /// wait.
    fn step(&mut self, rip: u64, who: Option<DomainId>) -> Result<Option<&'static str>> {
        let (Some(second), Stage::Armed) = (&mut self.second, &self.stage) else { return Ok(None) };
        let machine = &mut self.rig.machine;
        let is_target = who == Some(self.target.domain);
        let (step, what) = if rip == machine.death && who.is_none() {
            (second::Step::Death, "the hypervisor ends a domain")
        } else if rip == machine.takeover && who.is_none() {
            if let Some(spare) = self.target.spare {
                machine.exchange(self.target.domain, spare);
            }
            (second::Step::Takeover, "a spare takes over")
        } else if rip == IMAGE_BASE && is_target {
            (second::Step::Birth, "a generation begins")
        } else {
            return Ok(None);
        };
        second.step(step, machine)?;
        Ok(Some(what))
    }

    /// Whoever is to die of the second fault has come to where it strikes.
    fn strike_again(&mut self, registers: &Registers) -> Result<&'static str> {
        let Some(second) = &mut self.second else { return Ok("nothing") };
        let has_struck = second.strike(registers, &mut self.rig.machine)?;
        if has_struck {
            self.activate()?;
        }
        self.disarm()?;
        Ok(if has_struck { "the second fault strikes" } else { "too late: the driver serves" })
    }

    /// The program is what it was. This comes before the hypervisor restores a driver's memory:
    /// what a domain cannot write nobody restores, but the hypervisor looks whether it is there.
    fn put_back(&mut self) -> Result<()> {
        if let (true, Fault::Text { at, before, .. }) = (self.changed, &self.plan.fault) {
            let bytes = super::gdb::unhex(before)?;
            self.rig.machine.write_text(self.target.domain, *at, &bytes)?;
            self.changed = false;
        }
        Ok(())
    }

    /// The moment: stops the machine wherever it is, and injects the fault. Returns whether there
    /// still is a machine.
    fn moment(&mut self) -> Result<bool> {
        if self.rig.machine.gdb.interrupt()? == Wait::Ended {
            return Ok(false);
        }
        let registers = self.rig.machine.gdb.registers()?;
        let who = self.rig.machine.current(&registers)?;
        self.round.injected = Some(self.clock()?);
        self.inject()?;
        self.rig.let_go(self.target.index)?;
        self.tell(registers.rip(), who, "the moment: the fault is injected");
        self.rig.machine.gdb.go_on()?;
        Ok(true)
    }

    /// The node's clock as the driver last saw it.
    fn clock(&self) -> Result<u64> {
        let time = self.rig.machine.read_word(self.target.domain, self.target.last_wait);
        time.context("the driver's clock")
    }

    /// Does what the plan says, or has the machine stop where it is to be done.
    fn inject(&mut self) -> Result<()> {
        let (domain, machine) = (self.target.domain, &mut self.rig.machine);
        self.stage = Stage::Armed;
        match &self.plan.fault {
            Fault::Text { at, after, .. } => {
                machine.write_text(domain, *at, &super::gdb::unhex(after)?)?;
                self.changed = true;
            }
            Fault::Heap { fraction, value } => {
                if let Some(address) = machine.word_in_use(domain, *fraction)? {
                    machine.write(domain, address, &value.to_le_bytes())?;
                    machine.gdb.watch(Access::Read, address)?;
                }
            }
            Fault::Reuse { .. } => machine.order(domain, Inject::Panic as u32)?,
            // The second is to come yet.
            Fault::Second { first, .. } => machine.order(domain, *first)?,
            Fault::Order { kind } => {
                machine.order(domain, *kind)?;
                self.activate()?;
                self.stage = Stage::Over;
            }
            Fault::Disk { kind, after, misdeed } => {
                let armed = disk::Armed { kind: *kind, after: *after, misdeed: *misdeed };
                self.rig.disk.arm(Some(armed));
            }
            Fault::Wire { towards, after, count, mischief } => {
                let armed = wire::Armed { after: *after, count: *count, mischief: *mischief };
                self.rig.tap.arm(*towards, armed)?;
            }
            Fault::Descriptor { queue, .. } => {
                let queue = Queue::find(self.rig.tap.monitor()?, self.target.kind, *queue)?;
                self.queue = Some(queue);
                // Some chains may wait for the device.
                if self.shows()? {
                    return Ok(());
                }
            }
            Fault::Link { ms } => {
                self.rig.tap.unplug(Duration::from_millis(u64::from(*ms)))?;
                self.activate()?;
                self.stage = Stage::Over;
            }
            Fault::Pull { ms } => {
                self.rig.pull(self.target.index, Duration::from_millis(u64::from(*ms)))?;
                self.activate()?;
                self.stage = Stage::Over;
            }
            Fault::SkipCall { after, .. }
            | Fault::Call { after, .. }
            | Fault::Answer { after, .. } => self.left = *after,
            Fault::LoseInterrupt { after } => {
                self.left = *after;
                // As the hypervisor sees it, which maps all memory at its own address.
                let address = machine.place(domain, INTERRUPTS, 8)?;
                machine.gdb.watch(Access::Write, address)?;
            }
            Fault::Control { bytes } => {
                self.rig.client.disturb(&super::gdb::unhex(bytes)?)?;
                self.activate()?;
                self.stage = Stage::Over;
            }
            Fault::Register { .. } | Fault::Store { .. } | Fault::Stack { .. } => {}
        }
        for address in self.target.places(&self.plan.fault) {
            self.rig.machine.gdb.insert(address)?;
        }
        if self.second.is_some() {
            second::watch(&mut self.rig.machine)?;
        }
        // An order that brings a life about to strike is no end of the fault.
        let is_for_next = matches!(self.plan.fault, Fault::Reuse { .. });
        if (!self.rig.machine.gdb.is_free() && !is_for_next) || self.changed {
            self.rig.machine.gdb.insert(self.rig.machine.death)?;
        }
        Ok(())
    }

    /// The target came to a place of the fault.
    fn arrive(&mut self, registers: &Registers) -> Result<()> {
        let (domain, rip) = (self.target.domain, registers.rip());
        let machine = &mut self.rig.machine;
        match &self.plan.fault {
            Fault::Text { .. } => {}
            Fault::Register { register, value, .. } => {
                machine.gdb.set_register(*register, *value)?;
            }
            Fault::Store { register, value, .. } => {
                let before = registers.general.get(*register).copied().unwrap_or(0);
                machine.gdb.set_register(*register, *value)?;
                machine.gdb.remove(rip)?;
                machine.gdb.step()?;
                // If it was the end of the driver, then these are not its registers.
                let after = machine.gdb.registers()?;
                let behind = rip + 1..=rip + INSTRUCTION;
                let is_its = machine.current(&after)? == Some(domain);
                if is_its
                    && behind.contains(&after.rip())
                    && after.general.get(*register) == Some(value)
                {
                    machine.gdb.set_register(*register, before)?;
                }
            }
            Fault::Stack { fraction, value, .. } => {
                let rsp = registers.general[RSP];
                let words = self.target.stack_top.saturating_sub(rsp) / 8;
                let address = rsp + words * u64::from(*fraction) / (1 << 16) * 8;
                // A stack pointer that is no more in the stack has no word to change.
                if words > 0 && machine.place(domain, address, 8).is_ok() {
                    machine.write(domain, address, &value.to_le_bytes())?;
                }
            }
            Fault::Heap { .. }
            | Fault::Order { .. }
            | Fault::Disk { .. }
            | Fault::Wire { .. }
            | Fault::Link { .. }
            | Fault::Pull { .. }
            | Fault::LoseInterrupt { .. }
            | Fault::Control { .. }
            | Fault::Second { .. } => return Ok(()),
            Fault::Descriptor { .. } => return self.shows().map(drop),
            Fault::Answer { queue, change, .. } => {
                let peer = self.rig.judges[self.target.index].domain;
                let Some(mut ring) = Ring::read(machine, peer, self.target, *queue)? else {
                    return Ok(());
                };
                let before = self.shown.replace(ring.produced());
                let fresh = before.map_or(0, |before| ring.shown_since(before));
                if !ring.change(change, fresh) || !self.count() {
                    return Ok(());
                }
                ring.write(&self.rig.machine)?;
            }
            Fault::Reuse { blocks, fraction, .. } => {
                let allocator = &self.target.allocator;
                match self.blocks.step(allocator, registers, (*blocks, *fraction)) {
                    Step::First => {
                        let mut places = allocator.places().into_iter();
                        return places.try_for_each(|address| machine.gdb.insert(address));
                    }
                    Step::On => return Ok(()),
                    Step::HandOut(block) => {
                        machine.gdb.set_register(RAX, block)?;
                        machine.gdb.clear()?;
                    }
                }
            }
            Fault::SkipCall { call, .. } => {
                if registers.general[RAX] != *call {
                    // Each place makes one call.
                    return machine.gdb.remove(rip);
                }
                if !self.count() {
                    return Ok(());
                }
                self.skip(rip)?;
            }
            Fault::Call { registers: new, .. } => {
                if !self.count() {
                    return Ok(());
                }
                // RAX, RDI, RSI, RDX, RCX, R8.
                for (index, value) in [0, 5, 4, 3, 2, 8].into_iter().zip(new) {
                    self.rig.machine.gdb.set_register(index, *value)?;
                }
            }
        }
        self.activate()?;
        for address in self.target.places(&self.plan.fault) {
            self.rig.machine.gdb.remove(address)?;
        }
        if !self.changed {
            self.rig.machine.gdb.remove(self.rig.machine.death)?;
        }
        self.stage = Stage::Over;
        Ok(())
    }

    /// The hypervisor has told the driver of something: if it is of an interrupt, and its turn,
    /// it never did.
    fn lose_interrupt(&mut self) -> Result<&'static str> {
        let (domain, machine) = (self.target.domain, &self.rig.machine);
        let pending = machine.read_word(domain, INTERRUPTS)?;
        if pending & IRQ == 0 || !self.count() {
            return Ok("not yet");
        }
        self.rig.machine.write(domain, INTERRUPTS, &(pending & !IRQ).to_le_bytes())?;
        self.activate()?;
        self.disarm()?;
        Ok("the fault is activated")
    }

    /// Whether this call is the one that is struck.
    fn count(&mut self) -> bool {
        let left = self.left;
        self.left = left.saturating_sub(1);
        left == 0
    }

    /// A hypercall that succeeds without being made.
    fn skip(&mut self, rip: u64) -> Result<()> {
        let gdb = &mut self.rig.machine.gdb;
        gdb.set_register(RAX, 0)?;
        gdb.set_register(RIP, rip + super::target::VMMCALL.len() as u64)
    }

    fn activate(&mut self) -> Result<()> {
        let time = self.clock()?;
        self.round.activated.get_or_insert(time);
        Ok(())
    }
}

/// Number of [`Nr::Notify`], which [`Fault::SkipCall`] skips.
pub const NOTIFY: u64 = Nr::Notify as u64;
