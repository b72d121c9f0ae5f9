//! A simulated node: domains that die, are built, become ready and connect,
//! each step taking its time on a clock that the test moves.

use std::{format, string::String, vec, vec::Vec};

use ring_proto::{
    DomainId, Generation,
    conn::State,
    crash::{CrashRecord, Reason, Rebuild, UNKNOWN},
    event::{DRAIN, Inject, STUCK},
    hypercall::{
        ConnectionInfo, DomainInfo, DomainState, Error, LogHeader, NOBODY, NodeInfo, Trial,
    },
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::node::{Life, Node, life};

const MS: u64 = 1_000_000;

/// How a simulated domain behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// From an injected panic to the death.
    pub dies_after_ns: u64,
    /// From start to ready.
    pub ready_after_ns: u64,
    /// From ready to connected; `None`: it never connects.
    pub connects_after_ns: Option<u64>,
    /// It dies again so long after each start.
    pub dies_by_itself_ns: Option<u64>,
    /// From a check to its answer, and that it is stuck; `None`: it never answers.
    pub answers_after_ns: Option<(u64, bool)>,
    /// The same when it is to drain.
    pub drains_after_ns: Option<(u64, bool)>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            dies_after_ns: MS / 10,
            ready_after_ns: 2 * MS,
            connects_after_ns: Some(MS),
            dies_by_itself_ns: None,
            answers_after_ns: Some((MS, false)),
            drains_after_ns: Some((3 * MS, false)),
        }
    }
}

/// A simulated node with the domains `supervisor`, `blk`, `net` and `kv`; `kv`
/// is the frontend of connections to `blk` and `net`.
#[derive(Debug)]
pub struct FakeNode {
    /// The clock. Set it, then call [`step`](Self::step).
    pub now: u64,
    /// What the hypervisor would say of the domains.
    pub domains: Vec<DomainInfo>,
    /// How each behaves.
    pub habits: Vec<Habits>,
    /// Crash records.
    pub records: Vec<CrashRecord>,
    /// Console bytes.
    pub console: Vec<u8>,
    /// Starts that were ordered, in order.
    pub starts: Vec<(DomainId, u64)>,
    /// Checks that were ordered, and whether to drain.
    pub checks: Vec<(DomainId, bool)>,
    /// The file that was staged for blk; it is refused if it begins with "bad".
    pub staged: Vec<u8>,
    /// How blk behaves while it runs a new image.
    pub on_trial: Habits,
    /// How the trials ended that the supervisor ended.
    pub judged: Vec<bool>,
    /// It was powered off.
    pub off: bool,
    /// Checksum of the image that is staged.
    pub new_crc: u32,
    /// Restarts that are ordered are carried out right after the next look at the
    /// domains, which then sees what is over; else at once.
    pub restarts_after_look: bool,
    ordered: Option<Life>,
    /// There is a spare of blk.
    spare: bool,
    /// Violations that the audit finds in each domain.
    pub violations: u64,
    held: Vec<bool>,
    injected: Vec<bool>,
    stalled: Vec<bool>,
    answers_at: Vec<Option<(u64, u32)>>,
    starts_at: Vec<Option<u64>>,
    dies_at: Vec<Option<(u64, Reason)>>,
    connections: Vec<(DomainId, DomainId)>,
}

/// Checksum of any new image; all others have 0.
pub const NEW_CRC: u32 = 7;
/// Number of the simulated supervisor.
pub const SUPERVISOR: DomainId = 0;
/// Number of the simulated blk.
pub const BLK: DomainId = 1;
/// Number of the simulated net.
pub const NET: DomainId = 2;
/// Number of the simulated kv.
pub const KV: DomainId = 3;
/// Number of blk's spare, see [`FakeNode::with_spare`].
pub const SPARE: DomainId = 4;

impl Default for FakeNode {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeNode {
    /// A node on which everything serves.
    pub fn new() -> Self {
        let names = ["supervisor", "blk", "net", "kv"];
        let domains = names.iter().zip(0..).map(|(text, id)| {
            let mut name = [0; 24];
            name[..text.len()].copy_from_slice(text.as_bytes());
            DomainInfo {
                id,
                core: id % 2,
                state: DomainState::Running as u32,
                generation: 1,
                ready: 1,
                memory: 4 << 20,
                restart_floor_ms: 5,
                restart_backoff_percent: 200,
                restart_budget: 5,
                restart_window_s: 10,
                restart_automatic: 1,
                check_ms: 500,
                word_s: 60,
                spare_of: NOBODY,
                update_space: if text == &"blk" { 1 << 20 } else { 0 },
                name,
                ..DomainInfo::default()
            }
        });
        let mut node = Self {
            now: 1_000 * MS,
            domains: domains.collect(),
            habits: vec![Habits::default(); names.len()],
            records: Vec::new(),
            console: Vec::new(),
            starts: Vec::new(),
            checks: Vec::new(),
            staged: Vec::new(),
            on_trial: Habits::default(),
            judged: Vec::new(),
            off: false,
            new_crc: NEW_CRC,
            restarts_after_look: false,
            ordered: None,
            spare: false,
            violations: 0,
            held: vec![false; names.len()],
            injected: vec![false; names.len()],
            stalled: vec![false; names.len()],
            answers_at: vec![None; names.len()],
            starts_at: vec![None; names.len()],
            dies_at: vec![None; names.len()],
            connections: vec![(KV, BLK), (KV, NET)],
        };
        node.print(0xffff, "simulated node");
        node
    }

    /// The same with a spare of blk.
    pub fn with_spare() -> Self {
        let mut node = Self::new();
        let mut name = [0; 24];
        name[..9].copy_from_slice(b"blk-spare");
        let blk = node.domains[usize::from(BLK)];
        node.domains.push(DomainInfo { id: SPARE, spare_of: BLK, name, ..blk });
        node.habits.push(Habits::default());
        for list in [&mut node.held, &mut node.injected, &mut node.stalled] {
            list.push(false);
        }
        node.answers_at.push(None);
        node.starts_at.push(None);
        node.dies_at.push(None);
        node.spare = true;
        node
    }

    /// Appends a line to the console.
    pub fn print(&mut self, domain: DomainId, text: &str) {
        let generation = self.domains.get(usize::from(domain)).map_or(1, |info| info.generation);
        let time_ns = self.now;
        let header = LogHeader { domain, len: text.len() as u16, generation, time_ns };
        self.console.extend_from_slice(header.as_bytes());
        self.console.extend_from_slice(text.as_bytes());
    }

    /// Lets happen what is due by `now`.
    pub fn step(&mut self) {
        for index in 0..self.domains.len() {
            if let Some((at, reason)) = self.dies_at[index]
                && at <= self.now
            {
                self.die(index as DomainId, reason);
            }
            if self.starts_at[index].is_some_and(|at| at <= self.now) {
                self.starts_at[index] = None;
                self.begin(index as DomainId);
            }
            if let Some((at, answer)) = self.answers_at[index]
                && at <= self.now
            {
                self.answers_at[index] = None;
                self.domains[index].health = answer;
            }
            let info = &mut self.domains[index];
            let ready_at = info.started_ns + self.habits[index].ready_after_ns;
            if info.state == DomainState::Running as u32 && info.ready == 0 && ready_at <= self.now
            {
                info.ready = 1;
                let record = self.records.iter_mut().rev().find(|r| r.domain == info.id);
                if let Some(record) = record {
                    record.times.ready = ready_at;
                }
            }
        }
    }

    /// A frontend complains about its backend.
    pub fn complain(&mut self, frontend: DomainId, backend: DomainId) {
        let info = &mut self.domains[usize::from(backend)];
        info.complaints += 1;
        info.complained_ns = self.now;
        info.complainant = frontend;
    }

    /// Ends a generation.
    pub fn die(&mut self, domain: DomainId, reason: Reason) {
        let index = usize::from(domain);
        let info = &mut self.domains[index];
        if info.state != DomainState::Running as u32 {
            return;
        }
        let generation: Generation = info.generation;
        info.state = match reason {
            Reason::Operator => DomainState::Stopped as u32,
            Reason::Exit if !matches!(domain, BLK | NET | SPARE) => DomainState::Stopped as u32,
            _ => DomainState::Dead as u32,
        };
        info.generation += 1;
        info.deaths += 1;
        info.ready = 0;
        info.last_reason = reason as u32;
        info.died_ns = self.now;
        info.health = 0;
        info.check &= !DRAIN;
        let image_crc = info.image_crc;
        if info.trial == Trial::Here as u32 {
            info.trial = Trial::None as u32;
            std::mem::swap(&mut self.habits[index], &mut self.on_trial);
        }
        self.dies_at[index] = None;
        self.answers_at[index] = None;
        let mut record = CrashRecord::new_zeroed();
        record.sequence = self.records.len() as u64;
        record.domain = domain;
        record.generation = generation;
        record.times.died = self.now;
        record.times.detected = self.now;
        record.times.quiesced = self.now;
        record.in_flight = UNKNOWN;
        record.image_crc = image_crc;
        let injected = std::mem::take(&mut self.injected[index]);
        record.ordered = u16::from(injected || reason == Reason::Operator);
        record.report.reason = reason as u32;
        record.report.backtrace[0] = 0x20_1234;
        let message: String = format!("generation {generation} ended");
        record.report.message[..message.len()].copy_from_slice(message.as_bytes());
        self.records.push(record);
        self.show_hold(domain);
        if domain == SUPERVISOR {
            self.begin(domain);
        }
    }

    /// From the last death of `domain` to now, ns.
    pub fn since_death(&self, domain: DomainId) -> u64 {
        let last = self.records.iter().rev().find(|r| r.domain == domain);
        self.now - last.map_or(0, |r| r.times.died)
    }

    /// A held domain shows it as soon as it does not run.
    fn show_hold(&mut self, domain: DomainId) {
        let index = usize::from(domain);
        let info = &mut self.domains[index];
        if self.held[index] && info.state != DomainState::Running as u32 {
            info.state = DomainState::Held as u32;
        }
    }

    fn begin(&mut self, domain: DomainId) {
        let now = self.now;
        let index = usize::from(domain);
        let info = &mut self.domains[index];
        let principal = info.spare_of;
        info.state = DomainState::Running as u32;
        info.started_ns = now;
        info.ready = 0;
        info.image_crc = info.good_crc;
        let from = if self.spare { Trial::Elsewhere } else { Trial::Due };
        if info.trial == from as u32 {
            info.trial = Trial::Here as u32;
            info.image_crc = self.new_crc;
            std::mem::swap(&mut self.habits[index], &mut self.on_trial);
        }
        if let Some(principal) = self.domains.get_mut(usize::from(principal)) {
            // Of its spare only this is simulated: it tries first.
            if principal.trial == Trial::Due as u32 {
                principal.trial = Trial::Elsewhere as u32;
            }
        }
        self.stalled[index] = false;
        if let Some(ns) = self.habits[index].dies_by_itself_ns {
            self.dies_at[index] = Some((now + ns, Reason::Panic));
        }
        if let Some(record) = self.records.iter_mut().rev().find(|r| r.domain == domain) {
            record.times.entered = now;
            record.rebuild = Rebuild::Cold as u16;
        }
    }

    fn get(&mut self, domain: DomainId) -> Result<&mut DomainInfo, Error> {
        self.domains.get_mut(usize::from(domain)).ok_or(Error::NotFound)
    }

    /// The domain, if it is in that life.
    fn in_life(&mut self, (domain, generation): Life) -> Result<DomainId, Error> {
        let present = self.get(domain)?.generation == generation;
        present.then_some(domain).ok_or(Error::NotFound)
    }

    fn carry_out_restart(&mut self, life: Life) {
        if let Ok(domain) = self.in_life(life) {
            self.die(domain, Reason::Operator);
            if domain != SUPERVISOR {
                // In the same turn of its core.
                self.starts.push((domain, self.now));
                self.begin(domain);
            }
        }
    }

    fn end_state(&self, domain: DomainId) -> u32 {
        let info = &self.domains[usize::from(domain)];
        let habits = &self.habits[usize::from(domain)];
        let ready_at = info.started_ns + habits.ready_after_ns;
        let state = match (DomainState::from_raw(info.state), habits.connects_after_ns) {
            (Some(DomainState::Running), Some(after))
                if info.ready != 0 && ready_at + after <= self.now =>
            {
                State::Connected
            }
            (Some(DomainState::Running), _) => State::Initialising,
            _ => State::Closed,
        };
        state as u32
    }
}

impl Node for FakeNode {
    fn now_ns(&self) -> u64 {
        self.now
    }

    fn domains(&mut self, out: &mut [DomainInfo]) -> Result<usize, Error> {
        self.step();
        out[..self.domains.len()].copy_from_slice(&self.domains);
        if let Some(life) = self.ordered.take() {
            self.carry_out_restart(life);
        }
        Ok(self.domains.len())
    }

    fn connections(&mut self, out: &mut [ConnectionInfo]) -> Result<usize, Error> {
        for (id, &(frontend, backend)) in self.connections.iter().enumerate() {
            out[id] = ConnectionInfo {
                id: id as u16,
                protocol: 1 + id as u16,
                frontend,
                backend,
                frontend_state: self.end_state(frontend),
                backend_state: self.end_state(backend),
            };
        }
        Ok(self.connections.len())
    }

    fn info(&mut self) -> Result<NodeInfo, Error> {
        Ok(NodeInfo {
            cores: 2,
            domains: self.domains.len() as u32,
            memory: 512 << 20,
            free: 400 << 20,
            now_ns: self.now,
            next_crash: self.records.len() as u64,
            shootdowns: 3,
            tlb_flushes: 5,
            iotlb_flushes: 4,
        })
    }

    fn start(&mut self, domain: DomainId) -> Result<(), Error> {
        let state = self.get(domain)?.state;
        if state != DomainState::Dead as u32 && state != DomainState::Stopped as u32 {
            return Err(Error::BadState);
        }
        self.starts.push((domain, self.now));
        // The domain's own core does it, in its turn.
        self.starts_at[usize::from(domain)] = Some(self.now + MS / 20);
        Ok(())
    }

    fn stop(&mut self, life: Life, reason: Reason) -> Result<(), Error> {
        let domain = self.in_life(life)?;
        // The domain's own core does it, in its turn.
        self.dies_at[usize::from(domain)] = Some((self.now + MS / 20, reason));
        Ok(())
    }

    fn restart(&mut self, life: Life) -> Result<(), Error> {
        self.in_life(life)?;
        if self.restarts_after_look {
            self.ordered = Some(life);
        } else {
            self.carry_out_restart(life);
        }
        Ok(())
    }

    fn check(&mut self, life: Life, drain: bool) -> Result<u32, Error> {
        let now = self.now;
        let domain = self.in_life(life)?;
        let info = self.get(domain)?;
        if info.state != DomainState::Running as u32 {
            return Err(Error::BadState);
        }
        let number = (info.check & !DRAIN) + 1;
        info.check = if drain { number | DRAIN } else { number };
        let index = usize::from(domain);
        self.checks.push((domain, drain));
        let habits = &self.habits[index];
        let answer = if drain { habits.drains_after_ns } else { habits.answers_after_ns };
        let answer = answer.filter(|_| !self.stalled[index]);
        self.answers_at[index] =
            answer.map(|(after, stuck)| (now + after, number | if stuck { STUCK } else { 0 }));
        Ok(number)
    }

    fn hold(&mut self, domain: DomainId) -> Result<(), Error> {
        self.get(domain)?;
        self.held[usize::from(domain)] = true;
        self.show_hold(domain);
        Ok(())
    }

    fn release(&mut self, domain: DomainId) -> Result<(), Error> {
        let now = self.now;
        let info = self.get(domain)?;
        info.state = DomainState::Stopped as u32;
        info.released_ns = now;
        self.held[usize::from(domain)] = false;
        Ok(())
    }

    fn inject(&mut self, life: Life, kind: Inject) -> Result<(), Error> {
        let domain = self.in_life(life)?;
        self.injected[usize::from(domain)] = true;
        let after = self.habits[usize::from(domain)].dies_after_ns;
        let (after, reason) = match kind {
            Inject::Slow => return Ok(()),
            // It lives on and answers nobody.
            Inject::Stall | Inject::Livelock | Inject::Storm => {
                self.stalled[usize::from(domain)] = true;
                return Ok(());
            }
            Inject::Panic => (after, Reason::Panic),
            Inject::OutOfMemory => (after, Reason::Memory),
            Inject::Exception => (after, Reason::Exception),
            Inject::NullWrite | Inject::StackOverflow => (after, Reason::NestedFault),
            Inject::TripleFault => (after, Reason::Shutdown),
            Inject::Loop => (100 * after, Reason::Watchdog),
        };
        self.dies_at[usize::from(domain)] = Some((self.now + after, reason));
        Ok(())
    }

    fn crash_read(&mut self, sequence: u64) -> Result<Option<CrashRecord>, Error> {
        Ok(self.records.iter().find(|r| r.sequence >= sequence).copied())
    }

    fn log_read(
        &mut self,
        cursor: u64,
        of: Option<(DomainId, Generation)>,
        out: &mut [u8],
    ) -> Result<u64, Error> {
        // A cursor that nobody was told may point anywhere.
        let mut rest = self.console.get(cursor as usize..).unwrap_or_default();
        let (mut next, mut filled) = (cursor, 0);
        // Whole entries only, as the hypervisor does it.
        while let Ok((header, after)) = LogHeader::read_from_prefix(rest) {
            let len = size_of::<LogHeader>() + usize::from(header.len);
            let Some(entry) = rest.get(..len) else { break };
            let wanted = of.is_none_or(|(domain, generation)| {
                header.domain == domain && (generation == 0 || header.generation == generation)
            });
            if wanted {
                let Some(to) = out.get_mut(filled..filled + len) else { break };
                to.copy_from_slice(entry);
                filled += len;
            }
            rest = &after[usize::from(header.len)..];
            next += len as u64;
        }
        Ok(next)
    }

    fn image_write(&mut self, _: DomainId, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        let at = offset as usize;
        if at > self.staged.len() {
            return Err(Error::BadArgument);
        }
        self.staged.truncate(at);
        self.staged.extend_from_slice(bytes);
        Ok(())
    }

    fn image_commit(&mut self, domain: DomainId, why: &mut [u8]) -> Result<usize, Error> {
        if self.staged.starts_with(b"bad") {
            why[..9].copy_from_slice(b"it is bad");
            return Ok(9);
        }
        self.get(domain)?.trial = Trial::Due as u32;
        Ok(0)
    }

    fn image_judge(&mut self, domain: DomainId, keep: bool) -> Result<(), Error> {
        self.judged.push(keep);
        let new_crc = self.new_crc;
        let info = self.get(domain)?;
        let here = info.trial == Trial::Here as u32;
        if !here && keep {
            return Err(Error::BadState);
        }
        if keep {
            info.trial = Trial::None as u32;
            info.good_crc = new_crc;
            let spares = self.domains.iter_mut().filter(|d| d.spare_of == domain);
            spares.for_each(|d| d.good_crc = new_crc);
        } else if here {
            let life = life(info);
            return self.restart(life);
        } else {
            info.trial = Trial::None as u32;
        }
        Ok(())
    }

    fn audit(&mut self, domain: DomainId) -> Result<u64, Error> {
        self.get(domain)?;
        Ok(self.violations)
    }

    fn shutdown(&mut self) -> Result<(), Error> {
        self.off = true;
        Ok(())
    }
}
