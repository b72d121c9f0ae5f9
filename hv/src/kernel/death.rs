//! The end of a generation: quiesce, record, tell.
//!
//! After [`Node::end`] the old generation can touch nothing: its vCPU does
//! not run, its devices master no bus and have no IOMMU context, its
//! interrupts are off, what it had mapped is unmapped, and what it had granted
//! is withdrawn.

use core::{fmt::Write, sync::atomic::Ordering};

use hv_core::domain::Life;
use ring_proto::{
    DomainId, MAX_DOMAIN_CONNECTIONS, boot, conn,
    crash::{CrashRecord, CrashReport, Reason, Rebuild, Timeline, UNKNOWN},
    hypercall::Error,
};
use zerocopy::{FromZeros, transmute};

use super::{Answer, Node, Orders, restore::copy_text};
use crate::{iommu, time, vt::Vcpu};

impl Node {
    /// What the hypervisor can tell of a domain that did not report itself:
    /// registers, and return addresses along its frame pointers.
    pub(super) fn describe(&self, domain: DomainId, reason: Reason) -> CrashReport {
        let mut report = CrashReport::new_zeroed();
        report.reason = reason as u32;
        let Some(vcpu) = &self.guests[domain].vcpu else { return report };
        let mut frame = vcpu.describe(&mut report);
        let space = &self.domains[domain].space;
        for slot in &mut report.backtrace {
            let mut pair = [0; 16];
            let Some(at) = space.translate(frame, 16, false) else { break };
            if self.ram.read(at, &mut pair).is_err() {
                break;
            }
            let [next, return_address]: [u64; 2] = transmute!(pair);
            *slot = return_address;
            // Frames lie ever higher on the stack; anything else is garbage.
            if return_address == 0 || next <= frame {
                break;
            }
            frame = next;
        }
        report
    }

    /// Ends a running domain's generation. Called on the domain's own core,
    /// while its vCPU does not run.
    pub(super) fn end(
        &mut self,
        domain: DomainId,
        reason: Reason,
        mut report: CrashReport,
        fault_address: u64,
        exit_code: u64,
        detected: u64,
    ) {
        if !self.domains[domain].is_alive() {
            return;
        }
        // What a domain says of itself is for people; this is what happened.
        report.reason = reason as u32;
        let died = match reason {
            Reason::Watchdog => self.sched.get(domain).fed_ns,
            _ if report.time_ns != 0 => report.time_ns,
            _ => detected,
        };
        let in_flight =
            self.events(domain).map_or(0, |page| page.in_flight.load(Ordering::Relaxed));
        self.sched.stop(domain);
        self.devices.life_ended(domain, self.domains[domain].info.ready, reason);
        // They were for this generation, not for the next.
        self.guests[domain].orders = Orders::default();
        let ended = self.domains[domain].died(reason, detected);
        // Before its grants turn into scratch pages: a peer that reads junk
        // there must be able to see that it is junk (SPEC.md, CONN-8).
        self.show_closed(domain);
        self.devices.quiesce(domain);
        // Events that its devices caused up to here are its own.
        self.take_iommu_events();
        self.unmap_everything(domain);
        self.withdraw_everything(domain);
        let quiesced = time::now_ns();
        let injected = core::mem::take(&mut self.guests[domain].injected);
        self.end_trial(domain);
        self.tell_peers(domain);
        self.tell_supervisor();
        // Nobody who was told can look before this lock is released.
        self.deaths.push(CrashRecord {
            sequence: 0,
            times: Timeline {
                died: died.min(detected),
                detected,
                quiesced,
                told: time::now_ns(),
                ..Timeline::default()
            },
            fault_address,
            exit_code,
            domain,
            rebuild: Rebuild::None as u16,
            generation: ended,
            pages_restored: 0,
            // The domain says one more, or nothing.
            in_flight: in_flight.checked_sub(1).unwrap_or(UNKNOWN),
            image_crc: self.domains[domain].body.crc,
            ordered: u16::from(injected || reason == Reason::Operator),
            reset: self.devices.ladders[domain].rung() as u16,
            report,
        });
        self.info.next_crash = self.deaths.next();
        let name = self.domains[domain].config.name.clone();
        let message = report.message.split(|&b| b == 0).next().unwrap_or_default();
        let (rip, at) = (report.rip, fault_address);
        let what = format_args!("{name}: generation {ended} ended: {reason:?}");
        match (reason, core::str::from_utf8(message)) {
            (Reason::Operator | Reason::Exit, _) => self.say(what),
            (_, Ok(text)) if !text.is_empty() => self.say(format_args!("{what}: {text}")),
            (Reason::NestedFault, _) => {
                self.say(format_args!("{what} at address {at:#x}, instruction {rip:#x}"));
            }
            _ => self.say(format_args!("{what} at instruction {rip:#x}")),
        }
        // There is nobody else to restart the supervisor.
        if self.domains[domain].config.capabilities & boot::CAP_SUPERVISOR != 0 {
            let _ = self.begin(domain);
        }
    }

    /// Writes "closed" and the coming generation into a domain's end pages.
    pub(super) fn show_closed(&self, domain: DomainId) {
        let generation = self.domains[domain].info.generation;
        for (own, _) in self.connections.iter().filter_map(|c| c.ends(domain)) {
            for (offset, value) in conn::closed(generation) {
                if let Ok(word) = self.ram.word32(own.page.saturating_add(offset as u64)) {
                    word.store(value, Ordering::SeqCst);
                }
            }
        }
    }

    fn tell_peers(&mut self, domain: DomainId) {
        let mut ends = heapless::Vec::<_, MAX_DOMAIN_CONNECTIONS>::new();
        ends.extend(self.connections.iter().filter_map(|c| c.ends(domain)));
        for (_, peer) in ends {
            self.raise(peer.domain, peer.port);
        }
    }

    /// Ends a generation because somebody asked for it.
    pub(super) fn end_on_order(
        &mut self,
        domain: DomainId,
        reason: Reason,
        event: Option<iommu::Event>,
        now: u64,
    ) {
        match self.domains[domain].life {
            Life::Running => {
                let mut report = self.describe(domain, reason);
                if let Some(event) = event {
                    let mut text = heapless::String::<96>::new();
                    // Longest: a number of 16 digits and a few words.
                    let _ = write!(text, "{event}");
                    copy_text(&mut report.message, &text);
                }
                self.end(domain, reason, report, event.map_or(0, |e| e.address), 0, now);
            }
            Life::Building(_) if matches!(reason, Reason::Operator | Reason::Stalled) => {
                self.domains[domain].life = Life::Dead;
                self.end_trial(domain);
                self.sched.stop(domain);
            }
            Life::Building(_) | Life::Dead | Life::Stopped => {}
        }
    }

    /// Has a domain ended and perhaps begun anew, on its own core.
    pub(super) fn order(&mut self, domain: DomainId, end: Option<Reason>, start: bool) -> Answer {
        if start && self.domains[domain].held {
            return Err(Error::BadState);
        }
        if start && end.is_none() {
            self.stamp(domain, |t| &mut t.decided);
        }
        let orders = &mut self.guests[domain].orders;
        orders.end = end.or(orders.end);
        orders.start |= start;
        self.kick(self.domains[domain].info.core);
        Ok(0)
    }
}
