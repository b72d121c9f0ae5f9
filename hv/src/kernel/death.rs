//! The end of a generation: quiesce, record, tell.
//!
//! After [`Node::end`] the old generation can touch nothing: its vCPU does
//! not run, its devices master no bus and have no IOMMU context, its
//! interrupts are off, what it had mapped is unmapped, and what it had granted
//! is withdrawn.

use core::sync::atomic::Ordering;

use hv_core::domain::Life;
use ring_proto::{
    DomainId, boot,
    conn::State,
    crash::{CrashRecord, CrashReport, Reason},
    event,
    hypercall::Error,
};
use zerocopy::FromZeros;

use super::Node;
use crate::{cpu, time, vt::Vcpu};

/// Offsets in `conn::EndPage`.
const STATE: u64 = 0;
const GENERATION: u64 = 4;

impl Node {
    /// What the hypervisor can tell of a domain that did not report itself:
    /// registers, and return addresses along its frame pointers.
    pub(super) fn describe(&self, domain: DomainId, reason: Reason) -> CrashReport {
        let mut report = CrashReport::new_zeroed();
        report.reason = reason as u32;
        let d = usize::from(domain);
        let Some(vcpu) = self.vcpus.get(d).and_then(Option::as_ref) else { return report };
        let mut frame = vcpu.describe(&mut report);
        let space = &self.domains[d].space;
        for slot in &mut report.backtrace {
            let mut pair = [0; 16];
            let Some(at) = space.translate(frame, 16, false) else { break };
            if self.ram.read(at, &mut pair).is_err() {
                break;
            }
            let [next, return_address] = halves(pair);
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
        let d = usize::from(domain);
        if !self.is_running(domain) {
            return;
        }
        // What a domain says of itself is for people; this is what happened.
        report.reason = reason as u32;
        self.sched.stop(domain);
        let ended = self.domains[d].died(reason, detected);
        // Before its grants turn into scratch pages: a peer that reads junk
        // there must be able to see that it is junk (SPEC.md, CONN-8).
        self.show_closed(domain);
        self.devices.quiesce(domain);
        // Events that its devices caused up to here are its own.
        self.take_iommu_events();
        self.unmap_everything(domain);
        self.withdraw_everything(domain);
        self.deaths.push(CrashRecord {
            sequence: 0,
            detected_ns: detected,
            quiesced_ns: time::now_ns(),
            restarted_ns: 0,
            ready_ns: 0,
            fault_address,
            exit_code,
            domain,
            reserved: 0,
            generation: ended,
            report,
        });
        self.info.next_crash = self.deaths.next();
        let name = self.domains[d].config.name.clone();
        let place = Place { report: &report, fault_address, reason };
        self.say(format_args!("{name}: generation {ended} ended: {reason:?}{place}"));
        self.tell_peers(domain);
        // There is nobody else to restart the supervisor.
        if self.domains[d].config.capabilities & boot::CAP_SUPERVISOR != 0 {
            let _ = self.domains[d].begin_build();
        }
        self.tell_supervisor();
    }

    /// Writes "closed" and the coming generation into a domain's end pages.
    pub(super) fn show_closed(&self, domain: DomainId) {
        let generation = self.domains[usize::from(domain)].generation;
        for c in &self.connections {
            for end in [c.frontend, c.backend] {
                if end.domain != domain {
                    continue;
                }
                // The generation first: a peer that sees it knows that
                // whatever else the page says is stale.
                for (offset, value) in [(GENERATION, generation), (STATE, State::Closed as u32)] {
                    if let Ok(word) = self.ram.word32(end.page + offset) {
                        word.store(value, Ordering::SeqCst);
                    }
                }
            }
        }
    }

    fn tell_peers(&mut self, domain: DomainId) {
        for i in 0..self.connections.len() {
            let (front, back) = (self.connections[i].frontend, self.connections[i].backend);
            for (own, peer) in [(front, back), (back, front)] {
                if own.domain == domain {
                    self.raise(peer.domain, event::PORT_CONNECTIONS + peer.slot);
                }
            }
        }
    }

    /// Ends a generation because somebody asked for it.
    pub(super) fn end_on_order(&mut self, domain: DomainId, reason: Reason, now: u64) {
        let d = usize::from(domain);
        match self.domains[d].life {
            Life::Running => {
                let report = self.describe(domain, reason);
                self.end(domain, reason, report, 0, 0, now);
            }
            Life::Building(_) if reason == Reason::Operator => self.domains[d].life = Life::Dead,
            Life::Building(_) | Life::Dead | Life::Stopped => {}
        }
    }

    /// Has a domain ended and perhaps begun anew, on its own core.
    pub(super) fn order(&mut self, domain: DomainId, end: bool, start: bool) -> Result<(), Error> {
        let d = usize::from(domain);
        let target = self.domains.get(d).ok_or(Error::NotFound)?;
        if start && target.held {
            return Err(Error::BadState);
        }
        let core = target.core;
        let order = &mut self.orders[d];
        if end {
            order.end = Some(Reason::Operator);
        }
        order.start |= start;
        if usize::from(core) != cpu::core() {
            self.kick(core);
        }
        Ok(())
    }
}

fn halves(pair: [u8; 16]) -> [u64; 2] {
    let value = u128::from_le_bytes(pair);
    [value as u64, (value >> 64) as u64]
}

/// Where a death happened, for the log line.
struct Place<'a> {
    report: &'a CrashReport,
    fault_address: u64,
    reason: Reason,
}

impl core::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let message = self.report.message.split(|&b| b == 0).next().unwrap_or(&[]);
        match (self.reason, core::str::from_utf8(message)) {
            (Reason::Operator | Reason::Exit, _) => Ok(()),
            (_, Ok(text)) if !text.is_empty() => write!(f, ": {text}"),
            (Reason::NestedFault, _) => {
                write!(
                    f,
                    " at address {:#x}, instruction {:#x}",
                    self.fault_address, self.report.rip
                )
            }
            _ => write!(f, " at instruction {:#x}", self.report.rip),
        }
    }
}
