//! The body of the supervisor's event loop.

use heapless::{Deque, Vec};
use ring_proto::{
    DomainId, Generation, MAX_CONNECTIONS, MAX_DOMAINS,
    bundle::Name,
    control::{
        self, Absence, Answer, Command, Decoder, DomainAudit, Event, FRAME_MAX, Failure,
        FailureKind, FromNode, How, Info, MAX_TIMEOUT_MS, Reply, Request,
    },
    crash::Reason,
    event::{DRAIN, Inject},
    hypercall::{ConnectionInfo, DomainInfo, DomainState, Error, NOBODY},
};

use crate::{
    complaint::Complaints,
    node::{Node, life},
    operation::{Drain, Missing, Operation, Order, Progress},
    restart::{Decision, History, decide},
    status,
};

/// Commands that can be under way at a time.
const MAX_OPERATIONS: usize = 4;
/// Bytes that can wait to be sent.
const TX_BYTES: usize = 8 * 1024;
/// How often a connection that a command waits for, or a check's answer, is
/// looked at: they are in memory that domains write to and that signals nobody
/// here. All else comes with an event.
const SHARED_POLL_NS: u64 = 500_000;
/// How long to wait before a start that failed, or did not show yet, is tried
/// again: the hypervisor carries it out on the domain's own core, in its turn.
const RETRY_NS: u64 = 100_000_000;
/// How long a farewell may take to leave the line.
const FAREWELL_NS: u64 = 1_000_000_000;
/// How long a hold may take, ms.
const HOLD_MS: u32 = 10_000;

mod complaints;
mod deaths;
mod updates;

/// What ends this supervisor itself, once its answer has left the line.
#[derive(Clone, Copy, Debug)]
enum Farewell {
    Restart,
    Crash(Inject),
    Shutdown,
}

/// The supervisor.
#[derive(Debug)]
pub struct Supervisor {
    me: DomainId,
    generation: Generation,
    decoder: Decoder,
    tx: Deque<u8, TX_BYTES>,
    domains: Vec<DomainInfo, MAX_DOMAINS>,
    connections: Vec<ConnectionInfo, MAX_CONNECTIONS>,
    history: [History; MAX_DOMAINS],
    /// The last start that was ordered of each domain: of which generation,
    /// and when to order it again if the domain is dead still.
    ordered: [(Generation, u64); MAX_DOMAINS],
    operations: Vec<Operation, MAX_OPERATIONS>,
    /// First crash record that was not looked at.
    next_record: u64,
    farewell: Option<(Farewell, u64)>,
    bad_frames: u64,
    lost_events: u64,
    absence: Absence,
    complaints: Complaints,
    updates: updates::Updates,
}

impl Supervisor {
    /// The supervisor that is domain `me` in its `generation`.
    pub fn new(me: DomainId, generation: Generation, node: &mut impl Node) -> Self {
        let mut this = Self {
            me,
            generation,
            decoder: Decoder::new(),
            tx: Deque::new(),
            domains: Vec::new(),
            connections: Vec::new(),
            history: [const { History::new() }; MAX_DOMAINS],
            ordered: [(0, 0); MAX_DOMAINS],
            operations: Vec::new(),
            next_record: 0,
            farewell: None,
            bad_frames: 0,
            lost_events: 0,
            absence: Absence::default(),
            complaints: Complaints::new(),
            updates: updates::Updates::new(),
        };
        if let Err(why) = this.look(node) {
            log::error!("the hypervisor does not show its domains: {why:?}");
        }
        this.recall(node);
        this.end_the_drained(node);
        // Whatever a former generation left half sent ends here.
        let _ = this.tx.push_back(0);
        let absence = this.absence;
        this.tell(Event::Started { generation, absence });
        this
    }

    /// Whether [`receive`](Self::receive) may be called: there is room for
    /// its answer.
    pub fn can_receive(&self) -> bool {
        self.room() >= FRAME_MAX
    }

    /// Takes one byte from the control line and answers the request that it
    /// completes, if it does.
    pub fn receive(&mut self, node: &mut impl Node, byte: u8) {
        let mut bytes: &[u8] = &[byte];
        while let Some(result) = self.decoder.feed::<Request>(&mut bytes) {
            match result {
                Ok(request) => self.serve(node, request),
                Err(why) => {
                    log::warn!("control: frame dropped: {why:?}");
                    self.bad_frames = self.bad_frames.saturating_add(1);
                    self.tell(Event::BadFrame);
                }
            }
        }
    }

    /// Bytes that are to be sent; tell with [`sent`](Self::sent) how many went.
    pub fn to_send(&self) -> &[u8] {
        self.tx.as_slices().0
    }

    /// The first `count` bytes of [`to_send`](Self::to_send) are on their way.
    pub fn sent(&mut self, count: usize) {
        for _ in 0..count {
            self.tx.pop_front();
        }
    }

    /// Whether this supervisor is about to end, as soon as the line is empty.
    pub fn is_leaving(&self) -> bool {
        self.farewell.is_some()
    }

    /// Looks at the node and acts: deaths, restarts, commands under way.
    /// Returns when to come back (ns) if no event comes before.
    pub fn poll(&mut self, node: &mut impl Node) -> u64 {
        let now = node.now_ns();
        if let Err(why) = self.look(node) {
            log::error!("the hypervisor does not show its domains: {why:?}");
            return now.saturating_add(RETRY_NS);
        }
        self.read_deaths(node);
        let mut next = self.restart_the_dead(node, now);
        next = next.min(self.hear_complaints(node, now));
        next = next.min(self.steer_updates(node, now));
        if !self.operations.is_empty() {
            next = next.min(self.finish_operations(node));
        }
        next.min(self.leave(node))
    }

    /// Reads the present state of domains and connections.
    fn look(&mut self, node: &mut impl Node) -> Result<(), Error> {
        let full = [DomainInfo::default(); MAX_DOMAINS];
        self.domains = Vec::from_slice(&full).unwrap_or_default();
        let count = node.domains(&mut self.domains)?;
        self.domains.truncate(count);
        let full = [ConnectionInfo::default(); MAX_CONNECTIONS];
        self.connections = Vec::from_slice(&full).unwrap_or_default();
        let count = node.connections(&mut self.connections)?;
        self.connections.truncate(count);
        Ok(())
    }

    /// Restarts whom a former generation told to finish its work: nobody else
    /// would, and it takes no more.
    fn end_the_drained(&mut self, node: &mut impl Node) {
        for info in self.domains.iter().filter(|d| d.check & DRAIN != 0) {
            if is(info, DomainState::Running) {
                restart(node, info);
            }
        }
    }

    /// Starts or holds what is dead. Returns when the next start is due.
    fn restart_the_dead(&mut self, node: &mut impl Node, now: u64) -> u64 {
        let mut next = u64::MAX;
        for index in 0..self.domains.len() {
            let (Some(&info), Some(history)) = (self.domains.get(index), self.history.get(index))
            else {
                continue;
            };
            if info.id == self.me {
                continue; // The hypervisor's own affair.
            }
            let again_at = match self.ordered.get(index) {
                Some(&(generation, at)) if generation == info.generation => at,
                _ => 0,
            };
            match decide(&info, history, now) {
                Decision::Leave => {}
                Decision::StartAt(at) if at.max(again_at) > now => {
                    next = next.min(at.max(again_at));
                }
                Decision::StartAt(_) => {
                    if let Some(slot) = self.ordered.get_mut(index) {
                        *slot = (info.generation, now.saturating_add(RETRY_NS));
                    }
                    next = next.min(now.saturating_add(RETRY_NS));
                    match node.start(info.id) {
                        Ok(()) => self.tell(Event::Restarted { domain: info.id }),
                        Err(why) => {
                            log::error!("{} cannot be started: {why:?}", status::name(&info));
                        }
                    }
                }
                Decision::Hold(deaths) => match node.hold(info.id) {
                    Ok(()) => {
                        // Of all that is ordered here this alone raises no event.
                        if let Some(info) = self.domains.get_mut(index) {
                            info.state = DomainState::Held as u32;
                        }
                        log::error!("{} died {deaths} times and is held", status::name(&info));
                        self.tell(Event::Held { domain: info.id, deaths });
                    }
                    Err(why) => {
                        log::error!("{} cannot be held: {why:?}", status::name(&info));
                        next = next.min(now.saturating_add(RETRY_NS));
                    }
                },
            }
        }
        next
    }

    /// Answers commands that are done, failed, or out of time. Returns when
    /// to come back for the others.
    fn finish_operations(&mut self, node: &mut impl Node) -> u64 {
        let now = node.now_ns();
        let mut next = u64::MAX;
        let mut index = 0;
        loop {
            let room = self.room();
            let Some(operation) = self.operations.get_mut(index) else { return next };
            if let Some(info) = operation.drained(&self.domains, now) {
                restart(node, info);
            }
            if let Some(drain) = operation.drain {
                next = next.min(drain.until_ns).min(now.saturating_add(SHARED_POLL_NS));
            }
            if room < FRAME_MAX {
                // As soon as the line has taken something.
                return next;
            }
            let result = match operation.progress(&self.domains, &self.connections) {
                Progress::Done => {
                    let record = operation.record.and_then(|sequence| {
                        let record = node.crash_read(sequence).ok().flatten();
                        record.filter(|r| r.sequence == sequence)
                    });
                    Ok(operation.answer(&self.domains, record.as_ref(), now))
                }
                Progress::Failed(failure) => Err(failure),
                Progress::Waiting(missing) if now >= operation.deadline_ns => {
                    Err(operation.timed_out(missing, &self.domains))
                }
                Progress::Waiting(missing) => {
                    next = next.min(match missing {
                        Missing::Connection(_) => now.saturating_add(SHARED_POLL_NS),
                        _ => operation.deadline_ns,
                    });
                    index = index.saturating_add(1);
                    continue;
                }
            };
            let seq = operation.seq;
            self.operations.swap_remove(index);
            self.reply(seq, result);
        }
    }

    /// Carries out what ends this supervisor, once the line is empty.
    /// Returns when to come back.
    fn leave(&mut self, node: &mut impl Node) -> u64 {
        let Some((farewell, deadline)) = self.farewell else {
            return u64::MAX;
        };
        if !self.tx.is_empty() && node.now_ns() < deadline {
            return deadline;
        }
        self.farewell = None;
        let result = match farewell {
            Farewell::Restart => node.restart((self.me, self.generation)),
            Farewell::Crash(kind) => node.inject((self.me, self.generation), kind),
            Farewell::Shutdown => node.shutdown(),
        };
        if let Err(why) = result {
            log::error!("{farewell:?} of the supervisor failed: {why:?}");
        }
        u64::MAX
    }

    /// Carries out a request, or begins to.
    fn serve(&mut self, node: &mut impl Node, request: Request) {
        if let Err(why) = self.look(node) {
            return self.reply(request.seq, Err(refused(why)));
        }
        let seq = request.seq;
        match self.carry_out(node, seq, request.command) {
            Ok(Some(answer)) => self.reply(seq, Ok(answer)),
            Ok(None) => {} // Under way; answered later.
            Err(failure) => self.reply(seq, Err(failure)),
        }
    }

    fn carry_out(
        &mut self,
        node: &mut impl Node,
        seq: u32,
        command: Command,
    ) -> Result<Option<Answer>, Failure> {
        let answer = match command {
            Command::Info => self.info(node)?,
            Command::List { first } => {
                Answer::Domains(status::page(&self.domains, first, status::domain))
            }
            Command::Connections { first } => {
                Answer::Connections(status::page(&self.connections, first, status::connection))
            }
            Command::Log { cursor, of } => {
                Answer::Log(status::log(node, cursor, of).map_err(refused)?)
            }
            Command::Audit => self.audit(node),
            Command::Crashes { from } => self.crash(node, from)?,
            Command::Shutdown => {
                self.say_farewell(node, Farewell::Shutdown);
                Answer::Done
            }
            Command::Hold { domain } => {
                return self.begin(node, seq, &domain, Order::Hold, HOLD_MS);
            }
            Command::Restart { domain, timeout_ms, drain_ms } => {
                return self.begin(node, seq, &domain, Order::Restart { drain_ms }, timeout_ms);
            }
            Command::Crash { domain, how, timeout_ms } => {
                return self.begin(node, seq, &domain, Order::Crash(inject(how)), timeout_ms);
            }
            Command::Stage { domain, offset, bytes } => {
                let info = self.updatable(&domain)?;
                node.image_write(info.id, offset, &bytes).map_err(|why| match why {
                    Error::Busy => Failure::new(
                        FailureKind::Busy,
                        format_args!("{domain} is being restored; try again"),
                    ),
                    why => refused(why),
                })?;
                Answer::Done
            }
            Command::Update { domain } => return self.begin_update(node, seq, domain),
            Command::Release { domain, timeout_ms } => {
                return self.begin(node, seq, &domain, Order::Release, timeout_ms);
            }
        };
        Ok(Some(answer))
    }

    fn info(&self, node: &mut impl Node) -> Result<Answer, Failure> {
        let info = node.info().map_err(refused)?;
        Ok(Answer::Info(Info {
            cores: info.cores,
            domains: info.domains,
            memory: info.memory,
            free: info.free,
            now_ns: info.now_ns,
            next_crash: info.next_crash,
            shootdowns: info.shootdowns,
            tlb_flushes: info.tlb_flushes,
            iotlb_flushes: info.iotlb_flushes,
            supervisor: self.me,
            generation: self.generation,
            bad_frames: self.bad_frames,
            lost_events: self.lost_events,
            absence: self.absence,
        }))
    }

    fn audit(&self, node: &mut impl Node) -> Answer {
        let mut results = Vec::new();
        for info in &self.domains {
            let violations = node.audit(info.id).map_err(|error| error as u64);
            // As many as there can be domains.
            let _ = results.push(DomainAudit { domain: status::name(info), violations });
        }
        Answer::Audit(results)
    }

    fn crash(&self, node: &mut impl Node, from: u64) -> Result<Answer, Failure> {
        let record = node.crash_read(from).map_err(refused)?;
        Ok(Answer::Crash(record.map(|record| {
            let info = self.domains.iter().find(|d| d.id == record.domain);
            status::crash(&record, info.map(status::name).unwrap_or_default())
        })))
    }

    /// Begins a command whose answer comes later (`None`), or at once.
    fn begin(
        &mut self,
        node: &mut impl Node,
        seq: u32,
        name: &Name,
        order: Order,
        timeout_ms: u32,
    ) -> Result<Option<Answer>, Failure> {
        let info = self.find(name)?;
        let bad_state = |text| Err(Failure::new(FailureKind::BadState, text));
        let alive = is(&info, DomainState::Running);
        // One whose memory is still being restored counts as running.
        let begun = alive && info.started_ns >= info.died_ns;
        match order {
            Order::Crash(_) if !begun => {
                return bad_state(format_args!("{name} does not run, so it cannot be crashed"));
            }
            Order::Restart { .. } if is(&info, DomainState::Held) => {
                return bad_state(format_args!("{name} is held; `release` it"));
            }
            Order::Hold if info.id == self.me => {
                return bad_state(format_args!("nobody would be left to release the supervisor"));
            }
            Order::Release if !is(&info, DomainState::Held) => {
                return bad_state(format_args!("{name} is not held"));
            }
            _ => {}
        }
        if info.id == self.me {
            let sequence = node.info().map_err(refused)?.next_crash;
            self.say_farewell(
                node,
                match order {
                    Order::Crash(kind) => Farewell::Crash(kind),
                    _ => Farewell::Restart,
                },
            );
            return Ok(Some(Answer::Leaving { generation: self.generation, sequence }));
        }
        // Once the generation that an earlier command ends is over, the next may
        // be ordered to go, too: both commands end with the one that serves.
        let same = |o: &Operation| o.domain == info.id && o.ends == Some(info.generation);
        if self.operations.is_full() || self.operations.iter().any(same) {
            return Err(Failure::new(
                FailureKind::Busy,
                format_args!("an earlier command on {name} or others is still under way"),
            ));
        }
        let now = node.now_ns();
        let after = |ms: u32| now.saturating_add(u64::from(ms.min(MAX_TIMEOUT_MS)) * 1_000_000);
        let mut drain = None;
        let life = life(&info);
        match order {
            Order::Crash(kind) => node.inject(life, kind),
            // A spare has no work; were it told to finish it, it would do so in its
            // principal's place.
            Order::Restart { drain_ms: ms @ 1.. }
                if alive && info.ready != 0 && info.spare_of == NOBODY =>
            {
                let drained = |number| drain = Some(Drain { number, until_ns: after(ms) });
                node.check(life, true).map(drained)
            }
            Order::Restart { .. } => node.restart(life),
            // Stopped first: were this supervisor to end in between, the domain would run and be
            // held, which nothing shows. One that is stopped is not started by the policy.
            Order::Hold if alive => {
                node.stop(life, Reason::Operator).and_then(|()| node.hold(info.id))
            }
            Order::Hold => node.hold(info.id),
            Order::Release => node.release(info.id).and_then(|()| node.start(info.id)),
        }
        .map_err(refused)?;
        if order == Order::Release
            && let Some(history) = self.history.get_mut(usize::from(info.id))
        {
            history.clear();
        }
        // There is room, as checked above.
        let _ = self.operations.push(Operation {
            seq,
            domain: info.id,
            name: name.clone(),
            order,
            ends: begun.then_some(info.generation),
            ordered_ns: now,
            deadline_ns: after(timeout_ms),
            record: None,
            drain,
            drained: false,
        });
        Ok(None)
    }

    fn say_farewell(&mut self, node: &impl Node, farewell: Farewell) {
        let deadline = node.now_ns().saturating_add(FAREWELL_NS);
        self.farewell = Some((farewell, deadline));
    }

    fn find(&self, name: &Name) -> Result<DomainInfo, Failure> {
        let found = self.domains.iter().find(|d| status::name(d) == *name);
        found.copied().ok_or_else(|| {
            Failure::new(FailureKind::NotFound, format_args!("no domain is named `{name}`"))
        })
    }

    /// The name of a domain that there may not be.
    fn name(&self, domain: DomainId) -> Name {
        let found = self.domains.iter().find(|d| d.id == domain);
        found.map_or_else(|| control::format(format_args!("#{domain}")), status::name)
    }

    fn room(&self) -> usize {
        TX_BYTES.saturating_sub(self.tx.len())
    }

    /// Queues a reply; the caller made sure that there is room.
    fn reply(&mut self, seq: u32, result: Result<Answer, Failure>) {
        self.send(&FromNode::Reply(Reply { seq, result }));
    }

    /// Queues an event, unless replies need the room more.
    fn tell(&mut self, event: Event) {
        if self.room() < 2 * FRAME_MAX {
            self.lost_events = self.lost_events.saturating_add(1);
        } else {
            self.send(&FromNode::Event(event));
        }
    }

    fn send(&mut self, message: &FromNode) {
        match control::encode(message) {
            Ok(frame) if frame.len() <= self.room() => {
                for &byte in &frame {
                    // There is room, as just checked.
                    let _ = self.tx.push_back(byte);
                }
            }
            _ => log::error!("a control message could not be sent"),
        }
    }
}

/// Restarts a domain, unless its life ended since `info` was read.
fn restart(node: &mut impl Node, info: &DomainInfo) {
    match node.restart(life(info)) {
        Ok(()) | Err(Error::NotFound) => {}
        Err(why) => log::error!("{} cannot be restarted: {why:?}", status::name(info)),
    }
}

fn is(info: &DomainInfo, state: DomainState) -> bool {
    DomainState::from_raw(info.state) == Some(state)
}

fn inject(how: How) -> Inject {
    match how {
        How::Panic => Inject::Panic,
        How::NullWrite => Inject::NullWrite,
        How::Loop => Inject::Loop,
        How::Exception => Inject::Exception,
        How::StackOverflow => Inject::StackOverflow,
        How::TripleFault => Inject::TripleFault,
        How::OutOfMemory => Inject::OutOfMemory,
        How::Stall => Inject::Stall,
    }
}

fn refused(why: Error) -> Failure {
    Failure::new(
        FailureKind::Hypervisor(why as u64),
        format_args!("the hypervisor refused: {why:?}"),
    )
}
