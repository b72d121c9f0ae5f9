//! One trial: strike, look, repair, look again, judge.

use std::time::Duration;

use anyhow::Result;
use fault::disk::Kind;
use fault::plan::{Fault, Plan};
use fault::record::Trial;
use fault::verdict::Verdict;
use fault::workload::Workload;
use judge_orders::{
    Orders, Outcome, READ_ONLY, VERIFY, VERIFY_ALL, VERIFY_BEFORE, WRITE_ONLY, state,
};
use nodectl::control::{CrashEntry, Event};
use ring_proto::crash::Reason;

use super::account::{Frame, Observed, describe, leave_ordered_out};
use super::choose::REQUESTS;
use super::rig::{CONTROL, Rig};
use super::strike::strike;
use super::target::Target;

/// Requests in flight.
const WINDOW: u64 = 8;
/// Least time between two requests, ns: the node's clock is to run for its faults, not for the
/// load.
const PACE: u64 = 20_000;
/// Longest that a round may take on the node's clock: three times the bound of a stall, with a
/// recovery behind it.
pub const LIMIT: u64 = 400_000_000;
/// Requests that wait until the fault is injected, so that it meets some in flight however late
/// the host sees the moment.
const HOLD: u64 = 12;
/// Requests of the round after the repair.
const AFTER: u64 = 4;

/// A trial that came to its end.
#[derive(Debug)]
pub struct Done {
    /// Its record.
    pub trial: Trial,
    /// Whether the node can be used for another one.
    pub trusted: bool,
    /// Time that the host let it wait.
    pub waited: Duration,
    /// Where the machine was stopped, and what was done there.
    pub stops: Vec<String>,
}

/// Orders of a round with `requests`.
pub fn orders(seed: u64, requests: u64) -> Orders {
    Orders {
        seed,
        requests,
        moment: u64::MAX,
        window: WINDOW,
        pace_ns: PACE,
        limit_ns: LIMIT,
        flags: VERIFY,
        ..Orders::default()
    }
}

/// Runs one trial.
///
/// # Errors
///
/// The machine can't be worked with: nothing can be said of the trial.
pub fn run(rig: &mut Rig, target: &Target, plan: &Plan, frame: Frame) -> Result<Done> {
    let waited = rig.waited();
    let kind = match frame.workload {
        Workload::Mixed => 0,
        Workload::Read => READ_ONLY,
        Workload::Write => WRITE_ONLY,
    };
    let work = orders(plan.round_seed, REQUESTS);
    let work = Orders { flags: work.flags | kind, ..work };
    let mut both = [&work; 2];
    let hold = (REQUESTS - plan.moment).min(HOLD);
    let struck = Orders { moment: plan.moment, hold, ..work };
    both[target.index] = &struck;
    let round = strike(rig, target, plan, both)?;
    let mut seen = Observed {
        neighbour: rig.judged[1 - target.index].judge.clone(),
        round,
        deaths: Vec::new(),
        after: None,
        hypervisor: None,
        machine: None,
        bad_frames: false,
        notes: Vec::new(),
        trusted: true,
    };
    look(rig, target, plan, &mut seen);
    let trial = describe(target, plan, frame, &seen);
    let waited =
        rig.waited().zip(waited).map_or(Duration::ZERO, |(now, then)| now.saturating_sub(then));
    // A node is not used again after anything that should not have been.
    let trusted = seen.trusted && trial.verdict <= Verdict::Corrupted;
    Ok(Done { trial, trusted, waited, stops: seen.round.stops })
}

/// Asks the node what became of it, and repairs it.
fn look(rig: &mut Rig, target: &Target, plan: &Plan, seen: &mut Observed) {
    let failed = |rig: &Rig, seen: &mut Observed, what: &str, why: &anyhow::Error| {
        seen.trusted = false;
        seen.machine = rig.aborted();
        if seen.machine.is_some() {
            return;
        }
        let end = rig.ended().map(|verdict| format!(": {verdict}"));
        seen.hypervisor = Some(format!("{what}{}: {why:#}", end.unwrap_or_default()));
    };
    if seen.round.ended {
        return failed(rig, seen, "the machine ended", &anyhow::anyhow!("in mid-round"));
    }
    match rig.deaths() {
        Ok(deaths) => seen.deaths = deaths,
        Err(why) => return failed(rig, seen, "no answer about deaths", &why),
    }
    if matches!(plan.fault, Fault::Reuse { .. }) {
        leave_ordered_out(target, seen);
    }
    let events = rig.client.take_events();
    seen.bad_frames = events.iter().any(|event| matches!(event, Event::BadFrame));
    let died = seen.deaths.iter().any(|death| death.domain == target.domain);
    // A driver that died is pristine; one that did not is made so.
    let is_stuck = |both: &[Outcome; 2]| both[target.index].state != state::DONE;
    let mut is_audited = false;
    if !died || seen.round.outcomes.as_ref().is_none_or(is_stuck) {
        is_audited = true;
        match renew(rig, target) {
            Ok(None) => {}
            Ok(Some(found)) => {
                seen.trusted = false;
                seen.hypervisor =
                    Some(format!("with it down, the audit found violations: {found}"));
            }
            Err(why) => {
                seen.trusted = false;
                seen.notes.push(format!("it can't be restarted: {why:#}"));
            }
        }
    }
    match if is_audited { Ok(None) } else { rig.audit() } {
        Ok(None) => {}
        Ok(Some(found)) => {
            seen.trusted = false;
            seen.hypervisor.get_or_insert(format!("the audit found violations: {found}"));
        }
        Err(why) => return failed(rig, seen, "no audit", &why),
    }
    let flags = match plan.fault {
        // What it wrote may be anywhere, and later trials are not to find it.
        Fault::Disk { kind: Kind::Write, .. } => VERIFY_ALL,
        Fault::Reuse { .. } | Fault::Descriptor { .. } if target.kind == "blk" => VERIFY_ALL,
        _ => VERIFY | VERIFY_BEFORE,
    };
    let verify = Orders { flags, ..orders(plan.round_seed ^ 1, AFTER) };
    match rig.round(&verify) {
        Ok(after) => {
            let both = seen.round.outcomes.iter().chain([&after]).map(|both| both[target.index]);
            // What was written elsewhere is somewhere, and later trials are not to find it.
            if flags != VERIFY_ALL && both.clone().any(|seen| seen.wrong + seen.stale > 0) {
                let all = Orders { flags: VERIFY_ALL, ..orders(plan.round_seed, 0) };
                let mended = rig.round(&all);
                seen.trusted &= mended.is_ok_and(|both| both[target.index].state == state::DONE);
            }
            seen.after = Some(after);
        }
        Err(why) => match rig.ended() {
            Some(_) => return failed(rig, seen, "the machine ended", &why),
            None => {
                seen.trusted = false;
                seen.notes.push(format!("after the repair: {why:#}"));
            }
        },
    }
    match rig.deaths() {
        Ok(later) => {
            // The repair is one of them.
            let own = |death: &CrashEntry| death.reason == Reason::Operator as u32;
            seen.deaths.extend(later.into_iter().filter(|death| !own(death)));
        }
        Err(why) => failed(rig, seen, "no answer about deaths", &why),
    }
}

/// Has a driver begin anew, and looks while it is down, what the audit finds: then it has nothing,
/// whereas its successor has by then what it should have had not a moment before.
fn renew(rig: &mut Rig, target: &Target) -> Result<Option<String>> {
    rig.client.hold(&target.name)?;
    let found = rig.audit()?;
    rig.client.release(&target.name, CONTROL)?;
    Ok(found)
}
