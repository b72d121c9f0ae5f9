//! What an end counts.

use ring_proto::Port;

use crate::Env;

/// Counts since the end was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests put into or taken from a ring.
    pub requests: u64,
    /// Requests among them that were malformed (backend).
    pub invalid: u64,
    /// Requests that were sent again after a reconnect, and may have been
    /// carried out before (frontend).
    pub replayed: u64,
    /// Complaints about a backend that completed nothing, broke the protocol or
    /// cut off again and again (frontend).
    pub complaints: u64,
    /// Notifications sent for ring entries.
    pub notifications_sent: u64,
    /// Publications that needed no notification.
    pub notifications_suppressed: u64,
    /// Times the connection came up.
    pub connects: u64,
    /// Times it went down, for whatever reason.
    pub disconnects: u64,
    /// Times the peer broke the protocol.
    pub misbehaviours: u64,
    /// Generations of the peer that were barred over it (backend, CONN-14).
    pub barred: u64,
}

impl Counters {
    /// Counts the outcome of publishing and notifies if asked to.
    pub(crate) fn published(&mut self, env: &mut impl Env, port: Port, notify: bool) {
        if notify {
            env.notify(port);
            count(&mut self.notifications_sent);
        } else {
            count(&mut self.notifications_suppressed);
        }
    }
}

/// One more.
pub(crate) fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
