//! The simulated machine: cores, devices, time, and who does what next.

use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use fastrand::Rng;
use hv_core::sched::Decision;
use ring_proto::bundle;
use ring_proto::crash::Reason;
use ring_proto::shm::SharedMem;
use ring_proto::{DomainId, layout};

use crate::disk::Disk;
use crate::env::{DomainEnv, Ended};
use crate::fault::{self, Cast, Fault};
use crate::hv::{Hv, PAGE};
use crate::judge::{Frames, Volume};
use crate::nic::{Frame, Nic};
use crate::node;
use crate::operator::Operator;
use crate::program::{Program, Turn, guest::Guest};
use crate::ram::Ram;
use crate::report::{self, rule, trace};

/// Steps that may pass after the last fault until every request has ended.
const STEPS_TO_END: u64 = 20_000;
/// The same in time, ns: restart policy and stuck devices take theirs.
const TIME_TO_END: u64 = 300_000_000_000;
/// How deep others may run at points within a domain's step.
const DEPTH: u32 = 2;
/// A program that goes on without `wait` calls it so often, ns, as the runtime
/// of a domain does for the watchdog's sake.
const BREATH_NS: u64 = 1_000_000;

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps of cores and devices.
    pub steps: u64,
    /// Requests of guests that ended.
    pub requests: u64,
    /// Requests among them that were sent again after a death.
    pub replayed: u64,
    /// Frames sent and received by guests.
    pub frames: u64,
    /// Frames that were lost, within the bound.
    pub frames_lost: u64,
    /// Generations that ended.
    pub deaths: u64,
    /// Times that a spare took over.
    pub takeovers: u64,
    /// Power cuts.
    pub power_cuts: u64,
}

impl Stats {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        let Self { steps, requests, replayed, frames, frames_lost, deaths, takeovers, power_cuts } =
            other;
        self.steps += steps;
        self.requests += requests;
        self.replayed += replayed;
        self.frames += frames;
        self.frames_lost += frames_lost;
        self.deaths += deaths;
        self.takeovers += takeovers;
        self.power_cuts += power_cuts;
    }
}

/// What the simulation holds of a domain.
#[derive(Default)]
struct Place {
    /// The generation that all of this is about.
    generation: u32,
    program: Option<Program>,
    /// It is about to call `wait`.
    waits: Option<u64>,
    /// CPU time that it will spend on nothing, ns.
    idles: u64,
    /// It gets no CPU time until then.
    stalled_until: u64,
}

/// A simulated machine.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) hv: Hv,
    pub(crate) disk: Disk,
    pub(crate) nic: Nic,
    pub(crate) operator: Operator,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) frames: Vec<Frames>,
    pub(crate) requests_left: Vec<u32>,
    pub(crate) frames_left: Vec<u32>,
    /// Frames that are still to come in.
    incoming: u32,
    /// Sectors of a volume that are used.
    pub(crate) span: usize,
    /// A stuck device says so.
    pub(crate) says_stuck: bool,
    manifest: bundle::Node,
    places: Vec<Place>,
    faults: Vec<(u64, Fault)>,
    /// Who dies at which of its calls.
    kill_at: Option<(DomainId, u32)>,
    cut: bool,
    /// Chance of 256 that others run at a call of a domain.
    busy: u8,
    depth: u32,
    /// Since when no fault is left: step and time.
    quiet: Option<(u64, u64)>,
    stats: Stats,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let guests = rng.usize(1..=node::MOST_GUESTS);
        let cores = rng.u16(1..=2);
        let spares = [&[][..], &[node::BLK], &[node::NET], &[node::BLK, node::NET]];
        let spares = spares[rng.usize(..spares.len())];
        let manifest = node::manifest(guests, cores, spares);
        let ram = Rc::new(Ram::new(Hv::pages(&manifest)));
        let volume =
            |n: usize| Volume::new(n * node::SECTORS, node::SECTORS, 1 + ((n as u64) << 32));
        let faults = fault::plan(&mut rng, Cast { guests, spares: spares.len() });
        let mut this = Self {
            hv: Hv::new(&manifest, ram),
            disk: Disk::new(node::BLK, guests * node::SECTORS),
            nic: Nic::new(node::NET),
            operator: Operator::new(),
            volumes: (0..guests).map(volume).collect(),
            frames: (0..guests).map(|_| Frames::default()).collect(),
            requests_left: (0..guests).map(|_| rng.u32(1..16)).collect(),
            frames_left: (0..guests).map(|_| rng.u32(..8)).collect(),
            incoming: rng.u32(..8),
            span: rng.usize(1..=node::SECTORS),
            says_stuck: rng.u8(..4) > 0,
            places: Vec::new(),
            faults,
            kill_at: None,
            cut: false,
            busy: [0, 24, 80][rng.usize(..3)],
            depth: 0,
            quiet: None,
            stats: Stats::default(),
            manifest,
            rng,
        };
        this.places.resize_with(this.manifest.domains.len(), Place::default);
        this
    }

    fn guests(&self) -> usize {
        self.volumes.len()
    }

    /// Pages of a domain's heap.
    pub(crate) fn heap(&self, domain: DomainId, first: u32, pages: u32) -> SharedMem {
        let gpa = layout::HEAP + u64::from(first) * PAGE;
        let len = u64::from(pages) * PAGE;
        let hpa = self.hv.domains[domain].space.translate(gpa, len, true);
        rule!(hpa.is_some(), "the heap of domain {domain} has no page {first}+{pages}");
        self.hv.ram.at(hpa.unwrap_or_default(), len)
    }

    /// A domain will spend its time on nothing from now on.
    pub(crate) fn hang(&mut self, domain: DomainId) {
        self.places[usize::from(domain)].idles = u64::MAX;
    }

    /// A point within a domain's step at which the hypervisor has the core:
    /// others may run, and the domain may be gone afterwards.
    pub(crate) fn between(&mut self, me: DomainId) {
        if let Some((domain, calls)) = &mut self.kill_at
            && *domain == me
        {
            if *calls == 0 {
                self.kill_at = None;
                return self.hv.end(me, Reason::Panic);
            }
            *calls -= 1;
        }
        if self.depth < DEPTH && self.rng.u8(..) < self.busy {
            self.depth += 1;
            for _ in 0..self.rng.u32(1..4) {
                self.step();
            }
            self.depth -= 1;
        }
        if self.hv.guests[me].orders.end.is_some() {
            self.hv.carry_out(me);
        }
    }

    /// One step of anybody. False if nobody had anything to do.
    fn step(&mut self) -> bool {
        self.stats.steps += 1;
        report::at(self.stats.steps, self.hv.now);
        self.fail();
        let devices = u32::from(self.disk.is_busy()) + u32::from(self.nic.is_busy());
        let arrives = self.incoming > 0 && self.rng.u8(..) < 32;
        if arrives {
            self.arrive();
            return true;
        }
        if devices > 0 && self.rng.u8(..3) == 0 {
            self.step_device();
            return true;
        }
        let cores = self.hv.cores;
        let first = self.rng.u16(..cores);
        for core in (first..cores).chain(0..first) {
            if self.step_core(core) {
                return true;
            }
        }
        if devices > 0 {
            self.step_device();
        }
        devices > 0
    }

    fn step_device(&mut self) {
        let disk = self.disk.is_busy() && (!self.nic.is_busy() || self.rng.bool());
        if disk {
            self.disk.step(&mut self.hv, &mut self.rng);
        } else if let Some((bytes, (guest, generation))) =
            self.nic.step(&mut self.hv, &mut self.rng)
        {
            match Frame::read(&bytes).filter(|frame| frame.guest == guest) {
                Some(frame) => {
                    trace!("wire: {frame:?}");
                    self.stats.frames += 1;
                    self.frames[guest].on_the_wire(frame.number);
                }
                // A guest that dies takes its memory along.
                None => rule!(
                    self.hv.domains[node::guest(guest)].info.generation != generation,
                    "a torn frame of guest {guest} is on the wire"
                ),
            }
        }
    }

    /// The wire brings a frame, or loses it.
    fn arrive(&mut self) {
        self.incoming -= 1;
        let guest = self.rng.usize(..self.guests());
        if self.rng.u8(..8) == 0 {
            return;
        }
        let number = self.frames[guest].incoming();
        let frame = Frame { guest, number };
        let came = self.nic.arrives(&mut self.hv, &mut self.rng, frame);
        trace!("wire: {frame:?} for the guest{}", if came { "" } else { ", lost" });
        self.stats.frames += 1;
    }

    /// What a core does: as `Node::step` in `hv/src/kernel/mod.rs`.
    fn step_core(&mut self, core: u16) -> bool {
        if self.hv.carry_out_orders(core) || self.hv.restore_step(core) {
            self.hv.now += 1000;
            return true;
        }
        match self.hv.sched.pick(core, self.hv.now) {
            Decision::Idle(_) => false,
            Decision::Run(domain, until) if !self.hv.guests[domain].in_guest => {
                self.run(domain, until);
                true
            }
            // Its core is at a point within this domain's step.
            Decision::Run(..) => false,
        }
    }

    fn run(&mut self, domain: DomainId, until: u64) {
        let generation = self.hv.domains[domain].info.generation;
        if self.places[usize::from(domain)].generation != generation {
            self.begins(domain, generation);
        }
        let place = &mut self.places[usize::from(domain)];
        let now = self.hv.now;
        if place.stalled_until > now || place.idles > 0 {
            // What it spends on nothing is charged; what it does not get is not.
            let slice = until.saturating_sub(now).clamp(1, 10_000_000);
            let (spent, charged) = if place.stalled_until > now {
                (slice.min(place.stalled_until - now), 1)
            } else {
                (slice.min(place.idles), slice.min(place.idles))
            };
            place.idles = place.idles.saturating_sub(charged);
            self.hv.now += spent;
            self.hv.sched.charge(domain, charged, self.hv.now);
            if self.hv.sched.is_hung(domain) {
                self.hv.end(domain, Reason::Watchdog);
            }
            return;
        }
        self.hv.guests[domain].asleep = false;
        if let Some(deadline) = place.waits.take() {
            self.hv.wait(domain, deadline);
            return;
        }
        let kept = place.program.take();
        self.hv.guests[domain].in_guest = true;
        self.hv.enter(domain);
        let run = AssertUnwindSafe(|| {
            let mut env = DomainEnv { world: self, me: domain, generation };
            let mut program = match kept {
                Some(program) => program,
                None => Program::new(&mut env),
            };
            let turn = program.turn(&mut env);
            (program, turn)
        });
        let result = panic::catch_unwind(run);
        self.hv.leave(domain);
        self.hv.guests[domain].in_guest = false;
        let ns = self.rng.u64(200..20_000);
        self.hv.now += ns / u64::from(self.hv.cores);
        self.hv.sched.charge(domain, ns, self.hv.now);
        match result {
            Ok((program, turn)) => {
                let bad = program.misbehaviours();
                rule!(bad == 0, "domain {domain} counts {bad} misbehaviours of its honest peers");
                if let Some(guest) = program.guest() {
                    self.frames[guest.number()].present = guest.losses();
                }
                self.places[usize::from(domain)].program = Some(program);
                match turn {
                    // Others may run before it comes to the call.
                    Turn::Wait(deadline) if self.rng.u8(..4) == 0 => {
                        self.places[usize::from(domain)].waits = Some(deadline);
                    }
                    Turn::Wait(deadline) => self.hv.wait(domain, deadline),
                    Turn::Again => {
                        if self.hv.sched.get(domain).since_wait >= BREATH_NS {
                            self.hv.wait(domain, 0);
                        }
                    }
                }
            }
            Err(end) if end.is::<Ended>() => {}
            Err(broken) => panic::resume_unwind(broken),
        }
        let hung = self.hv.is_running(domain) && self.hv.sched.is_hung(domain);
        rule!(!hung, "domain {domain} does not call `wait` although it is sound");
    }

    /// A generation of a domain begins: whatever the last one had is gone.
    fn begins(&mut self, domain: DomainId, generation: u32) {
        self.places[usize::from(domain)] = Place { generation, ..Place::default() };
        if let Some(number) = node::number(domain).filter(|&number| number < self.guests()) {
            self.volumes[number].guest_died();
            self.frames[number].guest_died();
            // It has something to do, whatever its former life did.
            self.requests_left[number] = self.requests_left[number].max(2);
        }
    }

    /// What is due goes wrong.
    fn fail(&mut self) {
        let steps = self.stats.steps;
        while let Some((_, fault)) = self.faults.pop_if(|(at, _)| *at <= steps) {
            self.apply(fault);
        }
    }

    fn apply(&mut self, fault: Fault) {
        trace!("fault: {fault:?}");
        match fault {
            Fault::Kill(domain, reason) => self.kill(domain, reason),
            Fault::KillSome(which) => {
                let ids = self.hv.domains.ids().filter(|id| which >> id & 1 != 0);
                ids.for_each(|id| self.kill(id, Reason::Exception));
            }
            Fault::KillAtCall(domain, calls) => self.kill_at = Some((domain, calls)),
            Fault::Hang(domain) => self.hang(domain),
            Fault::Stall(domain, ns) => {
                self.places[usize::from(domain)].stalled_until = self.hv.now + ns;
            }
            Fault::Stuck { disk: true } => self.disk.stuck = true,
            Fault::Stuck { disk: false } => self.nic.stuck = true,
            Fault::LoseInterrupts(chance) => {
                (self.disk.loses, self.nic.loses) = (chance, chance);
            }
            Fault::Spurious(domain, port) => self.hv.raise(domain, port),
            Fault::Wake(domain) => drop(self.hv.sched.wake(domain)),
            Fault::Order(domain, order) => self.operator.order(&mut self.hv, domain, order),
            Fault::Pause(ns) => self.hv.now += ns,
            Fault::PowerCut => self.cut = true,
        }
        self.hv.audit_all();
    }

    /// Ends a domain's generation, at once or as soon as its core is out of it.
    fn kill(&mut self, domain: DomainId, reason: Reason) {
        if self.hv.guests[domain].in_guest {
            self.hv.guests[domain].orders.end = Some(reason);
        } else {
            self.hv.end(domain, reason);
        }
    }

    /// Everything starts anew but what is on the disk.
    fn power_cut(&mut self) {
        trace!("the power fails");
        self.cut = false;
        self.stats.power_cuts += 1;
        self.count_life();
        self.disk.power_cut(&mut self.rng);
        for (volume, number) in self.volumes.iter_mut().zip(0..) {
            let id = node::guest(number);
            let generation = self.hv.domains[id].info.generation;
            if generation != self.places[usize::from(id)].generation {
                // It died, and nothing of its next life has run yet.
                volume.guest_died();
            }
            volume.power_cut(&self.disk.stable);
        }
        self.nic.reset();
        self.hv.ram.forget();
        self.places.iter_mut().for_each(|place| *place = Place::default());
        self.kill_at = None;
        self.operator = Operator::new();
        self.hv = Hv::new(&self.manifest, Rc::clone(&self.hv.ram));
    }

    /// Counts of the present hypervisor's life.
    fn count_life(&mut self) {
        self.stats.deaths += self.hv.deaths.next();
        self.stats.takeovers += self.hv.takeovers;
    }

    /// Whether everything is as it should be, now that everybody sleeps.
    fn is_served(&self) -> bool {
        let alive = self.hv.domains.iter().all(|d| d.is_alive() && d.info.ready != 0 && !d.held);
        let guests = (0..self.guests()).all(|number| {
            let id = node::guest(number);
            let place = &self.places[usize::from(id)];
            let program = place.program.as_ref();
            place.generation == self.hv.domains[id].info.generation
                && program.and_then(Program::guest).is_some_and(Guest::is_connected)
                && self.volumes[number].settled
                && self.volumes[number].outstanding() == 0
                && self.requests_left[number] == 0
                && self.frames_left[number] == 0
        });
        alive && guests && self.disk.queued() + self.nic.queued() == 0
    }

    /// When somebody wakes up by himself.
    fn next_wake(&mut self) -> u64 {
        let mut next = u64::MAX;
        for core in 0..self.hv.cores {
            if let Decision::Idle(until) = self.hv.sched.pick(core, self.hv.now) {
                next = next.min(until);
            }
        }
        match self.quiet {
            Some(_) => next.min(self.operator.next_look()),
            None => next,
        }
    }

    /// Runs until every guest has what it asked for.
    fn run_to_the_end(&mut self) {
        loop {
            if self.quiet.is_none() && self.faults.is_empty() && !self.cut {
                self.quiet = Some((self.stats.steps, self.hv.now));
                (self.disk.loses, self.nic.loses) = (0, 0);
                trace!("no fault is left");
            }
            if self.cut {
                self.power_cut();
            }
            if let Some((step, time)) = self.quiet {
                let (steps, ns) = (self.stats.steps - step, self.hv.now - time);
                let in_time = steps < STEPS_TO_END && ns < TIME_TO_END;
                rule!(in_time, "{steps} steps and {ns} ns after the last fault: {}", self.state());
                self.operator.look_after(&mut self.hv);
            }
            if self.step() {
                continue;
            }
            if self.quiet.is_some() && self.incoming == 0 && self.is_served() {
                return;
            }
            let next = self.next_wake();
            let stuck = next == u64::MAX && self.quiet.is_some() && self.incoming == 0;
            rule!(!stuck, "everybody sleeps for ever: {}", self.state());
            if next != u64::MAX {
                self.hv.now = self.hv.now.max(next);
            }
        }
    }

    /// The end: everything is there, everything was given back.
    fn judge(&mut self) {
        self.hv.audit_all();
        let guests = self.guests();
        for (driver, pages) in [(node::BLK, node::BLK_MAPPED), (node::NET, node::NET_MAPPED)] {
            let used = self.hv.domains[driver].window.used();
            let want = pages * guests as u32;
            rule!(used == want, "domain {driver} has {used} pages mapped, {want} are in use");
        }
        for number in 0..guests {
            let id = usize::from(node::guest(number));
            let program = self.places[id].program.as_ref();
            let Some(guest) = program.and_then(Program::guest) else { continue };
            let replayed = guest.replayed();
            self.volumes[number].check_end(&self.disk.current);
            self.volumes[number].check_durable(&self.disk.stable, "at the end");
            self.frames[number].check_end(node::RX_BUFFERS);
            self.stats.requests += self.volumes[number].completed;
            self.stats.frames_lost += self.frames[number].lost;
            self.stats.replayed += replayed;
        }
        self.count_life();
        let mut ids: Vec<DomainId> = self.hv.domains.ids().collect();
        self.rng.shuffle(&mut ids);
        for id in ids {
            self.hv.end(id, Reason::Operator);
            self.hv.audit_dead(id);
        }
        self.hv.audit_all();
        self.disk.power_cut(&mut self.rng);
        for volume in &self.volumes {
            volume.check_durable(&self.disk.stable, "the power was cut at the end");
        }
    }

    /// Where everybody is, for the message of a violation.
    fn state(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for d in self.hv.domains.iter() {
            let activity = self.hv.sched.get(d.info.id).activity;
            let (name, life, info) = (&d.config.name, d.life, &d.info);
            let _ = write!(
                text,
                "{name}: {life:?} {activity:?} ready {} held {}; ",
                info.ready, d.held
            );
        }
        for number in 0..self.guests() {
            let _ = write!(
                text,
                "guest {number}: {} requests under way, {} and {} frames left; ",
                self.volumes[number].outstanding(),
                self.requests_left[number],
                self.frames_left[number]
            );
        }
        let _ = write!(text, "disk: {} queued", self.disk.queued());
        text
    }
}

/// Runs one seed.
///
/// # Errors
/// A rule was broken, or something panicked.
pub fn run(seed: u64, trace: bool) -> Result<Stats, report::Violation> {
    report::judged(seed, trace, || {
        let mut world = World::new(seed);
        world.run_to_the_end();
        world.judge();
        world.stats
    })
}
