//! The time line as a picture: a bar for each case, a piece for each step.
//!
//! `svg` writes the document. A plotting crate would bring axes, which are a few
//! lines here, and fonts, which no picture of a book needs.

use std::path::Path;

use anyhow::{Context, Result};
use svg::Document;
use svg::node::element::{Line, Rectangle, Text};

use super::{Case, STEPS};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 70.0;
const BAR: f64 = 18.0;
const ROW: f64 = 28.0;
const BOTTOM: f64 = 50.0;
const FONT: &str = "sans-serif";
/// Least distance between two marks of the axis.
const MARK: f64 = 60.0;
/// Of the steps, in their order; told apart without red against green.
const COLOURS: [&str; 10] = [
    "#bbbbbb", "#332288", "#88ccee", "#44aa99", "#ddcc77", "#cc6677", "#aa4499", "#117733",
    "#999933", "#882255",
];

/// Draws the medians of all steps.
pub(super) fn draw(path: &Path, cases: &[Case]) -> Result<()> {
    let rows: Vec<(String, Vec<(usize, f64)>)> =
        cases.iter().map(|case| (case.full_name(), pieces(case))).collect();
    let ends = rows.iter().map(|(_, pieces)| pieces.iter().map(|(_, ms)| ms).sum::<f64>());
    let most = ends.fold(0.0, f64::max).max(0.001);
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let height = TOP + ROW * rows.len() as f64 + BOTTOM;
    let mut picture = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("font-family", FONT)
        .set("font-size", 12)
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "white"));
    let bottom = height - BOTTOM;
    let step = mark_distance(MARK / scale);
    for mark in 0..=(most / step) as u32 {
        let at = f64::from(mark) * step;
        let x = LEFT + at * scale;
        picture = picture.add(line(x, TOP - 6.0, x, bottom).set("stroke", "#dddddd")).add(
            text(x, bottom + 16.0, &format!("{at:.*}", digits(step))).set("text-anchor", "middle"),
        );
    }
    let caption = "ms of virtual time from the death (hangs: its detection), medians";
    picture = picture.add(text(LEFT, bottom + 36.0, caption));
    for (index, step) in STEPS.iter().enumerate() {
        let (column, row) = ((index % 5) as f64, (index / 5) as f64);
        let (x, y) = (LEFT + column * 130.0, 12.0 + row * 20.0);
        picture =
            picture.add(bar(x, y, 12.0, 12.0, index)).add(text(x + 18.0, y + 10.0, step.name));
    }
    for (index, (name, pieces)) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let label = text(LEFT - 10.0, y + 13.0, name).set("text-anchor", "end");
        picture = picture.add(label);
        let mut x = LEFT;
        for &(step, ms) in pieces {
            picture = picture.add(bar(x, y, ms * scale, BAR, step));
            x += ms * scale;
        }
    }
    svg::save(path, &picture).with_context(|| format!("can't write {}", path.display()))
}

/// How long each step took: its number and ms, medians. A step that ended before
/// the one in front of it (others carried it out meanwhile) takes no time here.
fn pieces(case: &Case) -> Vec<(usize, f64)> {
    let mut done = 0;
    let ends = STEPS.iter().map(|step| case.until(step.at).percentile(50));
    let lengths = ends.map(|end| {
        let length = end.saturating_sub(done);
        done = done.max(end);
        length as f64 / 1e6
    });
    lengths.enumerate().filter(|(_, ms)| *ms > 0.0).collect()
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn mark_distance(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let fits = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least);
    fits.unwrap_or(10.0) * power
}

/// Digits after the point that a mark needs.
fn digits(step: f64) -> usize {
    (-step.log10().floor()).max(0.0) as usize
}

fn bar(x: f64, y: f64, width: f64, height: f64, step: usize) -> Rectangle {
    Rectangle::new()
        .set("x", round(x))
        .set("y", round(y))
        .set("width", round(width))
        .set("height", round(height))
        .set("fill", COLOURS.get(step).copied().unwrap_or("black"))
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64) -> Line {
    Line::new().set("x1", round(x1)).set("y1", round(y1)).set("x2", round(x2)).set("y2", round(y2))
}

fn text(x: f64, y: f64, content: &str) -> Text {
    Text::new(content).set("x", round(x)).set("y", round(y))
}

/// To a tenth of a pixel, so that pictures differ only where figures do.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_far_enough_apart() {
        for (least, distance, shown) in
            [(0.03, 0.05, 2), (0.2, 0.2, 1), (0.6, 1.0, 0), (7.0, 10.0, 0)]
        {
            assert!((mark_distance(least) - distance).abs() < 1e-9, "{least}");
            assert_eq!(digits(distance), shown, "{least}");
        }
    }
}
