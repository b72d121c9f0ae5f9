//! How trials with two faults are judged.

use fault::plan::Whom;

use super::*;

/// A trial in which the second fault struck `whom`, or nobody, and these died.
fn second(whom: Whom, struck: bool, deaths: Vec<CrashEntry>) -> Trial {
    let class = match whom {
        Whom::Driver => Class::SecondFault,
        Whom::Spare => Class::SpareFault,
        Whom::Supervisor => Class::SupervisorFault,
    };
    let mut seen = seen(deaths);
    (0..).zip(&mut seen.deaths).for_each(|(sequence, death)| death.sequence = sequence);
    seen.round.activated = struck.then_some(0);
    let fault = Fault::Second { first: 1, whom, address: 1, kind: 4 };
    let plan = Plan { fault, ..plan(class) };
    describe(
        &samples::blk(),
        &plan,
        Frame { number: 3, seed: 1, workload: Workload::Mixed, node: 1 },
        &seen,
    )
}

#[test]
fn of_two_faults_the_second_is_judged() {
    let first = || death(1, Reason::Panic);
    let later = CrashEntry {
        times: Timeline { died: 3_000, detected: 3_100, ..Timeline::default() },
        ..death(1, Reason::Watchdog)
    };
    for whom in [Whom::Driver, Whom::Spare] {
        let trial = second(whom, true, vec![first(), later.clone()]);
        assert_eq!((trial.verdict, trial.activated_ns), (Verdict::Recovered, Some(2_000)));
        assert_eq!(trial.manifestation, Manifestation::Hang);
        let detection = Detection { by: Detector::Watchdog, after_ns: 100 };
        assert_eq!(trial.detection, Some(detection));
        assert_eq!(trial.recovery.map(|r| (r.after_ns, r.deaths)), Some((1_900, 2)));
    }
    // It was ordered only to be recovered from.
    let trial = second(Whom::Driver, false, vec![first()]);
    assert_eq!((trial.verdict, trial.activated_ns), (Verdict::NotActivated, None));
    let trial = second(Whom::Driver, false, Vec::new());
    assert_eq!(trial.verdict, Verdict::NotActivated);
}

#[test]
fn the_supervisor_may_die_once_and_only_of_its_own_fault() {
    let deaths = || vec![death(1, Reason::Panic), death(0, Reason::Exception)];
    let trial = second(Whom::Supervisor, true, deaths());
    assert_eq!((trial.verdict, trial.neighbours), (Verdict::Recovered, None));
    assert_eq!(trial.manifestation, Manifestation::Exception);
    assert_eq!(trial.detection.map(|seen| seen.by), Some(Detector::Supervisor));
    assert_eq!(trial.recovery.map(|recovery| recovery.deaths), Some(1), "of the driver");
    let harmed = Verdict::NeighbourHarmed;
    assert_eq!(second(Whom::Supervisor, false, deaths()).verdict, harmed);
    assert_eq!(second(Whom::Driver, true, deaths()).verdict, harmed);
    let twice = [deaths(), vec![death(0, Reason::Exception)]].concat();
    assert_eq!(second(Whom::Supervisor, true, twice).verdict, harmed);
}

#[test]
fn a_first_fault_that_is_not_recovered_from_is_told() {
    let mut stuck = seen(vec![death(1, Reason::Panic)]);
    (stuck.round.activated, of_target(&mut stuck).errors) = (None, 1);
    let fault = Fault::Second { first: 1, whom: Whom::Driver, address: 1, kind: 4 };
    let plan = Plan { fault, ..plan(Class::SecondFault) };
    let trial = describe(
        &samples::blk(),
        &plan,
        Frame { number: 3, seed: 1, workload: Workload::Mixed, node: 1 },
        &stuck,
    );
    assert_eq!(trial.manifestation, Manifestation::Panic);
    assert_eq!(trial.verdict, Verdict::Undetected);
}
