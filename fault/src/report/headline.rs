//! What the campaign says, in one sentence and a few numbers.

use super::campaign::Shard;
use super::numbers::{Rate, count, percent};
use super::summary::Summary;

/// Share of activated software faults that should be detected in time or harmless.
pub const GOAL: f64 = 0.95;

/// The sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headline {
    /// `good`, `warn` or `bad`.
    pub tone: &'static str,
    /// The same, without colour.
    pub glyph: &'static str,
    /// What it comes to.
    pub title: String,
    /// What else must be said at once.
    pub lines: Vec<String>,
    /// The trials are one shard's alone.
    pub is_part: bool,
}

/// A number that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The number.
    pub value: String,
    /// Of what.
    pub label: &'static str,
    /// `good`, `warn`, `bad` or nothing.
    pub tone: &'static str,
}

/// What a campaign says.
#[must_use]
pub fn of(summary: &Summary) -> Headline {
    let harm = [
        (summary.hypervisor_failures, "the hypervisor failed"),
        (summary.neighbour_failures, "a neighbour was harmed"),
        (summary.acknowledged_data_lost, "acknowledged data was lost"),
    ];
    let harm: Vec<String> = harm
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{what} in {}", trials(*number)))
        .collect();
    let (tone, glyph, title) = if !harm.is_empty() {
        ("bad", "✖", format!("A promise was broken: {}", harm.join("; ")))
    } else if summary.activated == 0 {
        ("warn", "▲", "No fault was activated: this campaign says nothing".to_owned())
    } else if summary.unexplained > 0 {
        let unexplained = trials(summary.unexplained);
        ("warn", "▲", format!("No promise was seen broken; {unexplained} not explained"))
    } else if summary.undetected > 0 {
        let undetected = trials(summary.undetected);
        ("warn", "▲", format!("No promise was broken; {undetected} without detection or recovery"))
    } else {
        ("good", "✔", "Every promise was kept".to_owned())
    };
    let mut lines = Vec::new();
    if harm.is_empty() && summary.activated > 0 {
        let most = percent(Rate::new(0, summary.activated).high);
        lines.push(format!(
            "In {} activated faults the hypervisor was not seen to fail, no domain to be harmed \
             that has nothing to do with the target, and no acknowledged data to be lost by a \
             class that must not do that. With 95 % confidence each of these happens in fewer \
             than {most} of such faults.",
            count(summary.activated)
        ));
    }
    if summary.unexplained > 0 && tone == "bad" {
        lines.push(format!("{} not explained.", trials(summary.unexplained)));
    }
    if let (Some(missing @ 1..), Some(planned)) = (summary.missing, summary.planned) {
        lines.push(format!(
            "Not complete: {} of {} trials have not been run.",
            count(missing),
            count(planned)
        ));
    }
    let is_part = summary.shard != Shard::WHOLE;
    if is_part {
        lines.push(format!("These are the trials of shard {} alone.", summary.shard));
    }
    Headline { tone, glyph, title, lines, is_part }
}

fn trials(number: u64) -> String {
    format!("{} trial{}", count(number), if number == 1 { "" } else { "s" })
}

/// The numbers.
#[must_use]
pub fn tiles(summary: &Summary) -> Vec<Tile> {
    let tile = |value: String, label, tone| Tile { value, label, tone };
    let must_be_none = |number: u64, label, tone| {
        let good = if summary.activated > 0 { "good" } else { "" };
        tile(count(number), label, if number == 0 { good } else { tone })
    };
    let mut tiles = vec![
        tile(count(summary.trials), "trials", ""),
        tile(count(summary.activated), "faults activated", ""),
        must_be_none(summary.hypervisor_failures, "hypervisor failures", "bad"),
        must_be_none(summary.neighbour_failures, "neighbours harmed", "bad"),
        must_be_none(summary.acknowledged_data_lost, "acknowledged data lost", "bad"),
        must_be_none(summary.unexplained, "unexplained", "warn"),
        must_be_none(summary.undetected, "not detected or not recovered", "warn"),
        must_be_none(summary.machine_failures, "ended by QEMU's own assertions", "warn"),
    ];
    let software = &summary.software;
    if software.activated > 0 {
        let tone = if software.accounted.rate >= GOAL { "good" } else { "warn" };
        let label = "of activated software faults detected in time or harmless";
        tiles.push(tile(percent(software.accounted.rate), label, tone));
    }
    if let Some(rate) = summary.trials_per_second {
        tiles.push(tile(format!("{rate:.1}"), "trials a second", ""));
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::class::Class;
    use crate::record::Trial;
    use crate::verdict::Verdict;

    fn headline(trials: Vec<Trial>) -> Headline {
        let mut results = samples::results(0);
        results.campaign.trials = Some(trials.len() as u64);
        results.trials = trials;
        of(&Summary::new(&results))
    }

    #[test]
    fn the_worst_comes_first() {
        let quiet = samples::quiet(Class::Panic);
        let good = Trial { verdict: Verdict::Harmless, ..quiet(0) };
        let unexplained = Trial { verdict: Verdict::Unexplained, ..quiet(1) };
        let undetected = Trial { verdict: Verdict::Undetected, ..quiet(2) };
        let failed = Trial { hypervisor: Some("x".to_owned()), ..good.clone() };
        let cases = [
            (vec![], "warn", "No fault was activated"),
            (vec![quiet(0)], "warn", "No fault was activated"),
            (vec![good.clone()], "good", "Every promise was kept"),
            (vec![good.clone(), undetected.clone()], "warn", "1 trial without detection"),
            (vec![good.clone(), unexplained.clone(), undetected], "warn", "1 trial not explained"),
            (vec![good, unexplained, failed], "bad", "the hypervisor failed in 1 trial"),
        ];
        for (trials, tone, title) in cases {
            let headline = headline(trials);
            assert_eq!(headline.tone, tone, "{}", headline.title);
            assert!(headline.title.contains(title), "{}", headline.title);
        }
    }

    #[test]
    fn what_is_not_complete_says_so() {
        let mut results = samples::results(100);
        results.trials.retain(|trial| trial.trial % 2 == 0);
        results.campaign.trials = Some(1_000);
        results.campaign.shard = Shard::new(0, 2).unwrap();
        let headline = of(&Summary::new(&results));
        let lines = headline.lines.join("\n");
        assert!(lines.contains("Not complete: 450 of 500 trials"), "{lines}");
        assert!(lines.contains("shard 0/2 alone"), "{lines}");
    }
}
