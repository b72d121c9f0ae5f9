//! How a run says that a rule was broken, and what it did until then.
//!
//! A violation leaves through whatever code was running, as a panic does, so
//! that a broken rule and a panic of the code under test look alike to the
//! caller: both end the run, and both are found again by its seed.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Seed of the run.
    pub seed: u64,
    /// Step of the run at which it was noticed.
    pub step: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, what } = self;
        write!(f, "seed {seed}, step {step}: {what}")
    }
}

impl std::error::Error for Violation {}

/// The payload of a violation on its way out.
struct Broken(String);

thread_local! {
    /// Step and time of the run of this thread, for the trace.
    static PLACE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    static TRACING: Cell<bool> = const { Cell::new(false) };
    /// What the panic hook was told.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A rule is broken: ends the run.
pub(crate) fn violated(what: fmt::Arguments<'_>) -> ! {
    // Not `panic!`: the hook is for the code under test.
    panic::resume_unwind(Box::new(Broken(what.to_string())))
}

/// Ends the run unless a rule holds.
macro_rules! rule {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            $crate::report::violated(format_args!($($text)+));
        }
    };
}
pub(crate) use rule;

/// Says what happens, if somebody wants to know.
macro_rules! trace {
    ($($text:tt)+) => {
        if $crate::report::tracing() {
            $crate::report::say(format_args!($($text)+));
        }
    };
}
pub(crate) use trace;

pub(crate) fn tracing() -> bool {
    TRACING.get()
}

pub(crate) fn say(text: fmt::Arguments<'_>) {
    let (step, now) = PLACE.get();
    println!("{step:>6} {:>14.3} us  {text}", now as f64 / 1000.0);
}

/// Where the run is now.
pub(crate) fn at(step: u64, now: u64) {
    PLACE.set((step, now));
}

/// Runs `run` and turns a violation or a panic in it into an error.
pub(crate) fn judged<T>(seed: u64, trace: bool, run: impl FnOnce() -> T) -> Result<T, Violation> {
    TRACING.set(trace);
    PLACE.set((0, 0));
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        let what = match payload.downcast::<Broken>() {
            Ok(broken) => broken.0,
            Err(_) => format!("panic: {}", PANIC.with_borrow(String::clone)),
        };
        Violation { seed, step: PLACE.get().0, what }
    })
}

/// Panics are told with the violation, not by the default hook. Call it once.
pub fn quiet_panics() {
    panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|text| *text = info.to_string().replace('\n', " "));
    }));
}
