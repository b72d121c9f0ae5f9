//! `cargo xtask sim` runs this program; see the library.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use sim::{Stats, Violation};

/// Simulates nodes, one for each seed
#[derive(Parser)]
struct Options {
    /// Run this seed alone, with a trace
    #[arg(long, value_name = "N", conflicts_with_all = ["runs", "first", "jobs"])]
    seed: Option<u64>,
    /// Seeds to run
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    runs: u64,
    /// First seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: u64,
}

/// How often a line says how far it is.
const SAY: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let options = Options::parse();
    sim::quiet_panics();
    let violation = match options.seed {
        Some(seed) => match sim::run(seed, true) {
            Ok(stats) => {
                println!("{stats:?}");
                None
            }
            Err(violation) => Some(violation),
        },
        None => series(&options),
    };
    match violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("violation: {violation}");
            if options.seed.is_none() {
                println!("again: cargo xtask sim --seed {}", violation.seed);
            }
            ExitCode::FAILURE
        }
    }
}

/// Runs all seeds. Of several violations the one of the lowest seed is told.
fn series(options: &Options) -> Option<Violation> {
    let begin = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let results: Vec<(Total, Option<Violation>)> = thread::scope(|scope| {
        let worker = || {
            let mut total = Total::default();
            let mut said = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= options.runs {
                    break;
                }
                match sim::run(options.first.wrapping_add(number), false) {
                    Ok(stats) => total.add(&stats),
                    Err(violation) => {
                        stop.store(true, Ordering::Relaxed);
                        return (total, Some(violation));
                    }
                }
                if said.elapsed() >= SAY {
                    said = Instant::now();
                    eprintln!("{number} runs in {:.0} s", begin.elapsed().as_secs_f64());
                }
            }
            (total, None)
        };
        let threads: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut total = Total::default();
    results.iter().for_each(|(part, _)| total.join(part));
    total.print(begin.elapsed());
    results.into_iter().filter_map(|(_, violation)| violation).min_by_key(|v| v.seed)
}

/// Counts of many runs.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    runs: u64,
    sum: Stats,
}

impl Total {
    fn add(&mut self, stats: &Stats) {
        self.join(&Self { runs: 1, sum: *stats });
    }

    fn join(&mut self, other: &Self) {
        self.runs += other.runs;
        self.sum.add(&other.sum);
    }

    /// Lines of a name and a number, which `cargo xtask sim` reads, and one for people.
    fn print(&self, time: Duration) {
        let Stats { steps, requests, replayed, frames, frames_lost, deaths, takeovers, power_cuts } =
            self.sum;
        let figures = [
            ("runs", self.runs),
            ("steps", steps),
            ("requests", requests),
            ("replayed", replayed),
            ("frames", frames),
            ("frames_lost", frames_lost),
            ("deaths", deaths),
            ("takeovers", takeovers),
            ("power_cuts", power_cuts),
        ];
        for (name, value) in figures {
            println!("{name:<12} {value}");
        }
        let seconds = time.as_secs_f64();
        let rate = self.runs as f64 / seconds.max(0.001);
        println!("{} runs in {seconds:.1} s ({rate:.0} a second)", self.runs);
    }
}
