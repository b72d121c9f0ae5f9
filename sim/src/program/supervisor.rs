//! The supervisor: the real policy over the simulated hypervisor.

use ring_proto::conn::State;
use ring_proto::control::FRAME_MAX;
use ring_proto::crash::{CrashRecord, Reason};
use ring_proto::event::Inject;
use ring_proto::hypercall::{ConnectionInfo, DomainInfo, Error, NodeInfo};
use ring_proto::{DomainId, Generation};
use std::sync::atomic::Ordering::SeqCst;
use supervisor_policy::{Life, Node, Supervisor};
use zerocopy::FromZeros;

use super::Turn;
use crate::env::DomainEnv;

/// The supervisor's program.
#[derive(Default)]
pub(crate) struct Program {
    /// `None` before its first turn.
    policy: Option<Supervisor>,
}

impl Program {
    pub(super) fn turn(&mut self, env: &mut DomainEnv<'_>) -> Turn {
        let me = env.me;
        let generation = env.world.hv.domains[me].info.generation;
        let mut node = Calls { env };
        let policy = match &mut self.policy {
            Some(policy) => policy,
            None => {
                let policy = Supervisor::new(me, generation, &mut node);
                node.env.world.hv.set_ready(me);
                self.policy.insert(policy)
            }
        };
        let mut more = false;
        for _ in 0..FRAME_MAX {
            if !policy.can_receive() {
                more = true;
                break;
            }
            let Some(byte) = node.env.world.operator.next_byte() else { break };
            policy.receive(&mut node, byte);
        }
        let mut deadline = policy.poll(&mut node);
        while !policy.to_send().is_empty() {
            let bytes = policy.to_send();
            node.env.world.operator.hears(bytes);
            let count = bytes.len();
            policy.sent(count);
        }
        if policy.is_leaving() || more {
            deadline = 0;
        }
        Turn::Wait(deadline)
    }
}

/// The hypercalls of a supervisor.
struct Calls<'a, 'b> {
    env: &'a mut DomainEnv<'b>,
}

impl Calls<'_, '_> {
    fn call(&mut self) -> &mut crate::hv::Hv {
        self.env.point();
        &mut self.env.world.hv
    }
}

impl Node for Calls<'_, '_> {
    fn now_ns(&self) -> u64 {
        self.env.world.hv.now
    }

    fn domains(&mut self, out: &mut [DomainInfo]) -> Result<usize, Error> {
        let hv = self.call();
        let mut count = 0;
        for (to, id) in out.iter_mut().zip(hv.domains.ids()) {
            *to = hv.info_of(id);
            count += 1;
        }
        Ok(count)
    }

    fn connections(&mut self, out: &mut [ConnectionInfo]) -> Result<usize, Error> {
        let hv = self.call();
        let state = |page: u64| {
            let shown = hv.ram.at(page, 4).read_u32(0, SeqCst);
            State::from_raw(shown).unwrap_or(State::Closed) as u32
        };
        let mut count = 0;
        for ((to, c), id) in out.iter_mut().zip(&hv.connections).zip(0..) {
            *to = ConnectionInfo {
                id,
                protocol: c.protocol,
                frontend: c.frontend.domain,
                backend: c.backend.domain,
                frontend_state: state(c.frontend.page),
                backend_state: state(c.backend.page),
            };
            count += 1;
        }
        Ok(count)
    }

    fn info(&mut self) -> Result<NodeInfo, Error> {
        let hv = self.call();
        let mut info = NodeInfo::new_zeroed();
        info.cores = hv.cores.into();
        info.now_ns = hv.now;
        info.next_crash = hv.deaths.next();
        Ok(info)
    }

    fn start(&mut self, domain: DomainId) -> Result<(), Error> {
        self.call().order(domain, None, true).map(|_| ())
    }

    fn stop(&mut self, life: Life, reason: Reason) -> Result<(), Error> {
        let hv = self.call();
        hv.checked_life(life).and_then(|d| hv.order(d, Some(reason), false)).map(|_| ())
    }

    fn restart(&mut self, life: Life) -> Result<(), Error> {
        let hv = self.call();
        hv.checked_life(life).and_then(|d| hv.order(d, Some(Reason::Operator), true)).map(|_| ())
    }

    fn check(&mut self, life: Life, drain: bool) -> Result<u32, Error> {
        self.call().order_check(life, drain)
    }

    fn hold(&mut self, domain: DomainId) -> Result<(), Error> {
        self.call().hold(domain, true).map(|_| ())
    }

    fn release(&mut self, domain: DomainId) -> Result<(), Error> {
        self.call().hold(domain, false).map(|_| ())
    }

    fn inject(&mut self, life: Life, kind: Inject) -> Result<(), Error> {
        self.call().inject(life, kind).map(|_| ())
    }

    fn crash_read(&mut self, sequence: u64) -> Result<Option<CrashRecord>, Error> {
        Ok(self.call().deaths.at_least(sequence).copied())
    }

    fn log_read(
        &mut self,
        cursor: u64,
        _of: Option<(DomainId, Generation)>,
        _out: &mut [u8],
    ) -> Result<u64, Error> {
        Ok(cursor)
    }

    // The operator orders no update: programs are Rust objects here.
    fn image_write(&mut self, _domain: DomainId, _offset: u32, _: &[u8]) -> Result<(), Error> {
        Err(Error::NotPermitted)
    }

    fn image_commit(&mut self, _domain: DomainId, _why: &mut [u8]) -> Result<usize, Error> {
        Err(Error::NotPermitted)
    }

    fn image_judge(&mut self, _domain: DomainId, _keep: bool) -> Result<(), Error> {
        Err(Error::NotPermitted)
    }

    fn audit(&mut self, domain: DomainId) -> Result<u64, Error> {
        let hv = self.call();
        hv.checked(domain).map(|domain| hv.audit(domain))
    }

    fn shutdown(&mut self) -> Result<(), Error> {
        Err(Error::NotPermitted)
    }
}
