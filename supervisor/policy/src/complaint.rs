//! What comes of a frontend's complaint that its backend does no work.
//!
//! The backend is asked to check itself. One that does not answer in time, or
//! finds itself stuck, is ended: a death like any other, which its budget
//! counts. One that finds itself well may still be wrong, so it is restarted on
//! the frontend's word, but only once within the time that the manifest says
//! (`word_s`) for each frontend: no guest can hold a driver down, and other guests
//! of the driver see a pause at most that often.

use ring_proto::{
    DomainId, Generation, MAX_CONNECTIONS, MAX_DOMAINS,
    event::STUCK,
    hypercall::{ConnectionInfo, DomainInfo, DomainState},
};

use crate::node::{Node, life};

/// What to do with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Leave,
    /// Look again at this time (ns), or when its answer comes.
    Wait(u64),
    /// End it: it did not answer a check.
    Silent,
    /// End it: it found that it cannot work.
    Stuck,
    /// Restart it on this frontend's word.
    OnWord(DomainId),
    /// It is well, and this frontend's word was taken not long ago.
    Unheard(DomainId),
}

/// A check under way.
#[derive(Clone, Copy, Debug)]
struct Check {
    generation: Generation,
    /// Number of the answer.
    number: u32,
    deadline_ns: u64,
    /// Who complained.
    frontend: DomainId,
}

/// Complaints about all domains.
#[derive(Debug)]
pub struct Complaints {
    /// Complaints about each domain that were looked at.
    seen: [u32; MAX_DOMAINS],
    checks: [Option<Check>; MAX_DOMAINS],
    /// When the frontend's word was last taken on each connection, ns.
    taken: [Option<u64>; MAX_CONNECTIONS],
}

impl Complaints {
    /// Nobody has complained.
    pub const fn new() -> Self {
        Self { seen: [0; MAX_DOMAINS], checks: [None; MAX_DOMAINS], taken: [None; MAX_CONNECTIONS] }
    }

    /// Judges one domain as it is `now`.
    pub fn judge(
        &mut self,
        node: &mut impl Node,
        info: &DomainInfo,
        connections: &[ConnectionInfo],
        now: u64,
    ) -> Verdict {
        let index = usize::from(info.id);
        let (Some(seen), Some(check)) = (self.seen.get_mut(index), self.checks.get_mut(index))
        else {
            return Verdict::Leave;
        };
        // What was said of an earlier generation is over: a new supervisor has seen nothing yet.
        let complained = core::mem::replace(seen, info.complaints) != info.complaints
            && info.complained_ns >= info.started_ns;
        if DomainState::from_raw(info.state) != Some(DomainState::Running) {
            *check = None;
            return Verdict::Leave;
        }
        // A generation that is gone owes no answer.
        let _ = check.take_if(|c| c.generation != info.generation);
        let Some(pending) = *check else {
            if !complained {
                return Verdict::Leave;
            }
            let Ok(number) = node.check(life(info), false) else { return Verdict::Leave };
            let deadline_ns = now.saturating_add(u64::from(info.check_ms) * 1_000_000);
            let (generation, frontend) = (info.generation, info.complainant);
            *check = Some(Check { generation, number, deadline_ns, frontend });
            return Verdict::Wait(deadline_ns);
        };
        if info.health & !STUCK != pending.number {
            if now < pending.deadline_ns {
                return Verdict::Wait(pending.deadline_ns);
            }
            *check = None;
            return Verdict::Silent;
        }
        *check = None;
        if info.health & STUCK != 0 {
            return Verdict::Stuck;
        }
        match self.take_word(pending.frontend, info, connections, now) {
            true => Verdict::OnWord(pending.frontend),
            false => Verdict::Unheard(pending.frontend),
        }
    }

    /// Takes a frontend's word, unless it was taken within the backend's `word_s`.
    fn take_word(
        &mut self,
        frontend: DomainId,
        backend: &DomainInfo,
        connections: &[ConnectionInfo],
        now: u64,
    ) -> bool {
        let mut shared =
            connections.iter().filter(|c| c.frontend == frontend && c.backend == backend.id);
        let slot = shared.next().and_then(|c| self.taken.get_mut(usize::from(c.id)));
        let Some(slot) = slot else { return false };
        let word_ns = u64::from(backend.word_s) * 1_000_000_000;
        if slot.is_some_and(|at| now.saturating_sub(at) < word_ns) {
            return false;
        }
        *slot = Some(now);
        true
    }
}

impl Default for Complaints {
    fn default() -> Self {
        Self::new()
    }
}
