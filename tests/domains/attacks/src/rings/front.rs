//! A guest's end of a connection.

use domain_rt::{
    conn::{self, Connection},
    env::{self, DomainEnv},
    hypercall,
};
use ring_ends::{Env, Region};
use ring_proto::{
    PAGE_SIZE,
    conn::{
        BackBody, BackHello, FrontHello, GrantRange, HELLO_MAX, Pages, Pair, Protocol, QueueHello,
        Role, State, VERSION,
    },
    grant::{DMA, MAP, WRITE},
    ring::{Layout, layout},
    shm::SharedMem,
};

use core::sync::atomic::Ordering::SeqCst;

use super::{LIMIT, Queue, blk, net, own_page, publish, until, word};

/// Pages of the pool: as much as the largest block request.
pub const POOL_PAGES: u32 = 256;
/// Slots of each queue.
pub const SLOTS: u32 = 64;

/// What a backend made of a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It serves.
    Connected(BackHello),
    /// It says why not.
    Refused(heapless::String<96>),
    /// It shows the door without a word.
    Closed,
    /// Nothing, in the time that was given.
    Silent,
}

/// The hostile frontend of one connection.
pub struct Front {
    /// The connection.
    pub connection: Connection,
    /// Its protocol.
    pub protocol: Protocol,
    pages: Pages,
    own: SharedMem,
    env: DomainEnv,
    rings: heapless::Vec<(Region, Layout), 2>,
    /// The rings as they are used.
    pub queues: heapless::Vec<Queue, 2>,
    /// Buffers.
    pub pool: Region,
    /// Number of the last hello.
    pub epoch: u32,
    /// For unique ids.
    next_id: u32,
}

impl Front {
    /// The ends of all connections of this domain.
    pub fn all() -> impl Iterator<Item = Self> {
        [Protocol::Blk, Protocol::Net]
            .into_iter()
            .flat_map(|protocol| conn::all(protocol, Role::Frontend).map(move |c| (protocol, c)))
            .map(|(protocol, connection)| Self::new(protocol, connection))
    }

    fn new(protocol: Protocol, connection: Connection) -> Self {
        let kinds: &[(usize, usize)] = match protocol {
            Protocol::Blk => &blk::SIZES,
            Protocol::Net => &net::SIZES,
        };
        let mut rings = heapless::Vec::new();
        for &(request, response) in kinds {
            let layout = layout(SLOTS, request, response).expect("valid slots");
            rings.push((region(layout.pages()), layout)).expect("two queues at most");
        }
        Self {
            connection,
            protocol,
            pages: connection.pages(),
            own: own_page(connection.slot),
            env: DomainEnv,
            rings,
            queues: heapless::Vec::new(),
            pool: region(POOL_PAGES),
            epoch: 0,
            next_id: 1,
        }
    }

    /// For the log.
    pub fn name(&self) -> &'static str {
        match self.protocol {
            Protocol::Blk => "blk",
            Protocol::Net => "net",
        }
    }

    /// Queues of its protocol.
    pub fn queue_count(&self) -> usize {
        self.rings.len()
    }

    /// Signals the backend.
    pub fn notify(&mut self) {
        self.env.notify(self.connection.port());
    }

    /// An id that no other request has.
    pub fn id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// A page of the own end, to be written with anything.
    pub fn own(&self) -> SharedMem {
        self.own
    }

    /// The hello that an honest frontend would offer.
    pub fn hello(&self) -> FrontHello {
        let range = |region: &Region| GrantRange { first: region.first, pages: region.pages() };
        let queue = |(region, layout): &(Region, Layout)| QueueHello {
            ring: range(region),
            slots: layout.slots,
        };
        FrontHello {
            version: VERSION,
            protocol: self.protocol as u16,
            features: 7,
            queues: self.rings.iter().map(queue).collect(),
            pool: range(&self.pool),
        }
    }

    /// Takes everything back, as an honest frontend does after a loss.
    pub fn withdraw(&mut self) {
        self.own.write_u32(word::STATE, State::Closing as u32, SeqCst);
        self.revoke();
        self.notify();
    }

    /// Revokes all grants and says nothing.
    pub fn revoke(&mut self) {
        for region in self.regions() {
            let revoked = self.env.revoke(region.first, region.pages());
            assert!(revoked.is_ok(), "own grants can always be revoked: {revoked:?}");
        }
    }

    fn regions(&self) -> heapless::Vec<Region, 3> {
        self.rings.iter().map(|(region, _)| *region).chain([self.pool]).collect()
    }

    /// Clears the rings and grants everything.
    pub fn grant(&mut self) {
        let peer = self.connection.boot.peer;
        self.queues.clear();
        for (region, layout) in self.rings.clone() {
            region.mem.clear();
            let queue = Queue::new(region.mem, layout);
            assert!(self.queues.push(queue).is_ok(), "two queues at most");
            grant(&mut self.env, region, peer, MAP | WRITE);
        }
        grant(&mut self.env, self.pool, peer, MAP | WRITE | DMA);
    }

    /// Publishes a hello under a new epoch.
    pub fn offer(&mut self, hello: &FrontHello) {
        let mut bytes = [0; HELLO_MAX];
        let len = postcard::to_slice(hello, &mut bytes).expect("a hello is short").len();
        self.offer_bytes(&bytes[..len], len as u32);
    }

    /// Publishes any bytes as a hello that claims to have `len`.
    pub fn offer_bytes(&mut self, bytes: &[u8], len: u32) {
        self.epoch = self.epoch.wrapping_add(1);
        self.offer_as(bytes, len, self.epoch);
    }

    /// Publishes any bytes under any epoch.
    pub fn offer_as(&mut self, bytes: &[u8], len: u32, epoch: u32) {
        self.epoch = epoch;
        publish(self.own, bytes, len, epoch, (0, 0), State::Initialising as u32);
        self.notify();
    }

    fn own_pair(&self) -> Pair {
        Pair { generation: self.pages.own.generation(), epoch: self.epoch }
    }

    /// What the backend says to the last hello, now.
    pub fn answer_now(&self) -> Answer {
        let seen = self.pages.peer.glance();
        if seen.answers != self.own_pair() {
            return Answer::Silent;
        }
        let hello = self.pages.peer.hello::<BackHello>(&seen);
        if seen.is(State::Connected) {
            return hello.map_or(Answer::Silent, Answer::Connected);
        }
        if !seen.is(State::Closing) {
            return Answer::Silent;
        }
        match hello {
            Ok(BackHello { body: BackBody::Refused { why }, .. }) => Answer::Refused(why),
            Ok(_) => Answer::Closed,
            Err(_) => Answer::Silent,
        }
    }

    /// Waits for an answer to the last hello.
    pub fn answer(&self, limit: u64) -> Answer {
        let mut answer = Answer::Silent;
        until(limit, || {
            answer = self.answer_now();
            answer != Answer::Silent
        });
        answer
    }

    /// Connects as an honest frontend does, over whatever was there before.
    pub fn connect(&mut self) -> bool {
        self.withdraw();
        self.grant();
        let hello = self.hello();
        self.offer(&hello);
        let connected = matches!(self.answer(LIMIT), Answer::Connected(_));
        if connected {
            self.own.write_u32(word::STATE, State::Connected as u32, SeqCst);
        }
        connected
    }

    /// Whether the backend still serves the last hello.
    pub fn is_connected(&self) -> bool {
        let seen = self.pages.peer.glance();
        seen.answers == self.own_pair() && seen.is(State::Connected)
    }

    /// Waits until the backend no longer does.
    pub fn dropped(&self, limit: u64) -> bool {
        until(limit, || !self.is_connected())
    }

    /// Number of the backend's last hello: it counts its answers.
    pub fn backend_epoch(&self) -> u32 {
        self.pages.peer.glance().pair.epoch
    }

    /// Whether one ordinary request is served.
    pub fn is_served(&mut self) -> bool {
        match self.protocol {
            Protocol::Blk => blk::is_served(self),
            Protocol::Net => net::is_served(self),
        }
    }

    /// Connects anew, which must succeed and serve.
    pub fn is_welcome(&mut self) -> bool {
        self.connect() && self.is_served()
    }
}

/// Memory with grant references.
pub fn region(pages: u32) -> Region {
    let mem = env::alloc_shared(pages as usize).expect("memory for rings and pool");
    let first = env::alloc_grefs(pages).expect("grant references for rings and pool");
    Region { mem, first }
}

/// Grants all pages of a region.
pub fn grant(env: &mut DomainEnv, region: Region, grantee: u16, flags: u64) {
    for page in 0..region.pages() {
        let address = region.mem.address() + u64::from(page) * PAGE_SIZE as u64;
        env.grant(region.first + page, address, grantee, flags);
    }
}

/// Gives the processor away for a moment, so that the other end has one.
pub fn breathe() {
    hypercall::wait(0);
}
