//! Carries out what comes of complaints.

use ring_proto::crash::Reason;

use super::{SHARED_POLL_NS, Supervisor};
use crate::{
    complaint::Verdict,
    node::{Node, life},
    status,
};

impl Supervisor {
    /// Checks whom somebody complained about. Returns when to come back.
    pub(super) fn hear_complaints(&mut self, node: &mut impl Node, now: u64) -> u64 {
        let mut next = u64::MAX;
        for index in 0..self.domains.len() {
            let Some(&info) = self.domains.get(index) else { continue };
            // One that was told to finish its work pauses on purpose.
            let drains = self.operations.iter().any(|o| o.domain == info.id && o.drain.is_some())
                || self.updates.drains(info.id);
            if info.id == self.me || drains {
                continue;
            }
            let name = status::name(&info);
            let result = match self.complaints.judge(node, &info, &self.connections, now) {
                Verdict::Leave => continue,
                Verdict::Wait(until) => {
                    next = next.min(until).min(now.saturating_add(SHARED_POLL_NS));
                    continue;
                }
                Verdict::Unheard(frontend) => {
                    log::warn!(
                        "{} complains about {name} again, which is well",
                        self.name(frontend)
                    );
                    continue;
                }
                Verdict::Silent => {
                    log::error!("{name} does not answer a check");
                    node.stop(life(&info), Reason::Stalled)
                }
                Verdict::Stuck => {
                    log::error!("{name} finds that it is stuck");
                    node.stop(life(&info), Reason::Stalled)
                }
                Verdict::OnWord(frontend) => {
                    log::warn!("{name} is restarted on the word of {}", self.name(frontend));
                    // Ordered: what a guest says must not use up the driver's budget.
                    node.restart(life(&info))
                }
            };
            if let Err(why) = result {
                log::error!("{name} cannot be ended: {why:?}");
            }
        }
        next
    }
}
