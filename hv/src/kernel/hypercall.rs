//! Hypercall dispatch.

use hv_core::domain::Life;
use ring_proto::{
    DomainId, boot,
    conn::State,
    crash::{CrashReport, Reason},
    event::{self, Inject},
    hypercall::{
        ConnectionInfo, DomainInfo, Error, GrantCopyOp, MAX_CONSOLE_WRITE, MAX_COPY_BATCH,
        NodeInfo, Nr,
    },
    layout,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Node;
use crate::{serial, vt::Vcpu};

/// Largest piece of the log that one `LogRead` copies.
const LOG_CHUNK: usize = 2048;
/// What `power_off` tells QEMU after an orderly end.
const EXIT_ORDERLY: u8 = 0x10;

/// What to do with the caller after the call.
enum Outcome {
    /// Return this to it.
    Return(Result<u64, Error>),
    /// It sleeps, or it has no registers any more.
    Gone,
}

impl From<Result<u64, Error>> for Outcome {
    fn from(r: Result<u64, Error>) -> Self {
        Self::Return(r)
    }
}

impl Node {
    /// Handles the hypercall that `caller` made.
    pub(super) fn hypercall(&mut self, caller: DomainId, now: u64) {
        let d = usize::from(caller);
        self.domains[d].stats.hypercalls += 1;
        let Some(call) = self.vcpus[d].as_ref().map(Vcpu::hypercall) else { return };
        let outcome = match Nr::from_raw(call.nr) {
            Some(nr) => self.dispatch(caller, nr, call.args, now),
            None => Err(Error::BadNumber).into(),
        };
        if let (Outcome::Return(result), Some(vcpu)) = (outcome, self.vcpus[d].as_mut()) {
            match result {
                Ok(value) => vcpu.set_result(0, value),
                Err(e) => vcpu.set_result(e as u64, 0),
            }
        }
    }

    fn dispatch(&mut self, caller: DomainId, nr: Nr, args: [u64; 5], now: u64) -> Outcome {
        let [a, b, c, ..] = args;
        if nr as u64 >= Nr::DomainList as u64 {
            let capabilities = self.domains[usize::from(caller)].config.capabilities;
            if capabilities & boot::CAP_SUPERVISOR == 0 {
                return Err(Error::NotPermitted).into();
            }
        }
        match nr {
            Nr::ConsoleWrite => self.console_write(caller, a, b, now).into(),
            Nr::Wait => self.wait(caller, a, now),
            Nr::Notify => self.notify(caller, a).into(),
            Nr::GrantMap => self.grant_map(caller, args).into(),
            Nr::GrantUnmap => self.grant_unmap(caller, a, b).into(),
            Nr::GrantRevoke => self.grant_revoke(caller, a, b).into(),
            Nr::GrantCopy => self.grant_copy(caller, a, b).into(),
            // The scheduler looks again after every exit.
            Nr::Yield => Ok(0).into(),
            Nr::Exit => {
                let report = CrashReport::new_zeroed();
                self.end(caller, Reason::Exit, report, 0, a, now);
                Outcome::Gone
            }
            Nr::Crash => {
                let report = self.crash_report(caller, a, b);
                let reason = match Reason::from_raw(report.reason) {
                    Some(Reason::Exception) => Reason::Exception,
                    _ => Reason::Panic,
                };
                self.end(caller, reason, report, 0, 0, now);
                Outcome::Gone
            }
            Nr::PciConfig => self.devices.config(caller, args).into(),
            Nr::IrqBind => {
                let core = self.domains[usize::from(caller)].core;
                self.devices.bind(caller, core, a, b, c).into()
            }
            Nr::IrqUnmask => self.devices.unmask(caller, a).into(),
            Nr::DeviceEnable => self.devices.enable(caller, a, b).into(),
            Nr::DomainList => self.domain_list(caller, a, b).into(),
            Nr::Start => self.life(a, false, true).into(),
            Nr::Stop => self.life(a, true, false).into(),
            Nr::Restart => self.life(a, true, true).into(),
            Nr::Hold => self.hold(a, true).into(),
            Nr::Release => self.hold(a, false).into(),
            Nr::ConnectionList => self.connection_list(caller, a, b).into(),
            Nr::CrashRead => self.crash_read(caller, a, b, c).into(),
            Nr::Inject => self.inject(a, b).into(),
            Nr::LogRead => self.log_read(caller, a, b, c).into(),
            Nr::Audit => self.checked(a).map(|d| self.audit(d)).into(),
            Nr::NodeInfo => self.node_info(caller, a, now).into(),
            Nr::Shutdown => crate::power_off(EXIT_ORDERLY),
        }
    }

    fn checked(&self, domain: u64) -> Result<DomainId, Error> {
        if domain < self.domains.len() as u64 {
            Ok(domain as DomainId)
        } else {
            Err(Error::NotFound)
        }
    }

    fn read_caller(&self, caller: DomainId, gpa: u64, out: &mut [u8]) -> Result<(), Error> {
        let space = &self.domains[usize::from(caller)].space;
        let at = space.translate(gpa, out.len() as u64, false).ok_or(Error::BadAddress)?;
        self.ram.read(at, out)
    }

    fn write_caller(&self, caller: DomainId, gpa: u64, data: &[u8]) -> Result<(), Error> {
        let space = &self.domains[usize::from(caller)].space;
        let at = space.translate(gpa, data.len() as u64, true).ok_or(Error::BadAddress)?;
        self.ram.write(at, data)
    }

    fn console_write(
        &mut self,
        caller: DomainId,
        gpa: u64,
        len: u64,
        now: u64,
    ) -> Result<u64, Error> {
        let mut buffer = [0; MAX_CONSOLE_WRITE as usize];
        let text = buffer
            .get_mut(..usize::try_from(len).unwrap_or(usize::MAX))
            .ok_or(Error::BadArgument)?;
        self.read_caller(caller, gpa, text)?;
        // In the log, an entry without text would mean the end.
        if text.is_empty() {
            return Ok(0);
        }
        let d = &self.domains[usize::from(caller)];
        self.console.push(caller, d.generation, now, text);
        serial::tagged(&d.config.name, text);
        Ok(0)
    }

    fn wait(&mut self, caller: DomainId, deadline: u64, now: u64) -> Outcome {
        self.sched.fed(caller);
        let Some(page) =
            self.domains[usize::from(caller)].space.translate(layout::EVENT_PAGE, 4096, true)
        else {
            return Err(Error::BadState).into();
        };
        self.note_ready(caller, page, now);
        let words = (0..event::WORDS as u64).map(|i| page + i * 8);
        let pending = words.into_iter().any(|at| {
            self.ram.word64(at).is_ok_and(|w| w.load(core::sync::atomic::Ordering::SeqCst) != 0)
        });
        let injected = self
            .ram
            .word32(page + core::mem::offset_of!(event::EventPage, inject) as u64)
            .is_ok_and(|w| w.load(core::sync::atomic::Ordering::SeqCst) != 0);
        self.devices.rearm(caller);
        if !pending && !injected && deadline > now {
            self.sched.sleep(caller, deadline);
            self.asleep[usize::from(caller)] = true;
        }
        Ok(now).into()
    }

    /// Notes when a generation first says that it serves.
    fn note_ready(&mut self, domain: DomainId, event_page: u64, now: u64) {
        let d = usize::from(domain);
        if self.domains[d].ready {
            return;
        }
        let at = event_page + core::mem::offset_of!(event::EventPage, ready) as u64;
        if !self.ram.word32(at).is_ok_and(|w| w.load(core::sync::atomic::Ordering::Acquire) == 1) {
            return;
        }
        self.domains[d].ready = true;
        let generation = self.domains[d].generation;
        if let Some(record) = self.deaths.last_of(domain)
            && record.generation.wrapping_add(1) == generation
        {
            record.ready_ns = now;
        }
        self.tell_supervisor();
    }

    fn notify(&mut self, caller: DomainId, port: u64) -> Result<u64, Error> {
        let slot = port.checked_sub(event::PORT_CONNECTIONS.into()).ok_or(Error::NotFound)?;
        let slot = u16::try_from(slot).map_err(|_| Error::NotFound)?;
        self.domains[usize::from(caller)].stats.notifies += 1;
        let peer = self.peer(caller, slot).ok_or(Error::NotFound)?;
        if !self.is_running(peer.domain) {
            return Err(Error::PeerDead);
        }
        self.raise(peer.domain, event::PORT_CONNECTIONS + peer.slot);
        Ok(0)
    }

    fn grant_copy(&mut self, caller: DomainId, gpa: u64, count: u64) -> Result<u64, Error> {
        if count > MAX_COPY_BATCH {
            return Err(Error::BadArgument);
        }
        for i in 0..count {
            let mut raw = [0; size_of::<GrantCopyOp>()];
            let at = gpa.checked_add(i * raw.len() as u64).ok_or(Error::BadAddress)?;
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

    fn domain_list(&mut self, caller: DomainId, gpa: u64, room: u64) -> Result<u64, Error> {
        for (i, d) in
            self.domains.iter().enumerate().take(usize::try_from(room).unwrap_or(usize::MAX))
        {
            let mut info = d.info();
            info.cpu_ns = self.sched.get(d.id).map_or(0, |e| e.cpu_ns);
            let at =
                gpa.checked_add((i * size_of::<DomainInfo>()) as u64).ok_or(Error::BadAddress)?;
            self.write_caller(caller, at, info.as_bytes())?;
        }
        Ok(self.domains.len() as u64)
    }

    fn life(&mut self, domain: u64, end: bool, start: bool) -> Result<u64, Error> {
        let domain = self.checked(domain)?;
        self.order(domain, end, start).map(|()| 0)
    }

    fn hold(&mut self, domain: u64, held: bool) -> Result<u64, Error> {
        let domain = self.checked(domain)?;
        self.domains[usize::from(domain)].held = held;
        Ok(0)
    }

    fn connection_list(&mut self, caller: DomainId, gpa: u64, room: u64) -> Result<u64, Error> {
        for (i, c) in
            self.connections.iter().enumerate().take(usize::try_from(room).unwrap_or(usize::MAX))
        {
            let state = |page| {
                self.ram.word32(page).map_or(0, |w| w.load(core::sync::atomic::Ordering::Acquire))
            };
            let info = ConnectionInfo {
                id: i as u16,
                protocol: c.config.protocol,
                frontend: c.frontend.domain,
                backend: c.backend.domain,
                frontend_state: State::from_raw(state(c.frontend.page)).unwrap_or(State::Closed)
                    as u32,
                backend_state: State::from_raw(state(c.backend.page)).unwrap_or(State::Closed)
                    as u32,
            };
            let at = gpa
                .checked_add((i * size_of::<ConnectionInfo>()) as u64)
                .ok_or(Error::BadAddress)?;
            self.write_caller(caller, at, info.as_bytes())?;
        }
        Ok(self.connections.len() as u64)
    }

    fn crash_read(
        &mut self,
        caller: DomainId,
        from: u64,
        gpa: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let record = self.deaths.at_least(from).ok_or(Error::NotFound)?;
        if len != size_of_val(record) as u64 {
            return Err(Error::BadArgument);
        }
        self.write_caller(caller, gpa, record.as_bytes())?;
        Ok(record.sequence)
    }

    fn inject(&mut self, domain: u64, kind: u64) -> Result<u64, Error> {
        let domain = self.checked(domain)?;
        let kind = u32::try_from(kind).ok().and_then(Inject::from_raw).ok_or(Error::BadArgument)?;
        if self.domains[usize::from(domain)].life != Life::Running {
            return Err(Error::BadState);
        }
        let space = &self.domains[usize::from(domain)].space;
        let page = space.translate(layout::EVENT_PAGE, 4096, true).ok_or(Error::BadState)?;
        let at = page + core::mem::offset_of!(event::EventPage, inject) as u64;
        self.ram.word32(at)?.store(kind as u32, core::sync::atomic::Ordering::SeqCst);
        self.wake(domain);
        Ok(0)
    }

    fn log_read(
        &mut self,
        caller: DomainId,
        cursor: u64,
        gpa: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let mut buffer = [0; LOG_CHUNK];
        let room = usize::try_from(len).unwrap_or(usize::MAX).min(LOG_CHUNK);
        let (out, _) = buffer.split_at_mut(room);
        let (bytes, next) = self.console.copy_out(cursor, out);
        // The caller finds the end of the entries by a header with length 0.
        let end = (bytes + size_of::<ring_proto::hypercall::LogHeader>()).min(room);
        self.write_caller(caller, gpa, buffer.get(..end).unwrap_or(&[]))?;
        Ok(next)
    }

    fn node_info(&mut self, caller: DomainId, gpa: u64, now: u64) -> Result<u64, Error> {
        let info = NodeInfo {
            cores: self.cores.into(),
            domains: self.domains.len() as u32,
            now_ns: now,
            iotlb_flushes: self.devices.iotlb_flushes(),
            ..self.info
        };
        self.write_caller(caller, gpa, info.as_bytes())?;
        Ok(0)
    }
}
