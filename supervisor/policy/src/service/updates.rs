//! Trials of new images.
//!
//! What the hypervisor shows of a trial is all that is needed to bring it to its
//! end, so a restarted supervisor goes on where the one before stopped. Only who
//! asked for it is forgotten with a supervisor; the host then reads the outcome
//! in the list of domains.
//!
//! The spare tries first: if it does not stand by in time, the driver was never
//! touched. Then the driver finishes its work and hands over. Without a spare
//! it is built of the new image itself. Once it is ready and stayed up for
//! [`TRIAL_NS`], the image is kept.

use heapless::String;
use ring_proto::{
    DomainId, Generation, MAX_DOMAINS,
    bundle::Name,
    control::{self, Answer, FRAME_MAX, Failure, FailureKind, Updated},
    crash::CrashRecord,
    hypercall::{DomainInfo, DomainState, Error, NOBODY, Trial},
};

use super::{RETRY_NS, SHARED_POLL_NS, Supervisor, is, refused, restart};
use crate::{
    node::{Node, life},
    operation::Drain,
    status,
};

/// How long a generation of a new image may take until it is ready, ns.
pub const READY_NS: u64 = 10_000_000_000;
/// How long it must stay up, ns.
pub const TRIAL_NS: u64 = 1_000_000_000;
/// How long the old one may take to finish its work, ns.
const DRAIN_NS: u64 = 5_000_000_000;
/// More than any image has pieces to check.
const PIECES: usize = 4096;

/// A trial as this supervisor has seen it.
#[derive(Clone, Copy, Debug)]
struct Watch {
    trial: Trial,
    since_ns: u64,
    /// Generation that is to finish its work.
    drain: Option<(Generation, Drain)>,
    /// When an order may be repeated.
    again_ns: u64,
}

/// Whom to tell.
#[derive(Debug)]
struct Asked {
    seq: u32,
    domain: DomainId,
    name: Name,
    kept: bool,
    why: &'static str,
    record: Option<u64>,
}

/// Trials of all domains.
#[derive(Debug)]
pub(super) struct Updates {
    watches: [Watch; MAX_DOMAINS],
    asked: Option<Asked>,
}

impl Updates {
    pub(super) const fn new() -> Self {
        let watch = Watch { trial: Trial::None, since_ns: 0, drain: None, again_ns: 0 };
        Self { watches: [watch; MAX_DOMAINS], asked: None }
    }

    /// Whether a domain pauses on purpose, since it is to hand over.
    pub(super) fn drains(&self, domain: DomainId) -> bool {
        self.watches.get(usize::from(domain)).is_some_and(|w| w.drain.is_some())
    }

    /// Notes the death of a generation that ended for an update.
    pub(super) fn note(&mut self, record: &CrashRecord) {
        if let Some(asked) = self.asked_for(record.domain) {
            asked.record.get_or_insert(record.sequence);
        }
    }

    fn asked_for(&mut self, domain: DomainId) -> Option<&mut Asked> {
        self.asked.as_mut().filter(|asked| asked.domain == domain)
    }

    fn blame(&mut self, domain: DomainId, why: &'static str) {
        if let Some(asked) = self.asked_for(domain) {
            asked.why = why;
        }
    }
}

impl Supervisor {
    /// The domain of that name, if its image can be updated.
    pub(super) fn updatable(&self, name: &Name) -> Result<DomainInfo, Failure> {
        let info = self.find(name)?;
        let failed = |text| Err(Failure::new(FailureKind::BadState, text));
        if info.spare_of != NOBODY {
            let principal = self.name(info.spare_of);
            return failed(format_args!("{name} is a spare; update {principal}, and it follows"));
        }
        if info.update_space == 0 {
            return failed(format_args!(
                "{name} cannot be updated: its manifest gives it no `update_space`"
            ));
        }
        Ok(info)
    }

    /// Puts the staged image on trial; the answer comes when that is over.
    pub(super) fn begin_update(
        &mut self,
        node: &mut impl Node,
        seq: u32,
        name: Name,
    ) -> Result<Option<Answer>, Failure> {
        let info = self.updatable(&name)?;
        let failed = |kind, text| Err(Failure::new(kind, text));
        if self.updates.asked.is_some() || info.trial != Trial::None as u32 {
            return failed(FailureKind::Busy, format_args!("an earlier update is still on trial"));
        }
        if !is(&info, DomainState::Running) {
            return failed(FailureKind::BadState, format_args!("{name} does not run"));
        }
        let mut why = [0; 128];
        let mut result = Err(Error::Busy);
        for _ in 0..PIECES {
            result = node.image_commit(info.id, &mut why);
            if result != Err(Error::Busy) {
                break;
            }
        }
        let len = result.map_err(refused)?;
        if len > 0 {
            let mut text = String::<128>::new();
            for part in why.get(..len).unwrap_or(&why).utf8_chunks() {
                // As long as the buffer.
                let _ = text.push_str(part.valid());
            }
            return failed(
                FailureKind::BadState,
                format_args!("the image for {name} is refused: {text}"),
            );
        }
        let why = "it died on trial";
        let domain = info.id;
        self.updates.asked = Some(Asked { seq, domain, name, kept: false, why, record: None });
        Ok(None)
    }

    /// Brings trials to their end. Returns when to come back.
    pub(super) fn steer_updates(&mut self, node: &mut impl Node, now: u64) -> u64 {
        let mut next = u64::MAX;
        for index in 0..self.domains.len() {
            let Some(&info) = self.domains.get(index) else { continue };
            if info.update_space > 0 && info.spare_of == NOBODY {
                next = next.min(self.steer(node, &info, now));
            }
        }
        next
    }

    fn steer(&mut self, node: &mut impl Node, info: &DomainInfo, now: u64) -> u64 {
        let spare = self.domains.iter().find(|d| d.spare_of == info.id).copied();
        let Some(watch) = self.updates.watches.get_mut(usize::from(info.id)) else {
            return u64::MAX;
        };
        let trial = Trial::from_raw(info.trial).unwrap_or(Trial::None);
        if watch.trial != trial {
            *watch = Watch { trial, since_ns: now, drain: None, again_ns: 0 };
        }
        let until = watch.since_ns.saturating_add(READY_NS);
        let late = now >= until;
        let running = is(info, DomainState::Running);
        match (trial, spare) {
            (Trial::None, spare) => {
                // A spare is as its principal is to be.
                let other =
                    |s: &DomainInfo| is(s, DomainState::Running) && s.image_crc != info.good_crc;
                let again = match spare.filter(other) {
                    Some(spare) => self.order(node, info, &spare, now),
                    None => u64::MAX,
                };
                self.finish_update(info, until, now).min(again)
            }
            (Trial::Due | Trial::Elsewhere, _) if !will_run(info) => {
                self.give_up(node, info, "it was stopped before its turn came", now)
            }
            (Trial::Due, _) if late || !running => {
                self.give_up(node, info, "no generation of it could be begun", now)
            }
            (Trial::Due, Some(spare)) if is(&spare, DomainState::Held) => {
                self.give_up(node, info, "its spare, which is to try first, is held", now)
            }
            (Trial::Due, Some(spare)) => self.order(node, info, &spare, now),
            (Trial::Elsewhere, Some(spare)) if spare.ready == 0 => match late {
                true => self.give_up(node, info, "its spare did not stand by in time", now),
                false => until,
            },
            // The policy starts it, and its spare takes over.
            (Trial::Elsewhere, _) if !running => u64::MAX,
            // The driver finishes its work and goes.
            (Trial::Due, None) | (Trial::Elsewhere, _) => self.drain_for_update(node, info, now),
            (Trial::Here, _) if running && info.ready != 0 => {
                let until = info.started_ns.saturating_add(TRIAL_NS);
                if now < until {
                    return until;
                }
                match node.image_judge(info.id, true) {
                    Ok(()) => {
                        if let Some(asked) = self.updates.asked_for(info.id) {
                            asked.kept = true;
                        }
                    }
                    Err(why) => {
                        log::error!("{}: its image is not kept: {why:?}", status::name(info));
                    }
                }
                now.saturating_add(SHARED_POLL_NS)
            }
            (Trial::Here, _) if late => self.give_up(node, info, "it was not ready in time", now),
            (Trial::Here, _) => until,
        }
    }

    fn drain_for_update(&mut self, node: &mut impl Node, info: &DomainInfo, now: u64) -> u64 {
        let soon = now.saturating_add(RETRY_NS);
        let Some(watch) = self.updates.watches.get_mut(usize::from(info.id)) else { return soon };
        if now < watch.again_ns {
            return watch.again_ns;
        }
        match watch.drain.filter(|drain| drain.0 == info.generation) {
            None if info.ready != 0 => match node.check(life(info), true) {
                Ok(number) => {
                    let until_ns = now.saturating_add(DRAIN_NS);
                    watch.drain = Some((info.generation, Drain { number, until_ns }));
                    now.saturating_add(SHARED_POLL_NS)
                }
                Err(_) => soon,
            },
            Some((_, drain)) if !drain.is_over(info, now) => now.saturating_add(SHARED_POLL_NS),
            _ => self.order(node, info, info, now),
        }
    }

    /// Restarts `domain` for the update of `of`, unless that was just done.
    /// Returns when to do it again if nothing comes of it.
    fn order(
        &mut self,
        node: &mut impl Node,
        of: &DomainInfo,
        domain: &DomainInfo,
        now: u64,
    ) -> u64 {
        let Some(watch) = self.updates.watches.get_mut(usize::from(of.id)) else {
            return u64::MAX;
        };
        if now < watch.again_ns {
            return watch.again_ns;
        }
        let again = now.saturating_add(RETRY_NS);
        watch.again_ns = again;
        restart(node, domain);
        again
    }

    fn give_up(
        &mut self,
        node: &mut impl Node,
        info: &DomainInfo,
        why: &'static str,
        now: u64,
    ) -> u64 {
        log::error!("{}: its new image is given up: {why}", status::name(info));
        self.updates.blame(info.id, why);
        if let Err(why) = node.image_judge(info.id, false) {
            log::error!("{}: its image does not go back: {why:?}", status::name(info));
        }
        now.saturating_add(SHARED_POLL_NS)
    }

    /// Answers once the trial is over and the domain is ready, or will not be.
    fn finish_update(&mut self, info: &DomainInfo, until: u64, now: u64) -> u64 {
        let Some(asked) = self.updates.asked.as_ref().filter(|a| a.domain == info.id) else {
            return u64::MAX;
        };
        if info.ready == 0 && will_run(info) && now < until {
            return until;
        }
        if self.room() < FRAME_MAX {
            // As soon as the line has taken something.
            return u64::MAX;
        }
        let why = if asked.kept { "" } else { asked.why };
        let updated = Updated {
            domain: asked.name.clone(),
            kept: asked.kept,
            image_crc: info.good_crc,
            why: control::format(format_args!("{why}")),
            record: asked.record,
        };
        let seq = asked.seq;
        self.updates.asked = None;
        self.reply(seq, Ok(Answer::Updated(updated)));
        u64::MAX
    }
}

/// Whether a domain runs, or the policy starts it.
fn will_run(info: &DomainInfo) -> bool {
    is(info, DomainState::Running) || is(info, DomainState::Dead) && info.restart_automatic != 0
}
