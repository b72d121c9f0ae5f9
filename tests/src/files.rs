//! What a guest that works with files (`tests/domains/files`) tells of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use serde::Deserialize;
use xtask::qemu::NodeConfig;

use crate::{fat::Sum, runner::wait_for};

/// A line of the guest.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Record {
    Progress { done: u64, connects: u64, replayed: u64 },
    File { file: String, len: u64, crc: u32 },
    Tree { tree: usize, deleted: u64 },
    Failed { failed: String },
}

/// All files, as one generation of the guest told of them at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Paths of the files.
    pub files: BTreeMap<String, Sum>,
    /// Files that this generation deleted.
    pub deleted: u64,
}

/// How far the guest that works with files got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rounds of changes that are over.
    pub done: u64,
    /// How often it saw a driver come.
    pub connects: u64,
    /// Requests that it sent again, to another driver.
    pub replayed: u64,
}

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    /// Files since the last tree was complete.
    coming: BTreeMap<String, Sum>,
    trees: Vec<Tree>,
    failure: Option<String>,
}

/// What guests have told so far: that of files, and why any ended.
#[derive(Debug, Default)]
pub struct Told(Mutex<State>);

impl Told {
    /// Listens to the node that is started from `config`.
    pub fn listen(self: &Arc<Self>, config: &mut NodeConfig) {
        let (listener, before) = (self.clone(), config.on_line.take());
        config.on_line = Some(Arc::new(move |line| {
            listener.line(line);
            if let Some(before) = &before {
                before(line);
            }
        }));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if a guest has told of a failure.
    ///
    /// # Errors
    ///
    /// That.
    pub fn no_failure(&self) -> Result<()> {
        self.state().failure.as_ref().map_or(Ok(()), |why| bail!("{why}"))
    }

    /// How far the guest that works with files got.
    pub fn progress(&self) -> Progress {
        self.state().progress
    }

    /// Waits for a round that ended when the guest had seen at least `connects`
    /// drivers come, and for the one after that: it was in the last one's hands.
    ///
    /// # Errors
    ///
    /// There is none, or a guest has failed.
    pub fn wait_progress(&self, connects: u64, limit: Duration) -> Result<()> {
        let round_after = |done: Option<u64>| {
            wait_for(&format!("work with files over driver {connects}"), limit, || {
                self.no_failure()?;
                let now = self.progress();
                let later = done.is_none_or(|done| now.done > done);
                Ok((now.connects >= connects && later).then_some(now.done))
            })
        };
        let first = round_after(None)?;
        round_after(Some(first)).map(drop)
    }

    /// Waits for the `number`th tree, counted from 0.
    ///
    /// # Errors
    ///
    /// It does not come, or a guest has failed.
    pub fn wait_tree(&self, number: usize, limit: Duration) -> Result<Tree> {
        wait_for(&format!("list {number} of all files"), limit, || {
            self.no_failure()?;
            Ok(self.state().trees.get(number).cloned())
        })
    }

    fn line(&self, line: &str) {
        let Some((head, json)) = line.split_once("record {") else { return };
        let record = serde_json::from_str(&format!("{{{json}"));
        let mut state = self.state();
        let failure = match record {
            Ok(Record::Progress { done, connects, replayed }) => {
                state.progress = Progress { done, connects, replayed };
                None
            }
            Ok(Record::File { file, len, crc }) => {
                let twice = state.coming.insert(file, Sum { len, crc }).is_some();
                twice.then(|| "it told of a file twice".to_owned())
            }
            Ok(Record::Tree { tree, deleted }) => {
                let files = std::mem::take(&mut state.coming);
                let missing = files.len() != tree;
                state.trees.push(Tree { files, deleted });
                missing.then(|| format!("it told of other than {tree} files"))
            }
            Ok(Record::Failed { failed }) => Some(failed),
            Err(why) => Some(format!("{why}: {json}")),
        };
        if let Some(why) = failure {
            state.failure.get_or_insert(format!("{head}{why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let told = Told::default();
        let say = |json: &str| told.line(&format!("[files] record {json}"));
        told.line("[files] disk: lost `blk`");
        say(r#"{"done":7,"connects":3,"replayed":20}"#);
        assert_eq!(told.progress(), Progress { done: 7, connects: 3, replayed: 20 });
        say(r#"{"file":"DIR0/FILE00.DAT","len":800,"crc":5}"#);
        say(r#"{"tree":1,"deleted":2}"#);
        let tree = told.wait_tree(0, Duration::ZERO).unwrap();
        assert_eq!((tree.files["DIR0/FILE00.DAT"], tree.deleted), (Sum { len: 800, crc: 5 }, 2));
        assert!(told.wait_tree(1, Duration::ZERO).is_err());
        told.no_failure().unwrap();

        for bad in [
            r#"{"tree":1,"deleted":2}"#,
            r#"{"failed":"sync: the driver failed a request"}"#,
            r#"{"done":"#,
        ] {
            let told = Told::default();
            told.line(&format!("[files] record {bad}"));
            let error = told.no_failure().unwrap_err().to_string();
            assert!(error.starts_with("[files] "), "{error}");
        }
    }
}
