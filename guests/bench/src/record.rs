//! What a case leaves behind: counts before, counts after, a line of JSON.

use alloc::{format, string::String, vec, vec::Vec};
use core::fmt::Display;

use domain_rt::{boot, hypercall, start::text, time::now_ns};
use ring_proto::hypercall::DomainInfo;
use zerocopy::FromZeros;

/// What all domains have used so far, and the time.
pub(crate) struct Snapshot {
    now: u64,
    domains: Vec<DomainInfo>,
}

impl Snapshot {
    /// Costs one hypercall of this domain.
    pub(crate) fn take() -> Self {
        let mut domains = vec![DomainInfo::new_zeroed(); ring_proto::MAX_DOMAINS];
        let count = hypercall::domain_list(&mut domains).unwrap_or(0);
        domains.truncate(count);
        Self { now: now_ns(), domains }
    }

    /// Sums a counter over the domains under test, or over the peer.
    fn sum(&self, peer: bool, counter: impl Fn(&DomainInfo) -> u64) -> u64 {
        let domains = self.domains.iter().filter(|d| (text(&d.name) == "peer") == peer);
        domains.map(counter).sum()
    }
}

/// What a case did between two snapshots.
pub(crate) struct Work {
    /// Requests (blk), frames' worth of data (net bulk), round trips.
    pub(crate) requests: u64,
    /// Bytes of data moved.
    pub(crate) bytes: u64,
    /// Median of a round trip, ns; 0 where there are none.
    pub(crate) p50_ns: u64,
}

/// Writes the line of one case.
pub(crate) fn case(name: &str, work: &Work, before: &Snapshot, after: &Snapshot) {
    let used = |peer, counter: fn(&DomainInfo) -> u64| {
        after.sum(peer, counter).saturating_sub(before.sum(peer, counter))
    };
    let own = |snapshot: &Snapshot| {
        let domain = snapshot.domains.get(usize::from(boot().domain));
        domain.map_or(0, |d| d.cpu_ns)
    };
    let own = own(after).saturating_sub(own(before));
    line(&format!(
        "{{\"case\":\"{name}\",\"requests\":{},\"bytes\":{},\"p50_ns\":{},\"elapsed_ns\":{},\
         \"guest_ns\":{},\"driver_ns\":{},\"peer_ns\":{},\"exits\":{},\"hypercalls\":{},\"notifications\":{},\
         \"interrupts\":{}}}",
        work.requests,
        work.bytes,
        work.p50_ns,
        after.now.saturating_sub(before.now),
        own,
        used(false, |d| d.cpu_ns).saturating_sub(own),
        used(true, |d| d.cpu_ns),
        used(false, |d| d.exits),
        used(false, |d| d.hypercalls),
        used(false, |d| d.notifies),
        used(false, |d| d.interrupts),
    ));
}

/// Writes the line of one outage: `first_ns` is when the first request after
/// it was answered.
pub(crate) fn outage(load: &str, number: u64, first_ns: u64, replayed: u64, lost: u64) {
    line(&format!(
        "{{\"outage\":{number},\"load\":\"{load}\",\"first_ns\":{first_ns},\
         \"replayed\":{replayed},\"lost\":{lost}}}"
    ));
}

/// Says that there are no more cases.
pub(crate) fn end() {
    line("{\"end\":true}");
}

/// Says that there are no more cases, and why.
pub(crate) fn failed(why: &dyn Display) {
    line(&format!("{{\"failed\":\"{}\"}}", format!("{why}").escape_default()));
}

/// In one piece, so that no other domain's text comes between.
fn line(json: &str) {
    let mut text = String::from("record ");
    text.push_str(json);
    text.push('\n');
    hypercall::console_write(text.as_bytes());
}
