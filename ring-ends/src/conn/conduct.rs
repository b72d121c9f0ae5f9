//! How a backend treats a frontend that is disconnected again and again (CONN-14).

use core::fmt;

use ring_proto::Generation;

use super::{
    ANSWER_INTERVAL_NS, ANSWER_PAUSE_MOST_NS, FORGIVE_NS, GENERATION_INTERVAL_NS, STRIKES_MOST,
};

/// What a backend has to say about its frontend, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Complaint {
    /// What the frontend did last.
    pub why: &'static str,
    /// Times that it broke the protocol so far, in all its lives.
    pub times: u64,
    /// This generation is not served any more.
    pub barred: Option<Generation>,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, times, barred } = self;
        match barred {
            Some(generation) => write!(
                f,
                "was disconnected too often ({why}): generation {generation} is not served again"
            ),
            None => write!(f, "broke the protocol ({why}), {times} times so far"),
        }
    }
}

/// Whether an offer is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Now,
    /// Not before this time.
    At(u64),
    /// Never: this generation is barred.
    Never,
}

/// The record of one frontend.
#[derive(Debug, Default)]
#[cfg_attr(stepped, derive(Clone, PartialEq, Eq, Hash))]
pub(super) struct Conduct {
    /// The generation that was answered last, and when.
    answered: Option<(Generation, u64)>,
    /// Disconnects and refusals of that generation, less those forgiven.
    strikes: u32,
    last_strike: u64,
    /// That generation's end was seen. What comes may bear its number all the
    /// same, if it had written that of its successor into its page.
    ended: bool,
}

impl Conduct {
    /// Whether an offer of `generation` is answered. Who is not the generation
    /// that was answered last begins with a clean record, but a little later:
    /// the number stands in a page that the frontend can write.
    pub(super) fn verdict(&self, generation: Generation, now: u64) -> Verdict {
        let Some((known, at)) = self.answered else { return Verdict::Now };
        let pause = if known != generation || self.ended {
            GENERATION_INTERVAL_NS
        } else if self.is_barred() {
            return Verdict::Never;
        } else {
            (ANSWER_INTERVAL_NS << self.strikes.min(STRIKES_MOST)).min(ANSWER_PAUSE_MOST_NS)
        };
        let next = at.saturating_add(pause);
        if now < next { Verdict::At(next) } else { Verdict::Now }
    }

    /// An offer is looked at now.
    pub(super) fn answered(&mut self, generation: Generation, now: u64) {
        if self.ended || self.answered.is_none_or(|(known, _)| known != generation) {
            self.strikes = 0;
            self.ended = false;
        }
        self.answered = Some((generation, now));
    }

    /// The frontend's state is closed.
    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    /// The generation answered last was refused or disconnected. Returns
    /// whether that barred it.
    pub(super) fn strike(&mut self, now: u64) -> bool {
        if self.is_barred() {
            return false;
        }
        let calm = now.saturating_sub(self.last_strike) / FORGIVE_NS;
        let forgiven = u32::try_from(calm).unwrap_or(u32::MAX);
        self.strikes = self.strikes.saturating_sub(forgiven).saturating_add(1);
        self.last_strike = now;
        self.is_barred()
    }

    pub(super) fn strikes(&self) -> u32 {
        self.strikes
    }

    /// The generation that is barred, if one is.
    pub(super) fn barred(&self) -> Option<Generation> {
        self.answered.filter(|_| self.is_barred()).map(|(generation, _)| generation)
    }

    fn is_barred(&self) -> bool {
        self.strikes >= STRIKES_MOST && !self.ended
    }
}
