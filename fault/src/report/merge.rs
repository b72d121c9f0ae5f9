//! Joins the directories of shards.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::campaign::{Campaign, Shard};
use super::log::{self, Effort, Results, Torn};

/// How the shards shared the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// One after the other, on one machine: the time is the sum.
    InTurn,
    /// At once: the time is that of the longest. On several machines, trials a second are then
    /// those of all machines.
    AtOnce,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Merged {
    /// All shards.
    pub results: Results,
    /// Lines of logs that were left out.
    pub torn: Vec<Torn>,
    /// Trials that no shard has.
    pub missing: Vec<u64>,
}

/// Joins the campaigns of `dirs` into a new one in `out`.
///
/// With `partial`, trials may be missing; the new campaign can then be taken up like any that
/// was interrupted, and its report says that it is not complete.
///
/// # Errors
///
/// The directories are not parts of one campaign, a trial is there twice with different records,
/// trials are missing and `partial` is not set, or `out` holds a campaign already.
pub fn merge(dirs: &[PathBuf], out: &Path, together: Together, partial: bool) -> Result<Merged> {
    let mut parts = Vec::new();
    for dir in dirs {
        parts.push((dir, log::read(dir)?));
    }
    let (first_dir, first) = parts.first().context("there is nothing to merge")?;
    let of = first.campaign.shard.of();
    for (dir, part) in &parts {
        let names = || format!("{} and {}", first_dir.display(), dir.display());
        first.campaign.ensure_same(&part.campaign).with_context(names)?;
        ensure!(
            part.campaign.shard.of() == of,
            "{}: one is a shard of {of}, the other of {}",
            names(),
            part.campaign.shard.of()
        );
    }
    let campaign = Campaign { shard: Shard::WHOLE, ..first.campaign.clone() };
    let effort = join(parts.iter().map(|(_, part)| part.effort), together);
    let torn = parts.iter().filter_map(|(_, part)| part.torn.clone()).collect();
    let mut trials: Vec<_> = parts.into_iter().flat_map(|(_, part)| part.trials).collect();
    log::sort(&mut trials)?;

    let numbers: Vec<u64> = trials.iter().map(|trial| trial.trial).collect();
    let missing = missing(&numbers, &campaign, of);
    ensure!(
        partial || missing.is_empty(),
        "{} trials are missing: {}",
        missing.len(),
        describe(&missing, of)
    );
    let results = Results { campaign, trials, effort, torn: None };
    log::create(out, &results)?;
    Ok(Merged { results, torn, missing })
}

fn join(efforts: impl Iterator<Item = Effort>, together: Together) -> Effort {
    efforts.fold(Effort::default(), |sum, part| Effort {
        wall_seconds: match together {
            Together::InTurn => sum.wall_seconds + part.wall_seconds,
            Together::AtOnce => sum.wall_seconds.max(part.wall_seconds),
        },
        boots: sum.boots + part.boots,
        runs: sum.runs + part.runs,
        set_aside: sum.set_aside + part.set_aside,
    })
}

/// The numbers that are not in `there`, which rises. A campaign that ran for a time has no last
/// trial: there, each shard must have all up to its own last, and at least one.
fn missing(there: &[u64], campaign: &Campaign, of: u32) -> Vec<u64> {
    let mut missing = Vec::new();
    for index in 0..of {
        let step = u64::from(of);
        let own = |trial: &&u64| **trial % step == u64::from(index);
        let end = match campaign.trials {
            Some(trials) => trials,
            None => there.iter().rfind(own).map_or(u64::from(index) + 1, |last| last + 1),
        };
        let mut here = there.iter().filter(own).peekable();
        let mut wanted = u64::from(index);
        while wanted < end {
            if here.next_if_eq(&&wanted).is_none() {
                missing.push(wanted);
            }
            wanted += step;
        }
    }
    missing.sort_unstable();
    missing
}

/// Says which trials are missing, by shard, and no more of them than can be read.
fn describe(missing: &[u64], of: u32) -> String {
    const SHOWN: usize = 8;
    let mut parts = Vec::new();
    for index in 0..of {
        let own: Vec<u64> = missing
            .iter()
            .copied()
            .filter(|trial| trial % u64::from(of) == u64::from(index))
            .collect();
        if own.is_empty() {
            continue;
        }
        let mut text: Vec<String> = own.iter().take(SHOWN).map(u64::to_string).collect();
        if own.len() > SHOWN {
            text.push(format!("and {} more", own.len() - SHOWN));
        }
        parts.push(format!("of shard {index}/{of}: {}", text.join(", ")));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::log::Log;
    use super::super::{samples, write};
    use super::*;
    use crate::workload::Workload;

    const TRIALS: u64 = 403;

    /// Runs one shard; leaves `without` out.
    fn run(dir: &Path, shard: Shard, trials: Option<u64>, without: &[u64]) -> PathBuf {
        let dir = dir.join(shard.to_string().replace('/', "of"));
        let campaign = samples::campaign(trials, shard);
        let (mut log, _) = Log::open(&dir, &campaign).unwrap();
        for number in (0..TRIALS).filter(|number| shard.holds(*number)) {
            if !without.contains(&number) {
                log.append(&samples::trial(&campaign, number)).unwrap();
            }
        }
        log.spend(10.0 + f64::from(shard.index()), 1).unwrap();
        dir
    }

    fn shards(dir: &Path, trials: Option<u64>, without: &[u64]) -> Vec<PathBuf> {
        (0..4).map(|index| run(dir, Shard::new(index, 4).unwrap(), trials, without)).collect()
    }

    fn error(result: Result<Merged>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn four_shards_are_the_whole() {
        let temp = tempfile::tempdir().unwrap();
        let mut dirs = shards(temp.path(), Some(TRIALS), &[]);
        let whole = run(temp.path(), Shard::WHOLE, Some(TRIALS), &[]);
        dirs.rotate_left(1);
        for (together, seconds, name) in
            [(Together::InTurn, 46.0, "in-turn"), (Together::AtOnce, 13.0, "at-once")]
        {
            let out = temp.path().join(name);
            let merged = merge(&dirs, &out, together, false).unwrap();
            assert!(merged.missing.is_empty());
            assert_eq!(
                merged.results.effort,
                Effort { wall_seconds: seconds, boots: 4, runs: 4, set_aside: 0 }
            );
            for file in ["campaign.json", "trials.jsonl"] {
                let [merged, whole] = [&out, &whole].map(|dir| fs::read(dir.join(file)).unwrap());
                assert!(merged == whole, "{file} differs");
            }
            // All figures too, but for what it cost.
            let mut merged = write(&out).unwrap().summary;
            let whole = write(&whole).unwrap().summary;
            merged.wall_seconds = whole.wall_seconds;
            merged.trials_per_second = whole.trials_per_second;
            merged.boots = whole.boots;
            assert_eq!(merged, whole);
        }
    }

    #[test]
    fn missing_trials_are_named() {
        let temp = tempfile::tempdir().unwrap();
        let without: Vec<u64> = [6, 10, 400].into_iter().chain((3..TRIALS).step_by(4)).collect();
        let dirs = shards(temp.path(), Some(TRIALS), &without);
        let out = temp.path().join("out");
        let message = error(merge(&dirs, &out, Together::InTurn, false));
        assert_eq!(
            message,
            "103 trials are missing: of shard 0/4: 400; of shard 2/4: 6, 10; \
             of shard 3/4: 3, 7, 11, 15, 19, 23, 27, 31, and 92 more"
        );
        assert!(!out.exists(), "nothing half done");
        let merged = merge(&dirs, &out, Together::InTurn, true).unwrap();
        let mut sorted = without;
        sorted.sort_unstable();
        assert_eq!(merged.missing, sorted);
        assert_eq!(write(&out).unwrap().summary.missing, Some(103));

        // A shard that is not there at all.
        let message = error(merge(&dirs[..1], &temp.path().join("x"), Together::InTurn, false));
        assert!(message.contains("of shard 1/4: 1, 5, "), "{message}");
    }

    #[test]
    fn campaigns_by_time_have_no_holes() {
        let temp = tempfile::tempdir().unwrap();
        // The last ones are not missed: a shard ended before the others.
        let dirs = shards(temp.path(), None, &[402, 398]);
        merge(&dirs, &temp.path().join("a"), Together::AtOnce, false).unwrap();
        let message = error(merge(&dirs[..3], &temp.path().join("b"), Together::AtOnce, false));
        assert!(message.contains("of shard 3/4: 3"), "{message}");

        let temp = tempfile::tempdir().unwrap();
        let dirs = shards(temp.path(), None, &[201]);
        let message = error(merge(&dirs, &temp.path().join("a"), Together::AtOnce, false));
        assert_eq!(message, "1 trials are missing: of shard 1/4: 201");
    }

    #[test]
    fn only_parts_of_one_campaign_are_joined() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = shards(temp.path(), Some(TRIALS), &[]);
        let out = temp.path().join("out");

        // The same shard twice is no harm; another record of a trial is.
        let twice: Vec<PathBuf> = dirs.iter().chain([&dirs[1]]).cloned().collect();
        let merged = merge(&twice, &temp.path().join("twice"), Together::InTurn, false).unwrap();
        assert_eq!(merged.results.trials.len(), TRIALS as usize);
        let other = temp.path().join("other");
        fs::create_dir(&other).unwrap();
        for file in ["campaign.json", "trials.jsonl"] {
            let text = fs::read_to_string(dirs[1].join(file)).unwrap();
            let text = text.replacen(r#""completed":500"#, r#""completed":499"#, 1);
            fs::write(other.join(file), text).unwrap();
        }
        let message = error(merge(&[dirs[1].clone(), other.clone()], &out, Together::InTurn, true));
        assert_eq!(message, "trial 1 is there twice, with different records");

        let campaign = samples::campaign(Some(TRIALS), Shard::new(0, 4).unwrap());
        let campaign = Campaign { workload: Workload::Read, ..campaign };
        let path = temp.path().join("read");
        Log::open(&path, &campaign).unwrap();
        let message = error(merge(&[dirs[0].clone(), path], &out, Together::InTurn, true));
        assert!(message.contains(r#"workload is "mixed" here and "read" there"#), "{message}");

        let whole = run(temp.path(), Shard::WHOLE, Some(TRIALS), &[]);
        let message = error(merge(&[dirs[0].clone(), whole], &out, Together::InTurn, true));
        assert!(message.contains("one is a shard of 4, the other of 1"), "{message}");

        let message = error(merge(&dirs, &dirs[0], Together::InTurn, false));
        assert!(message.contains("holds a campaign already"), "{message}");
        assert!(error(merge(&[], &out, Together::InTurn, true)).contains("nothing to merge"));
    }
}
