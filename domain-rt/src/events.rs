#![allow(unsafe_code)]
//! Events, waiting, and the misbehaviour that an operator may order.
//!
//! The usual loop of a driver:
//!
//! ```ignore
//! loop {
//!     let events = events::take_all();
//!     // … work on what `events` names, note whether there is more …
//!     if more { events::breathe() } else { events::wait(deadline) }
//! }
//! ```
//!
//! No wakeup is lost: `wait` returns at once if an event came after `take_all`.

use core::sync::atomic::{AtomicU64, Ordering};

use ring_proto::{
    Port,
    event::{DRAIN, EventPage, Inject, PORTS, STUCK, WORDS},
    layout,
};

use crate::{hypercall, misbehave, time};

/// Bits that were moved out of the page and not yet handed to anybody.
static TAKEN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// When `wait` was last called.
static LAST_WAIT: AtomicU64 = AtomicU64::new(0);

/// A busy loop calls `wait` at least this often, for the watchdog's sake.
const BREATH_NS: u64 = time::MS;

pub(crate) fn page() -> &'static EventPage {
    // SAFETY: the page is mapped for the domain's whole life and consists of
    // atomics.
    unsafe { &*(layout::EVENT_PAGE as *const EventPage) }
}

/// Ports that had an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events([u64; WORDS]);

impl Events {
    /// Whether `port` is among them.
    pub fn has(&self, port: Port) -> bool {
        self.0.get(usize::from(port / 64)).is_some_and(|word| word & (1 << (port % 64)) != 0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// The ports, ascending.
    pub fn ports(self) -> impl Iterator<Item = Port> {
        (0..PORTS).filter(move |&port| self.has(port))
    }
}

fn collect() {
    for (pending, taken) in page().pending.iter().zip(&TAKEN) {
        // The plain load spares a locked instruction when nothing came.
        if pending.load(Ordering::Relaxed) != 0 {
            let bits = pending.swap(0, Ordering::Acquire);
            taken.store(taken.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
        }
    }
}

/// Takes all pending events.
pub fn take_all() -> Events {
    collect();
    Events(TAKEN.each_ref().map(|word| {
        let bits = word.load(Ordering::Relaxed);
        word.store(0, Ordering::Relaxed);
        bits
    }))
}

/// Takes the event of one port, if it is pending.
pub fn take(port: Port) -> bool {
    collect();
    let Some(word) = TAKEN.get(usize::from(port / 64)) else {
        return false;
    };
    let bits = word.load(Ordering::Relaxed);
    let bit = 1 << (port % 64);
    word.store(bits & !bit, Ordering::Relaxed);
    bits & bit != 0
}

/// What is pending, without taking it.
pub(crate) fn peek() -> Events {
    collect();
    Events(TAKEN.each_ref().map(|word| word.load(Ordering::Relaxed)))
}

/// Whether any event is pending.
pub fn any_pending() -> bool {
    !peek().is_empty()
}

/// Sleeps until an event is pending or the clock reaches `deadline_ns`.
///
/// Events of ports that nobody asks about keep it from sleeping: a program
/// takes them all with [`take_all`].
pub fn wait(deadline_ns: u64) {
    obey();
    if any_pending() {
        breathe();
    } else {
        sleep(deadline_ns);
    }
}

/// Sleeps without regard to events that were already taken out of the page.
pub(crate) fn sleep(deadline_ns: u64) {
    let now = hypercall::wait(deadline_ns);
    LAST_WAIT.store(now, Ordering::Relaxed);
    obey();
}

/// For loops that are busy for long: feeds the watchdog now and then and does
/// what the operator ordered. Cheap.
pub fn breathe() {
    obey();
    if time::now_ns().saturating_sub(LAST_WAIT.load(Ordering::Relaxed)) >= BREATH_NS {
        sleep(0);
    }
}

/// What the supervisor wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    number: u32,
    /// Not only whether the domain can work: it is to finish its work and take
    /// no more.
    pub drain: bool,
}

/// The supervisor's question that is not answered yet, if there is one. It
/// comes with an event. Cheap.
pub fn check() -> Option<Check> {
    let asked = page().check.load(Ordering::Acquire);
    let number = asked & !DRAIN;
    let answered = page().health.load(Ordering::Relaxed) & !STUCK;
    (number != answered).then_some(Check { number, drain: asked & DRAIN != 0 })
}

/// Answers it: `well`, or the work is finished; else the domain is ended.
pub fn answer(check: Check, well: bool) {
    let stuck = if well { 0 } else { STUCK };
    page().health.store(check.number | stuck, Ordering::Release);
}

/// Orders this domain's own next misbehaviour, unless the operator has ordered one.
pub(crate) fn misbehave_again(kind: Inject) {
    let word = &page().inject;
    let _ = word.compare_exchange(0, kind as u32, Ordering::Relaxed, Ordering::Relaxed);
}

/// Misbehaves if the operator ordered it.
fn obey() {
    let word = &page().inject;
    if word.load(Ordering::Relaxed) != 0
        && let Some(kind) = Inject::from_raw(word.swap(0, Ordering::Relaxed))
    {
        misbehave::carry_out(kind);
    }
}
