//! The table and the figures.

use super::Counts;
use crate::figures::Figure;

/// A case, both ways.
pub(super) struct Row {
    pub case: String,
    pub ring: Counts,
    pub fused: Counts,
}

/// A bound that DESIGN sets, and on which side of it the good lies.
enum Budget {
    AtLeast(f64),
    AtMost(f64),
    None,
}

impl Budget {
    fn show(&self, value: f64) -> String {
        let (sign, bound, good) = match *self {
            Self::AtLeast(bound) => ("≥", bound, value >= bound),
            Self::AtMost(bound) => ("≤", bound, value <= bound),
            Self::None => return String::new(),
        };
        format!("{sign} {bound:.2} {}", if good { "ok" } else { "OVER" })
    }
}

/// The number that a case is about.
struct Headline {
    metric: &'static str,
    unit: &'static str,
    value: f64,
}

impl Row {
    fn is_net(&self) -> bool {
        self.case.starts_with("net.")
    }

    fn headline(&self, counts: &Counts) -> Headline {
        let time = counts.elapsed_ns.saturating_sub(if self.is_net() { counts.peer_ns } else { 0 });
        let seconds = time.max(1) as f64 / 1e9;
        if self.case.contains("rtt") {
            Headline { metric: "p50", unit: "us", value: counts.p50_ns as f64 / 1e3 }
        } else if self.case.contains("rand4k") {
            Headline { metric: "throughput", unit: "IOPS", value: counts.requests as f64 / seconds }
        } else {
            let value = counts.bytes as f64 / 1e6 / seconds;
            Headline { metric: "throughput", unit: "MB/s", value }
        }
    }

    /// Ring to fused.
    fn ratio(&self) -> f64 {
        let fused = self.headline(&self.fused).value;
        self.headline(&self.ring).value / fused.max(f64::MIN_POSITIVE)
    }

    fn budget(&self) -> Budget {
        match self.case.as_str() {
            case if case.contains("seq128k") => Budget::AtLeast(0.95),
            case if case.contains("rand4k") && case.ends_with("d32") => Budget::AtLeast(0.8),
            case if case.contains("rtt") => Budget::AtMost(1.5),
            case if case.starts_with("net.") => Budget::AtLeast(0.8),
            _ => Budget::None,
        }
    }

    fn exits_budget(&self) -> Budget {
        if self.case.ends_with("d32") { Budget::AtMost(0.25) } else { Budget::None }
    }
}

fn per_request(counts: &Counts) -> [(&'static str, f64); 4] {
    let per = |count: u64| count as f64 / counts.requests.max(1) as f64;
    [
        ("exits_per_request", per(counts.exits)),
        ("hypercalls_per_request", per(counts.hypercalls)),
        ("notifications_per_request", per(counts.notifications)),
        ("interrupts_per_request", per(counts.interrupts)),
    ]
}

/// Virtual time that a request takes, ns.
fn time_per_request(row: &Row, counts: &Counts) -> f64 {
    let peer = if row.is_net() && !row.case.contains("rtt") { counts.peer_ns } else { 0 };
    counts.elapsed_ns.saturating_sub(peer) as f64 / counts.requests.max(1) as f64
}

/// Prints one line a case.
pub(super) fn print(rows: &[Row]) {
    println!(
        "{:<21} {:>9} {:>9} {:<4} {:>5}  {:<11} {:>8} {:>8}  {:>6} {:>6} {:>6}  {:<11}",
        "", "", "", "", "", "", "ring", "fused", "exits", "hyper-", "noti-", ""
    );
    println!(
        "{:<21} {:>9} {:>9} {:<4} {:>5}  {:<11} {:>8} {:>8}  {:>6} {:>6} {:>6}  {:<11}",
        "case",
        "ring",
        "fused",
        "unit",
        "ratio",
        "budget",
        "ns/req",
        "ns/req",
        "",
        "calls",
        "fies",
        "exits budget"
    );
    for row in rows {
        let (ring, fused) = (row.headline(&row.ring), row.headline(&row.fused));
        let digits = if ring.value < 100.0 { 2 } else { 0 };
        let [(_, exits), (_, hypercalls), (_, notifications), _] = per_request(&row.ring);
        let line = format!(
            "{:<21} {:>9.digits$} {:>9.digits$} {:<4} {:>5.2}  {:<11} {:>8.0} {:>8.0}  {exits:>6.3} {hypercalls:>6.3} {notifications:>6.3}  {:<11}",
            row.case,
            ring.value,
            fused.value,
            ring.unit,
            row.ratio(),
            row.budget().show(row.ratio()),
            time_per_request(row, &row.ring),
            time_per_request(row, &row.fused),
            row.exits_budget().show(exits),
        );
        println!("{}", line.trim_end());
    }
    println!(
        "virtual time, one instruction = 1 ns, one core; exits, hypercalls and notifications for a \
         request, of guest and driver domain over rings; a disk that takes no time"
    );
}

/// The figures as they are written.
pub(super) fn figures(rows: &[Row]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for row in rows {
        let mut put = |mode: &str, metric: &str, value: f64, unit: &str, clock: &str| {
            figures.push(Figure {
                name: format!("bench.{}.{mode}", row.case),
                metric: metric.to_owned(),
                value,
                unit: unit.to_owned(),
                clock: clock.to_owned(),
            });
        };
        for (mode, counts) in [("ring", &row.ring), ("fused", &row.fused)] {
            let Headline { metric, unit, value } = row.headline(counts);
            put(mode, metric, value, unit, "virtual");
            put(mode, "time_per_request", time_per_request(row, counts), "ns", "virtual");
            let per = |ns: u64| ns as f64 / counts.requests.max(1) as f64;
            put(mode, "guest_time_per_request", per(counts.guest_ns), "ns", "virtual");
            put(mode, "driver_time_per_request", per(counts.driver_ns), "ns", "virtual");
            for (metric, value) in per_request(counts) {
                put(mode, metric, value, "count", "none");
            }
        }
        put("ratio", "ring_to_fused", row.ratio(), "ratio", "virtual");
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(elapsed_ns: u64, peer_ns: u64) -> Counts {
        Counts {
            requests: 1000,
            bytes: 4_000_000,
            p50_ns: 30_000,
            elapsed_ns,
            guest_ns: 0,
            driver_ns: 0,
            peer_ns,
            exits: 100,
            hypercalls: 90,
            notifications: 30,
            interrupts: 10,
        }
    }

    fn row(case: &str) -> Row {
        let case = case.to_owned();
        Row { case, ring: counts(3_000_000, 1_000_000), fused: counts(2_000_000, 1_000_000) }
    }

    #[test]
    fn the_peers_time_counts_in_round_trips_only() {
        let bulk = row("net.tcp.out");
        let Headline { unit, value, .. } = bulk.headline(&bulk.ring);
        assert_eq!((unit, value), ("MB/s", 2000.0));
        assert_eq!(bulk.ratio(), 0.5);
        assert_eq!(row("net.tcp.rtt").ratio(), 1.0);
        assert_eq!(row("net.tcp.rtt").headline(&counts(1, 0)).value, 30.0);
        let disk = row("blk.rand4k.read.d32");
        assert_eq!(disk.headline(&disk.fused).value, 500_000.0);
    }

    #[test]
    fn figures_have_stable_names() {
        let figures = figures(&[row("blk.seq128k.read.d32")]);
        let find = |name: &str, metric: &str| {
            let found = figures.iter().find(|f| f.name == name && f.metric == metric);
            found.map(|f| (f.value, f.unit.as_str(), f.clock.as_str()))
        };
        let ring = "bench.blk.seq128k.read.d32.ring";
        assert!(matches!(find(ring, "throughput"), Some((_, "MB/s", "virtual"))));
        assert_eq!(find(ring, "exits_per_request"), Some((0.1, "count", "none")));
        let ratio = find("bench.blk.seq128k.read.d32.ratio", "ring_to_fused");
        assert!(ratio.is_some_and(|(value, ..)| (value - 2.0 / 3.0).abs() < 1e-9));
    }
}
