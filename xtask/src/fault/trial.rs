//! One trial: strike, look, repair, look again, judge.

use anyhow::Result;
use fault::class::Class;
use fault::plan::Plan;
use fault::record::{Data, Detection, Detector, Guest, Manifestation, Recovery, SCHEMA, Trial};
use fault::verdict::{self, Verdict};
use judge_orders::{Orders, Outcome, VERIFY, VERIFY_BEFORE, state};
use nodectl::control::CrashEntry;
use ring_proto::crash::{Reason, Rebuild};

use super::choose::REQUESTS;
use super::rig::{CONTROL, Rig, TARGETS};
use super::strike::{Round, strike};
use super::target::Target;

/// Requests in flight.
const WINDOW: u64 = 8;
/// Least time between two requests, ns: the node's clock is to run for its faults, not for the
/// load.
const PACE: u64 = 20_000;
/// Longest that a round may take on the node's clock: three times the bound of a stall, with a
/// recovery behind it.
pub const LIMIT: u64 = 400_000_000;
/// Requests of the round after the repair.
const AFTER: u64 = 4;
/// Longest that a neighbour may wait for an answer on the node's clock, ns.
const NEIGHBOUR: u64 = 200_000_000;

/// What a trial is about, beside its plan.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Its number.
    pub number: u64,
    /// The campaign's seed.
    pub seed: u64,
    /// Boots so far.
    pub node: u32,
}

/// A trial that came to its end.
#[derive(Debug)]
pub struct Done {
    /// Its record.
    pub trial: Trial,
    /// Whether the node can be used for another one.
    pub trusted: bool,
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

/// What was observed, step by step.
struct Observed {
    round: Round,
    deaths: Vec<CrashEntry>,
    /// Of the round after the repair.
    after: Option<[Outcome; 2]>,
    hypervisor: Option<String>,
    notes: Vec<String>,
    trusted: bool,
}

/// Runs one trial.
///
/// # Errors
///
/// The machine can't be worked with: nothing can be said of the trial.
pub fn run(rig: &mut Rig, target: &Target, plan: &Plan, frame: Frame) -> Result<Done> {
    let work = orders(plan.round_seed, REQUESTS);
    let mut both = [&work; 2];
    let struck = Orders { moment: plan.moment, ..work };
    both[target.index] = &struck;
    let round = strike(rig, target, plan, both)?;
    let mut seen = Observed {
        round,
        deaths: Vec::new(),
        after: None,
        hypervisor: None,
        notes: Vec::new(),
        trusted: true,
    };
    look(rig, target, plan, &mut seen);
    let trial = describe(target, plan, frame, &seen);
    // A node is not used again after anything that should not have been.
    let trusted = seen.trusted && trial.verdict <= Verdict::Corrupted;
    Ok(Done { trial, trusted })
}

/// Asks the node what became of it, and repairs it.
fn look(rig: &mut Rig, target: &Target, plan: &Plan, seen: &mut Observed) {
    let failed = |rig: &Rig, seen: &mut Observed, what: &str, why: &anyhow::Error| {
        seen.trusted = false;
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
    let died = seen.deaths.iter().any(|death| death.domain == target.domain);
    // A driver that died is pristine; one that did not is made so.
    if !died || seen.round.outcomes.is_none_or(|both| both[target.index].state != state::DONE) {
        if let Err(why) = rig.client.restart(target.name, CONTROL) {
            seen.trusted = false;
            seen.notes.push(format!("it can't be restarted: {why}"));
        }
    }
    match rig.audit() {
        Ok(None) => {}
        Ok(Some(found)) => {
            seen.trusted = false;
            seen.hypervisor = Some(format!("the audit found violations: {found}"));
        }
        Err(why) => return failed(rig, seen, "no audit", &why),
    }
    let verify = Orders { flags: VERIFY | VERIFY_BEFORE, ..orders(plan.round_seed ^ 1, AFTER) };
    match rig.round(&verify) {
        Ok(after) => seen.after = Some(after),
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

fn describe(target: &Target, plan: &Plan, frame: Frame, seen: &Observed) -> Trial {
    let own = |both: &[Outcome; 2]| both[target.index];
    let round = seen.round.outcomes.as_ref().map(own);
    let after = seen.after.as_ref().map(own);
    let deaths: Vec<&CrashEntry> =
        seen.deaths.iter().filter(|death| death.domain == target.domain).collect();
    let moment = round.map_or(0, |outcome| outcome.moment_ns);
    let manifestation = manifestation(deaths.first().copied(), round, after);
    let activated_ns = match (seen.round.activated, deaths.first()) {
        (Some(time), _) => Some(time.saturating_sub(moment)),
        // Nobody saw it, and it killed the driver: it was active by then.
        (None, Some(death)) if seen.round.injected => Some(death.times.died.saturating_sub(moment)),
        (None, _) => None,
    };
    let detection = deaths.first().map(|death| Detection {
        by: detector(death, round),
        after_ns: death.times.detected.saturating_sub(moment + activated_ns.unwrap_or(0)),
    });
    let detection = detection.or_else(|| {
        (manifestation == Manifestation::Protocol)
            .then_some(Detection { by: Detector::Frontend, after_ns: 0 })
    });
    let serves = after.is_some_and(|outcome| outcome.state == state::DONE);
    let recovery = match (deaths.last(), round) {
        (Some(death), Some(outcome)) if serves => Some(Recovery {
            after_ns: outcome.first_after_ns.saturating_sub(death.times.detected),
            deaths: u32::try_from(deaths.len()).unwrap_or(u32::MAX),
            spare: death.rebuild == Rebuild::Spare as u16,
        }),
        // The frontend has cut the connection, and it is there again.
        (None, Some(outcome))
            if serves
                && manifestation == Manifestation::Protocol
                && outcome.state == state::DONE =>
        {
            Some(Recovery { after_ns: 0, deaths: 0, spare: false })
        }
        _ => None,
    };
    let mut notes = seen.notes.clone();
    if seen.round.unwatched {
        notes.push("other programs came to the same address too often to watch it".to_owned());
    }
    if let Some(bad) = round.or(after).filter(|outcome| outcome.first_wrong.what != 0) {
        notes.push(format!("first wrong: {:?}", bad.first_wrong));
    }
    let mut trial = Trial {
        schema: SCHEMA,
        trial: frame.number,
        seed: frame.seed,
        class: plan.class,
        group: plan.class.group(),
        target: target.name.to_owned(),
        workload: "mixed".to_owned(),
        node: frame.node,
        plan: plan.clone(),
        injected: seen.round.injected,
        activated_ns,
        manifestation,
        detection,
        recovery,
        guest: guest(round),
        data: data(round, after),
        neighbours: neighbours(target, seen),
        hypervisor: seen.hypervisor.clone(),
        verdict: Verdict::Unexplained,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    };
    trial.verdict = verdict::judge(&trial);
    trial
}

fn manifestation(
    death: Option<&CrashEntry>,
    round: Option<Outcome>,
    after: Option<Outcome>,
) -> Manifestation {
    if let Some(death) = death {
        return match Reason::from_raw(death.reason) {
            Some(Reason::Panic) => Manifestation::Panic,
            Some(Reason::Exception) => Manifestation::Exception,
            Some(Reason::NestedFault) => Manifestation::NestedFault,
            Some(Reason::Shutdown) => Manifestation::Shutdown,
            Some(Reason::Watchdog) => Manifestation::Hang,
            Some(Reason::Forbidden) => Manifestation::Forbidden,
            Some(Reason::IommuFault) => Manifestation::IommuFault,
            Some(Reason::Exit) => Manifestation::Exit,
            // Nobody here ordered an end before the round was over: it was the supervisor, on a
            // frontend's word.
            Some(Reason::Stalled | Reason::Operator) => Manifestation::Stall,
            Some(Reason::Memory) => Manifestation::Memory,
            Some(Reason::None) | None => Manifestation::Silent,
        };
    }
    let Some(round) = round else { return Manifestation::Silent };
    let is_wrong = |outcome: &Outcome| outcome.wrong + outcome.stale > 0;
    if round.misbehaviours > 0 {
        Manifestation::Protocol
    } else if round.state != state::DONE || is_wrong(&round) || after.as_ref().is_some_and(is_wrong)
    {
        Manifestation::Silent
    } else if round.errors > 0 {
        Manifestation::DeviceError
    } else {
        Manifestation::None
    }
}

fn detector(death: &CrashEntry, round: Option<Outcome>) -> Detector {
    match Reason::from_raw(death.reason) {
        Some(Reason::NestedFault | Reason::Shutdown | Reason::Forbidden) => Detector::Hypervisor,
        Some(Reason::Watchdog) => Detector::Watchdog,
        Some(Reason::IommuFault) => Detector::Iommu,
        Some(Reason::Operator) => Detector::Frontend,
        Some(Reason::Stalled) if round.is_some_and(|round| round.complaints > 0) => {
            Detector::Frontend
        }
        _ => Detector::Driver,
    }
}

fn guest(round: Option<Outcome>) -> Guest {
    round.map_or_else(Guest::default, |round| Guest {
        completed: round.completed,
        errors: round.errors,
        replayed: round.replayed,
        lost: round.lost,
        longest_ns: round.longest_ns,
    })
}

fn data(round: Option<Outcome>, after: Option<Outcome>) -> Data {
    let (Some(round), Some(after)) = (round, after) else { return Data::Unknown };
    if round.stale + after.stale > 0 {
        Data::Lost
    } else if round.wrong + after.wrong > 0 {
        Data::Corrupt
    } else if after.state != state::DONE {
        Data::Unknown
    } else {
        Data::Intact
    }
}

/// Harm to those that have nothing to do with the target: the other judge, and whoever died.
fn neighbours(target: &Target, seen: &Observed) -> Option<String> {
    let strange = seen.deaths.iter().find(|death| death.domain != target.domain);
    if let Some(death) = strange {
        return Some(format!("{} died: {}", death.name, nodectl::names::reason(death.reason)));
    }
    let other = 1 - target.index;
    let name = TARGETS[other].1;
    let [round, after] =
        [&seen.round.outcomes, &seen.after].map(|both| both.as_ref().map(|both| both[other]));
    for (when, outcome) in [("meanwhile", round), ("after the repair", after)] {
        let Some(outcome) = outcome else { continue };
        let harm = if outcome.state != state::DONE {
            "did not come to its end"
        } else if outcome.errors > 0 {
            "got errors"
        } else if outcome.wrong + outcome.stale > 0 {
            "got wrong data"
        } else if outcome.disconnects > 0 {
            "lost its connection"
        } else if outcome.longest_ns > NEIGHBOUR {
            "had to wait"
        } else {
            continue;
        };
        return Some(format!("{name} {harm} {when}: {outcome:?}"));
    }
    None
}

/// Whether a class may strike this target.
pub fn fits(class: Class, target: &str) -> bool {
    let _ = target;
    super::choose::is_available(class)
}
