//! A vif of a driver domain, over rings.

use domain_rt::{conn, env::DomainEnv, events, time::NEVER};
use ring_ends::{
    Progress,
    net::{BUFFER, Frontend, FrontendConfig, rx_ring_pages, tx_ring_pages},
};
use ring_proto::{
    PAGE_SIZE,
    conn::{Protocol, Role},
    net::SLOTS,
};

use super::stack::Nic;
use crate::{args::Args, region::region};

/// A tx and an rx buffer for each slot.
const POOL_PAGES: u32 = SLOTS * 2 * BUFFER as u32 / PAGE_SIZE as u32;

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
    let connection = conn::all(Protocol::Net, Role::Frontend).next().ok_or("no net connection")?;
    let config = FrontendConfig {
        pages: connection.pages(),
        port: connection.port(),
        peer: connection.boot.peer,
        tx_ring: region(tx_ring_pages(SLOTS).ok_or("too many slots")?)?,
        rx_ring: region(rx_ring_pages(SLOTS).ok_or("too many slots")?)?,
        pool: region(POOL_PAGES)?,
        slots: SLOTS,
    };
    let front = Frontend::new(config).map_err(|_| "the net frontend refused its memory")?;
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
