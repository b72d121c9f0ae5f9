//! What the guests do while their driver is struck.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::terms::terms;

terms! {
    /// The work of the judges.
    pub enum Workload {
        Mixed = "mixed", "Blocks are written and read, some of them large, some again and again, with flushes between; datagrams are of all lengths.";
        Read = "read", "Blocks are read only; datagrams are short.";
        Write = "write", "Blocks are written only, with many flushes; datagrams are long.";
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|workload| workload.name() == text);
        let names = || Self::ALL.iter().map(|workload| workload.name()).collect::<Vec<_>>();
        found.copied().ok_or_else(|| format!("there is {}", names().join(", ")))
    }
}
