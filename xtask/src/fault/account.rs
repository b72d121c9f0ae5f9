//! The account of a trial: its record, from what was observed.

use fault::class::Group;
use fault::plan::Plan;
use fault::record::{Data, Detection, Detector, Guest, Manifestation, Recovery, SCHEMA, Trial};
use fault::verdict::{self, Verdict};
use fault::workload::Workload;
use judge_orders::{Outcome, state};
use nodectl::control::CrashEntry;
use ring_proto::crash::{Reason, Rebuild};

use super::second;
use super::strike::Round;
use super::target::Target;

/// Longest that a neighbour may wait for an answer on the node's clock, ns.
const NEIGHBOUR: u64 = 200_000_000;

/// What a trial is about, beside its plan.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Its number.
    pub number: u64,
    /// The campaign's seed.
    pub seed: u64,
    /// What the guests do.
    pub workload: Workload,
    /// Boots so far.
    pub node: u32,
}

/// What was observed, step by step.
#[derive(Debug)]
pub struct Observed {
    /// The judge of the driver that was not struck.
    pub neighbour: String,
    /// The round with the fault.
    pub round: Round,
    /// Who died, but for the repair.
    pub deaths: Vec<CrashEntry>,
    /// Of the round after the repair.
    pub after: Option<[Outcome; 2]>,
    /// What harm the hypervisor took.
    pub hypervisor: Option<String>,
    /// What QEMU said when it failed an assertion of its own.
    pub machine: Option<String>,
    /// The supervisor told of frames that are none.
    pub bad_frames: bool,
    /// What else is worth saying.
    pub notes: Vec<String>,
    /// Whether the node can be used for another trial.
    pub trusted: bool,
}

/// The death that brought the life about which is struck is none of the fault's.
pub fn leave_ordered_out(target: &Target, seen: &mut Observed) {
    let is_ordered =
        |death: &CrashEntry| death.domain == target.domain && death.reason == Reason::Panic as u32;
    let Some(place) = seen.deaths.iter().position(is_ordered) else { return };
    let ordered = seen.deaths.remove(place);
    // The clock of a driver stands at its last `wait`: in that life it has made none yet.
    seen.round.activated = seen.round.activated.map(|time| time.max(ordered.times.entered));
}

/// The record of a trial.
pub fn describe(target: &Target, plan: &Plan, frame: Frame, seen: &Observed) -> Trial {
    let own = |both: &[Outcome; 2]| both[target.index];
    let round = seen.round.outcomes.as_ref().map(own);
    let after = seen.after.as_ref().map(own);
    let deaths: Vec<&CrashEntry> =
        seen.deaths.iter().filter(|death| death.domain == target.domain).collect();
    let moment = round.map_or(0, |outcome| outcome.moment_ns).max(seen.round.injected.unwrap_or(0));
    let is_well = |outcome: Outcome| outcome.state == state::DONE && outcome.errors == 0;
    let struck = seen.round.activated.is_some();
    let told = second::told(&plan.fault, target, struck, round.is_some_and(is_well), &seen.deaths);
    let manifestation = manifestation(told, round, after);
    let activated_ns = match (seen.round.activated, told) {
        // At its start a domain has no clock yet.
        (Some(_), Some(death)) if plan.class.group() == Group::Recovery => {
            Some(death.times.died.saturating_sub(moment))
        }
        (Some(time), _) => Some(time.saturating_sub(moment)),
        // Nobody saw it, and it killed the driver: it was active by then.
        (None, Some(death)) if seen.round.injected.is_some() => {
            Some(death.times.died.saturating_sub(moment))
        }
        (None, _) => None,
    };
    let active = moment + activated_ns.unwrap_or(0);
    // What leaves no record was seen by the end of the round, which is the latest that it can
    // have been.
    let by_the_end = |by| {
        let after_ns = round?.ended_ns.saturating_sub(active);
        Some(Detection { by, after_ns })
    };
    // A complaint that nobody acted on.
    let unheard = round.filter(|_| deaths.is_empty()).map_or(0, |round| round.complaints);
    let detection = if let Some(death) = told {
        let after_ns = death.times.detected.saturating_sub(active);
        let is_own = death.domain == target.domain;
        Some(Detection { by: detector(death, round, is_own), after_ns })
    } else if manifestation == Manifestation::Protocol || unheard > 0 {
        by_the_end(Detector::Frontend)
    } else if seen.bad_frames {
        by_the_end(Detector::Supervisor)
    } else {
        round.zip(after).and_then(|(round, after)| found_by_guest(round, after))
    };
    // From `from` to the first answer; if it came in neither round, to the end of the second.
    let served = |round: Outcome, again: Outcome, from: u64| {
        let first = [round, again].map(|outcome| outcome.first_after_ns);
        let at = first.into_iter().find(|&at| at >= from).unwrap_or(again.ended_ns);
        at.saturating_sub(from)
    };
    // What came back by our repair alone has not recovered.
    let is_done = |outcome: &Outcome| outcome.state == state::DONE;
    let recovery = match (deaths.last(), round.filter(is_done).zip(after.filter(is_done))) {
        (Some(death), Some((round, again))) => Some(Recovery {
            after_ns: served(round, again, death.times.detected),
            deaths: u32::try_from(deaths.len()).unwrap_or(u32::MAX),
            spare: death.rebuild == Rebuild::Spare as u16,
        }),
        // The frontend has cut the connection, and it is there again.
        (None, Some((round, again))) if manifestation == Manifestation::Protocol => {
            Some(Recovery { after_ns: served(round, again, active), deaths: 0, spare: false })
        }
        _ => None,
    };
    let mut notes = seen.notes.clone();
    if unheard > 0 {
        notes.push(format!("the frontend complained {unheard} times and was not heard"));
    }
    if seen.round.unwatched {
        notes.push("other programs came to the same address too often to watch it".to_owned());
    }
    for death in deaths.iter().skip(second::deaths(&plan.fault, struck)) {
        notes.push(format!("it also died: {}", nodectl::names::reason(death.reason)));
    }
    let mut looked = [round, after].into_iter().flatten();
    if let Some(bad) = looked.find(|outcome| outcome.first_wrong.what != 0) {
        notes.push(format!("first wrong: {:?}", bad.first_wrong));
    }
    let mut trial = Trial {
        schema: SCHEMA,
        trial: frame.number,
        seed: frame.seed,
        class: plan.class,
        group: plan.class.group(),
        target: target.name.clone(),
        workload: frame.workload,
        node: frame.node,
        plan: plan.clone(),
        injected: seen.round.injected.is_some(),
        activated_ns,
        manifestation,
        detection,
        recovery,
        guest: guest(round),
        data: data(round, after),
        neighbours: neighbours(target, plan, seen),
        hypervisor: seen.hypervisor.clone(),
        machine: seen.machine.clone(),
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
            Some(Reason::Stalled | Reason::Operator)
                if round.is_some_and(|round| round.misbehaviours > 0) =>
            {
                Manifestation::Protocol
            }
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

fn detector(death: &CrashEntry, round: Option<Outcome>, is_own: bool) -> Detector {
    match Reason::from_raw(death.reason) {
        Some(Reason::NestedFault | Reason::Shutdown | Reason::Forbidden) => Detector::Hypervisor,
        Some(Reason::Watchdog) => Detector::Watchdog,
        Some(Reason::IommuFault) => Detector::Iommu,
        Some(Reason::Operator) => Detector::Frontend,
        Some(Reason::Stalled) if round.is_some_and(|round| round.complaints > 0) => {
            Detector::Frontend
        }
        _ if is_own => Detector::Driver,
        _ => Detector::Supervisor,
    }
}

/// Wrong data that nobody noticed but the guest's checks. They tell no times: the end of the
/// round in which they found it is the latest that it can have been.
fn found_by_guest(round: Outcome, after: Outcome) -> Option<Detection> {
    let found = [round, after].into_iter().find(|seen| seen.wrong + seen.stale > 0)?;
    let after_ns = found.ended_ns.saturating_sub(round.moment_ns);
    Some(Detection { by: Detector::Guest, after_ns })
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
fn neighbours(target: &Target, plan: &Plan, seen: &Observed) -> Option<String> {
    let struck = seen.round.activated.is_some();
    let is_expected = |death: &&CrashEntry| second::is_expected(&plan.fault, target, struck, death);
    // Whoever was struck dies once.
    let expected = seen.deaths.iter().find(is_expected).map(|death| death.sequence);
    let mut others = seen.deaths.iter().filter(|death| death.domain != target.domain);
    let strange = others.find(|death| Some(death.sequence) != expected);
    if let Some(death) = strange {
        return Some(format!("{} died: {}", death.name, nodectl::names::reason(death.reason)));
    }
    let other = 1 - target.index;
    let name = &seen.neighbour;
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

#[cfg(test)]
mod tests {
    use fault::class::Class;
    use fault::plan::Fault;
    use ring_proto::crash::Timeline;

    use super::super::choose::REQUESTS;
    use super::super::target::samples;
    use super::*;

    mod second_faults;

    fn plan(class: Class) -> Plan {
        Plan {
            class,
            target: "blk".to_owned(),
            moment: 1,
            round_seed: 1,
            fault: Fault::Order { kind: 1 },
            function: None,
            text: String::new(),
        }
    }

    fn death(domain: u16, reason: Reason) -> CrashEntry {
        CrashEntry {
            sequence: 0,
            domain,
            name: "some".try_into().unwrap(),
            generation: 1,
            reason: reason as u32,
            vector: 0,
            error_code: 0,
            rip: 0,
            rsp: 0,
            cr2: 0,
            fault_address: 0,
            exit_code: 0,
            registers: [0; 15],
            backtrace: heapless::Vec::new(),
            times: Timeline { died: 1_500, detected: 2_000, ..Timeline::default() },
            rebuild: Rebuild::Cold as u16,
            pages_restored: 0,
            in_flight: None,
            image_crc: 0,
            ordered: true,
            reset: 0,
            message: heapless::String::new(),
        }
    }

    /// Both judges were served; the moment was at 1,000 ns, and after a death the first answer
    /// came at 5,000.
    fn seen(deaths: Vec<CrashEntry>) -> Observed {
        let done = Outcome {
            state: state::DONE,
            completed: REQUESTS,
            moment_ns: 1_000,
            first_after_ns: 5_000,
            ..Outcome::default()
        };
        let round = Round {
            injected: Some(1),
            activated: Some(1_200),
            unwatched: false,
            outcomes: Some([done; 2]),
            ended: false,
            stops: Vec::new(),
        };
        let after = Some([done; 2]);
        Observed {
            neighbour: "judge-net".to_owned(),
            round,
            deaths,
            after,
            hypervisor: None,
            machine: None,
            bad_frames: false,
            notes: Vec::new(),
            trusted: true,
        }
    }

    fn told(class: Class, seen: &Observed) -> Trial {
        let frame = Frame { number: 3, seed: 1, workload: Workload::Mixed, node: 1 };
        describe(&samples::blk(), &plan(class), frame, seen)
    }

    fn of_target(seen: &mut Observed) -> &mut Outcome {
        &mut seen.round.outcomes.as_mut().unwrap()[0]
    }

    #[test]
    fn a_death_is_detected_and_recovered_from() {
        let trial = told(Class::Panic, &seen(vec![death(1, Reason::Panic)]));
        assert_eq!(trial.verdict, Verdict::Recovered);
        assert_eq!(trial.manifestation, Manifestation::Panic);
        assert_eq!(trial.activated_ns, Some(200));
        let detection = Detection { by: Detector::Driver, after_ns: 800 };
        assert_eq!(trial.detection, Some(detection));
        assert_eq!(trial.recovery.map(|r| (r.after_ns, r.deaths)), Some((3_000, 1)));
    }

    #[test]
    fn the_death_before_the_life_that_is_struck_is_not_its_own() {
        let ordered = |entered| {
            let times = Timeline { entered, ..Timeline::default() };
            CrashEntry { times, ..death(1, Reason::Panic) }
        };
        let mut quiet = seen(vec![ordered(1_700)]);
        leave_ordered_out(&samples::blk(), &mut quiet);
        let trial = told(Class::UseAfterFree, &quiet);
        assert_eq!((trial.verdict, trial.activated_ns), (Verdict::Harmless, Some(700)));
        let mut dead = seen(vec![ordered(1_700), death(1, Reason::Panic)]);
        leave_ordered_out(&samples::blk(), &mut dead);
        let trial = told(Class::UseAfterFree, &dead);
        assert_eq!(trial.verdict, Verdict::Recovered);
        assert_eq!(trial.recovery.map(|recovery| recovery.deaths), Some(1));
    }

    #[test]
    fn a_time_that_no_record_tells_is_the_latest_it_can_have_been() {
        let mut cut = seen(Vec::new());
        let outcome = of_target(&mut cut);
        (outcome.misbehaviours, outcome.ended_ns) = (1, 9_000);
        let trial = told(Class::RingId, &cut);
        let detection = Detection { by: Detector::Frontend, after_ns: 7_800 };
        assert_eq!(trial.detection, Some(detection));
        assert_eq!(trial.recovery.map(|r| (r.after_ns, r.deaths)), Some((3_800, 0)));
        // Served in the second round only.
        let mut late = seen(vec![death(1, Reason::Panic)]);
        of_target(&mut late).first_after_ns = 0;
        late.after.as_mut().unwrap()[0].first_after_ns = 8_000;
        assert_eq!(told(Class::Panic, &late).recovery.map(|r| r.after_ns), Some(6_000));
    }

    #[test]
    fn who_saw_it_follows_from_the_record() {
        let by = |reason| {
            told(Class::Nop, &seen(vec![death(1, reason)])).detection.map(|found| found.by)
        };
        assert_eq!(by(Reason::NestedFault), Some(Detector::Hypervisor));
        assert_eq!(by(Reason::Watchdog), Some(Detector::Watchdog));
        assert_eq!(by(Reason::IommuFault), Some(Detector::Iommu));
        assert_eq!(by(Reason::Operator), Some(Detector::Frontend), "on its word");
    }

    #[test]
    fn what_the_supervisor_drops_and_what_nobody_heard_is_detected() {
        let mut quiet = seen(Vec::new());
        quiet.bad_frames = true;
        let by = |seen: &_| told(Class::ControlFrame, seen).detection.map(|found| found.by);
        assert_eq!(by(&quiet), Some(Detector::Supervisor));
        of_target(&mut quiet).complaints = 2;
        assert_eq!(by(&quiet), Some(Detector::Frontend));
        let trial = told(Class::WithheldCompletion, &quiet);
        assert!(trial.note.is_some_and(|note| note.contains("complained 2 times")));
        // One that was heard is in the record of the death.
        quiet.deaths.push(death(1, Reason::Panic));
        assert_eq!(by(&quiet), Some(Detector::Driver));
    }

    #[test]
    fn what_a_frontend_complains_of_tells_a_stall_from_a_breach() {
        let mut seen = seen(vec![death(1, Reason::Operator)]);
        let told = |seen: &_| told(Class::RingId, seen).manifestation;
        assert_eq!(told(&seen), Manifestation::Stall);
        of_target(&mut seen).misbehaviours = 1;
        assert_eq!(told(&seen), Manifestation::Protocol);
        seen.deaths[0].reason = Reason::Panic as u32;
        assert_eq!(told(&seen), Manifestation::Panic);
    }

    #[test]
    fn nothing_seen_is_harmless_if_it_was_activated() {
        let mut quiet = seen(Vec::new());
        assert_eq!(told(Class::Nop, &quiet).verdict, Verdict::Harmless);
        quiet.round.activated = None;
        assert_eq!(told(Class::Nop, &quiet).verdict, Verdict::NotActivated);
    }

    #[test]
    fn a_guest_that_waits_to_the_limit_tells_of_an_undetected_fault() {
        let mut stuck = seen(Vec::new());
        of_target(&mut stuck).state = state::LIMIT;
        assert_eq!(told(Class::Stall, &stuck).verdict, Verdict::Undetected);
        stuck.round.outcomes = None;
        assert_ne!(told(Class::Stall, &stuck).verdict, Verdict::Harmless);
    }

    #[test]
    fn wrong_data_is_the_classes_own_or_a_loss() {
        let mut wrong = seen(Vec::new());
        of_target(&mut wrong).wrong = 1;
        assert_eq!(told(Class::Nop, &wrong).verdict, Verdict::Corrupted);
        assert_eq!(told(Class::Panic, &wrong).verdict, Verdict::DataLost);
        // Found only when it was read back.
        let mut lost = seen(Vec::new());
        lost.after.as_mut().unwrap()[0].stale = 1;
        let trial = told(Class::Panic, &lost);
        assert_eq!((trial.data, trial.verdict), (Data::Lost, Verdict::DataLost));
    }

    #[test]
    fn errors_of_a_device_are_reported_also_if_its_driver_is_ended() {
        let mut refused = seen(vec![death(1, Reason::IommuFault)]);
        of_target(&mut refused).errors = 1;
        assert_eq!(told(Class::WildDma, &refused).verdict, Verdict::Reported);
        // A driver that goes wrong is no authority.
        assert_eq!(told(Class::Nop, &refused).verdict, Verdict::Corrupted);
        assert_eq!(told(Class::Panic, &refused).verdict, Verdict::Undetected);
    }

    #[test]
    fn what_only_the_guest_noticed_is_told_as_such() {
        let mut lost = seen(Vec::new());
        let [after, _] = lost.after.as_mut().unwrap();
        (after.stale, after.ended_ns) = (1, 7_000);
        let trial = told(Class::LostWrite, &lost);
        assert_eq!(trial.verdict, Verdict::Corrupted);
        assert_eq!(trial.detection, Some(Detection { by: Detector::Guest, after_ns: 6_000 }));
        assert_eq!(trial.detected(), None);
    }

    #[test]
    fn errors_are_the_classes_own_or_to_be_looked_into() {
        let mut failed = seen(Vec::new());
        of_target(&mut failed).errors = 1;
        assert_eq!(told(Class::IoError, &failed).verdict, Verdict::Reported);
        assert_eq!(told(Class::RingStatus, &failed).verdict, Verdict::Reported);
        assert_eq!(told(Class::Timeout, &failed).verdict, Verdict::Unexplained);
    }

    #[test]
    fn harm_to_others_is_told_apart() {
        let trial = told(Class::Panic, &seen(vec![death(2, Reason::Watchdog)]));
        assert_eq!(trial.verdict, Verdict::NeighbourHarmed);
        let harms: [fn(&mut Outcome); 5] = [
            |other| other.state = state::LIMIT,
            |other| other.errors = 1,
            |other| other.wrong = 1,
            |other| other.disconnects = 1,
            |other| other.longest_ns = NEIGHBOUR + 1,
        ];
        for harm in harms {
            let mut harmed = seen(vec![death(1, Reason::Panic)]);
            harm(&mut harmed.round.outcomes.as_mut().unwrap()[1]);
            assert_eq!(told(Class::Panic, &harmed).verdict, Verdict::NeighbourHarmed);
        }
        let mut failed = seen(Vec::new());
        failed.hypervisor = Some("it panicked".to_owned());
        assert_eq!(told(Class::Panic, &failed).verdict, Verdict::HypervisorFailed);
        failed.machine = Some("iov.c: Assertion failed".to_owned());
        assert_eq!(told(Class::Panic, &failed).verdict, Verdict::MachineFailed);
    }

    #[test]
    fn a_driver_that_does_not_come_back_is_no_recovery() {
        let mut gone = seen(vec![death(1, Reason::Panic)]);
        gone.after = None;
        assert_eq!(told(Class::Panic, &gone).verdict, Verdict::Unexplained);
        let mut down = seen(vec![death(1, Reason::Panic)]);
        down.after.as_mut().unwrap()[0].state = state::LIMIT;
        let trial = told(Class::Panic, &down);
        assert_eq!((trial.recovery, trial.verdict), (None, Verdict::Unexplained));
        // The repair brought it back, and nothing else did.
        let mut ours = seen(vec![death(1, Reason::Exit)]);
        of_target(&mut ours).state = state::LIMIT;
        let trial = told(Class::Panic, &ours);
        assert_eq!((trial.recovery, trial.verdict), (None, Verdict::Undetected));
    }
}
