//! What happened in a trial, for people.

use std::path::Path;

use super::numbers::{count, duration};
use super::replay_command;
use crate::record::{Data, Trial};

/// What was done: the change, and where.
#[must_use]
pub fn change(trial: &Trial) -> String {
    match trial.plan.fault.address() {
        Some(address) => format!("{} at {address:#x}", trial.plan.text),
        None => trial.plan.text.clone(),
    }
}

/// What was seen of the fault, in a few words.
#[must_use]
pub fn outcome(trial: &Trial) -> String {
    let mut parts = vec![match trial.activated_ns {
        Some(ns) => format!("activated after {}", duration(ns)),
        None if trial.is_activated() => "activation not watched".to_owned(),
        None if !trial.injected => "not injected".to_owned(),
        None => "not activated".to_owned(),
    }];
    parts.push(format!("showed as {}", trial.manifestation));
    parts.push(match trial.detection {
        Some(seen) => format!("seen by {} after {}", seen.by, duration(seen.after_ns)),
        None => "seen by nobody".to_owned(),
    });
    parts.push(match &trial.recovery {
        Some(recovery) => {
            let spare = if recovery.spare { ", by a spare" } else { "" };
            let deaths = if recovery.deaths == 1 {
                String::new()
            } else {
                format!(", {} deaths", recovery.deaths)
            };
            format!("served again after {}{spare}{deaths}", duration(recovery.after_ns))
        }
        None => "no recovery".to_owned(),
    });
    if trial.data != Data::Intact {
        parts.push(format!("data {}", trial.data));
    }
    parts.join("; ")
}

/// What the guest noticed.
#[must_use]
pub fn guest(trial: &Trial) -> String {
    let guest = &trial.guest;
    format!(
        "{} completed, {} errors, {} replayed, {} lost, longest wait {}",
        count(guest.completed),
        count(guest.errors),
        count(guest.replayed),
        count(guest.lost),
        duration(guest.longest_ns)
    )
}

/// Harm done to others, and why the verdict is what it is.
#[must_use]
pub fn remarks(trial: &Trial) -> Vec<String> {
    let remark =
        |label: &str, text: &Option<String>| text.as_ref().map(|text| format!("{label}: {text}"));
    let all = [
        remark("hypervisor", &trial.hypervisor),
        remark("QEMU", &trial.machine),
        remark("neighbours", &trial.neighbours),
        trial.note.clone(),
    ];
    all.into_iter().flatten().collect()
}

/// All of it, line by line.
#[must_use]
pub fn full(trial: &Trial, dir: &Path) -> String {
    let mut lines = vec![format!(
        "trial {} (seed {}, node {}): {} in {}, workload {}",
        trial.trial, trial.seed, trial.node, trial.class, trial.target, trial.workload
    )];
    let plan = &trial.plan;
    let function = plan.function.as_ref().map_or_else(String::new, |name| format!(", in {name}"));
    let when = if trial.injected { "injected when" } else { "not injected, for never" };
    let moment = count(plan.moment);
    lines.push(format!("{when} {moment} requests were done: {}{function}", change(trial)));
    lines.push(outcome(trial));
    lines.push(format!("guest: {}", guest(trial)));
    lines.extend(remarks(trial));
    lines.push(format!("verdict: {}: {}", trial.verdict, trial.verdict.meaning()));
    lines.push(format!("again: {}", replay_command(dir, trial.trial)));
    lines.join("\n")
}
