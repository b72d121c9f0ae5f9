//! The table and the figures.

use super::{Case, Death, Kind};
use crate::figures::Figure;

/// Deaths at either end that `drift` compares.
const COMPARED: usize = 100;

/// ns of something in each death, sorted.
pub(super) struct Spread(Vec<u64>);

impl Spread {
    fn new(deaths: &[Death], of: impl Fn(&Death) -> u64) -> Self {
        let mut values: Vec<u64> = deaths.iter().map(of).collect();
        values.sort_unstable();
        Self(values)
    }

    /// The least value that at least `percent` of all do not exceed.
    pub(super) fn percentile(&self, percent: usize) -> u64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or(0)
    }

    fn max(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<u64>() as f64 / self.0.len().max(1) as f64
    }
}

impl Case {
    /// From the death, of a hang from its detection, to something.
    pub(super) fn until(&self, to: impl Fn(&Death) -> u64) -> Spread {
        Spread::new(&self.deaths, |death| to(death).saturating_sub(self.origin(death)))
    }

    fn origin(&self, death: &Death) -> u64 {
        match self.kind {
            Kind::Panic | Kind::Exception => death.times.died,
            Kind::Hang => death.times.detected,
        }
    }

    /// From the death to its detection.
    fn detection(&self) -> Spread {
        Spread::new(&self.deaths, |death| death.times.detected.saturating_sub(death.times.died))
    }

    pub(super) fn full_name(&self) -> String {
        Self::name(self.driver, self.mode, self.kind)
    }

    /// Median of the last deaths over that of the first.
    fn drift(&self) -> f64 {
        let served = |deaths: &[Death]| {
            let spread = Spread::new(deaths, |death| death.served - self.origin(death));
            spread.percentile(50) as f64
        };
        let count = COMPARED.min(self.deaths.len() / 2).max(1);
        let first = self.deaths.get(..count).unwrap_or_default();
        let last = self.deaths.get(self.deaths.len() - count..).unwrap_or_default();
        served(last) / served(first).max(1.0)
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Prints one line a case.
pub(super) fn print(cases: &[Case]) {
    println!(
        "{:<19} {:>6}  {:>8} {:>7}  {:>7} {:>7} {:>7}  {:<11}  {:>8} {:>4} {:>5} {:>5}  {:>5}",
        "", "", "detected", "enabled", "served", "", "", "p99", "replayed", "", "lost", "", ""
    );
    println!(
        "{:<19} {:>6}  {:>8} {:>7}  {:>7} {:>7} {:>7}  {:<11}  {:>8} {:>4} {:>5} {:>5}  {:>5}",
        "case",
        "deaths",
        "p99",
        "p99",
        "p50",
        "p99",
        "max",
        "budget",
        "mean",
        "max",
        "mean",
        "max",
        "drift"
    );
    for case in cases {
        let served = case.until(|death| death.served);
        let enabled = case.until(|death| death.times.enabled);
        let replayed = Spread::new(&case.deaths, |death| death.replayed);
        let lost = Spread::new(&case.deaths, |death| death.lost);
        let p99 = ms(served.percentile(99));
        let budget = case.mode.budget_ms();
        let verdict = if p99 < budget { "ok" } else { "OVER" };
        println!(
            "{:<19} {:>6}  {:>8.3} {:>7.3}  {:>7.3} {:>7.3} {:>7.3}  {:<11}  {:>8.1} {:>4} {:>5.1} {:>5}  {:>5.2}",
            case.full_name(),
            case.deaths.len(),
            ms(case.detection().percentile(99)),
            ms(enabled.percentile(99)),
            ms(served.percentile(50)),
            p99,
            ms(served.max()),
            format!("< {budget} {verdict}"),
            replayed.mean(),
            replayed.max(),
            lost.mean(),
            lost.max(),
            case.drift(),
        );
    }
    println!(
        "ms of virtual time from the death (hangs: from its detection, which is a figure of \
         its own), one instruction = 1 ns, one core; requests in flight: 32"
    );
}

/// The figures as they are written.
pub(super) fn figures(cases: &[Case]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for case in cases {
        let mut put = |metric: &str, value: f64, unit: &str, clock: &str| {
            figures.push(Figure {
                name: format!("recovery.{}", case.full_name()),
                metric: metric.to_owned(),
                value,
                unit: unit.to_owned(),
                clock: clock.to_owned(),
            });
        };
        let served = case.until(|death| death.served);
        let enabled = case.until(|death| death.times.enabled);
        let ready = case.until(|death| death.times.ready);
        let detected = case.detection();
        for (of, spread) in
            [("", &served), ("detected_", &detected), ("enabled_", &enabled), ("ready_", &ready)]
        {
            for (rank, value) in [
                ("p50", spread.percentile(50)),
                ("p99", spread.percentile(99)),
                ("max", spread.max()),
            ] {
                put(&format!("{of}{rank}"), ms(value), "ms", "virtual");
            }
        }
        for (of, spread) in [
            ("replayed", Spread::new(&case.deaths, |death| death.replayed)),
            ("lost", Spread::new(&case.deaths, |death| death.lost)),
        ] {
            put(&format!("{of}_mean"), spread.mean(), "count", "none");
            put(&format!("{of}_max"), spread.max() as f64, "count", "none");
        }
        put("deaths", case.deaths.len() as f64, "count", "none");
        put("drift", case.drift(), "ratio", "virtual");
    }
    figures
}

#[cfg(test)]
mod tests {
    use ring_proto::crash::Timeline;

    use super::super::{Driver, Mode};
    use super::*;

    fn case(kind: Kind, served_ms: impl Iterator<Item = u64>) -> Case {
        let death = |(number, ms): (u64, u64)| {
            let died = 1_000_000_000 * number;
            let times = Timeline { died, detected: died + 2_000_000, ..Timeline::default() };
            Death { times, served: died + ms * 1_000_000, replayed: 32, lost: 0 }
        };
        let deaths = (1..).zip(served_ms).map(death).collect();
        Case { driver: Driver::Blk, mode: Mode::Cold, kind, deaths }
    }

    #[test]
    fn figures_have_stable_names_and_ranks_are_of_deaths() {
        let figures = figures(&[case(Kind::Panic, 1..=200)]);
        let find = |metric: &str| {
            let found = figures
                .iter()
                .find(|figure| figure.name == "recovery.blk.cold.panic" && figure.metric == metric);
            found.map(|figure| (figure.value, figure.unit.as_str(), figure.clock.as_str()))
        };
        assert_eq!(find("p50"), Some((100.0, "ms", "virtual")));
        assert_eq!(find("p99"), Some((198.0, "ms", "virtual")));
        assert_eq!(find("max"), Some((200.0, "ms", "virtual")));
        assert_eq!(find("detected_max"), Some((2.0, "ms", "virtual")));
        assert_eq!(find("replayed_mean"), Some((32.0, "count", "none")));
        assert_eq!(find("drift"), Some((3.0, "ratio", "virtual")));
    }
}
