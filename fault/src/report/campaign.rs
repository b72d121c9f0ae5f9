//! The parameters of a campaign.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::class::Class;
use crate::record::SCHEMA;
use crate::workload::Workload;

/// What decides, with a trial's number, all that is done in a trial. A campaign goes on, and
/// shards are joined, if all of it agrees but the shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Campaign {
    /// [`SCHEMA`] of the trials.
    pub schema: u32,
    /// The program that was tried: what `git describe` says, or checksums of the images.
    pub program: String,
    /// The node that was tried: its manifest, from the root of the checkout if it is below.
    #[serde(default = "own_node")]
    pub manifest: String,
    /// Decides, with a trial's number, all that is random.
    pub seed: u64,
    /// Classes of faults that were asked for.
    pub classes: Vec<Class>,
    /// Domains that they strike.
    pub targets: Vec<String>,
    /// What the guests do.
    pub workload: Workload,
    /// Trials of all shards together; `None`: as many as there is time for.
    pub trials: Option<u64>,
    /// A fault that shows must be detected within this time, in nanoseconds on the node's clock.
    pub bound_ns: u64,
    /// How many functions the program of a target has, where that is known.
    #[serde(default)]
    pub functions: BTreeMap<String, u64>,
    /// Which part of the trials this is.
    pub shard: Shard,
}

/// Of campaigns that do not say.
fn own_node() -> String {
    "nodes/fault.toml".to_owned()
}

impl Campaign {
    /// Fails unless `other` differs by nothing but the shard.
    ///
    /// # Errors
    ///
    /// Names each parameter that differs, with both values.
    pub fn ensure_same(&self, other: &Self) -> Result<()> {
        let of = |campaign: &Self| match serde_json::to_value(campaign) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => bail!("a campaign is no object"),
            Err(error) => Err(error.into()),
        };
        let (ours, theirs) = (of(self)?, of(other)?);
        let differences: Vec<String> = ours
            .iter()
            .filter(|(name, _)| *name != "shard")
            .filter(|(name, value)| theirs.get(*name) != Some(value))
            .map(|(name, value)| {
                let other = theirs.get(name).unwrap_or(&Value::Null);
                format!("{name} is {value} here and {other} there")
            })
            .collect();
        ensure!(differences.is_empty(), "not the same campaign: {}", differences.join("; "));
        Ok(())
    }

    /// Fails unless this program reads the records.
    pub(super) fn ensure_readable(&self) -> Result<()> {
        ensure!(
            self.schema == SCHEMA,
            "its format is {}, and this program reads {SCHEMA}",
            self.schema
        );
        Ok(())
    }
}

/// A part of a campaign's trials that is run on its own.
///
/// Both numbers count as `JOB_COMPLETION_INDEX` of a Kubernetes Indexed Job does: shard `i` of
/// `n` is one of 0 to `n` - 1, and holds the trials whose number leaves `i` when divided by `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Shard {
    index: u32,
    of: u32,
}

impl Shard {
    /// All trials.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The shard `index` of `of`, counted from 0.
    ///
    /// # Errors
    ///
    /// There is no such shard.
    pub fn new(index: u32, of: u32) -> Result<Self> {
        ensure!(index < of, "there is no shard {index} of {of}; they count from 0");
        Ok(Self { index, of })
    }

    /// Its number, from 0.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    #[must_use]
    pub fn of(self) -> u32 {
        self.of
    }

    /// Whether it is the one to run this trial.
    #[must_use]
    pub fn holds(self, trial: u64) -> bool {
        trial % u64::from(self.of) == u64::from(self.index)
    }

    /// How many it holds of the trials before `end`.
    #[must_use]
    pub fn share(self, end: u64) -> u64 {
        end.saturating_sub(u64::from(self.index)).div_ceil(u64::from(self.of))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (index, of) = text.split_once('/').context("a shard is written as i/n, as in 0/4")?;
        let number = |text: &str| text.parse().with_context(|| format!("`{text}` is no number"));
        Self::new(number(index)?, number(of)?)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl TryFrom<String> for Shard {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn shards_part_all_trials() {
        let shards: Vec<Shard> = (0..4).map(|index| Shard::new(index, 4).unwrap()).collect();
        for trial in 0..100 {
            assert_eq!(shards.iter().filter(|shard| shard.holds(trial)).count(), 1);
        }
        assert!((0..100).all(|trial| Shard::WHOLE.holds(trial)));
        for end in 0..20 {
            for shard in &shards {
                let held = (0..end).filter(|trial| shard.holds(*trial)).count() as u64;
                assert_eq!(shard.share(end), held, "{shard} of {end}");
            }
            assert_eq!(Shard::WHOLE.share(end), end);
        }
    }

    #[test]
    fn shards_are_read_as_they_are_written() {
        for text in ["0/1", "3/4", "17/64"] {
            let shard: Shard = text.parse().unwrap();
            assert_eq!(shard.to_string(), text);
            let json = serde_json::to_string(&shard).unwrap();
            assert_eq!(serde_json::from_str::<Shard>(&json).unwrap(), shard);
        }
        for bad in ["", "1", "4/4", "0/0", "-1/4", "a/b", "1/2/3", "0/4294967296"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Shard>("\"9/3\"").is_err());
    }

    #[test]
    fn every_parameter_but_the_shard_must_agree() {
        let campaign = samples::campaign(Some(100), Shard::WHOLE);
        let part = Campaign { shard: Shard::new(1, 2).unwrap(), ..campaign.clone() };
        campaign.ensure_same(&part).unwrap();

        // Each field as JSON, changed, must be found.
        let Value::Object(fields) = serde_json::to_value(&campaign).unwrap() else { panic!() };
        for name in fields.keys().filter(|name| *name != "shard") {
            let mut changed = fields.clone();
            changed[name] = match &fields[name] {
                Value::String(text) if text == "mixed" => Value::from("read"),
                Value::Number(number) => Value::from(number.as_u64().unwrap() + 1),
                Value::String(text) => Value::from(format!("{text}2")),
                Value::Array(_) => Value::Array(Vec::new()),
                Value::Object(_) => Value::Object(serde_json::Map::new()),
                other => panic!("{name} is {other}"),
            };
            let other: Campaign = serde_json::from_value(Value::Object(changed)).unwrap();
            let error = campaign.ensure_same(&other).unwrap_err().to_string();
            assert!(error.contains(&format!(": {name} is ")), "{error}");
            assert!(!error.contains(';'), "one difference only: {error}");
        }
    }
}
