//! Distributions and rates, and how people read numbers.

use serde::{Deserialize, Serialize};

/// How long something took, in nanoseconds on the node's clock. Percentiles are by nearest
/// rank: each is a time that was observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How many were observed; at least one.
    pub count: u64,
    /// The shortest.
    pub min_ns: u64,
    /// A quarter took no longer.
    pub p25_ns: u64,
    /// Half took no longer.
    pub p50_ns: u64,
    /// Three quarters took no longer.
    pub p75_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// How many fell between which bounds; all bins from the first to the last that has some.
    pub histogram: Vec<Bin>,
}

/// A bin of a histogram. Bounds are 1, 2 and 5 times powers of ten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bin {
    /// The shortest time that counts.
    pub from_ns: u64,
    /// The shortest time that counts no longer; the last bin has no end.
    pub below_ns: u64,
    /// How many there are.
    pub count: u64,
}

impl Times {
    /// The distribution of some times; `None` of none.
    #[must_use]
    pub fn of(mut times: Vec<u64>) -> Option<Self> {
        times.sort_unstable();
        let (min_ns, max_ns) = (*times.first()?, *times.last()?);
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).copied().unwrap_or(max_ns)
        };
        let mut histogram = Vec::new();
        let mut rest = times.as_slice();
        let (mut from_ns, mut next) = (0, bounds());
        while !rest.is_empty() {
            let below_ns = next.next().unwrap_or(u64::MAX);
            let end = rest.partition_point(|time| *time < below_ns || below_ns == u64::MAX);
            let (inside, beyond) = rest.split_at(end);
            if !inside.is_empty() || !histogram.is_empty() {
                histogram.push(Bin { from_ns, below_ns, count: inside.len() as u64 });
            }
            (from_ns, rest) = (below_ns, beyond);
        }
        Some(Self {
            count: times.len() as u64,
            min_ns,
            p25_ns: at(25),
            p50_ns: at(50),
            p75_ns: at(75),
            p99_ns: at(99),
            max_ns,
            histogram,
        })
    }
}

/// 1 µs, 2 µs, 5 µs and so on to 1000 s.
fn bounds() -> impl Iterator<Item = u64> {
    let decades = (3..12).map(|power| 10_u64.pow(power));
    decades.flat_map(|decade| [decade, 2 * decade, 5 * decade]).chain([10_u64.pow(12)])
}

/// How often something was so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// In so many cases.
    pub count: u64,
    /// Of so many.
    pub of: u64,
    /// The one by the other; 0 of 0 is 0.
    pub rate: f64,
    /// The lower end of the 95 % confidence interval (Wilson 1927).
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Rate {
    /// `count` of `of`.
    #[must_use]
    pub fn new(count: u64, of: u64) -> Self {
        if of == 0 {
            return Self { count, of, rate: 0.0, low: 0.0, high: 1.0 };
        }
        /// The normal distribution's bound of 95 %.
        const Z: f64 = 1.959_963_985;
        let (n, rate) = (of as f64, count as f64 / of as f64);
        let z2 = Z * Z;
        let middle = (rate + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z / (1.0 + z2 / n) * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n)).sqrt();
        Self {
            count,
            of,
            rate,
            low: if count == 0 { 0.0 } else { middle - half },
            high: if count == of { 1.0 } else { middle + half },
        }
    }
}

/// A time for people: three digits and a unit.
#[must_use]
pub fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..999_500 => (ns as f64 / 1e3, "µs"),
        999_500..999_500_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

/// A number for people: 1,234,567.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A part of 1 for people, in per cent. Only all is 100, and only nothing is 0.
#[must_use]
pub fn percent(rate: f64) -> String {
    let value = rate * 100.0;
    if value > 0.0 && value < 0.01 {
        return "< 0.01 %".to_owned();
    }
    if value < 100.0 && value > 99.99 {
        return "> 99.99 %".to_owned();
    }
    let digits =
        if !(1.0..=99.0).contains(&value) && value != 0.0 && value != 100.0 { 2 } else { 1 };
    format!("{value:.digits$} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_values() {
        assert_eq!(Times::of(Vec::new()), None);
        let one = Times::of(vec![5_000]).unwrap();
        assert_eq!([one.min_ns, one.p25_ns, one.p50_ns, one.p99_ns, one.max_ns], [5_000; 5]);
        assert_eq!(one.histogram, [Bin { from_ns: 5_000, below_ns: 10_000, count: 1 }]);

        // 1 to 100, in another order.
        let hundred = Times::of((1..=100).map(|n| n * 37 % 101).collect()).unwrap();
        assert_eq!(hundred.count, 100);
        assert_eq!((hundred.min_ns, hundred.max_ns), (1, 100));
        assert_eq!(
            [hundred.p25_ns, hundred.p50_ns, hundred.p75_ns, hundred.p99_ns],
            [25, 50, 75, 99]
        );
        let ten = Times::of((1..=10).collect()).unwrap();
        assert_eq!([ten.p25_ns, ten.p50_ns, ten.p75_ns, ten.p99_ns], [3, 5, 8, 10]);
        // One outlier in 101 is beyond the 99th percentile; two are not.
        let mut times = vec![1; 100];
        times.push(9);
        assert_eq!(Times::of(times.clone()).unwrap().p99_ns, 1);
        times.push(9);
        assert_eq!(Times::of(times).unwrap().p99_ns, 9);
    }

    #[test]
    fn bins_hold_all_and_bounds_belong_above() {
        let times = vec![999, 1_000, 1_999, 2_000, 60_000, u64::MAX];
        let histogram = Times::of(times).unwrap().histogram;
        let bin = |from_ns| histogram.iter().find(|bin| bin.from_ns == from_ns).unwrap();
        assert_eq!(*bin(0), Bin { from_ns: 0, below_ns: 1_000, count: 1 });
        assert_eq!(*bin(1_000), Bin { from_ns: 1_000, below_ns: 2_000, count: 2 });
        assert_eq!(*bin(2_000), Bin { from_ns: 2_000, below_ns: 5_000, count: 1 });
        assert_eq!(bin(20_000).count, 0);
        assert_eq!(bin(50_000).count, 1);
        let last = Bin { from_ns: 1_000_000_000_000, below_ns: u64::MAX, count: 1 };
        assert_eq!(histogram.last(), Some(&last));
        assert_eq!(histogram.iter().map(|bin| bin.count).sum::<u64>(), 6);
        for pair in histogram.windows(2) {
            assert_eq!(pair[0].below_ns, pair[1].from_ns);
        }
    }

    #[test]
    fn intervals_are_wilsons() {
        let close = |value: f64, wanted: f64| assert!((value - wanted).abs() < 5e-5, "{value}");
        // Newcombe 1998, table I: 81 of 263, and 0 of 20.
        let rate = Rate::new(81, 263);
        close(rate.low, 0.2553);
        close(rate.high, 0.3662);
        let rate = Rate::new(0, 20);
        assert_eq!((rate.rate, rate.low), (0.0, 0.0));
        close(rate.high, 0.1611);
        let rate = Rate::new(20, 20);
        close(rate.low, 0.8389);
        assert_eq!((rate.rate, rate.high), (1.0, 1.0));
        assert_eq!(Rate::new(0, 0), Rate { count: 0, of: 0, rate: 0.0, low: 0.0, high: 1.0 });
    }

    #[test]
    fn numbers_are_readable() {
        let times = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (999_499, "999 µs"),
            (999_600, "1.00 ms"),
            (1_234_567_890, "1.23 s"),
            (600_000_000_000, "600 s"),
        ];
        for (ns, text) in times {
            assert_eq!(duration(ns), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        let rates = [
            (0.0, "0.0 %"),
            (1.0, "100.0 %"),
            (0.5, "50.0 %"),
            (0.00001, "< 0.01 %"),
            (0.0012, "0.12 %"),
            (0.99996, "> 99.99 %"),
            (0.9991, "99.91 %"),
        ];
        for (rate, text) in rates {
            assert_eq!(percent(rate), text);
        }
    }
}
