use super::super::log::Effort;
use super::super::samples;
use super::*;
use crate::plan::Fault;
use crate::record::{Data, Detection, Recovery};

fn summary(trials: Vec<Trial>) -> Summary {
    let mut results = samples::results(0);
    results.campaign.trials = Some(100);
    results.effort = Effort { wall_seconds: 4.0, boots: 2, runs: 1, set_aside: 0 };
    results.trials = trials;
    Summary::new(&results)
}

fn seen(by: Detector, after_ns: u64) -> Option<Detection> {
    Some(Detection { by, after_ns })
}

#[test]
fn what_happened_is_counted_under_what_it_is() {
    let quiet = samples::quiet(Class::Nop);
    let trials = vec![
        quiet(0),
        Trial { activated_ns: Some(5), verdict: Verdict::Harmless, ..quiet(1) },
        // Detected in time, at the bound, and late.
        Trial {
            verdict: Verdict::Recovered,
            manifestation: Manifestation::Panic,
            detection: seen(Detector::Driver, 10),
            recovery: Some(Recovery { after_ns: 300, deaths: 1, spare: true }),
            ..quiet(2)
        },
        Trial {
            verdict: Verdict::Corrupted,
            manifestation: Manifestation::Hang,
            detection: seen(Detector::Watchdog, 1_000_000_000),
            recovery: Some(Recovery { after_ns: 100, deaths: 1, spare: true }),
            data: Data::Corrupt,
            ..quiet(3)
        },
        Trial {
            verdict: Verdict::Recovered,
            manifestation: Manifestation::Hang,
            detection: seen(Detector::Watchdog, 1_000_000_001),
            ..quiet(4)
        },
        // The judge's own checksums are no detection.
        Trial {
            verdict: Verdict::Corrupted,
            manifestation: Manifestation::Silent,
            detection: seen(Detector::Guest, 10),
            data: Data::Lost,
            ..quiet(5)
        },
        Trial { verdict: Verdict::Undetected, ..quiet(6) },
        Trial { verdict: Verdict::Unexplained, data: Data::Unknown, ..quiet(7) },
        // Of another group.
        Trial { verdict: Verdict::Undetected, ..samples::quiet(Class::Stall)(8) },
        Trial {
            verdict: Verdict::HypervisorFailed,
            hypervisor: Some("audit".to_owned()),
            neighbours: Some("kv".to_owned()),
            data: Data::Lost,
            ..samples::quiet(Class::Stall)(9)
        },
    ];
    let summary = summary(trials);
    assert_eq!((summary.trials, summary.planned, summary.missing), (10, Some(100), Some(90)));
    assert_eq!(summary.activated, 9);
    // One trial, three kinds of harm.
    assert_eq!(summary.hypervisor_failures, 1);
    assert_eq!(summary.neighbour_failures, 1);
    assert_eq!(summary.acknowledged_data_lost, 1);
    assert_eq!((summary.unexplained, summary.undetected), (1, 2));
    assert_eq!(summary.trials_per_second, Some(2.5));
    assert_eq!(summary.verdicts.values().sum::<u64>(), 10);

    let software = &summary.software;
    assert_eq!((software.activated, software.detected, software.harmless), (7, 2, 1));
    assert_eq!(software.detected_and_corrupted, 1);
    assert_eq!((software.accounted.count, software.accounted.of), (3, 7));
    assert_eq!(
        software.rest,
        BTreeMap::from([
            (Verdict::Recovered, 1),
            (Verdict::Corrupted, 1),
            (Verdict::Undetected, 1),
            (Verdict::Unexplained, 1),
        ])
    );

    let nop = summary.classes.iter().find(|class| class.class == Class::Nop).unwrap();
    assert_eq!((nop.trials, nop.activated), (8, 7));
    assert_eq!((nop.corrupted.count, nop.corrupted.of), (2, 7));
    assert_eq!(nop.silently_corrupted.count, 1);
    assert_eq!(nop.verdicts.values().sum::<u64>(), 8);
    assert_eq!(nop.manifestations[&Manifestation::Hang], 2);
    let recovery = nop.recovery.as_ref().unwrap();
    assert_eq!((recovery.count, recovery.p50_ns, recovery.max_ns), (2, 100, 300));

    let who: Vec<_> = summary.detection.iter().map(|of| (of.by, of.times.count, of.late)).collect();
    assert_eq!(
        who,
        [(Detector::Driver, 1, 0), (Detector::Watchdog, 2, 1), (Detector::Guest, 1, 0)]
    );
}

#[test]
fn each_kind_of_harm_breaks_the_promise() {
    let quiet = samples::quiet(Class::Panic);
    let good = Trial { verdict: Verdict::Harmless, ..quiet(0) };
    assert!(summary(vec![good.clone()]).holds());
    // Nothing was tried.
    assert!(!summary(Vec::new()).holds());
    assert!(!summary(vec![quiet(0)]).holds());
    let bad = [
        Trial { hypervisor: Some("panic".to_owned()), ..good.clone() },
        Trial { neighbours: Some("kv".to_owned()), ..good.clone() },
        Trial { data: Data::Lost, ..good.clone() },
        Trial { data: Data::Corrupt, ..good.clone() },
        Trial { verdict: Verdict::Unexplained, ..good.clone() },
    ];
    for trial in bad {
        assert!(!summary(vec![good.clone(), trial.clone()]).holds(), "{trial:?}");
    }
}

#[test]
fn functions_are_counted_by_target() {
    let at = |target: &str, function: Option<&str>, address| {
        let mut trial = samples::quiet(Class::Nop)(0);
        trial.target = target.to_owned();
        trial.plan.function = function.map(str::to_owned);
        trial.plan.fault = match address {
            Some(address) => Fault::Stack { address, fraction: 1, value: 2 },
            None => Fault::Heap { fraction: 1, value: 2 },
        };
        trial
    };
    let mut trials = vec![
        at("net", Some("run"), Some(16)),
        at("blk", Some("run"), Some(16)),
        at("blk", Some("run"), Some(16)),
        at("blk", Some("run"), Some(20)),
        at("blk", Some("drop<T>"), None),
        at("blk", None, Some(64)),
        // The moment never came.
        Trial { injected: false, ..at("net", Some("main"), Some(8)) },
    ];
    trials[1].verdict = Verdict::Undetected;
    trials[2].verdict = Verdict::Harmless;
    let summary = summary(trials);
    let function = |target: &str, function: &str, counts: [u64; 4]| OfFunction {
        target: target.to_owned(),
        function: function.to_owned(),
        injections: counts[0],
        activated: counts[1],
        addresses: counts[2],
        not_clean: counts[3],
    };
    assert_eq!(
        summary.functions,
        [
            function("blk", "run", [3, 2, 2, 1]),
            function("blk", "drop<T>", [1, 0, 0, 0]),
            function("net", "run", [1, 0, 1, 0]),
        ]
    );
    let coverage = |target: &str, functions, of, addresses| Coverage {
        target: target.to_owned(),
        functions,
        of: Some(of),
        addresses,
    };
    assert_eq!(summary.coverage, [coverage("blk", 2, 612, 2), coverage("net", 1, 701, 1)]);
}

#[test]
fn figures_are_flat_and_named_once() {
    let summary = Summary::new(&samples::results(3_000));
    let figures = summary.figures();
    let names: BTreeSet<(&str, &str)> =
        figures.iter().map(|figure| (figure.name.as_str(), figure.metric.as_str())).collect();
    assert_eq!(names.len(), figures.len());
    let value = |name: &str, metric: &str| {
        let found =
            figures.iter().find(|figure| (&*figure.name, &*figure.metric) == (name, metric));
        found.unwrap_or_else(|| panic!("{name} {metric}")).value
    };
    assert_eq!(value("fault", "trials"), 3_000.0);
    assert!((value("fault", "trials_per_second") - 23.5).abs() < 1e-9);
    let panic = summary.classes.iter().find(|class| class.class == Class::Panic).unwrap();
    let p99 = panic.recovery.as_ref().unwrap().p99_ns as f64 / 1e6;
    assert_eq!(value("fault.panic", "recovery_p99"), p99);
    assert!(value("fault.by-watchdog", "detected_p50") > 0.0);
    assert!(figures.iter().all(|figure| figure.value.is_finite()));
}

#[test]
fn it_is_read_as_it_was_written() {
    let summary = Summary::new(&samples::results(500));
    let json = serde_json::to_string(&summary).unwrap();
    assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
}
