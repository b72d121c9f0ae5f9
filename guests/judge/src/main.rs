//! Judges a driver from a guest's place: rounds of requests whose data says what it
//! is, as the host orders them while the machine runs (crate `judge-orders`).
//!
//! The words of `args`:
//!
//! | word | |
//! |---|---|
//! | `mode=blk` | reads and writes blocks of its volume, see [`blk`] |
//! | `mode=net` | sends datagrams to the other end of the wire and wants them back, see [`net`] |
//! | `ip=A` `peer=A:PORT` | addresses of the two ends, for `mode=net` |
//!
//! It is ready once it is connected and whatever it reads later was written by it.
#![no_std]
#![no_main]

extern crate alloc;

mod args;
mod blk;
mod model;
mod net;
mod outside;
mod round;
mod wire;

use domain_rt::{
    events, hypercall,
    ring_proto::boot::BootInfo,
    set_ready,
    time::{MS, NEVER, now_ns},
};
use judge_orders::{Kind, Outcome, state};
use ring_ends::{Counters, Progress};

use crate::{args::Args, outside::JUDGE, round::Round};

/// Between two looks for orders, ns.
const LOOK: u64 = MS;
/// The same whether the last requests of a round may go.
const HELD_LOOK: u64 = MS / 10;

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    let args = match Args::parse(domain_rt::start::text(&boot.args)) {
        Ok(args) => args,
        Err(word) => give_up(&format_args!("`{word}` in args is not understood")),
    };
    let result = match args {
        Args::Blk => blk::Blocks::open().map(|blk| serve(boot, Kind::Blk, blk)),
        Args::Net(ends) => net::Datagrams::open(ends).map(|net| serve(boot, Kind::Net, net)),
    };
    match result {
        Ok(never) => never,
        Err(why) => give_up(&why),
    }
}

/// Nothing of this mends itself.
fn give_up(why: &dyn core::fmt::Display) -> ! {
    log::error!("cannot judge: {why}");
    hypercall::exit(1)
}

/// What a step of a round came to.
struct Step {
    /// There may be more to do at once.
    again: bool,
    /// Otherwise, when there is, ns.
    deadline: u64,
    /// All that the orders want is done.
    done: bool,
}

/// One side of the judge's work.
trait Work {
    /// Looks after the connection.
    fn poll(&mut self) -> Progress;
    /// Counts of the frontend.
    fn counters(&self) -> Counters;
    /// Gets ready for a round.
    fn begin(&mut self, round: &Round);
    /// Takes what was completed and does what comes next.
    fn step(&mut self, round: &mut Round) -> Step;
}

/// Carries out rounds for ever.
fn serve(boot: &BootInfo, kind: Kind, mut work: impl Work) -> ! {
    JUDGE.open(boot.domain.into(), kind, boot.generation.into());
    set_ready();
    // A signal that is not there reads as 0, which is that of this round.
    let mut last = u64::MAX;
    let mut round: Option<Round> = None;
    loop {
        // All of them: an event that nobody takes would keep this domain awake.
        let _ = events::take_all();
        if let Some(check) = events::check() {
            events::answer(check, true);
        }
        let progress = work.poll();
        let mut deadline = progress.deadline.unwrap_or(NEVER);
        let mut again = progress.again;
        if let Some(running) = &mut round {
            running.look(work.counters());
            let step = work.step(running);
            again |= step.again;
            deadline = deadline.min(step.deadline).min(running.give_up_ns());
            if running.is_held() {
                deadline = deadline.min(now_ns().saturating_add(HELD_LOOK));
            }
            let over = match (step.done, now_ns() >= running.give_up_ns()) {
                (true, _) => Some(state::DONE),
                (false, true) => Some(state::LIMIT),
                (false, false) => None,
            };
            running.tell(over);
            if over.is_some() {
                round = None;
            }
        } else {
            deadline = deadline.min(now_ns().saturating_add(LOOK));
            if let Some(orders) = JUDGE.orders(last) {
                last = orders.round;
                again = true;
                if orders.are_valid() {
                    let mut begun = Round::begin(orders, work.counters());
                    work.begin(&begun);
                    begun.reach_moment();
                    round = Some(begun);
                } else {
                    let (round, state) = (orders.round, state::REFUSED);
                    JUDGE.tell(&Outcome { round, state, ..Outcome::default() });
                }
            }
        }
        if again {
            events::breathe();
        } else {
            events::wait(deadline);
        }
    }
}
