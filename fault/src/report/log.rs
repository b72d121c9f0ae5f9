//! The directory of a campaign, and its log, which survives being cut off anywhere.
//!
//! A trial is appended by one write of one line. Whoever is killed in the midst of it leaves a
//! last line without an end: it is dropped, and its trial is run again, which gives the same
//! record. Anything else that can't be read was not made by a kill, and is an error. Lines are
//! not forced to the disk: what a crash of the whole machine takes is run again as well.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::campaign::Campaign;
use super::save_json;
use crate::record::{SCHEMA, Trial};

const CAMPAIGN: &str = "campaign.json";
const TRIALS: &str = "trials.jsonl";
const EFFORT: &str = "effort.json";
const SET_ASIDE: &str = "set-aside.jsonl";

/// What a campaign cost. It changes from run to run, and decides nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Time on the host's clock, over all runs of the campaign, in seconds.
    pub wall_seconds: f64,
    /// Nodes that were booted: one for each job of each run, and one for each that could not
    /// be trusted after a trial.
    pub boots: u64,
    /// How often the campaign was begun or taken up again.
    pub runs: u64,
    /// Trials that were run again, because the host let the node wait when a promise was broken.
    #[serde(default)]
    pub set_aside: u64,
}

/// The last line of a log, cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub path: PathBuf,
    /// Number of the line, from 1.
    pub line: usize,
    /// How much of it is there.
    pub bytes: usize,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, line, bytes } = self;
        write!(f, "{}, line {line}: cut off after {bytes} bytes, dropped", path.display())
    }
}

/// All that was written down of a campaign.
#[derive(Clone, Debug)]
pub struct Results {
    /// Its parameters.
    pub campaign: Campaign,
    /// What was observed, by rising number.
    pub trials: Vec<Trial>,
    /// What it cost.
    pub effort: Effort,
    /// A line that was left out.
    pub torn: Option<Torn>,
}

/// Reads the campaign in a directory, also while it runs, and changes nothing.
///
/// # Errors
///
/// There is none, a line can't be read or is of another campaign, or a trial is there twice with
/// different records. The error names the file, the line and the reason.
pub fn read(dir: &Path) -> Result<Results> {
    let path = dir.join(CAMPAIGN);
    let campaign: Campaign =
        load(&path)?.with_context(|| format!("{} holds no campaign", dir.display()))?;
    campaign.ensure_readable().with_context(|| path.display().to_string())?;
    let effort = load(&dir.join(EFFORT))?.unwrap_or_default();
    let path = dir.join(TRIALS);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes.with_context(|| format!("can't read {}", path.display()))?,
    };
    let (trials, torn) = parse(&path, &bytes, &campaign)?;
    Ok(Results { campaign, trials, effort, torn })
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.with_context(|| format!("can't read {}", path.display()))?,
    };
    serde_json::from_slice(&bytes).map(Some).with_context(|| path.display().to_string())
}

/// The trials in a log, and the line that was cut off.
fn parse(path: &Path, bytes: &[u8], campaign: &Campaign) -> Result<(Vec<Trial>, Option<Torn>)> {
    let mut trials = Vec::new();
    let mut torn = None;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(text) = line.strip_suffix(b"\n") else {
            torn = Some(Torn { path: path.to_owned(), line: index + 1, bytes: line.len() });
            break;
        };
        let trial = parse_line(text, campaign)
            .with_context(|| format!("{}, line {}", path.display(), index + 1))?;
        trials.push(trial);
    }
    sort(&mut trials).with_context(|| path.display().to_string())?;
    Ok((trials, torn))
}

fn parse_line(text: &[u8], campaign: &Campaign) -> Result<Trial> {
    /// What each format has.
    #[derive(Deserialize)]
    struct Format {
        schema: u32,
    }

    let Format { schema } = serde_json::from_slice(text)?;
    ensure!(schema == SCHEMA, "its format is {schema}, and this program reads {SCHEMA}");
    let trial: Trial = serde_json::from_slice(text)?;
    ensure_belongs(&trial, campaign)?;
    Ok(trial)
}

/// Fails if `trial` can't be one of `campaign`.
fn ensure_belongs(trial: &Trial, campaign: &Campaign) -> Result<()> {
    let number = trial.trial;
    ensure!(
        trial.seed == campaign.seed,
        "trial {number} has the seed {}, the campaign {}",
        trial.seed,
        campaign.seed
    );
    ensure!(campaign.shard.holds(number), "trial {number} is not of the shard {}", campaign.shard);
    ensure!(
        campaign.trials.is_none_or(|trials| number < trials),
        "trial {number} is beyond the campaign's last"
    );
    ensure!(
        campaign.classes.contains(&trial.class),
        "trial {number} is of the class {}, which the campaign has not",
        trial.class
    );
    ensure!(
        campaign.targets.contains(&trial.target),
        "trial {number} strikes {}, which is no target of the campaign",
        trial.target
    );
    Ok(())
}

/// Sorts by number; of equal records one stays.
pub(super) fn sort(trials: &mut Vec<Trial>) -> Result<()> {
    trials.sort_by_key(|trial| trial.trial);
    trials.dedup();
    for pair in trials.windows(2) {
        if let [first, second] = pair
            && first.trial == second.trial
        {
            bail!("trial {} is there twice, with different records", first.trial);
        }
    }
    Ok(())
}

fn line(trial: &Trial) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(trial)?;
    line.push(b'\n');
    Ok(line)
}

/// Writes a directory anew.
pub(super) fn create(dir: &Path, results: &Results) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    for name in [CAMPAIGN, TRIALS] {
        ensure!(!dir.join(name).exists(), "{} holds a campaign already", dir.display());
    }
    let mut lines = Vec::new();
    for trial in &results.trials {
        lines.extend(line(trial)?);
    }
    super::save(&dir.join(TRIALS), &lines)?;
    save_json(&dir.join(EFFORT), &results.effort)?;
    // Last: a directory without it holds no campaign.
    save_json(&dir.join(CAMPAIGN), &results.campaign)
}

/// A campaign that is being run; one process at a time has it.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    file: File,
    campaign: Campaign,
    done: HashSet<u64>,
    effort: Effort,
}

impl Log {
    /// Begins a campaign in `dir`, or takes the one up that is there. What is there is the
    /// second part: its trials are done, and a torn line has been cut away.
    ///
    /// # Errors
    ///
    /// Another campaign is there, a record can't be read (see [`read`]), or another process
    /// runs the campaign.
    pub fn open(dir: &Path, campaign: &Campaign) -> Result<(Self, Results)> {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        let path = dir.join(TRIALS);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("can't open {}", path.display()))?;
        file.try_lock().with_context(|| format!("another run writes to {}", path.display()))?;
        let begun = dir.join(CAMPAIGN);
        if !begun.exists() {
            ensure!(
                file.metadata()?.len() == 0,
                "{} is there, and {CAMPAIGN} is not",
                path.display()
            );
            save_json(&begun, campaign)?;
        }
        let mut results = read(dir)?;
        results.campaign.ensure_same(campaign).with_context(|| begun.display().to_string())?;
        ensure!(
            results.campaign.shard == campaign.shard,
            "{}: shard is {} here and {} there",
            begun.display(),
            results.campaign.shard,
            campaign.shard
        );
        if let Some(torn) = &results.torn {
            let length = file.metadata()?.len() - torn.bytes as u64;
            file.set_len(length).with_context(|| format!("can't shorten {}", path.display()))?;
        }
        file.flush()?;
        results.effort.runs += 1;
        let log = Self {
            dir: dir.to_owned(),
            file,
            campaign: campaign.clone(),
            done: results.trials.iter().map(|trial| trial.trial).collect(),
            effort: results.effort,
        };
        save_json(&dir.join(EFFORT), &log.effort)?;
        Ok((log, results))
    }

    /// Whether a trial was done.
    #[must_use]
    pub fn has(&self, trial: u64) -> bool {
        self.done.contains(&trial)
    }

    /// Writes a trial down.
    ///
    /// # Errors
    ///
    /// It is not of this campaign or was done, or the file can't be written.
    pub fn append(&mut self, trial: &Trial) -> Result<()> {
        ensure_belongs(trial, &self.campaign)?;
        ensure!(!self.has(trial.trial), "trial {} was done", trial.trial);
        let line = line(trial)?;
        self.file
            .write_all(&line)
            .with_context(|| format!("can't write {}", self.dir.join(TRIALS).display()))?;
        self.done.insert(trial.trial);
        Ok(())
    }

    /// Writes a trial down that does not count and is run again.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn set_aside(&mut self, trial: &Trial) -> Result<()> {
        let path = self.dir.join(SET_ASIDE);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(&line(trial)?));
        written.with_context(|| format!("can't write {}", path.display()))?;
        self.effort.set_aside += 1;
        save_json(&self.dir.join(EFFORT), &self.effort)
    }

    /// Adds to what the campaign cost. Call it now and then, for a run that is killed loses
    /// what was not added.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn spend(&mut self, wall_seconds: f64, boots: u64) -> Result<()> {
        self.effort.wall_seconds += wall_seconds;
        self.effort.boots += boots;
        save_json(&self.dir.join(EFFORT), &self.effort)
    }
}

#[cfg(test)]
mod tests {
    use super::super::campaign::Shard;
    use super::super::samples;
    use super::*;

    #[test]
    fn what_is_set_aside_is_kept_and_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let (campaign, trials) = filled(dir.path(), 2);
        let (mut log, _) = Log::open(dir.path(), &campaign).unwrap();
        let third = samples::trial(&campaign, 2);
        log.set_aside(&third).unwrap();
        assert!(!log.has(2));
        drop(log);
        let results = read(dir.path()).unwrap();
        assert_eq!((results.trials, results.effort.set_aside), (trials, 1));
        let kept = std::fs::read_to_string(dir.path().join(SET_ASIDE)).unwrap();
        assert_eq!(serde_json::from_str::<Trial>(&kept).unwrap(), third);
    }

    fn filled(dir: &Path, count: u64) -> (Campaign, Vec<Trial>) {
        let campaign = samples::campaign(Some(100), Shard::WHOLE);
        let trials: Vec<Trial> = (0..count).map(|n| samples::trial(&campaign, n)).collect();
        let (mut log, before) = Log::open(dir, &campaign).unwrap();
        assert!(before.trials.is_empty());
        trials.iter().for_each(|trial| log.append(trial).unwrap());
        log.spend(1.5, 1).unwrap();
        (campaign, trials)
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (campaign, trials) = filled(dir.path(), 20);
        let results = read(dir.path()).unwrap();
        assert_eq!(results.campaign, campaign);
        assert_eq!(results.trials, trials);
        assert_eq!(results.torn, None);
        assert_eq!(results.effort, Effort { wall_seconds: 1.5, boots: 1, runs: 1, set_aside: 0 });
    }

    #[test]
    fn trials_may_end_out_of_order() {
        let dir = tempfile::tempdir().unwrap();
        let campaign = samples::campaign(Some(100), Shard::WHOLE);
        let (mut log, _) = Log::open(dir.path(), &campaign).unwrap();
        for number in [3, 0, 2, 1] {
            log.append(&samples::trial(&campaign, number)).unwrap();
        }
        let numbers: Vec<u64> =
            read(dir.path()).unwrap().trials.iter().map(|trial| trial.trial).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
    }

    #[test]
    fn a_log_cut_off_anywhere_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let (campaign, trials) = filled(dir.path(), 3);
        let path = dir.path().join(TRIALS);
        let whole = fs::read(&path).unwrap();
        let ends: Vec<usize> =
            (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        // Around each end, and here and there within lines.
        let is_near = |length: &usize| ends.iter().any(|end| end.abs_diff(*length) <= 2);
        let lengths = (0..whole.len()).filter(|length| is_near(length) || length % 37 == 0);
        for length in lengths {
            fs::write(&path, &whole[..length]).unwrap();
            let complete = ends.iter().filter(|end| **end <= length).count();
            let begin = if complete == 0 { 0 } else { ends[complete - 1] };
            let torn = (length > begin).then(|| Torn {
                path: path.clone(),
                line: complete + 1,
                bytes: length - begin,
            });

            let results = read(dir.path()).unwrap();
            assert_eq!(results.trials, trials[..complete], "cut at {length}");
            assert_eq!(results.torn, torn);
            assert_eq!(fs::read(&path).unwrap().len(), length, "reading changes nothing");

            let (mut log, results) = Log::open(dir.path(), &campaign).unwrap();
            assert_eq!(results.torn, torn);
            for trial in trials.iter().filter(|trial| !log.has(trial.trial)).collect::<Vec<_>>() {
                log.append(trial).unwrap();
            }
            drop(log);
            assert_eq!(fs::read(&path).unwrap(), whole, "cut at {length}");
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (_, trials) = filled(dir.path(), 4);
        let path = dir.path().join(TRIALS);
        let text = fs::read_to_string(&path).unwrap();
        let with = |number: usize, line: &str| {
            let mut lines: Vec<&str> = text.lines().collect();
            lines[number - 1] = line;
            fs::write(&path, lines.join("\n") + "\n").unwrap();
            let error = format!("{:#}", read(dir.path()).unwrap_err());
            assert!(error.starts_with(&path.display().to_string()), "{error}");
            error
        };
        let third = text.lines().nth(2).unwrap();
        let error = with(3, &third[..third.len() / 2]);
        assert!(error.contains("trials.jsonl, line 3: EOF while parsing"), "{error}");
        let error = with(2, "");
        assert!(error.contains("line 2: EOF while parsing a value"), "{error}");
        // The last line too, if it has an end.
        let error = with(4, "{}");
        assert!(error.contains("line 4: missing field `schema`"), "{error}");
        let error = with(1, r#"{"schema":2,"whatever":"comes"}"#);
        assert!(error.contains("line 1: its format is 2, and this program reads 1"), "{error}");

        let changed = |change: &dyn Fn(&mut Trial)| {
            let mut trial = trials[2].clone();
            change(&mut trial);
            with(3, &serde_json::to_string(&trial).unwrap())
        };
        let error = changed(&|trial| trial.seed += 1);
        assert!(error.contains("line 3: trial 2 has the seed"), "{error}");
        let error = changed(&|trial| trial.trial = 100);
        assert!(error.contains("line 3: trial 100 is beyond"), "{error}");
        let error = changed(&|trial| trial.target = "kv".to_owned());
        assert!(error.contains("line 3: trial 2 strikes kv"), "{error}");
        let error = changed(&|trial| trial.trial = 1);
        assert!(error.contains("trial 1 is there twice"), "{error}");
        // The same record twice is one.
        with_ok(&path, &text, text.lines().nth(1).unwrap());
        assert_eq!(read(dir.path()).unwrap().trials, trials);
    }

    fn with_ok(path: &Path, text: &str, again: &str) {
        fs::write(path, format!("{text}{again}\n")).unwrap();
    }

    #[test]
    fn another_campaign_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (campaign, _) = filled(dir.path(), 2);
        let other = Campaign { seed: 9, ..campaign.clone() };
        let error = format!("{:#}", Log::open(dir.path(), &other).unwrap_err());
        assert!(error.contains("seed is 7 here and 9 there"), "{error}");
        let other = Campaign { shard: Shard::new(0, 2).unwrap(), ..campaign };
        let error = format!("{:#}", Log::open(dir.path(), &other).unwrap_err());
        assert!(error.contains("shard is 0/1 here and 0/2 there"), "{error}");

        fs::remove_file(dir.path().join(CAMPAIGN)).unwrap();
        let error = format!("{:#}", Log::open(dir.path(), &other).unwrap_err());
        assert!(error.contains("campaign.json is not"), "{error}");
        let error = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(error.contains("holds no campaign"), "{error}");
    }

    #[test]
    fn one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let campaign = samples::campaign(None, Shard::WHOLE);
        let (log, _) = Log::open(dir.path(), &campaign).unwrap();
        let error = format!("{:#}", Log::open(dir.path(), &campaign).unwrap_err());
        assert!(error.contains("another run writes to"), "{error}");
        drop(log);
        let (_, results) = Log::open(dir.path(), &campaign).unwrap();
        assert_eq!(results.effort.runs, 2);
    }

    #[test]
    fn a_trial_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let campaign = samples::campaign(Some(100), Shard::new(1, 2).unwrap());
        let (mut log, _) = Log::open(dir.path(), &campaign).unwrap();
        let trial = samples::trial(&campaign, 3);
        log.append(&trial).unwrap();
        assert!(log.append(&trial).unwrap_err().to_string().contains("trial 3 was done"));
        let other = samples::trial(&campaign, 4);
        let error = log.append(&other).unwrap_err().to_string();
        assert!(error.contains("trial 4 is not of the shard 1/2"), "{error}");
    }
}
