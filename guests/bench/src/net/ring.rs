//! A vif of a driver domain, over rings.

use domain_rt::{env::DomainEnv, events, time::NEVER};
use guest_io::connect;
use ring_ends::{Progress, net::Frontend};

use super::stack::Nic;
use crate::args::Args;

pub(super) struct Ring {
    pub(super) front: Frontend,
    env: DomainEnv,
    mac: [u8; 6],
    progress: Progress,
}

/// Runs the cases on the vif of this domain's first net connection.
pub(crate) fn run(args: &Args) -> Result<(), &'static str> {
    super::run_all(args, open)
}

/// The vif, once a driver answered.
pub(super) fn open() -> Result<Ring, &'static str> {
    let (connection, front) = connect::net().map_err(|_| "no net connection, or no memory")?;
    let mut ring =
        Ring { front, env: DomainEnv, mac: connection.boot.mac, progress: Progress::default() };
    while !ring.front.is_connected() {
        let _ = events::take_all();
        ring.look();
        ring.rest(NEVER);
    }
    Ok(ring)
}

impl Nic for Ring {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn look(&mut self) {
        self.progress = self.front.poll(&mut self.env);
    }

    fn has_room(&self) -> bool {
        self.front.tx_room() > 0
    }

    fn send(&mut self, frame: &[u8]) {
        // There is room, and a frame that is lost all the same is sent again.
        let _ = self.front.transmit(frame, None);
    }

    fn receive(&mut self, to: &mut [u8; 2048]) -> Option<usize> {
        self.front.receive(to).map(|received| received.len)
    }

    fn kick(&mut self) {
        self.front.kick(&mut self.env);
    }

    fn rest(&mut self, deadline: u64) {
        if self.progress.again {
            events::breathe();
        } else {
            events::wait(deadline.min(self.progress.deadline.unwrap_or(NEVER)));
        }
    }
}
