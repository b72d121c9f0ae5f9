//! How a hostile driver goes through its misdeeds.
//!
//! Its first generation is honest, so that the node comes up: it runs the real
//! driver. Each of the next plays some acts, then dies, which also sets back
//! the pause that the guest makes after each loss; the one after the last act
//! is honest again, for good. Each part says what came of it:
//!
//! `attack: NAME: part: tried=6 right=6`
//!
//! where `right` counts acts that ended as they must: the guest dropped the
//! driver, or bore what does it no harm.

use domain_rt::{conn, set_ready};
use ring_proto::{
    boot::BootInfo,
    conn::{BackBody, BackHello, HELLO_MAX, Protocol, Role, State, VERSION},
};

use super::{LIMIT, WATCH, back::Back};
use crate::begin;

/// Acts of one generation.
const PART: usize = 7;

/// What a guest must make of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Takes its connection back.
    Dropped,
    /// Stands by it.
    Borne,
}

/// A misdeed towards a guest whose offer was accepted; it starts connected
/// unless it is about the answer itself.
pub struct Act {
    /// For the log.
    pub what: &'static str,
    /// What must come of it.
    pub wanted: Outcome,
    /// Does it.
    pub run: fn(&mut Back),
}

/// Whether acts are about the answer, or about what follows it.
fn is_about_answers(name: &str) -> bool {
    name == "backend-hello"
}

/// Plays what this generation has to play, then ends it.
pub fn play(
    name: &'static str,
    boot: &'static BootInfo,
    acts: fn(Protocol) -> &'static [Act],
) -> ! {
    if boot.generation == 1 {
        honest(boot);
    }
    let is_disk = conn::all(Protocol::Blk, Role::Backend).next().is_some();
    let all = acts(if is_disk { Protocol::Blk } else { Protocol::Net });
    let begun = (boot.generation as usize - 2) * PART;
    let Some(part) = all.get(begun..).filter(|rest| !rest.is_empty()) else {
        log::info!("attack: {name}: done: acts={}", all.len());
        honest(boot);
    };
    let mut back = Back::first();
    begin(name);
    let (mut tried, mut right) = (0, 0);
    for act in part.iter().take(PART) {
        let ready = if is_about_answers(name) { back.accept() } else { back.connect() };
        if !ready {
            crate::breach!(name, "the guest made no offer before: {}", act.what);
            continue;
        }
        tried += 1;
        (act.run)(&mut back);
        let outcome = match act.wanted {
            Outcome::Dropped if back.dropped(LIMIT) => Outcome::Dropped,
            Outcome::Dropped => Outcome::Borne,
            Outcome::Borne if back.dropped(WATCH) => Outcome::Dropped,
            Outcome::Borne => Outcome::Borne,
        };
        match outcome == act.wanted {
            true => right += 1,
            // One is enough, and the next would wait as long.
            false => {
                crate::breach!(name, "{} was {outcome:?}", act.what);
                break;
            }
        }
        if back.stands() {
            show_the_door(&mut back);
        }
    }
    log::info!("attack: {name}: part: tried={tried} right={right}");
    panic!("a part of the attack is over");
}

/// Ends what the guest still stands by, so that it offers anew.
fn show_the_door(back: &mut Back) {
    let body = BackBody::Refused { why: heapless::String::new() };
    let hello = BackHello { version: VERSION, features: 0, body };
    let mut bytes = [0; HELLO_MAX];
    let len = postcard::to_slice(&hello, &mut bytes).expect("a hello is short").len();
    back.answer_bytes(&bytes[..len], len as u32, back.served, State::Closing as u32);
    back.dropped(LIMIT);
}

/// The real driver, for ever.
pub fn honest(boot: &'static BootInfo) -> ! {
    set_ready();
    if conn::all(Protocol::Blk, Role::Backend).next().is_some() {
        driver_blk::service::run(boot)
    }
    driver_net::service::run(boot)
}
