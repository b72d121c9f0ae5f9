//! What a restarted supervisor still knows; complaints; planned restarts.

use super::*;
use crate::complaint::{Complaints, Verdict};

fn die_and_return(bench: &mut Bench, domain: u16, times: usize) {
    for _ in 0..times {
        bench.node.die(domain, Reason::Panic);
        bench.run_ms(200);
    }
}

fn state(bench: &Bench, domain: u16) -> u32 {
    bench.node.domains[usize::from(domain)].state
}

#[test]
fn g7_a_crasher_gets_no_fresh_budget_from_the_supervisors_own_death() {
    let mut bench = Bench::new();
    for deaths in 1..5 {
        die_and_return(&mut bench, BLK, 1);
        next_supervisor(&mut bench);
        assert_eq!(state(&bench, BLK), DomainState::Running as u32, "{deaths} deaths");
    }
    bench.node.die(BLK, Reason::Panic);
    next_supervisor(&mut bench);
    assert_eq!(state(&bench, BLK), DomainState::Held as u32);
    assert!(bench.events.contains(&Event::Held { domain: BLK, deaths: 5 }));
    // Nor does the next one start what is held.
    next_supervisor(&mut bench);
    bench.run_ms(100);
    assert_eq!(state(&bench, BLK), DomainState::Held as u32);
}

#[test]
fn g6_what_a_release_forgave_stays_forgiven() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].dies_by_itself_ns = Some(MS);
    bench.node.die(BLK, Reason::Panic);
    bench.run_ms(500);
    assert_eq!(state(&bench, BLK), DomainState::Held as u32);
    bench.node.habits[usize::from(BLK)].dies_by_itself_ns = None;
    recovery(bench.ask(Command::Release { domain: name("blk"), timeout_ms: 1_000 }, 100));
    next_supervisor(&mut bench);
    die_and_return(&mut bench, BLK, 4);
    assert_eq!(state(&bench, BLK), DomainState::Running as u32);
    die_and_return(&mut bench, BLK, 1);
    assert_eq!(state(&bench, BLK), DomainState::Held as u32);
}

#[test]
fn g6_ordered_deaths_do_not_count_for_the_next_supervisor_either() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        recovery(bench.ask(crash("net", How::Panic), 100));
    }
    next_supervisor(&mut bench);
    die_and_return(&mut bench, NET, 4);
    assert_eq!(state(&bench, NET), DomainState::Running as u32);
}

/// Runs until the last death of `domain` is of generation `ended`; says why it died.
fn reason_of(bench: &mut Bench, domain: u16, ended: u32, ms: u64) -> Option<(Reason, bool)> {
    for _ in 0..ms {
        bench.run_ms(1);
        let found =
            |r: &&ring_proto::crash::CrashRecord| r.domain == domain && r.generation == ended;
        if let Some(record) = bench.node.records.iter().find(found) {
            return Some((Reason::from_raw(record.report.reason)?, record.ordered != 0));
        }
    }
    None
}

#[test]
fn g6_a_backend_that_does_not_answer_a_check_or_is_stuck_is_restarted() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].answers_after_ns = None;
    bench.node.complain(KV, BLK);
    bench.run_ms(499);
    assert_eq!(bench.node.checks, [(BLK, false)]);
    assert!(bench.node.records.is_empty(), "it has time to answer");
    assert_eq!(reason_of(&mut bench, BLK, 1, 5), Some((Reason::Stalled, false)));

    bench.run_ms(50);
    bench.node.habits[usize::from(BLK)].answers_after_ns = Some((MS, true));
    bench.node.complain(KV, BLK);
    assert_eq!(reason_of(&mut bench, BLK, 2, 20), Some((Reason::Stalled, false)));

    // Stalls are failures of the driver's own and use up its budget.
    for ended in 3..6 {
        bench.run_ms(200);
        bench.node.complain(KV, BLK);
        assert!(reason_of(&mut bench, BLK, ended, 20).is_some());
    }
    bench.run_ms(10);
    assert_eq!(state(&bench, BLK), DomainState::Held as u32);
}

#[test]
fn a_generation_owes_no_answer_to_a_check_of_the_one_before() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].answers_after_ns = None;
    bench.node.complain(KV, BLK);
    let mut complaints = Complaints::new();
    let mut blk = bench.node.domains[usize::from(BLK)];
    let asked = complaints.judge(&mut bench.node, &blk, &[], 0);
    assert_eq!(asked, Verdict::Wait(500 * MS));
    // It died and began anew while the supervisor did not look.
    blk.generation += 1;
    let judged = complaints.judge(&mut bench.node, &blk, &[], 500 * MS);
    assert_eq!(judged, Verdict::Leave);
}

#[test]
fn g2_a_driver_that_waits_and_does_no_work_is_replaced_once_somebody_complains() {
    let mut bench = Bench::new();
    let seq = bench.send(crash("net", How::Stall));
    bench.run_ms(100);
    assert!(bench.node.records.is_empty(), "nobody can see it from outside");
    bench.node.complain(KV, NET);
    bench.run_ms(600);
    let done = recovery(bench.reply(seq).unwrap());
    assert_eq!((done.generation, done.reason), (2, Reason::Stalled as u32));
}

#[test]
fn g7_the_next_supervisor_hears_what_is_said_of_this_generation_only() {
    let mut bench = Bench::new();
    bench.node.complain(KV, NET);
    assert_eq!(reason_of(&mut bench, NET, 1, 20), Some((Reason::Operator, true)));
    bench.run_ms(200);
    let checks = bench.node.checks.len();
    next_supervisor(&mut bench);
    bench.run_ms(1_000);
    assert_eq!(bench.node.checks.len(), checks, "that generation is gone");
    assert_eq!(bench.node.domains[usize::from(NET)].generation, 2);
    // What was said while no supervisor was there is heard.
    bench.node.complain(KV, NET);
    next_supervisor(&mut bench);
    assert_eq!(reason_of(&mut bench, NET, 2, 20), Some((Reason::Operator, true)));
}

#[test]
fn g5_no_guest_can_hold_a_driver_down_with_complaints() {
    let mut bench = Bench::new();
    // It is well, so the word of the frontend is taken, but only once.
    bench.node.complain(KV, BLK);
    assert_eq!(reason_of(&mut bench, BLK, 1, 20), Some((Reason::Operator, true)));
    for _ in 0..200 {
        bench.node.complain(KV, BLK);
        bench.run_ms(250);
    }
    assert_eq!(bench.node.domains[usize::from(BLK)].deaths, 1);
    // Another one's word counts for itself.
    bench.node.complain(KV, NET);
    assert!(reason_of(&mut bench, NET, 1, 20).is_some());
    // And after its time it counts again.
    bench.run_ms(11_000);
    bench.node.complain(KV, BLK);
    assert!(reason_of(&mut bench, BLK, 2, 20).is_some());
    // Somebody who is no frontend of it cannot have any word taken.
    bench.node.complain(NET, BLK);
    bench.run_ms(100);
    assert_eq!(bench.node.domains[usize::from(BLK)].deaths, 2);
}

#[test]
fn how_often_a_word_is_taken_is_in_the_manifest() {
    let mut bench = Bench::new();
    let heard = |bench: &mut Bench, domain| {
        let before = bench.node.domains[usize::from(domain)].deaths;
        bench.node.complain(KV, domain);
        bench.run_ms(100);
        bench.node.domains[usize::from(domain)].deaths - before
    };
    bench.node.domains[usize::from(BLK)].word_s = 0;
    bench.node.domains[usize::from(NET)].word_s = 2;
    for _ in 0..10 {
        assert_eq!(heard(&mut bench, BLK), 1, "each is taken");
    }
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(heard(&mut bench, NET));
        bench.run_ms(900);
    }
    assert_eq!(seen, [1, 0, 1, 0, 1, 0], "one in 2 s");
    // Ordered restarts do not use up the budget.
    assert_eq!(state(&bench, BLK), DomainState::Running as u32);
}

#[test]
fn a_complaint_about_a_domain_that_is_down_is_no_reason_to_check_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.ask(Command::Hold { domain: name("blk") }, 5).result, Ok(Answer::Done));
    bench.node.complain(KV, BLK);
    bench.run_ms(1_000);
    assert_eq!(bench.node.checks, []);
    recovery(bench.ask(Command::Release { domain: name("blk"), timeout_ms: 1_000 }, 100));
    bench.run_ms(1_000);
    assert_eq!(bench.node.checks, [], "the complaint was about an earlier time");
}

fn drain(domain: &str, drain_ms: u32) -> Command {
    Command::Restart { domain: name(domain), timeout_ms: 1_000, drain_ms }
}

#[test]
fn a_planned_restart_waits_until_the_work_is_done() {
    let mut bench = Bench::new();
    let begin = bench.node.now;
    let done = recovery(bench.ask(drain("blk", 100), 200));
    assert!(done.drained);
    assert_eq!((done.ended, done.generation), (1, 2));
    assert_eq!(bench.node.checks, [(BLK, true)]);
    // The simulated domain takes 3 ms for its work.
    assert!(done.times.detected >= begin + 3 * MS, "{done:?}");
    assert!(done.times.detected < begin + 10 * MS, "{done:?}");
}

#[test]
fn a_planned_restart_of_a_domain_that_cannot_drain_is_an_ordinary_one() {
    for habit in [None, Some((MS, true))] {
        let mut bench = Bench::new();
        bench.node.habits[usize::from(BLK)].drains_after_ns = habit;
        let begin = bench.node.now;
        let done = recovery(bench.ask(drain("blk", 100), 300));
        assert!(!done.drained);
        let took = done.times.detected - begin;
        match habit {
            None => assert!((100 * MS..110 * MS).contains(&took), "{done:?}"),
            Some(_) => assert!(took < 10 * MS, "{done:?}"),
        }
    }
}

#[test]
fn g7_a_domain_that_drains_is_restarted_by_the_next_supervisor() {
    let mut bench = Bench::new();
    bench.send(drain("blk", 100));
    bench.run_ms(1);
    next_supervisor(&mut bench);
    bench.run_ms(10);
    let info = bench.node.domains[usize::from(BLK)];
    assert_eq!((info.generation, info.ready, info.deaths), (2, 1, 1));
    // The next one has nothing to do with that.
    next_supervisor(&mut bench);
    bench.run_ms(10);
    assert_eq!(bench.node.domains[usize::from(BLK)].generation, 2);
}

#[test]
fn a_spare_is_not_told_to_finish_its_work() {
    let mut bench = Bench::over(FakeNode::with_spare());
    let done = recovery(bench.ask(drain("blk-spare", 100), 200));
    assert_eq!((done.generation, done.drained), (2, false));
    assert_eq!(bench.node.checks, []);
}

#[test]
fn a_domain_that_dies_while_it_drains_is_recovered_as_ever() {
    let mut bench = Bench::new();
    bench.node.habits[usize::from(BLK)].drains_after_ns = None;
    let seq = bench.send(drain("blk", 500));
    bench.run_ms(5);
    bench.node.die(BLK, Reason::Panic);
    bench.run_ms(100);
    let done = recovery(bench.reply(seq).unwrap());
    assert!(!done.drained);
    assert_eq!((done.generation, done.reason), (2, Reason::Panic as u32));
    assert_eq!(bench.node.domains[usize::from(BLK)].deaths, 1);
}
