//! Runs tests one after the other and prints what `cargo test` would print,
//! with durations and a third verdict.
//!
//! A node keeps both cores of a small machine busy, so tests never run side by
//! side, whatever `--test-threads` says.

use std::{
    fmt,
    io::{Write, stdout},
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser;

use crate::bench::Bench;

/// What a test is.
#[derive(Clone, Debug)]
pub struct Test {
    /// Its name; those of a guarantee begin with `g` and its number.
    pub name: String,
    /// What it does with its bench.
    pub body: fn(&Bench) -> Result<()>,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The node did what it should.
    Passed,
    /// It did not.
    Failed(String),
    /// Nobody knows: the machine ended without saying why, or the host could
    /// not run it. Never taken for success.
    Unknown(String),
}

/// An error that makes a test's verdict [`Verdict::Unknown`].
#[derive(Debug)]
pub struct Unknown(pub String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unknown {}

/// Boots nodes and judges them. The options are those of `cargo test`, as far
/// as they mean something here.
#[derive(Parser)]
struct Arguments {
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
    /// Names must be equal, not only contain the filter.
    #[arg(long)]
    exact: bool,
    /// Leave out tests whose name contains this.
    #[arg(long)]
    skip: Vec<String>,
    /// Only list the names.
    #[arg(long)]
    list: bool,
    /// Keep disks and logs of tests that passed, too.
    #[arg(long)]
    keep: bool,
    /// Show the node's log while it runs.
    #[arg(long, alias = "no-capture")]
    nocapture: bool,
    /// Taken and ignored: tests run one at a time.
    #[arg(long, hide = true)]
    test_threads: Option<String>,
    /// Taken and ignored.
    #[arg(long, hide = true)]
    show_output: bool,
    /// Taken and ignored.
    #[arg(long, hide = true)]
    include_ignored: bool,
    /// No test is ignored by default, so this runs none.
    #[arg(long, hide = true)]
    ignored: bool,
    /// Taken and ignored.
    #[arg(long, hide = true)]
    quiet: bool,
    /// Taken and ignored.
    #[arg(long, hide = true, value_name = "WHEN")]
    color: Option<String>,
    /// Taken and ignored.
    #[arg(long, hide = true, value_name = "FORMAT")]
    format: Option<String>,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        let fits = |pattern: &String| match self.exact {
            true => name == pattern,
            false => name.contains(pattern.as_str()),
        };
        !self.ignored
            && (self.filter.is_empty() || self.filter.iter().any(fits))
            && !self.skip.iter().any(fits)
    }
}

/// Runs those of `tests` that the command line asks for.
pub fn main(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::parse();
    let wanted: Vec<&Test> = tests.iter().filter(|test| arguments.wants(&test.name)).collect();
    if arguments.list {
        for test in &wanted {
            say(&format!("{}: test\n", test.name));
        }
        say(&format!("\n{} tests, 0 benchmarks\n", wanted.len()));
        return ExitCode::SUCCESS;
    }
    let (mut failed, mut unknown) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    say(&format!("\nrunning {} tests\n", wanted.len()));
    if !wanted.is_empty()
        && let Err(why) = xtask::qemu::install::ensure()
    {
        say(&format!("{why:#}\n"));
        return ExitCode::FAILURE;
    }
    for test in &wanted {
        let start = Instant::now();
        let bench = Bench::new(&test.name, arguments.keep, arguments.nocapture);
        let verdict = judge(test, &bench);
        let seconds = start.elapsed().as_secs_f32();
        // One piece, as others write to this terminal, too, and `cargo xtask
        // test` reads lines that end with "... FAILED".
        let name = &test.name;
        match &verdict {
            Verdict::Passed => say(&format!("test {name} ... ok ({seconds:.1} s)\n")),
            Verdict::Failed(why) => {
                say(&format!(
                    "test {name} ... FAILED\n{}\n",
                    indent(&format!("after {seconds:.1} s: {why}"))
                ));
                failed.push(&test.name);
            }
            Verdict::Unknown(why) => {
                say(&format!(
                    "test {name} ... UNKNOWN\n{}\n",
                    indent(&format!("after {seconds:.1} s: {why}"))
                ));
                unknown.push(&test.name);
            }
        }
        bench.clear_up(&verdict);
    }
    let bad = failed.len() + unknown.len();
    for (title, names) in [("failed", &failed), ("unknown", &unknown)] {
        for name in names {
            say(&format!("{title}: {name}\n"));
        }
    }
    say(&format!(
        "\ntest result: {}. {} passed; {bad} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s{}\n\n",
        if bad == 0 { "ok" } else { "FAILED" },
        wanted.len() - bad,
        tests.len() - wanted.len(),
        begin.elapsed().as_secs_f32(),
        match unknown.len() {
            0 => String::new(),
            n => format!(" ({n} of those that failed: verdict unknown)"),
        },
    ));
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn judge(test: &Test, bench: &Bench) -> Verdict {
    let result = catch_unwind(AssertUnwindSafe(|| (test.body)(bench)));
    match result {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) if error.downcast_ref::<Unknown>().is_some() => {
            Verdict::Unknown(format!("{error:#}"))
        }
        Ok(Err(error)) => Verdict::Failed(format!("{error:#}")),
        Err(_) => Verdict::Failed("the test itself panicked; see above".to_owned()),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Prints. (`print!` would panic if nobody reads any more.)
fn say(text: &str) {
    let _ = stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush());
}

/// Waits until `look` finds something, for at most `limit`.
///
/// # Errors
///
/// `look` failed, or found nothing in time: `what` says what was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            anyhow::bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
