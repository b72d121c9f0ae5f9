//! The node as this domain sees it: by hypercalls.

use domain_rt::{hypercall, time};
use ring_proto::{
    DomainId, Generation,
    crash::{CrashRecord, Reason},
    event::Inject,
    hypercall::{ConnectionInfo, DomainInfo, Error, NodeInfo},
};
use supervisor_policy::{Life, Node};

/// The real node.
#[derive(Debug)]
pub struct Hypervisor;

impl Node for Hypervisor {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn domains(&mut self, out: &mut [DomainInfo]) -> Result<usize, Error> {
        hypercall::domain_list(out)
    }

    fn connections(&mut self, out: &mut [ConnectionInfo]) -> Result<usize, Error> {
        hypercall::connection_list(out)
    }

    fn info(&mut self) -> Result<NodeInfo, Error> {
        hypercall::node_info()
    }

    fn start(&mut self, domain: DomainId) -> Result<(), Error> {
        hypercall::start(domain)
    }

    fn stop(&mut self, (domain, generation): Life, reason: Reason) -> Result<(), Error> {
        hypercall::stop(domain, generation, reason)
    }

    fn restart(&mut self, (domain, generation): Life) -> Result<(), Error> {
        hypercall::restart(domain, generation)
    }

    fn check(&mut self, (domain, generation): Life, drain: bool) -> Result<u32, Error> {
        hypercall::check(domain, generation, drain)
    }

    fn hold(&mut self, domain: DomainId) -> Result<(), Error> {
        hypercall::hold(domain)
    }

    fn release(&mut self, domain: DomainId) -> Result<(), Error> {
        hypercall::release(domain)
    }

    fn inject(&mut self, (domain, generation): Life, kind: Inject) -> Result<(), Error> {
        hypercall::inject(domain, generation, kind)
    }

    fn crash_read(&mut self, sequence: u64) -> Result<Option<CrashRecord>, Error> {
        match hypercall::crash_read(sequence) {
            Ok(record) => Ok(Some(record)),
            Err(Error::NotFound) => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn log_read(
        &mut self,
        cursor: u64,
        of: Option<(DomainId, Generation)>,
        out: &mut [u8],
    ) -> Result<u64, Error> {
        hypercall::log_read(cursor, out, of)
    }

    fn image_write(&mut self, domain: DomainId, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        hypercall::image_write(domain, offset, bytes)
    }

    fn image_commit(&mut self, domain: DomainId, why: &mut [u8]) -> Result<usize, Error> {
        hypercall::image_commit(domain, why)
    }

    fn image_judge(&mut self, domain: DomainId, keep: bool) -> Result<(), Error> {
        hypercall::image_judge(domain, keep)
    }

    fn audit(&mut self, domain: DomainId) -> Result<u64, Error> {
        hypercall::audit(domain)
    }

    fn shutdown(&mut self) -> Result<(), Error> {
        hypercall::shutdown(0)
    }
}
