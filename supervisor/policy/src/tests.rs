//! The supervisor against a simulated node.

use std::vec::Vec;

use ring_proto::{
    bundle::Name,
    control::{
        Absence, Answer, Command, Decoder, Event, FailureKind, FromNode, How, Recovery, Reply,
        Request, encode,
    },
    crash::Reason,
    hypercall::DomainState,
};

use crate::{
    Supervisor,
    fake::{BLK, FakeNode, KV, NET, SUPERVISOR},
};

mod policy;
mod update;

const MS: u64 = 1_000_000;

/// A supervisor on a simulated node, and what came over the line.
struct Bench {
    node: FakeNode,
    supervisor: Supervisor,
    decoder: Decoder,
    replies: Vec<Reply>,
    events: Vec<Event>,
    seq: u32,
}

impl Bench {
    fn new() -> Self {
        Self::over(FakeNode::new())
    }

    fn over(mut node: FakeNode) -> Self {
        let supervisor = Supervisor::new(SUPERVISOR, 1, &mut node);
        let mut this = Self {
            node,
            supervisor,
            decoder: Decoder::new(),
            replies: Vec::new(),
            events: Vec::new(),
            seq: 100,
        };
        this.run_ms(1);
        let absence = Absence::default();
        assert_eq!(this.events, [Event::Started { generation: 1, absence }]);
        this.events.clear();
        this
    }

    fn drain(&mut self) {
        while !self.supervisor.to_send().is_empty() {
            let bytes = self.supervisor.to_send().to_vec();
            let mut piece = &bytes[..];
            while let Some(message) = self.decoder.feed::<FromNode>(&mut piece) {
                match message.unwrap() {
                    FromNode::Reply(reply) => self.replies.push(reply),
                    FromNode::Event(event) => self.events.push(event),
                }
            }
            self.supervisor.sent(bytes.len());
        }
    }

    fn run_ms(&mut self, ms: u64) {
        let end = self.node.now + ms * MS;
        while self.node.now < end {
            let next = self.supervisor.poll(&mut self.node);
            self.drain();
            // Deaths come as events, which a fine step stands for.
            self.node.now = next.clamp(self.node.now + MS / 20, self.node.now + MS / 2);
            self.node.step();
        }
    }

    fn run_until(&mut self, state: DomainState) {
        for _ in 0..1_000 {
            if self.node.domains[usize::from(BLK)].state == state as u32 {
                return;
            }
            self.supervisor.poll(&mut self.node);
            self.drain();
            self.node.now += MS / 20;
            self.node.step();
        }
        panic!("blk is not {state:?} after 50 ms");
    }

    fn send(&mut self, command: Command) -> u32 {
        self.seq += 1;
        for &byte in &encode(&Request { seq: self.seq, command }).unwrap() {
            self.supervisor.receive(&mut self.node, byte);
        }
        self.drain();
        self.seq
    }

    fn reply(&mut self, seq: u32) -> Option<Reply> {
        let at = self.replies.iter().position(|r| r.seq == seq)?;
        Some(self.replies.remove(at))
    }

    fn ask(&mut self, command: Command, ms: u64) -> Reply {
        let seq = self.send(command);
        for _ in 0..=ms {
            if let Some(reply) = self.reply(seq) {
                return reply;
            }
            self.run_ms(1);
        }
        panic!("no reply within {ms} ms");
    }
}

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

fn crash(domain: &str, how: How) -> Command {
    Command::Crash { domain: name(domain), how, timeout_ms: 1_000 }
}

fn recovery(reply: Reply) -> Recovery {
    match reply.result {
        Ok(Answer::Serving(recovery)) => recovery,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_crash_is_answered_once_the_next_generation_serves() {
    let mut bench = Bench::new();
    for (how, reason, generation) in [
        (How::Panic, Reason::Panic, 2),
        (How::NullWrite, Reason::NestedFault, 3),
        (How::Loop, Reason::Watchdog, 4),
        (How::Exception, Reason::Exception, 5),
        (How::StackOverflow, Reason::NestedFault, 6),
        (How::TripleFault, Reason::Shutdown, 7),
        (How::OutOfMemory, Reason::Memory, 8),
    ] {
        let recovery = recovery(bench.ask(crash("blk", how), 100));
        assert_eq!(recovery.generation, generation);
        assert_eq!(recovery.ended, generation - 1);
        assert_eq!(recovery.reason, reason as u32);
        let t = recovery.times;
        assert!(t.ordered <= t.detected && t.detected <= t.quiesced, "{t:?}");
        assert!(t.quiesced <= t.restarted && t.restarted <= t.ready, "{t:?}");
        // The simulated connection takes 1 ms more than readiness.
        assert!(t.ready + MS <= t.connected, "{t:?}");
    }
    assert!(bench.events.contains(&Event::Restarted { domain: BLK }));
}

#[test]
fn g6_ordered_deaths_do_not_use_up_the_budget() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        recovery(bench.ask(crash("net", How::Panic), 100));
    }
    let restart = Command::Restart { domain: name("net"), timeout_ms: 1_000, drain_ms: 0 };
    for _ in 0..50 {
        recovery(bench.ask(restart.clone(), 100));
    }
    assert_eq!(bench.node.domains[usize::from(NET)].deaths, 100);
}

#[test]
fn g6_a_domain_that_keeps_dying_is_held_and_can_be_released() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].dies_by_itself_ns = Some(MS);
    bench.node.die(BLK, Reason::Exception);
    bench.run_ms(500);
    let blk = bench.node.domains[usize::from(BLK)];
    assert_eq!(blk.state, DomainState::Held as u32);
    assert_eq!(blk.deaths, 5);
    assert!(bench.events.contains(&Event::Held { domain: BLK, deaths: 5 }));
    // The waits between the starts doubled (4 starts, the first at once).
    let starts: Vec<u64> = bench.node.starts.iter().map(|&(_, at)| at).collect();
    let waits: Vec<u64> = starts.windows(2).map(|w| (w[1] - w[0]) / MS).collect();
    assert_eq!(waits, [10, 20, 40]);

    let restart = Command::Restart { domain: name("blk"), timeout_ms: 100, drain_ms: 0 };
    let failure = bench.ask(restart, 5).result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadState);
    bench.node.habits[usize::from(BLK)].dies_by_itself_ns = None;
    let release = Command::Release { domain: name("blk"), timeout_ms: 1_000 };
    assert_eq!(recovery(bench.ask(release, 100)).generation, 6);
}

#[test]
fn a_command_hears_of_a_hold_in_the_turn_that_orders_it() {
    // A hold raises no event, so that nobody would come back for it.
    let mut bench = Bench::new();
    bench.node.domains[usize::from(BLK)].restart_floor_ms = 0;
    let habits = &mut bench.node.habits[usize::from(BLK)];
    (habits.dies_by_itself_ns, habits.ready_after_ns) = (Some(MS), 5 * MS);
    let seq = bench.send(crash("blk", How::Panic));
    bench.run_until(DomainState::Held);
    let failure = bench.reply(seq).unwrap().result.unwrap_err();
    assert_eq!(failure.text.as_str(), "blk is held; `release` it");
}

#[test]
fn a_command_that_cannot_succeed_says_why_in_time() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].ready_after_ns = u64::MAX / 2;
    let failure = bench.ask(crash("blk", How::Panic), 1_100).result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.text.as_str(), "after 1000 ms blk runs but is not ready");

    bench.node.habits[usize::from(NET)].connects_after_ns = None;
    let failure = bench.ask(crash("net", How::Panic), 1_100).result.unwrap_err();
    assert!(
        failure
            .text
            .contains("connection 1 is not up: frontend kv connected, backend net initialising"),
        "{}",
        failure.text
    );

    bench.node.domains[usize::from(KV)].restart_automatic = 0;
    let failure = bench.ask(crash("kv", How::Panic), 1_100).result.unwrap_err();
    assert_eq!(failure.text.as_str(), "kv died; its manifest says not to restart it");

    let failure = bench.ask(crash("nobody", How::Panic), 5).result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[test]
fn a_held_peer_does_not_keep_a_domain_from_serving() {
    let mut bench = Bench::new();
    let hold = bench.ask(Command::Hold { domain: name("kv") }, 5);
    assert_eq!(hold.result, Ok(Answer::Done));
    bench.run_ms(50);
    assert_eq!(bench.node.domains[usize::from(KV)].state, DomainState::Held as u32);
    recovery(bench.ask(crash("blk", How::Panic), 100));
}

#[test]
fn a_second_command_on_the_same_domain_has_to_wait() {
    let mut bench = Bench::new();
    let first = bench.send(crash("blk", How::Loop));
    let failure = bench.ask(crash("blk", How::Panic), 1).result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Busy);
    bench.run_ms(100);
    assert!(bench.reply(first).unwrap().result.is_ok());
}

#[test]
fn a_domain_may_be_ordered_to_die_before_it_is_back() {
    let mut bench = Bench::new();
    let first = bench.send(crash("blk", How::Panic));
    bench.run_until(DomainState::Dead);
    let refused = bench.ask(crash("blk", How::Panic), 0).result.unwrap_err();
    assert_eq!(refused.kind, FailureKind::BadState, "{refused:?}");
    bench.run_until(DomainState::Running);
    assert_eq!(bench.node.domains[usize::from(BLK)].ready, 0);
    let second = bench.send(crash("blk", How::Panic));
    bench.run_ms(100);
    for (number, ended) in [(first, 1), (second, 2)] {
        let recovery = recovery(bench.reply(number).unwrap());
        assert_eq!((recovery.generation, recovery.ended), (3, ended));
    }
}

#[test]
fn g7_the_supervisor_says_farewell_and_its_next_generation_goes_on() {
    let mut bench = Bench::new();
    let reply = bench.ask(crash("supervisor", How::Panic), 5);
    assert_eq!(reply.result, Ok(Answer::Leaving { generation: 1, sequence: 0 }));
    bench.run_ms(5);
    assert_eq!(bench.node.records[0].domain, SUPERVISOR);
    // A driver dies while nobody looks.
    bench.node.die(BLK, Reason::Panic);
    bench.node.now += 7 * MS;
    let expected = bench.node.since_death(SUPERVISOR);
    bench.supervisor = Supervisor::new(SUPERVISOR, 2, &mut bench.node);
    bench.run_ms(50);
    // From the death to the service of the next one, with a death of another.
    let absence = bench.events.iter().find_map(|event| match event {
        Event::Started { generation: 2, absence } => Some(*absence),
        _ => None,
    });
    let absence = absence.unwrap();
    assert_eq!(absence.deaths, 1);
    assert_eq!(absence.ns, expected);
    assert!(absence.ns >= 7 * MS);
    let blk_died = |event: &&Event| matches!(event, Event::Died { domain: BLK, .. });
    assert_eq!(bench.events.iter().filter(blk_died).count(), 1);
    match bench.ask(Command::Info, 5).result {
        Ok(Answer::Info(info)) => assert_eq!(info.absence, absence),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.node.domains[usize::from(BLK)].ready, 1);
}

#[test]
fn lists_logs_audits_and_records_are_told() {
    let mut bench = Bench::new();
    match bench.ask(Command::List { first: 1 }, 5).result {
        Ok(Answer::Domains(page)) => {
            assert_eq!(page.entries.len(), 3);
            assert_eq!(page.entries[0].name, "blk");
            assert_eq!(page.next, None);
        }
        other => panic!("{other:?}"),
    }
    for i in 0..100 {
        bench.node.print(BLK, &std::format!("line {i}"));
    }
    let mut cursor = 0;
    let mut bytes = Vec::new();
    loop {
        match bench.ask(Command::Log { cursor, of: None }, 5).result {
            Ok(Answer::Log(page)) if page.next == cursor => break,
            Ok(Answer::Log(page)) => {
                bytes.extend_from_slice(&page.bytes);
                cursor = page.next;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, bench.node.console);
    bench.node.violations = 2;
    match bench.ask(Command::Audit, 5).result {
        Ok(Answer::Audit(all)) => {
            assert!(all.iter().all(|d| d.violations == Ok(2)) && all.len() == 4)
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.ask(Command::Crashes { from: 0 }, 5).result, Ok(Answer::Crash(None)));
    recovery(bench.ask(crash("blk", How::Panic), 100));
    match bench.ask(Command::Crashes { from: 0 }, 5).result {
        Ok(Answer::Crash(Some(entry))) => {
            assert_eq!(entry.name, "blk");
            assert_eq!(entry.message, "generation 1 ended");
            assert_eq!(entry.backtrace, [0x20_1234]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.ask(Command::Shutdown, 5).result, Ok(Answer::Done));
    bench.run_ms(2);
    assert!(bench.node.off);
}

/// Random bytes, random damage, and a line that nobody empties for a while:
/// no panic, and the next good request is answered.
#[test]
fn random_bytes_from_the_host_never_harm() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bench = Bench::new();
    for _ in 0..40 {
        for _ in 0..random() % 4096 {
            let byte = if random() % 8 == 0 { 0 } else { random() as u8 };
            if bench.supervisor.can_receive() {
                bench.supervisor.receive(&mut bench.node, byte);
            }
        }
        let mut frame = encode(&Request { seq: 1, command: crash("blk", How::Panic) }).unwrap();
        let at = random() as usize % frame.len();
        frame[at] = random() as u8;
        for &byte in &frame {
            bench.supervisor.receive(&mut bench.node, byte);
        }
        bench.drain();
        bench.supervisor.receive(&mut bench.node, 0);
        bench.drain();
        assert!(bench.ask(Command::Info, 5).result.is_ok());
    }
}

/// Replaces the supervisor by its next generation.
fn next_supervisor(bench: &mut Bench) {
    bench.node.die(SUPERVISOR, Reason::Panic);
    let generation = bench.node.domains[usize::from(SUPERVISOR)].generation;
    bench.supervisor = Supervisor::new(SUPERVISOR, generation, &mut bench.node);
    bench.run_ms(1);
}
