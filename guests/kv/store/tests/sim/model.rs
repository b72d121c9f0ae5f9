//! What a get may find, given what was asked for and acknowledged so far.

use std::collections::BTreeMap;

use super::Rng;

/// A put or a delete (no value) of one key.
struct Change {
    value: Option<(u64, usize)>,
    start: u64,
    acknowledged: Option<u64>,
}

#[derive(Default)]
pub struct Model {
    keys: BTreeMap<String, Vec<Change>>,
    clock: u64,
    next_value: u64,
}

/// The bytes of a value.
pub fn content(id: u64, len: usize) -> Vec<u8> {
    Rng::new(id.wrapping_mul(0x1000_0001)).bytes(len)
}

impl Model {
    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A put begins: its content, and a token for [`Model::acknowledge`].
    pub fn put(&mut self, key: &str, len: usize) -> (Vec<u8>, usize) {
        self.next_value += 1;
        let id = self.next_value;
        (content(id, len), self.change(key, Some((id, len))))
    }

    pub fn delete(&mut self, key: &str) -> usize {
        self.change(key, None)
    }

    fn change(&mut self, key: &str, value: Option<(u64, usize)>) -> usize {
        let start = self.now();
        let changes = self.keys.entry(key.to_string()).or_default();
        changes.push(Change { value, start, acknowledged: None });
        changes.len() - 1
    }

    pub fn acknowledge(&mut self, key: &str, token: usize) {
        let now = self.now();
        self.keys.get_mut(key).expect("known key")[token].acknowledged = Some(now);
    }

    /// A change that was never committed (an aborted put) must not show.
    pub fn abort(&mut self, key: &str, token: usize) {
        let change = &mut self.keys.get_mut(key).expect("known key")[token];
        change.value = Some((u64::MAX, usize::MAX));
    }

    /// Whether `found` is right for a get that began at `since`. After a power
    /// cut, `since` is now. Right is the value of any change (or nothing, as at
    /// the start), unless an acknowledged one came wholly after it.
    pub fn check(&self, key: &str, found: Option<&[u8]>, since: u64) -> Result<(), String> {
        let none = Vec::new();
        let changes = self.keys.get(key).unwrap_or(&none);
        let start = Change { value: None, start: 0, acknowledged: Some(0) };
        let all = || std::iter::once(&start).chain(changes);
        let overwritten = |change: &Change| {
            change.acknowledged.is_some_and(|done| {
                all().any(|later| {
                    later.start > done && later.acknowledged.is_some_and(|ack| ack < since)
                })
            })
        };
        let matches = |change: &Change| match (change.value, found) {
            (None, None) => true,
            (Some((id, len)), Some(bytes)) => bytes.len() == len && bytes == content(id, len),
            _ => false,
        };
        if all().any(|change| matches(change) && !overwritten(change)) {
            return Ok(());
        }
        let stale = all().any(matches);
        let what = found.map_or("nothing".into(), |bytes| format!("{} bytes", bytes.len()));
        Err(format!("{key}: found {what}, {}", if stale { "which is old" } else { "unknown" }))
    }

    pub fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// After recovery, what was found is the truth: nothing else may come back.
    pub fn settle(&mut self, key: &str, found: Option<&[u8]>) {
        let now = self.now();
        let Some(changes) = self.keys.get_mut(key) else { return };
        let value = found.and_then(|bytes| {
            let known = |c: &Change| {
                c.value.filter(|&(id, len)| len == bytes.len() && content(id, len) == bytes)
            };
            changes.iter().find_map(known)
        });
        *changes = vec![Change { value, start: now, acknowledged: Some(now) }];
    }
}
