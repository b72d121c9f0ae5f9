//! Places in charts: percentages of their width, so that a page of any width draws them, with
//! text of one size.

use super::numbers::Times;

/// A logarithmic scale of times, in whole decades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// Power of ten of the nanoseconds at the left.
    low: u32,
    /// And at the right.
    high: u32,
}

/// A labelled place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub x: String,
    pub label: String,
    /// Which part of the label is there, for SVG: those at the ends must not stand out.
    pub anchor: &'static str,
}

impl Axis {
    /// A scale that has room for all of these.
    pub(super) fn over(times: &Times) -> Self {
        let low = times.min_ns.max(1).ilog10();
        let high = times.max_ns.max(1).ilog10() + 1;
        Self { low, high }
    }

    /// How far to the right a time is, in per cent.
    pub(super) fn at(self, ns: u64) -> f64 {
        let decades = (ns.max(1) as f64).log10() - f64::from(self.low);
        (100.0 * decades / f64::from(self.high - self.low)).clamp(0.0, 100.0)
    }

    pub(super) fn ticks(self) -> Vec<Tick> {
        let tick = |power: u32| Tick {
            x: place(100.0 * f64::from(power - self.low) / f64::from(self.high - self.low)),
            label: label(power),
            anchor: match power {
                _ if power == self.low => "start",
                _ if power == self.high => "end",
                _ => "middle",
            },
        };
        (self.low..=self.high).map(tick).collect()
    }
}

/// 10^`power` ns for people.
fn label(power: u32) -> String {
    let unit = ["ns", "µs", "ms"].get(power as usize / 3).copied();
    match unit {
        Some(unit) => format!("{} {unit}", 10_u32.pow(power % 3)),
        None => format!("{} s", 10_u64.pow(power - 9)),
    }
}

/// A percentage, as SVG reads it.
pub(super) fn place(percent: f64) -> String {
    let text = format!("{percent:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Where parts of a whole begin and how wide they are, side by side.
pub(super) fn parts(counts: &[u64]) -> Vec<(String, String)> {
    let sum = counts.iter().sum::<u64>().max(1) as f64;
    let mut before = 0.0;
    let mut parts = Vec::new();
    for count in counts {
        let width = 100.0 * *count as f64 / sum;
        parts.push((place(before), place(width)));
        before += width;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_placed_by_order_of_magnitude() {
        let axis = Axis::over(&Times::of(vec![150_000, 99_000_000]).unwrap());
        assert_eq!(axis, Axis { low: 5, high: 8 });
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-9, "{value}");
        near(axis.at(100_000), 0.0);
        near(axis.at(10_000_000), 200.0 / 3.0);
        near(axis.at(100_000_000), 100.0);
        // Beyond the ends.
        near(axis.at(0), 0.0);
        near(axis.at(u64::MAX), 100.0);
        let labels: Vec<String> = axis.ticks().into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["100 µs", "1 ms", "10 ms", "100 ms"]);
        let anchors: Vec<&str> = axis.ticks().iter().map(|tick| tick.anchor).collect();
        assert_eq!(anchors, ["start", "middle", "middle", "end"]);
    }

    #[test]
    fn one_time_and_all_times_have_an_axis() {
        for times in [vec![0], vec![1_000_000], vec![u64::MAX], vec![0, u64::MAX]] {
            let axis = Axis::over(&Times::of(times.clone()).unwrap());
            assert!(axis.low < axis.high);
            assert!(axis.ticks().len() >= 2);
            assert!(times.iter().all(|ns| (0.0..=100.0).contains(&axis.at(*ns))));
        }
        assert_eq!(
            [0, 2, 3, 8, 9, 12].map(label),
            ["1 ns", "100 ns", "1 µs", "100 ms", "1 s", "1000 s"]
        );
    }

    #[test]
    fn parts_fill_the_whole() {
        let text = |x: &str, width: &str| (x.to_owned(), width.to_owned());
        assert_eq!(parts(&[1, 0, 3]), [text("0", "25"), text("25", "0"), text("25", "75")]);
        assert_eq!(parts(&[0, 0]), [text("0", "0"), text("0", "0")]);
        assert_eq!(place(100.0 / 3.0), "33.333");
    }
}
