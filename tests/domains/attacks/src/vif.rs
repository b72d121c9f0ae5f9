//! A vif for an attacker: frames of any content, over a frontend that keeps to
//! the rules of the ring.

use domain_rt::{
    conn, env,
    env::DomainEnv,
    events,
    time::{MS, now_ns},
};
use ring_ends::{
    Region,
    net::{BUFFER, Checksum, Frontend, FrontendConfig, rx_ring_pages, tx_ring_pages},
};
use ring_proto::{
    PAGE_SIZE,
    conn::{Protocol, Role},
    net::SLOTS,
};

/// A station.
pub type Mac = [u8; 6];

/// The first net connection of this domain.
pub struct Vif {
    front: Frontend,
    env: DomainEnv,
}

/// Memory of at least `pages` pages with grants for all of it.
///
/// # Panics
///
/// If there is none: the test's manifest is wrong.
pub fn region(pages: usize) -> Region {
    let mem = env::alloc_shared(pages).expect("memory for a region");
    let first = env::alloc_grefs((mem.len() / PAGE_SIZE) as u32).expect("grants for a region");
    Region { mem, first }
}

impl Vif {
    /// Connects.
    ///
    /// # Panics
    ///
    /// If there is no such connection: the test's manifest is wrong.
    pub fn open() -> Self {
        let found = conn::all(Protocol::Net, Role::Frontend).next();
        let connection = found.expect("a net connection");
        let ring = |pages: Option<u32>| region(pages.expect("slots") as usize);
        let front = Frontend::new(FrontendConfig {
            pages: connection.pages(),
            port: connection.port(),
            peer: connection.boot.peer,
            tx_ring: ring(tx_ring_pages(SLOTS)),
            rx_ring: ring(rx_ring_pages(SLOTS)),
            pool: region(SLOTS as usize * 2 * BUFFER / PAGE_SIZE),
            slots: SLOTS,
        });
        let mut vif = Self { front: front.expect("a frontend"), env: DomainEnv };
        while !vif.front.is_connected() {
            vif.rest();
        }
        vif
    }

    /// Moves what there is, and sleeps a little if there is nothing.
    pub fn rest(&mut self) {
        let _ = events::take_all();
        if self.front.poll(&mut self.env).again {
            events::breathe();
        } else {
            events::wait(now_ns().saturating_add(MS));
        }
    }

    /// Sends a frame once there is room.
    ///
    /// # Panics
    ///
    /// If it is no frame: the attack is wrong.
    pub fn send(&mut self, frame: &[u8], checksum: Option<Checksum>) {
        while self.front.tx_room() == 0 {
            self.rest();
        }
        self.front.transmit(frame, checksum).expect("a frame");
        self.front.kick(&mut self.env);
    }

    /// The next frame that came.
    pub fn receive(&mut self, to: &mut [u8; 2048]) -> Option<usize> {
        let received = self.front.receive(to)?;
        self.front.kick(&mut self.env);
        Some(received.len)
    }
}
