//! `summary.json`: the figures of a campaign.
//!
//! Harm is counted by what was observed, not by verdicts: a trial has one verdict, the worst,
//! and may have done harm of several kinds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::campaign::Shard;
use super::log::Results;
use super::numbers::{Rate, Times};
use crate::class::{Class, Group};
use crate::record::{Detector, Manifestation, SCHEMA, Trial};
use crate::verdict::Verdict;
use crate::workload::Workload;

/// Trials by verdict; those that there were.
pub type Verdicts = BTreeMap<Verdict, u64>;
/// Trials by how the fault showed; those that there were.
pub type Manifestations = BTreeMap<Manifestation, u64>;

/// All figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The program that was tried.
    pub program: String,
    /// The campaign's seed.
    pub seed: u64,
    /// Its workload.
    pub workload: Workload,
    /// Which part of the trials this is.
    pub shard: Shard,
    /// Trials that were run.
    pub trials: u64,
    /// Trials that this shard should have; `None`: as many as there was time for.
    pub planned: Option<u64>,
    /// Those of them that were not run.
    pub missing: Option<u64>,
    /// Trials in which the moment came and the fault was injected.
    pub injected: u64,
    /// Trials whose fault was activated.
    pub activated: u64,
    /// Trials in which the hypervisor took harm.
    pub hypervisor_failures: u64,
    /// Trials in which a domain took harm that has nothing to do with the target.
    pub neighbour_failures: u64,
    /// Trials in which data that was acknowledged was lost or corrupted, outside the classes
    /// that do that by their definition.
    pub acknowledged_data_lost: u64,
    /// Trials whose verdict is `unexplained`.
    pub unexplained: u64,
    /// Trials whose verdict is `undetected`.
    pub undetected: u64,
    /// Trials whose verdict is `machine-failed`.
    pub machine_failures: u64,
    /// What the campaign took, on the host's clock.
    pub wall_seconds: f64,
    /// Trials by that time; `None` if it is not known.
    pub trials_per_second: Option<f64>,
    /// Nodes that were booted.
    pub boots: u64,
    /// Trials by verdict.
    pub verdicts: Verdicts,
    /// What became of the faults of the group `software` that were activated.
    pub software: Software,
    /// By class, those that the campaign has.
    pub classes: Vec<OfClass>,
    /// By who saw the fault.
    pub detection: Vec<OfDetector>,
    /// From the detection to the first request that the guest saw completed.
    pub recovery: Option<Times>,
    /// By target, where functions are known.
    pub coverage: Vec<Coverage>,
    /// By function that was struck, those struck most often first.
    pub functions: Vec<OfFunction>,
}

/// What became of activated faults in a driver's program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Software {
    /// How many there were.
    pub activated: u64,
    /// Something other than the workload's own checksums saw it within the campaign's bound.
    pub detected: u64,
    /// Of these: a guest's data was corrupted nevertheless.
    pub detected_and_corrupted: u64,
    /// Nothing saw it, and all checks found nothing wrong.
    pub harmless: u64,
    /// Detected within the bound, or harmless.
    pub accounted: Rate,
    /// The verdicts on the others.
    pub rest: Verdicts,
}

/// The figures of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfClass {
    /// The class.
    pub class: Class,
    /// Its group.
    pub group: Group,
    /// Trials that were run.
    pub trials: u64,
    /// Trials whose fault was activated.
    pub activated: u64,
    /// Trials by verdict.
    pub verdicts: Verdicts,
    /// Trials by how the fault showed.
    pub manifestations: Manifestations,
    /// A guest's data was lost or corrupted, of activated faults.
    pub corrupted: Rate,
    /// And nothing but the workload's own checksums saw it.
    pub silently_corrupted: Rate,
    /// Recoveries, if there were any.
    pub recovery: Option<Times>,
}

/// The figures of who saw a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfDetector {
    /// Who.
    pub by: Detector,
    /// From the fault's activation, or its injection if that was not watched.
    pub times: Times,
    /// How many came after the campaign's bound.
    pub late: u64,
}

/// How much of a target's program was struck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The target.
    pub target: String,
    /// Functions that were struck.
    pub functions: u64,
    /// Functions that it has, if that is known.
    pub of: Option<u64>,
    /// Addresses that were struck.
    pub addresses: u64,
}

/// The figures of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfFunction {
    /// The target that it belongs to.
    pub target: String,
    /// Its name.
    pub function: String,
    /// Faults that were injected there.
    pub injections: u64,
    /// Those that were activated.
    pub activated: u64,
    /// Different addresses.
    pub addresses: u64,
    /// Trials that were not clean.
    pub not_clean: u64,
}

/// One figure, flat, as the project's measuring commands write them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Dotted and stable, such as `fault.panic`.
    pub name: String,
    /// What of it, such as `recovery_p99`.
    pub metric: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What clock it was measured by.
    pub clock: String,
}

impl Summary {
    /// The figures of a campaign.
    #[must_use]
    pub fn new(results: &Results) -> Self {
        let Results { campaign, trials, effort, .. } = results;
        let all: Vec<&Trial> = trials.iter().collect();
        let planned = campaign.trials.map(|end| campaign.shard.share(end));
        let ran = trials.len() as u64;
        let is = |test: &dyn Fn(&Trial) -> bool| number(&all, test);
        let (coverage, functions) = struck(results);
        Self {
            schema: SCHEMA,
            program: campaign.program.clone(),
            seed: campaign.seed,
            workload: campaign.workload,
            shard: campaign.shard,
            trials: ran,
            planned,
            missing: planned.map(|planned| planned.saturating_sub(ran)),
            injected: is(&|trial| trial.injected),
            activated: is(&Trial::is_activated),
            hypervisor_failures: is(&|trial| trial.hypervisor.is_some()),
            neighbour_failures: is(&|trial| trial.neighbours.is_some()),
            acknowledged_data_lost: is(&|trial| trial.is_corrupt() && !trial.class.may_corrupt()),
            unexplained: is(&|trial| trial.verdict == Verdict::Unexplained),
            undetected: is(&|trial| trial.verdict == Verdict::Undetected),
            machine_failures: is(&|trial| trial.verdict == Verdict::MachineFailed),
            wall_seconds: effort.wall_seconds,
            trials_per_second: (effort.wall_seconds > 0.0)
                .then(|| ran as f64 / effort.wall_seconds),
            boots: effort.boots,
            verdicts: by(&all, |trial| trial.verdict),
            software: software(&all, campaign.bound_ns),
            classes: campaign.classes.iter().map(|class| of_class(*class, &all)).collect(),
            detection: detection(&all, campaign.bound_ns),
            recovery: recovery(&all),
            coverage,
            functions,
        }
    }

    /// Trials with this verdict.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(&verdict).copied().unwrap_or(0)
    }

    /// Whether the promises were kept in what was tried, and something was.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.activated > 0
            && self.hypervisor_failures == 0
            && self.neighbour_failures == 0
            && self.acknowledged_data_lost == 0
            && self.unexplained == 0
    }

    /// The same, flat.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        let mut add = |name: &str, metric: &str, value: f64, unit: &str, clock: &str| {
            let [name, metric, unit, clock] = [name, metric, unit, clock].map(str::to_owned);
            figures.push(Figure { name, metric, value, unit, clock });
        };
        let counts = [
            ("trials", self.trials),
            ("injected", self.injected),
            ("activated", self.activated),
            ("hypervisor_failures", self.hypervisor_failures),
            ("neighbour_failures", self.neighbour_failures),
            ("acknowledged_data_lost", self.acknowledged_data_lost),
            ("unexplained", self.unexplained),
            ("undetected", self.undetected),
            ("machine_failures", self.machine_failures),
        ];
        for (metric, count) in counts {
            add("fault", metric, count as f64, "count", "none");
        }
        if let Some(rate) = self.trials_per_second {
            add("fault", "trials_per_second", rate, "1/s", "wall");
        }
        add("fault.software", "accounted", self.software.accounted.rate, "ratio", "none");
        let mut times = |name: &str, prefix: &str, times: &Times| {
            let parts = [("p50", times.p50_ns), ("p99", times.p99_ns), ("max", times.max_ns)];
            for (part, ns) in parts {
                add(name, &format!("{prefix}_{part}"), ns as f64 / 1e6, "ms", "virtual");
            }
        };
        if let Some(recovery) = &self.recovery {
            times("fault", "recovery", recovery);
        }
        for detector in &self.detection {
            times(&format!("fault.by-{}", detector.by), "detected", &detector.times);
        }
        for class in &self.classes {
            if let Some(recovery) = &class.recovery {
                times(&format!("fault.{}", class.class), "recovery", recovery);
            }
        }
        for class in &self.classes {
            let name = format!("fault.{}", class.class);
            add(&name, "trials", class.trials as f64, "count", "none");
            add(&name, "activated", class.activated as f64, "count", "none");
            add(&name, "silently_corrupted", class.silently_corrupted.rate, "ratio", "none");
        }
        figures
    }
}

fn number(trials: &[&Trial], test: impl Fn(&Trial) -> bool) -> u64 {
    trials.iter().filter(|trial| test(trial)).count() as u64
}

fn by<K: Ord>(trials: &[&Trial], key: impl Fn(&Trial) -> K) -> BTreeMap<K, u64> {
    let mut counts = BTreeMap::new();
    for trial in trials {
        *counts.entry(key(trial)).or_insert(0) += 1;
    }
    counts
}

fn recovery(trials: &[&Trial]) -> Option<Times> {
    let times = trials.iter().filter_map(|trial| trial.recovery.as_ref());
    Times::of(times.map(|recovery| recovery.after_ns).collect())
}

fn software(trials: &[&Trial], bound_ns: u64) -> Software {
    let activated: Vec<&Trial> = trials
        .iter()
        .copied()
        .filter(|trial| trial.class.group() == Group::Software && trial.is_activated())
        .collect();
    let in_time = |trial: &&Trial| trial.detected().is_some_and(|seen| seen.after_ns <= bound_ns);
    let (detected, others): (Vec<&Trial>, Vec<&Trial>) =
        activated.iter().copied().partition(in_time);
    let (harmless, rest): (Vec<&Trial>, Vec<&Trial>) =
        others.into_iter().partition(|trial| trial.verdict == Verdict::Harmless);
    let accounted = (detected.len() + harmless.len()) as u64;
    Software {
        activated: activated.len() as u64,
        detected: detected.len() as u64,
        detected_and_corrupted: number(&detected, Trial::is_corrupt),
        harmless: harmless.len() as u64,
        accounted: Rate::new(accounted, activated.len() as u64),
        rest: by(&rest, |trial| trial.verdict),
    }
}

fn of_class(class: Class, trials: &[&Trial]) -> OfClass {
    let own: Vec<&Trial> = trials.iter().copied().filter(|trial| trial.class == class).collect();
    let activated = number(&own, Trial::is_activated);
    let silent = |trial: &Trial| trial.is_corrupt() && trial.detected().is_none();
    OfClass {
        class,
        group: class.group(),
        trials: own.len() as u64,
        activated,
        verdicts: by(&own, |trial| trial.verdict),
        manifestations: by(&own, |trial| trial.manifestation),
        corrupted: Rate::new(number(&own, Trial::is_corrupt), activated),
        silently_corrupted: Rate::new(number(&own, silent), activated),
        recovery: recovery(&own),
    }
}

fn detection(trials: &[&Trial], bound_ns: u64) -> Vec<OfDetector> {
    let mut detectors: BTreeMap<Detector, Vec<u64>> = BTreeMap::new();
    for detection in trials.iter().filter_map(|trial| trial.detection) {
        detectors.entry(detection.by).or_default().push(detection.after_ns);
    }
    let mut list = Vec::new();
    for (by, after) in detectors {
        let late = after.iter().filter(|ns| **ns > bound_ns).count() as u64;
        list.extend(Times::of(after).map(|times| OfDetector { by, times, late }));
    }
    list
}

/// What of the targets' programs was struck.
fn struck(results: &Results) -> (Vec<Coverage>, Vec<OfFunction>) {
    #[derive(Default)]
    struct Hits {
        injections: u64,
        activated: u64,
        addresses: BTreeSet<u64>,
        not_clean: u64,
    }

    let mut hits: BTreeMap<(&str, &str), Hits> = BTreeMap::new();
    for trial in &results.trials {
        let Some(function) = trial.plan.function.as_ref().filter(|_| trial.injected) else {
            continue;
        };
        let hit = hits.entry((&trial.target, function)).or_default();
        hit.injections += 1;
        hit.activated += u64::from(trial.is_activated());
        hit.addresses.extend(trial.plan.fault.address());
        hit.not_clean += u64::from(!trial.verdict.is_clean());
    }
    let coverage = results.campaign.targets.iter().filter_map(|target| {
        let own: Vec<&Hits> =
            hits.iter().filter(|(key, _)| key.0 == target).map(|(_, hits)| hits).collect();
        let of = results.campaign.functions.get(target).copied();
        (!own.is_empty() || of.is_some()).then(|| Coverage {
            target: target.clone(),
            functions: own.len() as u64,
            of,
            addresses: own.iter().map(|hits| hits.addresses.len() as u64).sum(),
        })
    });
    let coverage = coverage.collect();
    let functions = hits.into_iter().map(|((target, function), hits)| OfFunction {
        target: target.to_owned(),
        function: function.to_owned(),
        injections: hits.injections,
        activated: hits.activated,
        addresses: hits.addresses.len() as u64,
        not_clean: hits.not_clean,
    });
    let mut functions: Vec<OfFunction> = functions.collect();
    functions.sort_by_key(|function| std::cmp::Reverse(function.injections));
    (coverage, functions)
}

#[cfg(test)]
mod tests;
