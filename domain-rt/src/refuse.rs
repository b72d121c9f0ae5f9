//! Saying no to a connection that cannot be served.

use core::fmt::{self, Write};

use ring_ends::Env;
use ring_proto::conn::{BackBody, BackHello, Pages, Pair, State, VERSION};

use crate::{conn::Connection, env::DomainEnv};

/// Text for people; what does not fit is left out.
pub type Why = heapless::String<96>;

/// A reason.
pub fn why(text: fmt::Arguments<'_>) -> Why {
    struct Cut(Why);
    impl Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for c in text.chars() {
                if self.0.push(c).is_err() {
                    break;
                }
            }
            Ok(())
        }
    }
    let mut cut = Cut(Why::new());
    // Cut never fails; a Display that does loses its own text.
    let _ = cut.write_fmt(text);
    cut.0
}

/// The backend's end of a connection that cannot be served.
pub struct Refusal {
    connection: Connection,
    pages: Pages,
    why: Why,
    answered: Option<Pair>,
}

impl Refusal {
    /// Logs the reason; [`Self::poll`] tells the frontend.
    pub fn new(connection: Connection, why: Why) -> Self {
        log::error!("{} is not served: {why}", connection.peer_name());
        Self { connection, pages: connection.pages(), why, answered: None }
    }

    /// Answers every offer with the reason.
    pub fn poll(&mut self, env: &mut DomainEnv) {
        let seen = self.pages.peer.glance();
        if !seen.is(State::Initialising) || self.answered == Some(seen.pair) {
            return;
        }
        self.answered = Some(seen.pair);
        let body = BackBody::Refused { why: self.why.clone() };
        let hello = BackHello { version: VERSION, features: 0, body };
        let epoch = seen.pair.epoch;
        let published =
            self.pages.own.publish(&hello, epoch, seen.pair, State::Initialising, State::Closing);
        if published.is_ok() {
            env.notify(self.connection.port());
        }
    }
}
