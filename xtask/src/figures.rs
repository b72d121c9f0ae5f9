//! Figures: what every measuring command prints and writes.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::build::write_atomically;

/// One figure, as it stands in a JSON file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Dotted and stable, such as `size.blk`.
    pub name: String,
    /// What of it, such as `file`.
    pub metric: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What clock it was measured by; `none` where time plays no part.
    pub clock: String,
}

impl Figure {
    /// A figure in which time plays no part.
    pub fn timeless(name: &str, metric: &str, value: u64, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            metric: metric.to_owned(),
            // Sizes and counts are far below 2^53.
            value: value as f64,
            unit: unit.to_owned(),
            clock: "none".to_owned(),
        }
    }
}

/// Writes figures as a flat list.
///
/// # Errors
///
/// The file can't be written.
pub fn write(path: &Path, figures: &[impl Serialize]) -> Result<()> {
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}
