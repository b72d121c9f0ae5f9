//! The book's chapter on campaigns says what the code does: its tables are compared with it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::campaign::Shard;
use super::log::Effort;
use super::samples;
use super::summary::Summary;
use crate::class::Class;
use crate::disk::{Kind, Misdeed};
use crate::plan::{Change, Fault, Whom};
use crate::record::{Data, Detection, Detector, Manifestation, Recovery, Trial};
use crate::verdict::Verdict;
use crate::wire::{Mischief, Towards};
use crate::workload::Workload;

const CHAPTER: &str = include_str!("../../../docs/src/faults.md");

/// Rows of the first table below a heading.
fn table(heading: &str) -> Vec<Vec<String>> {
    let line = format!("\n{heading}\n");
    let (_, rest) = CHAPTER.split_once(&line).unwrap_or_else(|| panic!("no heading {heading}"));
    rest.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// The first cells of a table, without code quotes.
fn names(heading: &str) -> Vec<String> {
    table(heading).into_iter().map(|row| row[0].trim_matches('`').to_owned()).collect()
}

/// Paths of all fields: `a.b`, `list[].c`. Maps by verdict and the like have names that are
/// no fields' names.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            let is_map = |name: &String| {
                let name = name.as_str();
                Verdict::ALL.iter().any(|verdict| verdict.name() == name)
                    || Manifestation::ALL.iter().any(|sign| sign.name() == name)
            };
            if path == "functions" || !members.is_empty() && members.keys().all(is_map) {
                return;
            }
            for (name, value) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                found.insert(path.clone());
                fields(value, &path, found);
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| fields(item, &format!("{path}[]"), found));
        }
        _ => {}
    }
}

fn fields_of(value: &impl Serialize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    fields(&serde_json::to_value(value).unwrap(), "", &mut found);
    found
}

fn assert_listed(heading: &str, wanted: &BTreeSet<String>) {
    let names = names(heading);
    let listed: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(listed.len(), names.len(), "{heading}: a row is there twice");
    assert_eq!(&listed, wanted, "{heading}");
}

/// A trial with all that can be there.
fn full() -> Trial {
    Trial {
        activated_ns: Some(1),
        detection: Some(Detection { by: Detector::Driver, after_ns: 1 }),
        recovery: Some(Recovery { after_ns: 1, deaths: 1, spare: true }),
        data: Data::Intact,
        neighbours: Some(String::new()),
        hypervisor: Some(String::new()),
        machine: Some(String::new()),
        note: Some(String::new()),
        ..samples::quiet(Class::Nop)(0)
    }
}

#[test]
fn the_book_lists_every_class() {
    let wanted: Vec<Vec<String>> = Class::ALL
        .iter()
        .map(|class| {
            let may = if class.may_corrupt() { "may" } else { "" };
            let name = format!("`{class}`");
            [&*name, class.group().name(), class.definition(), may, class.source()]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    assert_eq!(table("## Classes of faults"), wanted);
}

#[test]
fn the_book_explains_every_term() {
    fn check(heading: &str, terms: Vec<(&'static str, &'static str)>) {
        let row = |(name, meaning)| vec![format!("`{name}`"), String::from(meaning)];
        let wanted: Vec<Vec<String>> = terms.into_iter().map(row).collect();
        assert_eq!(table(heading), wanted, "{heading}");
    }
    macro_rules! check {
        ($heading:literal, $type:ty) => {
            check($heading, <$type>::ALL.iter().map(|it| (it.name(), it.meaning())).collect());
        };
    }
    check!("## Verdicts", Verdict);
    check!("### `manifestation`", Manifestation);
    check!("### `detection.by`", Detector);
    check!("### `data`", Data);
    check!("### `workload`", Workload);
}

#[test]
fn the_book_lists_every_field_of_a_trial() {
    let wanted = fields_of(&full())
        .into_iter()
        .filter(|name| !name.starts_with("plan.fault."))
        .collect::<BTreeSet<_>>();
    assert!(wanted.contains("plan.fault") && wanted.contains("guest.longest_ns"));
    assert_listed("### `trials.jsonl`", &wanted);
}

/// A fault of each kind; `match` has a new one fail to compile here.
fn kinds() -> Vec<Fault> {
    let text = String::new;
    let (address, value) = (0, 0);
    let all = vec![
        Fault::Text { address, at: 0, before: text(), after: text() },
        Fault::Register { address, register: 0, value },
        Fault::Store { address, register: 0, value },
        Fault::Stack { address, fraction: 0, value },
        Fault::Heap { fraction: 0, value },
        Fault::Reuse { address, blocks: 1, fraction: 0 },
        Fault::Order { kind: 0 },
        Fault::SkipCall { call: 0, after: 0 },
        Fault::LoseInterrupt { after: 0 },
        Fault::Call { after: 0, registers: [0; 6] },
        Fault::Answer { queue: 0, after: 0, change: Change::Repeat },
        Fault::Control { bytes: text() },
        Fault::Disk { kind: Kind::Read, after: 0, misdeed: Misdeed::Error },
        Fault::Wire { towards: Towards::Peer, after: 0, count: 1, mischief: Mischief::Lose },
        Fault::Descriptor { queue: 0, after: 0, fraction: 0, written: true, value: 0 },
        Fault::Link { ms: 1 },
        Fault::Pull { ms: 1 },
        Fault::Second { first: 1, whom: Whom::Driver, address, kind: 1 },
    ];
    for fault in &all {
        match fault {
            Fault::Text { .. }
            | Fault::Register { .. }
            | Fault::Store { .. }
            | Fault::Stack { .. }
            | Fault::Heap { .. }
            | Fault::Reuse { .. }
            | Fault::Order { .. }
            | Fault::SkipCall { .. }
            | Fault::LoseInterrupt { .. }
            | Fault::Call { .. }
            | Fault::Answer { .. }
            | Fault::Control { .. }
            | Fault::Disk { .. }
            | Fault::Wire { .. }
            | Fault::Descriptor { .. }
            | Fault::Link { .. }
            | Fault::Pull { .. }
            | Fault::Second { .. } => {}
        }
    }
    all
}

/// The same for what becomes of answers.
fn changes() -> Vec<Change> {
    let all = vec![
        Change::Index { by: 0 },
        Change::Id { bits: 0 },
        Change::Length { value: 0 },
        Change::Status { bits: 0 },
        Change::Repeat,
        Change::Exchange,
        Change::Withhold { last: false },
        Change::Forge { fraction: 0, id: None, length: 0 },
    ];
    for change in &all {
        match change {
            Change::Index { .. }
            | Change::Id { .. }
            | Change::Length { .. }
            | Change::Status { .. }
            | Change::Repeat
            | Change::Exchange
            | Change::Withhold { .. }
            | Change::Forge { .. } => {}
        }
    }
    all
}

/// Compares a table of kinds and their fields with `all`, which name their kind in `tag`.
fn assert_kinds_listed(heading: &str, tag: &str, all: &[impl Serialize]) {
    let mut wanted = BTreeMap::new();
    for kind in all {
        // What is in a field that has a table of its own is not a field of this one.
        let mut fields: BTreeSet<String> =
            fields_of(kind).into_iter().filter(|name| !name.contains('.')).collect();
        assert!(fields.remove(tag));
        let name = serde_json::to_value(kind).unwrap()[tag].as_str().unwrap().to_owned();
        wanted.insert(name, fields);
    }
    assert_eq!(wanted.len(), all.len());
    let listed: BTreeMap<String, BTreeSet<String>> = table(heading)
        .into_iter()
        .map(|row| {
            let fields = row[1].split(", ").map(|field| field.trim_matches('`').to_owned());
            let fields = fields.filter(|field| !field.is_empty());
            (row[0].trim_matches('`').to_owned(), fields.collect())
        })
        .collect();
    assert_eq!(listed, wanted, "{heading}");
}

#[test]
fn the_book_lists_every_kind_of_change() {
    assert_kinds_listed("### `plan.fault`", "how", &kinds());
    assert_kinds_listed("### `plan.fault.change`", "what", &changes());
}

#[test]
fn the_book_lists_every_field_of_the_other_files() {
    let campaign = samples::campaign(Some(1), Shard::WHOLE);
    assert_listed("### `campaign.json`", &fields_of(&campaign));
    assert_listed("### `effort.json`", &fields_of(&Effort::default()));

    // Times are told once; `recovery` and the like hold them.
    let wanted = fields_of(&Summary::new(&samples::results(3_000)));
    let times = [".min_ns", ".p25_ns", ".p50_ns", ".p75_ns", ".p99_ns", ".max_ns", ".count"];
    let rates = [".of", ".rate", ".low", ".high"];
    let is_inner = |name: &String| {
        name.contains(".histogram")
            || times.iter().chain(&rates).any(|end| name.ends_with(end) && name != "coverage[].of")
    };
    let (inner, outer): (BTreeSet<String>, BTreeSet<String>) =
        wanted.into_iter().partition(is_inner);
    assert_listed("### `summary.json`", &outer);
    let of = |begin: &str| {
        let own = inner.iter().filter_map(|name| name.strip_prefix(begin));
        own.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    assert_listed("#### Times", &of("recovery."));
    assert_listed("#### Rates", &of("software.accounted."));
}
