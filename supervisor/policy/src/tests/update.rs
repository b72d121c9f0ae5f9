//! Updates: what comes of a new image.

use std::vec;

use ring_proto::{
    control::{Answer, Command, FailureKind, Updated},
    crash::Reason,
    hypercall::{DomainState, Trial},
};

use super::{Bench, MS, name, next_supervisor};
use crate::{
    Node,
    fake::{BLK, FakeNode, Habits, NEW_CRC, SPARE},
    node::life,
};

fn stage(
    bench: &mut Bench,
    domain: &str,
    offset: u32,
    bytes: &[u8],
) -> Result<Answer, FailureKind> {
    let bytes = heapless::Vec::from_slice(bytes).unwrap();
    bench.ask_for(Command::Stage { domain: name(domain), offset, bytes })
}

impl Bench {
    /// Asks and gives the answer that comes at once.
    fn ask_for(&mut self, command: Command) -> Result<Answer, FailureKind> {
        let seq = self.send(command);
        let at = self.replies.iter().position(|r| r.seq == seq).expect("an answer");
        self.replies.remove(at).result.map_err(|failure| failure.kind)
    }

    fn updated(&mut self, ms: u64) -> Updated {
        match self.ask(Command::Update { domain: name("blk") }, ms).result {
            Ok(Answer::Updated(updated)) => updated,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn g3_an_image_that_works_is_kept() {
    let mut bench = Bench::new();
    assert_eq!(stage(&mut bench, "blk", 0, b"good"), Ok(Answer::Done));
    assert_eq!(stage(&mut bench, "blk", 4, b" one"), Ok(Answer::Done));
    let updated = bench.updated(1_500);
    assert_eq!((updated.kept, updated.image_crc, updated.record), (true, NEW_CRC, Some(0)));
    assert_eq!(bench.node.checks, [(BLK, true)], "it finished its work first");
    assert_eq!(
        (bench.node.judged.clone(), bench.node.staged.clone()),
        (vec![true], b"good one".to_vec())
    );
}

#[test]
fn g3_an_image_that_dies_on_trial_or_is_never_ready_is_given_up() {
    let cases = [
        (
            Habits { dies_by_itself_ns: Some(1_000), ..Habits::default() },
            "it died on trial",
            vec![],
        ),
        (
            Habits { dies_by_itself_ns: Some(500_000_000), ..Habits::default() },
            "it died on trial",
            vec![],
        ),
        (
            Habits { ready_after_ns: u64::MAX / 2, ..Habits::default() },
            "it was not ready in time",
            vec![false],
        ),
    ];
    for (habits, why, judged) in cases {
        let mut bench = Bench::new();
        bench.node.on_trial = habits;
        stage(&mut bench, "blk", 0, b"good").unwrap();
        let updated = bench.updated(12_000);
        assert_eq!((updated.kept, updated.image_crc, updated.why.as_str()), (false, 0, why));
        assert_eq!(bench.node.judged, judged);
        let info = bench.node.domains[usize::from(BLK)];
        assert_eq!((info.ready, info.trial, info.image_crc), (1, Trial::None as u32, 0), "{why}");
    }
}

#[test]
fn g7_the_next_supervisor_brings_a_trial_to_its_end() {
    // It dies once the new image is staged, on trial, and up.
    for ms in [0, 2, 500] {
        let mut bench = Bench::new();
        stage(&mut bench, "blk", 0, b"good").unwrap();
        bench.send(Command::Update { domain: name("blk") });
        bench.run_ms(ms);
        assert!(bench.node.judged.is_empty());
        next_supervisor(&mut bench);
        bench.run_ms(1_500);
        assert_eq!(bench.node.judged, [true], "after {ms} ms");
        assert_eq!(bench.node.domains[usize::from(BLK)].good_crc, NEW_CRC);
    }
}

#[test]
fn a_trial_of_a_domain_that_is_held_meanwhile_is_given_up() {
    let mut bench = Bench::over(FakeNode::with_spare());
    // Its spare takes its time; the trial has begun.
    bench.node.habits[usize::from(SPARE)].ready_after_ns = 20 * MS;
    stage(&mut bench, "blk", 0, b"good").unwrap();
    let seq = bench.send(Command::Update { domain: name("blk") });
    bench.run_ms(10);
    assert_eq!(bench.node.domains[usize::from(BLK)].trial, Trial::Elsewhere as u32);
    assert_eq!(bench.ask(Command::Hold { domain: name("blk") }, 10).result, Ok(Answer::Done));
    bench.run_ms(20);
    let Some(Ok(Answer::Updated(updated))) = bench.reply(seq).map(|reply| reply.result) else {
        panic!("no answer")
    };
    assert_eq!(
        (updated.kept, updated.why.as_str()),
        (false, "it was stopped before its turn came")
    );
    assert_eq!(bench.node.judged, [false]);
    assert_eq!(bench.supervisor.poll(&mut bench.node), u64::MAX, "it looks again for nothing");
}

#[test]
fn a_trial_with_a_spare_waits_for_the_policy_to_start_a_dead_driver() {
    let mut bench = Bench::over(FakeNode::with_spare());
    bench.node.habits[usize::from(SPARE)].ready_after_ns = 20 * MS;
    bench.node.domains[usize::from(BLK)].restart_floor_ms = 4_000;
    stage(&mut bench, "blk", 0, b"good").unwrap();
    let seq = bench.send(Command::Update { domain: name("blk") });
    bench.run_ms(10);
    bench.node.die(BLK, Reason::Panic);
    bench.run_ms(30);
    let (next, now) = (bench.supervisor.poll(&mut bench.node), bench.node.now);
    assert!(next > now + 1_000 * MS, "it sleeps until the start: {} ms", (next - now) / MS);
    bench.run_ms(6_000);
    let Some(Ok(Answer::Updated(updated))) = bench.reply(seq).map(|reply| reply.result) else {
        panic!("no answer")
    };
    assert!(updated.kept, "{updated:?}");
}

#[test]
fn a_trial_whose_spare_is_held_is_given_up() {
    let mut bench = Bench::over(FakeNode::with_spare());
    let spare = life(&bench.node.domains[usize::from(SPARE)]);
    bench.node.stop(spare, Reason::Operator).unwrap();
    bench.node.hold(SPARE).unwrap();
    bench.run_ms(5);
    stage(&mut bench, "blk", 0, b"good").unwrap();
    let updated = bench.updated(5);
    assert_eq!(
        (updated.kept, updated.why.as_str()),
        (false, "its spare, which is to try first, is held")
    );
    assert_eq!(bench.node.domains[usize::from(BLK)].deaths, 0, "it was not touched");
}

#[test]
fn g6_a_death_on_trial_does_not_use_up_the_budget() {
    let mut bench = Bench::new();
    bench.node.domains[usize::from(BLK)].restart_budget = 1;
    bench.node.on_trial = Habits { dies_by_itself_ns: Some(1_000), ..Habits::default() };
    stage(&mut bench, "blk", 0, b"good").unwrap();
    assert!(!bench.updated(2_000).kept);
    let state = |bench: &Bench| bench.node.domains[usize::from(BLK)].state;
    assert_eq!(state(&bench), DomainState::Running as u32);
    // Nor for the next supervisor, which reads of it.
    next_supervisor(&mut bench);
    bench.run_ms(10);
    assert_eq!(state(&bench), DomainState::Running as u32);
    // The image that it is to run has its budget.
    bench.node.die(BLK, Reason::Panic);
    bench.run_ms(10);
    assert_eq!(state(&bench), DomainState::Held as u32);
}

#[test]
fn an_old_image_that_is_not_ready_again_keeps_nobody_waiting() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].ready_after_ns = u64::MAX / 2;
    bench.node.on_trial = Habits { dies_by_itself_ns: Some(1_000), ..Habits::default() };
    stage(&mut bench, "blk", 0, b"good").unwrap();
    assert!(!bench.updated(12_000).kept);
    assert_eq!(stage(&mut bench, "blk", 0, b"good"), Ok(Answer::Done), "the next may come");
}

#[test]
fn what_cannot_be_updated_is_said() {
    let mut bench = Bench::new();
    assert_eq!(stage(&mut bench, "net", 0, b"x"), Err(FailureKind::BadState), "no space");
    assert_eq!(stage(&mut bench, "none", 0, b"x"), Err(FailureKind::NotFound));
    assert!(matches!(stage(&mut bench, "blk", 9, b"x"), Err(FailureKind::Hypervisor(_))), "a gap");
    stage(&mut bench, "blk", 0, b"bad").unwrap();
    let seq = bench.send(Command::Update { domain: name("blk") });
    let reply = bench.replies.iter().find(|r| r.seq == seq).unwrap();
    let text = &reply.result.as_ref().unwrap_err().text;
    assert_eq!(text, "the image for blk is refused: it is bad");
    // Two at a time are one too many.
    stage(&mut bench, "blk", 0, b"good").unwrap();
    bench.send(Command::Update { domain: name("blk") });
    let again = bench.ask_for(Command::Update { domain: name("blk") });
    assert_eq!(again, Err(FailureKind::Busy));
}

/// A supervisor begins between the order of the one before and what comes of it: what it
/// then orders is for a generation that is over, and the new one is left alone.
#[test]
fn g7_an_order_for_a_generation_that_is_over_does_not_meet_the_next() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].drains_after_ns = None;
    stage(&mut bench, "blk", 0, b"good").unwrap();
    bench.send(Command::Update { domain: name("blk") });
    bench.run_ms(1);
    assert_eq!(bench.node.checks, [(BLK, true)]);
    bench.node.restarts_after_look = true;
    next_supervisor(&mut bench);
    assert_eq!(bench.node.domains[usize::from(BLK)].trial, Trial::Here as u32);
    assert_eq!(bench.node.checks.len(), 1, "the one on trial was told to go");
    next_supervisor(&mut bench);
    bench.run_ms(1_500);
    assert_eq!(bench.node.judged, [true]);
    assert_eq!(bench.node.domains[usize::from(BLK)].good_crc, NEW_CRC);
}
