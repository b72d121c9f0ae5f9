//! `report.html`: the campaign on one page, as a paper or a post-mortem would show it.
//!
//! The page asks nothing of anybody else: no script, no font, no picture from elsewhere, and a
//! policy in its head that forbids them. It is also well-formed XML, which tests read. What
//! stands here is what the template fills in; the template escapes all of it, for names of
//! functions are full of `<` and `>`.

use std::path::Path;

use anyhow::Result;
use askama::Template;

use super::campaign::Campaign;
use super::chart::{Axis, Tick, parts, place};
use super::log::Results;
use super::numbers::{Bin, Rate, Times, count, duration, percent};
use super::summary::{OfClass, Summary};
use super::{headline, replay_command, story};
use crate::class::Group;
use crate::record::{Manifestation, Trial};
use crate::verdict::Verdict;

/// Lists no longer than this are open at first.
const OPEN: usize = 50;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    campaign: &'a Campaign,
    headline: headline::Headline,
    tiles: Vec<headline::Tile>,
    verdicts: Matrix,
    software: Software,
    corruption: Vec<Corruption>,
    recovery: Option<Recovery>,
    detection: Vec<Detection>,
    signs: Matrix,
    coverage: Vec<Coverage>,
    functions: Vec<Functions>,
    not_clean: Vec<NotClean>,
    parameters: Vec<(&'static str, String)>,
}

/// A table of classes by something.
struct Matrix {
    caption: &'static str,
    has_bars: bool,
    columns: Vec<Column>,
    groups: Vec<Rows>,
}

struct Column {
    name: &'static str,
    meaning: &'static str,
}

struct Rows {
    name: String,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    trials: String,
    is_total: bool,
    cells: Vec<Cell>,
    parts: Vec<Part>,
}

struct Cell {
    is_zero: bool,
    count: String,
    label: &'static str,
    tone: &'static str,
    glyph: &'static str,
}

/// Part of a bar.
struct Part {
    shade: &'static str,
    x: String,
    width: String,
}

struct Software {
    activated: String,
    bound: String,
    rate: String,
    interval: String,
    goal: &'static str,
    rows: Vec<Share>,
}

struct Share {
    label: String,
    shade: &'static str,
    count: String,
    share: String,
    x: String,
    width: String,
}

struct Corruption {
    class: &'static str,
    may: bool,
    activated: String,
    corrupted: String,
    silently: String,
    rate: String,
    interval: String,
}

struct Recovery {
    count: String,
    p50: String,
    p99: String,
    max: String,
    ticks: Vec<Tick>,
    bins: Vec<Bar>,
    classes: Vec<Spread>,
}

/// A bar of a histogram.
struct Bar {
    label: String,
    count: String,
    share: String,
    x: String,
    width: String,
    y: String,
    height: String,
}

/// A box of a box plot.
struct Spread {
    class: &'static str,
    count: String,
    min: String,
    p25: String,
    p50: String,
    p75: String,
    p99: String,
    max: String,
    /// Places of the six times.
    x: [String; 6],
    /// Of the box.
    width: String,
}

struct Detection {
    by: &'static str,
    meaning: &'static str,
    count: String,
    p50: String,
    p99: String,
    max: String,
    late: String,
}

struct Coverage {
    target: String,
    functions: String,
    addresses: String,
}

struct Functions {
    target: String,
    is_open: bool,
    rows: Vec<Function>,
}

struct Function {
    function: String,
    injections: String,
    activated: String,
    addresses: String,
    not_clean: String,
}

struct NotClean {
    verdict: Verdict,
    meaning: &'static str,
    glyph: &'static str,
    count: String,
    is_open: bool,
    trials: Vec<Entry>,
}

struct Entry {
    number: u64,
    class: &'static str,
    target: String,
    change: String,
    function: Option<String>,
    outcome: String,
    guest: String,
    remarks: Vec<String>,
    command: String,
}

/// The page.
///
/// # Errors
///
/// It can't be built.
pub fn render(results: &Results, summary: &Summary, dir: &Path) -> Result<String> {
    let page = Page {
        campaign: &results.campaign,
        headline: headline::of(summary),
        tiles: headline::tiles(summary),
        verdicts: verdicts(summary),
        software: software(summary, results.campaign.bound_ns),
        corruption: corruption(summary),
        recovery: summary.recovery.as_ref().map(|all| recovery(all, summary)),
        detection: detection(summary),
        signs: signs(summary),
        coverage: coverage(summary),
        functions: functions(summary),
        not_clean: not_clean(&results.trials, dir),
        parameters: parameters(results, summary),
    };
    let mut text = page.render()?;
    text.push('\n');
    Ok(text)
}

/// What a count of this verdict looks like: its style, and a sign for those who see no colour.
fn look(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        _ if verdict.is_clean() => ("", ""),
        Verdict::Corrupted | Verdict::MachineFailed => ("warned", "▲"),
        _ => ("short", "✖"),
    }
}

fn verdicts(summary: &Summary) -> Matrix {
    let row = |name: &str, trials: u64, of: &dyn Fn(Verdict) -> u64| {
        let counts: Vec<u64> = Verdict::ALL.iter().map(|verdict| of(*verdict)).collect();
        let cells = Verdict::ALL.iter().zip(&counts).map(|(verdict, number)| {
            let (tone, glyph) = look(*verdict);
            Cell { label: verdict.name(), tone, glyph, ..cell(*number) }
        });
        let shades = Verdict::ALL.iter().map(|verdict| verdict.name());
        Row {
            name: name.to_owned(),
            trials: count(trials),
            is_total: false,
            cells: cells.collect(),
            parts: bar(shades, &counts),
        }
    };
    let of = |class: &OfClass| {
        let of = |verdict| class.verdicts.get(&verdict).copied().unwrap_or(0);
        row(class.class.name(), class.trials, &of)
    };
    let total = row("all classes", summary.trials, &|verdict| summary.of(verdict));
    let column = |verdict: &Verdict| Column { name: verdict.name(), meaning: verdict.meaning() };
    Matrix {
        caption: "Trials by class and verdict",
        has_bars: true,
        columns: Verdict::ALL.iter().map(column).collect(),
        groups: grouped(summary, of, total),
    }
}

/// Classes by how the fault showed; columns for what there was.
fn signs(summary: &Summary) -> Matrix {
    let of = |class: &OfClass, sign| class.manifestations.get(&sign).copied().unwrap_or(0);
    let all = |sign| summary.classes.iter().map(|class| of(class, sign)).sum::<u64>();
    let there: Vec<Manifestation> =
        Manifestation::ALL.iter().copied().filter(|sign| all(*sign) > 0).collect();
    let row = |name: &str, trials: u64, of: &dyn Fn(Manifestation) -> u64| Row {
        name: name.to_owned(),
        trials: count(trials),
        is_total: false,
        cells: there.iter().map(|sign| Cell { label: sign.name(), ..cell(of(*sign)) }).collect(),
        parts: Vec::new(),
    };
    let total = row("all classes", summary.trials, &all);
    let line = |class: &OfClass| row(class.class.name(), class.trials, &|sign| of(class, sign));
    let column = |sign: &Manifestation| Column { name: sign.name(), meaning: sign.meaning() };
    Matrix {
        caption: "Trials by class and by how the fault showed",
        has_bars: false,
        columns: there.iter().map(column).collect(),
        groups: grouped(summary, line, total),
    }
}

/// Rows by group of classes, and one of the sums.
fn grouped(summary: &Summary, row: impl Fn(&OfClass) -> Row, total: Row) -> Vec<Rows> {
    let mut groups = Vec::new();
    for group in Group::ALL {
        let own = summary.classes.iter().filter(|class| class.group == group);
        let rows: Vec<Row> = own.map(&row).collect();
        if !rows.is_empty() {
            groups.push(Rows { name: group.name().to_owned(), rows });
        }
    }
    groups.push(Rows { name: String::new(), rows: vec![Row { is_total: true, ..total }] });
    groups
}

fn cell(number: u64) -> Cell {
    Cell { is_zero: number == 0, count: count(number), label: "", tone: "", glyph: "" }
}

fn bar(shades: impl Iterator<Item = &'static str>, counts: &[u64]) -> Vec<Part> {
    let parts = shades.zip(counts).zip(parts(counts));
    let parts = parts.filter(|((_, count), _)| **count > 0);
    parts.map(|((shade, _), (x, width))| Part { shade, x, width }).collect()
}

fn software(summary: &Summary, bound_ns: u64) -> Software {
    let of = &summary.software;
    let intact = of.detected.saturating_sub(of.detected_and_corrupted);
    let mut kinds = vec![
        ("shown harmless".to_owned(), Verdict::Harmless, of.harmless),
        ("detected in time, data intact".to_owned(), Verdict::Recovered, intact),
        (
            "detected in time, data corrupted".to_owned(),
            Verdict::Corrupted,
            of.detected_and_corrupted,
        ),
    ];
    kinds.extend(
        of.rest.iter().map(|(verdict, number)| {
            (format!("not detected in time: {verdict}"), *verdict, *number)
        }),
    );
    let counts: Vec<u64> = kinds.iter().map(|(.., number)| *number).collect();
    let rows = kinds.into_iter().zip(parts(&counts)).filter(|((.., number), _)| *number > 0);
    let rows = rows.map(|((label, verdict, number), (x, width))| Share {
        label,
        shade: verdict.name(),
        count: count(number),
        share: percent(Rate::new(number, of.activated).rate),
        x,
        width,
    });
    Software {
        activated: count(of.activated),
        bound: duration(bound_ns),
        rate: percent(of.accounted.rate),
        interval: interval(&of.accounted),
        goal: if of.accounted.rate >= headline::GOAL { "met" } else { "missed" },
        rows: rows.collect(),
    }
}

fn interval(rate: &Rate) -> String {
    format!("{} to {}", percent(rate.low), percent(rate.high))
}

fn corruption(summary: &Summary) -> Vec<Corruption> {
    let corrupting = summary.classes.iter().filter(|class| class.corrupted.count > 0);
    let row = |class: &OfClass| Corruption {
        class: class.class.name(),
        may: class.class.may_corrupt(),
        activated: count(class.activated),
        corrupted: count(class.corrupted.count),
        silently: count(class.silently_corrupted.count),
        rate: percent(class.silently_corrupted.rate),
        interval: interval(&class.silently_corrupted),
    };
    corrupting.map(row).collect()
}

fn recovery(all: &Times, summary: &Summary) -> Recovery {
    let axis = Axis::over(all);
    // Bins differ in width, so areas stand for numbers.
    let density =
        |bin: &Bin| bin.count as f64 / (axis.at(bin.below_ns) - axis.at(bin.from_ns)).max(0.1);
    let most = all.histogram.iter().map(density).fold(f64::MIN_POSITIVE, f64::max);
    let bins = all.histogram.iter().map(|bin| {
        let (from, below) = (axis.at(bin.from_ns), axis.at(bin.below_ns));
        let height = 100.0 * density(bin) / most;
        Bar {
            label: match (bin.from_ns, bin.below_ns) {
                (0, below) => format!("below {}", duration(below)),
                (from, u64::MAX) => format!("{} and more", duration(from)),
                (from, below) => format!("{} to {}", duration(from), duration(below)),
            },
            count: count(bin.count),
            share: percent(Rate::new(bin.count, all.count).rate),
            x: place(from + 0.2),
            width: place((below - from - 0.4).max(0.1)),
            y: place(100.0 - height),
            height: place(height),
        }
    });
    let classes = summary.classes.iter().filter_map(|class| {
        let times = class.recovery.as_ref()?;
        let Times { min_ns, p25_ns, p50_ns, p75_ns, p99_ns, max_ns, .. } = *times;
        let at = [min_ns, p25_ns, p50_ns, p75_ns, p99_ns, max_ns];
        let [min, p25, p50, p75, p99, max] = at.map(duration);
        let x = at.map(|ns| place(axis.at(ns)));
        let width = place(axis.at(p75_ns) - axis.at(p25_ns));
        let (class, count) = (class.class.name(), count(times.count));
        Some(Spread { class, count, min, p25, p50, p75, p99, max, x, width })
    });
    Recovery {
        count: count(all.count),
        p50: duration(all.p50_ns),
        p99: duration(all.p99_ns),
        max: duration(all.max_ns),
        ticks: axis.ticks(),
        bins: bins.collect(),
        classes: classes.collect(),
    }
}

fn detection(summary: &Summary) -> Vec<Detection> {
    let rows = summary.detection.iter().map(|of| Detection {
        by: of.by.name(),
        meaning: of.by.meaning(),
        count: count(of.times.count),
        p50: duration(of.times.p50_ns),
        p99: duration(of.times.p99_ns),
        max: duration(of.times.max_ns),
        late: count(of.late),
    });
    rows.collect()
}

fn coverage(summary: &Summary) -> Vec<Coverage> {
    let rows = summary.coverage.iter().map(|of| Coverage {
        target: of.target.clone(),
        functions: match of.of {
            Some(all) => format!(
                "{} of {} ({})",
                count(of.functions),
                count(all),
                percent(Rate::new(of.functions, all).rate)
            ),
            None => count(of.functions),
        },
        addresses: count(of.addresses),
    });
    rows.collect()
}

fn functions(summary: &Summary) -> Vec<Functions> {
    let tables = summary.coverage.iter().map(|coverage| {
        let own = summary.functions.iter().filter(|of| of.target == coverage.target);
        let rows = own.map(|of| Function {
            function: of.function.clone(),
            injections: count(of.injections),
            activated: count(of.activated),
            addresses: count(of.addresses),
            not_clean: count(of.not_clean),
        });
        let rows: Vec<Function> = rows.collect();
        Functions { target: coverage.target.clone(), is_open: rows.len() <= OPEN, rows }
    });
    tables.filter(|table| !table.rows.is_empty()).collect()
}

fn not_clean(trials: &[Trial], dir: &Path) -> Vec<NotClean> {
    let mut parts = Vec::new();
    for verdict in Verdict::ALL.iter().rev().filter(|verdict| !verdict.is_clean()) {
        let own = trials.iter().filter(|trial| trial.verdict == *verdict);
        let own: Vec<Entry> = own.map(|trial| entry(trial, dir)).collect();
        if own.is_empty() {
            continue;
        }
        parts.push(NotClean {
            verdict: *verdict,
            meaning: verdict.meaning(),
            glyph: look(*verdict).1,
            count: count(own.len() as u64),
            is_open: own.len() <= OPEN,
            trials: own,
        });
    }
    parts
}

fn entry(trial: &Trial, dir: &Path) -> Entry {
    Entry {
        number: trial.trial,
        class: trial.class.name(),
        target: trial.target.clone(),
        change: story::change(trial),
        function: trial.plan.function.clone(),
        outcome: story::outcome(trial),
        guest: story::guest(trial),
        remarks: story::remarks(trial),
        command: replay_command(dir, trial.trial),
    }
}

fn parameters(results: &Results, summary: &Summary) -> Vec<(&'static str, String)> {
    let Results { campaign, effort, .. } = results;
    let names: Vec<&str> = campaign.classes.iter().map(|class| class.name()).collect();
    let planned = match campaign.trials {
        Some(trials) => count(trials),
        None => "as many as there was time for".to_owned(),
    };
    vec![
        ("Program", campaign.program.clone()),
        ("Seed", campaign.seed.to_string()),
        ("Targets", campaign.targets.join(", ")),
        ("Workload", campaign.workload.to_string()),
        ("Classes", names.join(", ")),
        ("Trials of all shards", planned),
        ("Shard, counted from 0", campaign.shard.to_string()),
        ("Bound of detection", duration(campaign.bound_ns)),
        ("Time on the host's clock", format!("{:.0} s", summary.wall_seconds)),
        ("Runs, with resumptions", count(effort.runs)),
        ("Nodes booted", count(effort.boots)),
        ("Trials run again on account of the host", count(effort.set_aside)),
        ("Format of the records", campaign.schema.to_string()),
    ]
}

#[cfg(test)]
mod tests;
