//! What people and machines read of a campaign.
//!
//! A campaign's directory holds what was observed, in two files that a run grows
//! ([`log`]): `campaign.json`, its parameters ([`campaign`]), and `trials.jsonl`, a line for
//! each trial. `effort.json` says what it cost. All else is made from these and can be made
//! again: `summary.json` ([`summary`]), `junit.xml` ([`junit`]), `report.html` ([`html`]),
//! and the table on the terminal ([`table`]). Directories of shards are joined by [`merge`].

#[cfg(test)]
mod book;
#[cfg(test)]
mod browser;
pub mod campaign;
mod chart;
pub mod headline;
pub mod html;
pub mod junit;
pub mod log;
pub mod merge;
pub mod numbers;
#[cfg(test)]
mod samples;
pub mod story;
pub mod summary;
pub mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use summary::Summary;

/// What a report was made of.
#[derive(Debug)]
pub struct Written {
    /// All figures.
    pub summary: Summary,
    /// A line of the log that was left out.
    pub torn: Option<log::Torn>,
    /// For the terminal.
    pub table: String,
}

/// Makes the report of the campaign in `dir`, beside its log.
///
/// # Errors
///
/// The log is damaged or does not fit the campaign; a file can't be read or written.
pub fn write(dir: &Path) -> Result<Written> {
    let results = log::read(dir)?;
    let summary = Summary::new(&results);
    save_json(&dir.join("summary.json"), &summary)?;
    let xml = junit::render(&results, dir)?;
    save(&dir.join("junit.xml"), xml.as_bytes())?;
    let page = html::render(&results, &summary, dir)?;
    save(&dir.join("report.html"), page.as_bytes())?;
    let table = table::render(&summary, &results.trials, dir);
    Ok(Written { summary, torn: results.torn, table })
}

/// The command that runs one trial again.
#[must_use]
pub fn replay_command(dir: &Path, trial: u64) -> String {
    let dir = dir.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !dir.is_empty() && dir.chars().all(is_plain) {
        return format!("cargo xtask fault replay {dir} {trial}");
    }
    format!("cargo xtask fault replay '{}' {trial}", dir.replace('\'', r"'\''"))
}

/// Writes a value as JSON, for people too.
fn save_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    save(path, text.as_bytes())
}

/// Writes a file in one piece: whoever reads it sees the old one or the new one.
fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    fs::write(&name, bytes)
        .and_then(|()| fs::rename(&name, path))
        .with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_quoted_for_the_shell() {
        let command = |dir: &str| replay_command(Path::new(dir), 7);
        assert_eq!(command("out/a.1"), "cargo xtask fault replay out/a.1 7");
        assert_eq!(command("my out"), "cargo xtask fault replay 'my out' 7");
        assert_eq!(command("it's; rm"), r"cargo xtask fault replay 'it'\''s; rm' 7");
        assert_eq!(command(""), "cargo xtask fault replay '' 7");
    }
}
