//! Hypercall dispatch.

use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use hv_core::domain::Domain;
use ring_proto::{
    DomainId, boot,
    conn::State,
    crash::{CrashReport, Reason, Timeline},
    event::{self, Inject},
    hypercall::{
        COMPLAINT_NS, ConnectionInfo, DomainInfo, EVERY_DOMAIN, Error, GrantCopyOp, LogHeader,
        MAX_CONSOLE_WRITE, MAX_COPY_BATCH, NodeInfo, Nr,
    },
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Answer, Connection, End, Node, count};
use crate::{
    serial, time,
    vt::{Vcpu, svm},
};

/// Largest piece of text that one `ConsoleWrite` takes.
const CONSOLE_CHUNK: usize = 1024;
const _: () = assert!(CONSOLE_CHUNK as u64 == MAX_CONSOLE_WRITE);
/// Largest piece of the log that one `LogRead` copies.
const LOG_CHUNK: usize = 2048;
/// What `power_off` tells QEMU after an orderly end.
const EXIT_ORDERLY: u8 = 0x10;

impl Node {
    /// Handles the hypercall that `caller` made.
    pub(super) fn hypercall(&mut self, caller: DomainId, now: u64) {
        count(&mut self.domains[caller].info.hypercalls);
        let Some(vcpu) = &self.guests[caller].vcpu else { return };
        let (nr, args) = vcpu.hypercall();
        let answer = match Nr::from_raw(nr) {
            Some(nr) => self.dispatch(caller, nr, args, now),
            None => Some(Err(Error::BadNumber)),
        };
        if let (Some(answer), Some(vcpu)) = (answer, self.guests[caller].vcpu.as_mut()) {
            match answer {
                Ok(value) => vcpu.set_result(0, value),
                Err(e) => vcpu.set_result(e as u64, 0),
            }
        }
    }

    /// `None`: the caller has no registers any more.
    fn dispatch(&mut self, caller: DomainId, nr: Nr, args: [u64; 5], now: u64) -> Option<Answer> {
        let [a, b, c, d, e] = args;
        if nr as u64 >= Nr::DomainList as u64 {
            let capabilities = self.domains[caller].config.capabilities;
            if capabilities & boot::CAP_SUPERVISOR == 0 {
                return Some(Err(Error::NotPermitted));
            }
        }
        // A spare must be as bare as the body that it changes places with.
        let modest = matches!(nr, Nr::ConsoleWrite | Nr::Wait | Nr::Yield | Nr::Exit | Nr::Crash);
        if self.domains[caller].config.spare_of.is_some() && !modest {
            return Some(Err(Error::BadState));
        }
        Some(match nr {
            Nr::ConsoleWrite => self.console_write(caller, a, b, now),
            Nr::Wait => self.wait(caller, a, now),
            Nr::Notify => self.notify(caller, a),
            Nr::GrantMap => self.grant_map(caller, args),
            Nr::GrantUnmap => self.grant_unmap(caller, a, b),
            Nr::GrantRevoke => self.grant_revoke(caller, a, b),
            Nr::GrantCopy => self.grant_copy(caller, a, b),
            // The scheduler looks again after every exit.
            Nr::Yield => Ok(0),
            Nr::Exit => {
                self.end(caller, Reason::Exit, CrashReport::new_zeroed(), 0, a, now);
                return None;
            }
            Nr::Crash => {
                let report = self.crash_report(caller, a, b);
                let reason = match Reason::from_raw(report.reason) {
                    Some(own @ (Reason::Exception | Reason::Stalled | Reason::Memory)) => own,
                    _ => Reason::Panic,
                };
                self.end(caller, reason, report, 0, 0, now);
                return None;
            }
            Nr::PciConfig => self.devices.config(caller, args),
            Nr::IrqBind => self.devices.bind(caller, self.domains[caller].info.core, a, b, c),
            Nr::IrqUnmask => self.devices.unmask(caller, a),
            Nr::Complain => self.complain(caller, a, now),
            Nr::DeviceEnable => {
                let done = self.devices.enable(caller, a, b);
                if done.is_ok() && b == 1 {
                    self.stamp(caller, |t| &mut t.enabled);
                }
                done
            }
            Nr::DomainList => self.domain_list(caller, a, b),
            Nr::Start => self.checked(a).and_then(|d| self.order(d, None, true)),
            Nr::Stop => {
                let reason = match c {
                    0 => Ok(Reason::Operator),
                    _ if c == Reason::Stalled as u64 => Ok(Reason::Stalled),
                    _ => Err(Error::BadArgument),
                };
                reason.and_then(|r| self.order(self.checked_life(a, b)?, Some(r), false))
            }
            Nr::Restart => {
                self.checked_life(a, b).and_then(|d| self.order(d, Some(Reason::Operator), true))
            }
            Nr::Hold => self.hold(a, true),
            Nr::Release => self.hold(a, false),
            Nr::ConnectionList => self.connection_list(caller, a, b),
            Nr::CrashRead => self.crash_read(caller, a, b, c),
            Nr::Inject => self.inject(a, b, c),
            Nr::LogRead => self.log_read(caller, a, b, c, (d, e)),
            Nr::Audit => self.checked(a).map(|d| self.audit(d)),
            Nr::NodeInfo => self.node_info(caller, a, now),
            Nr::Shutdown => crate::power_off(EXIT_ORDERLY),
            Nr::Check => self.order_check(a, b, c),
            Nr::ImageWrite => self.image_write(caller, args),
            Nr::ImageCommit => self.image_commit(caller, a, b, c),
            Nr::ImageJudge => self.image_judge(a, b),
        })
    }

    pub(super) fn checked(&self, domain: u64) -> Result<DomainId, Error> {
        self.domains.check(domain).ok_or(Error::NotFound)
    }

    /// Who gives an order has seen the node as it was.
    fn checked_life(&self, domain: u64, generation: u64) -> Result<DomainId, Error> {
        self.domains.check_generation(domain, generation).ok_or(Error::NotFound)
    }

    pub(super) fn read_caller(
        &self,
        caller: DomainId,
        gpa: u64,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let space = &self.domains[caller].space;
        let at = space.translate(gpa, out.len() as u64, false).ok_or(Error::BadAddress)?;
        self.ram.read(at, out)
    }

    pub(super) fn write_caller(
        &self,
        caller: DomainId,
        gpa: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        let at = self.writable(caller, gpa, data.len() as u64).ok_or(Error::BadAddress)?;
        self.ram.write(at, data)
    }

    /// Machine address of `len` bytes (at most a page) of a domain's own memory
    /// that are about to be written for it.
    pub(super) fn writable(&self, domain: DomainId, gpa: u64, len: u64) -> Option<u64> {
        let at = self.domains[domain].space.translate(gpa, len, true)?;
        self.guests[domain].nested.mark(gpa, len.max(1));
        Some(at)
    }

    /// Writes the records that there is room for, one after the other.
    fn write_records<T: IntoBytes + Immutable>(
        &self,
        caller: DomainId,
        mut gpa: u64,
        room: u64,
        records: impl ExactSizeIterator<Item = T>,
    ) -> Answer {
        let count = records.len() as u64;
        for (record, _) in records.zip(0..room) {
            self.write_caller(caller, gpa, record.as_bytes())?;
            gpa = gpa.checked_add(size_of::<T>() as u64).ok_or(Error::BadAddress)?;
        }
        Ok(count)
    }

    fn console_write(&mut self, caller: DomainId, gpa: u64, len: u64, now: u64) -> Answer {
        let mut buffer = [0; CONSOLE_CHUNK];
        let text = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len));
        let text = text.ok_or(Error::BadArgument)?;
        self.read_caller(caller, gpa, text)?;
        // In the log, an entry without text would mean the end.
        if text.is_empty() {
            return Ok(0);
        }
        let d = &self.domains[caller];
        self.console.push(caller, d.info.generation, now, text);
        // Each line gets a tag and an end.
        let lines = text.split(|&b| b == b'\n').count();
        let shown = lines.saturating_mul(d.config.name.len().saturating_add(5));
        let cost = shown.saturating_add(text.len()) as u64;
        if let Some(dropped) = self.guests[caller].line.take(cost, now) {
            if dropped > 0 {
                log::warn!("{}: {dropped} bytes are not shown here: too many", d.config.name);
            }
            serial::tagged(&d.config.name, text);
        }
        Ok(0)
    }

    fn wait(&mut self, caller: DomainId, deadline: u64, now: u64) -> Answer {
        self.sched.fed(caller, now);
        let page = self.events(caller)?;
        self.note_ready(caller, page.ready.load(Acquire));
        let pending = page.pending.iter().any(|word| word.load(SeqCst) != 0);
        let injected = page.inject.load(SeqCst) != 0;
        self.devices.rearm(caller);
        if !pending && !injected && deadline > now {
            self.sched.sleep(caller, deadline);
            self.guests[caller].asleep = true;
        }
        Ok(now)
    }

    /// Notes when a generation first says that it serves, and has served.
    fn note_ready(&mut self, domain: DomainId, said: u32) {
        if !self.domains[domain].advance(said) {
            return;
        }
        self.stamp(domain, |t| &mut t.ready);
        if said == event::SERVED {
            self.stamp(domain, |t| &mut t.served);
        }
        self.tell_supervisor();
    }

    /// Notes in the record of the death before this generation that a step is
    /// done now.
    pub(super) fn stamp(&mut self, domain: DomainId, step: fn(&mut Timeline) -> &mut u64) {
        let generation = self.domains[domain].info.generation;
        self.deaths.stamp(domain, generation, step, time::now_ns());
    }

    fn complain(&mut self, caller: DomainId, port: u64, now: u64) -> Answer {
        let mut all = self.connections.iter_mut();
        let own =
            |c: &&mut Connection| c.frontend.domain == caller && u64::from(c.frontend.port) == port;
        let connection = all.find(own).ok_or(Error::NotFound)?;
        // A frontend must not keep the supervisor busy.
        if now < connection.no_complaint_before {
            return Err(Error::Busy);
        }
        connection.no_complaint_before = now.saturating_add(COMPLAINT_NS);
        let backend = connection.backend.domain;
        if !self.domains[backend].is_alive() {
            return Err(Error::PeerDead);
        }
        let info = &mut self.domains[backend].info;
        info.complaints = info.complaints.wrapping_add(1);
        (info.complainant, info.complained_ns) = (caller, now);
        self.tell_supervisor();
        Ok(0)
    }

    fn order_check(&mut self, domain: u64, generation: u64, drain: u64) -> Answer {
        let domain = self.checked_life(domain, generation)?;
        let page = self.events(domain)?;
        let info = &mut self.domains[domain].info;
        let number = (info.check.wrapping_add(1) & !event::DRAIN).max(1);
        info.check = if drain == 1 { number | event::DRAIN } else { number };
        page.check.store(info.check, SeqCst);
        self.raise(domain, event::PORT_CHECK);
        Ok(number.into())
    }

    fn notify(&mut self, caller: DomainId, port: u64) -> Answer {
        count(&mut self.domains[caller].info.notifies);
        let mut ends = self.connections.iter().filter_map(|c| c.ends(caller));
        let (_, peer) = ends.find(|(own, _)| u64::from(own.port) == port).ok_or(Error::NotFound)?;
        if !self.domains[peer.domain].is_alive() {
            return Err(Error::PeerDead);
        }
        self.raise(peer.domain, peer.port);
        Ok(0)
    }

    fn grant_copy(&mut self, caller: DomainId, gpa: u64, count: u64) -> Answer {
        if count > MAX_COPY_BATCH {
            return Err(Error::BadArgument);
        }
        for i in 0..count {
            let mut raw = [0; size_of::<GrantCopyOp>()];
            let at =
                gpa.checked_add(i.saturating_mul(raw.len() as u64)).ok_or(Error::BadAddress)?;
            self.read_caller(caller, at, &mut raw)?;
            let op = GrantCopyOp::read_from_bytes(&raw).map_err(|_| Error::BadArgument)?;
            if let Err(e) = self.grant_copy_one(caller, &op) {
                return if i == 0 { Err(e) } else { Ok(i) };
            }
        }
        Ok(count)
    }

    /// Copies a domain's own report of its death; what it says is for people only.
    fn crash_report(&self, caller: DomainId, gpa: u64, len: u64) -> CrashReport {
        let mut report = CrashReport::new_zeroed();
        if len != size_of::<CrashReport>() as u64
            || self.read_caller(caller, gpa, report.as_mut_bytes()).is_err()
        {
            return self.describe(caller, Reason::Panic);
        }
        report
    }

    fn domain_list(&self, caller: DomainId, gpa: u64, room: u64) -> Answer {
        let cpu_ns = |d: &Domain| self.sched.get(d.info.id).cpu_ns;
        let health =
            |d: &Domain| self.events(d.info.id).map_or(0, |page| page.health.load(Acquire));
        let records = self.domains.iter().map(|d| {
            let mut info = DomainInfo { health: health(d), ..d.info(cpu_ns(d)) };
            self.images[d.principal()].show(d.body, &mut info);
            info
        });
        self.write_records(caller, gpa, room, records)
    }

    fn hold(&mut self, domain: u64, held: bool) -> Answer {
        let domain = self.checked(domain)?;
        self.domains[domain].held = held;
        if !held {
            self.domains[domain].info.released_ns = time::now_ns();
            self.devices.ladders[domain].released();
        }
        Ok(0)
    }

    fn connection_list(&self, caller: DomainId, gpa: u64, room: u64) -> Answer {
        let state = |end: &End| {
            let shown = self.ram.word32(end.page).map_or(0, |w| w.load(Acquire));
            State::from_raw(shown).unwrap_or(State::Closed) as u32
        };
        let records = self.connections.iter().map(|c| ConnectionInfo {
            id: c.number,
            protocol: c.config.protocol,
            frontend: c.frontend.domain,
            backend: c.backend.domain,
            frontend_state: state(&c.frontend),
            backend_state: state(&c.backend),
        });
        self.write_records(caller, gpa, room, records)
    }

    fn crash_read(&self, caller: DomainId, from: u64, gpa: u64, len: u64) -> Answer {
        let record = self.deaths.at_least(from).ok_or(Error::NotFound)?;
        if len != size_of_val(record) as u64 {
            return Err(Error::BadArgument);
        }
        self.write_caller(caller, gpa, record.as_bytes())?;
        Ok(record.sequence)
    }

    fn inject(&mut self, domain: u64, generation: u64, kind: u64) -> Answer {
        let domain = self.checked_life(domain, generation)?;
        let kind = u32::try_from(kind).ok().and_then(Inject::from_raw).ok_or(Error::BadArgument)?;
        self.events(domain)?.inject.store(kind as u32, SeqCst);
        self.guests[domain].injected = true;
        self.wake(domain);
        Ok(0)
    }

    fn log_read(
        &self,
        caller: DomainId,
        cursor: u64,
        gpa: u64,
        len: u64,
        (domain, generation): (u64, u64),
    ) -> Answer {
        let wanted = |h: &LogHeader| {
            domain == EVERY_DOMAIN
                || u64::from(h.domain) == domain
                    && (generation == 0 || u64::from(h.generation) == generation)
        };
        let mut buffer = [0; LOG_CHUNK];
        let room = usize::try_from(len).unwrap_or(usize::MAX).min(LOG_CHUNK);
        let (out, _) = buffer.split_at_mut(room);
        let (bytes, next) = self.console.copy_out(cursor, out, wanted);
        // The caller finds the end of the entries by a header with length 0.
        let end = bytes.saturating_add(size_of::<LogHeader>()).min(room);
        self.write_caller(caller, gpa, buffer.get(..end).unwrap_or(&[]))?;
        Ok(next)
    }

    fn node_info(&self, caller: DomainId, gpa: u64, now: u64) -> Answer {
        let info = NodeInfo {
            now_ns: now,
            tlb_flushes: svm::FLUSHES.load(Relaxed),
            iotlb_flushes: self.devices.iotlb_flushes(),
            ..self.info
        };
        self.write_caller(caller, gpa, info.as_bytes())?;
        Ok(0)
    }
}
