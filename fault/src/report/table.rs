//! The report on a terminal.

use std::fmt::Write as _;
use std::path::Path;

use super::numbers::{Times, count, duration, percent};
use super::summary::{Summary, Verdicts};
use super::{replay_command, story};
use crate::record::Trial;
use crate::verdict::Verdict;

/// Trials of a verdict that are listed; the page has all of them.
const LISTED: usize = 10;

/// Classes by verdict, totals, and what was not clean.
#[must_use]
pub fn render(summary: &Summary, trials: &[Trial], dir: &Path) -> String {
    let mut text = matrix(summary);
    text.push('\n');
    text.push_str(&totals(summary));
    text.push_str(&not_clean(trials, dir));
    text
}

/// Lines of cells below each other; the first column to the left, the others to the right.
fn columns(rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len))
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if index == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn matrix(summary: &Summary) -> String {
    let there: Vec<Verdict> =
        Verdict::ALL.iter().copied().filter(|verdict| summary.of(*verdict) > 0).collect();
    let cells = |verdicts: &Verdicts| {
        let cell = |verdict| match verdicts.get(verdict) {
            None | Some(0) => ".".to_owned(),
            Some(number) => count(*number),
        };
        there.iter().map(cell).collect::<Vec<_>>()
    };
    let times = |times: &Option<Times>| match times {
        Some(times) => [duration(times.p50_ns), duration(times.p99_ns)],
        None => ["", ""].map(str::to_owned),
    };
    let mut head = vec!["class".to_owned(), "trials".to_owned()];
    head.extend(there.iter().map(|verdict| verdict.name().to_owned()));
    head.extend(["recovery p50", "p99"].map(str::to_owned));
    let mut rows = vec![head];
    for class in &summary.classes {
        let mut row = vec![class.class.name().to_owned(), count(class.trials)];
        row.extend(cells(&class.verdicts));
        row.extend(times(&class.recovery));
        rows.push(row);
    }
    let mut row = vec!["all".to_owned(), count(summary.trials)];
    row.extend(cells(&summary.verdicts));
    row.extend(times(&summary.recovery));
    rows.push(row);
    columns(&rows)
}

fn totals(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<24}{value}");
    };
    let run = match summary.trials_per_second {
        Some(rate) => format!(
            "{} in {:.0} s, {rate:.1} a second, {} boots",
            count(summary.trials),
            summary.wall_seconds,
            count(summary.boots)
        ),
        None => count(summary.trials),
    };
    line("trials", run);
    if let Some(missing) = summary.missing.filter(|missing| *missing > 0) {
        line("not run yet", count(missing));
    }
    line("faults activated", count(summary.activated));
    line("hypervisor failures", count(summary.hypervisor_failures));
    line("neighbours harmed", count(summary.neighbour_failures));
    line("acknowledged data lost", count(summary.acknowledged_data_lost));
    line("undetected", count(summary.undetected));
    line("unexplained", count(summary.unexplained));
    if summary.machine_failures > 0 {
        line("ended by QEMU itself", count(summary.machine_failures));
    }
    let software = &summary.software;
    if software.activated > 0 {
        line(
            "software faults",
            format!(
                "{} of {} detected in time or harmless ({}; 95 % interval from {})",
                count(software.accounted.count),
                count(software.activated),
                percent(software.accounted.rate),
                percent(software.accounted.low)
            ),
        );
    }
    text
}

fn not_clean(trials: &[Trial], dir: &Path) -> String {
    let mut text = String::new();
    for verdict in Verdict::ALL.iter().rev().filter(|verdict| !verdict.is_clean()) {
        let own: Vec<&Trial> = trials.iter().filter(|trial| trial.verdict == *verdict).collect();
        if own.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{verdict}: {}", count(own.len() as u64));
        for trial in own.iter().take(LISTED) {
            let Trial { class, target, .. } = trial;
            let _ = writeln!(text, "  {}", replay_command(dir, trial.trial));
            let _ = writeln!(text, "    {class} in {target}: {}", story::outcome(trial));
            for remark in story::remarks(trial) {
                let _ = writeln!(text, "    {}", remark.replace('\n', "\n    "));
            }
        }
        if own.len() > LISTED {
            let rest = count((own.len() - LISTED) as u64);
            let _ = writeln!(text, "  and {rest} more, in report.html");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::class::Class;
    use crate::record::Data;

    #[test]
    fn columns_are_those_that_have_something() {
        let mut results = samples::results(0);
        results.campaign.classes = vec![Class::Nop, Class::DuplicateCompletion];
        let quiet = samples::quiet(Class::Nop);
        results.trials = vec![
            quiet(0),
            Trial { verdict: Verdict::Harmless, ..quiet(1) },
            Trial { verdict: Verdict::Harmless, ..quiet(2) },
            Trial {
                verdict: Verdict::HypervisorFailed,
                hypervisor: Some("panicked at hv/src/x.rs:1".to_owned()),
                target: "blk".to_owned(),
                data: Data::Unknown,
                ..quiet(3)
            },
        ];
        let text = render(&Summary::new(&results), &results.trials, Path::new("out"));
        let wanted = "\
class                 trials  not-activated  harmless  hypervisor-failed  recovery p50  p99
nop                        4              1         2                  1
duplicate-completion       0              .         .                  .
all                        4              1         2                  1

trials                  4
faults activated        3
hypervisor failures     1
neighbours harmed       0
acknowledged data lost  0
undetected              0
unexplained             0
software faults         2 of 3 detected in time or harmless (66.7 %; 95 % interval from 20.8 %)

hypervisor-failed: 1
  cargo xtask fault replay out 3
    nop in blk: activation not watched; showed as none; seen by nobody; no recovery; data unknown
    hypervisor: panicked at hv/src/x.rs:1
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn long_lists_are_cut_and_say_so() {
        let results = samples::results(5_000);
        let summary = Summary::new(&results);
        let text = render(&summary, &results.trials, Path::new("out"));
        let corrupted = summary.of(Verdict::Corrupted);
        assert!(corrupted > LISTED as u64);
        let rest = format!("and {} more, in report.html", corrupted - LISTED as u64);
        assert!(text.contains(&rest), "{text}");
        assert!(text.contains("no <answer> within the bound"), "{text}");
        // All rows of the table have the same columns.
        let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), Class::ALL.len() + 2);
    }
}
