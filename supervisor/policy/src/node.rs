//! What the supervisor can see and do: the hypervisor's supervisor calls.

use ring_proto::{
    DomainId, Generation,
    crash::{CrashRecord, Reason},
    event::Inject,
    hypercall::{ConnectionInfo, DomainInfo, Error, NodeInfo},
};

/// One life of a domain. Between a look at the node and an order it may end, and what is
/// due to it is not due to the next one: [`Error::NotFound`] then.
pub type Life = (DomainId, Generation);

/// The life in which `info` shows a domain, or its next if it is dead.
pub fn life(info: &DomainInfo) -> Life {
    (info.id, info.generation)
}

/// A node, as its hypervisor lets a supervisor see it.
pub trait Node {
    /// The node's clock, ns.
    fn now_ns(&self) -> u64;
    /// Fills `out` with domains from number 0 on; returns how many it wrote.
    fn domains(&mut self, out: &mut [DomainInfo]) -> Result<usize, Error>;
    /// Likewise for connections.
    fn connections(&mut self, out: &mut [ConnectionInfo]) -> Result<usize, Error>;
    /// The node as a whole.
    fn info(&mut self) -> Result<NodeInfo, Error>;
    /// Builds and runs a domain that is stopped or dead.
    fn start(&mut self, domain: DomainId) -> Result<(), Error>;
    /// Ends a running domain's life: [`Reason::Stalled`] or [`Reason::Operator`].
    fn stop(&mut self, life: Life, reason: Reason) -> Result<(), Error>;
    /// Stops it if it is alive, then starts the domain, at an operator's order.
    fn restart(&mut self, life: Life) -> Result<(), Error>;
    /// Has it check itself, or also finish its work and take no more; returns
    /// the number that its answer in [`DomainInfo::health`] will have.
    fn check(&mut self, life: Life, drain: bool) -> Result<u32, Error>;
    /// Marks it as not to be started.
    fn hold(&mut self, domain: DomainId) -> Result<(), Error>;
    /// Undoes a hold.
    fn release(&mut self, domain: DomainId) -> Result<(), Error>;
    /// Has it misbehave.
    fn inject(&mut self, life: Life, kind: Inject) -> Result<(), Error>;
    /// The oldest kept crash record not below `sequence`.
    fn crash_read(&mut self, sequence: u64) -> Result<Option<CrashRecord>, Error>;
    /// Console text from `cursor` on, of all or of one domain's generation (0 =
    /// any); returns the next cursor. What it does not write of `out` stays as
    /// it was.
    fn log_read(
        &mut self,
        cursor: u64,
        of: Option<(DomainId, Generation)>,
        out: &mut [u8],
    ) -> Result<u64, Error>;
    /// Writes part of the file that updates a domain.
    fn image_write(&mut self, domain: DomainId, offset: u32, bytes: &[u8]) -> Result<(), Error>;
    /// Has a piece of that file checked. `Ok(0)`: its image is on trial;
    /// [`Error::Busy`]: call again; else so many bytes of `why` say why not.
    fn image_commit(&mut self, domain: DomainId, why: &mut [u8]) -> Result<usize, Error>;
    /// Ends the trial of a domain's image: it is kept, or the one before returns.
    fn image_judge(&mut self, domain: DomainId, keep: bool) -> Result<(), Error>;
    /// Number of violations in a domain's tables.
    fn audit(&mut self, domain: DomainId) -> Result<u64, Error>;
    /// Powers the node off.
    fn shutdown(&mut self) -> Result<(), Error>;
}
