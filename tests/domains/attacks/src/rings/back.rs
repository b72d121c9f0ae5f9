//! A driver's end of a connection.

use domain_rt::{
    conn::{self, Connection},
    env::{self, DomainEnv},
    events,
    time::now_ns,
};
use ring_ends::Env;
use ring_proto::{
    blk::FEATURE_FLUSH,
    conn::{
        BackBody, BackHello, FrontHello, GrantRange, HELLO_MAX, Pages, Pair, Protocol, Role, State,
        VERSION,
    },
    hypercall::{MAP_DMA, MAP_WRITE},
    ring::layout,
    shm::SharedMem,
};

use core::sync::atomic::Ordering::SeqCst;

use super::{LIMIT, Queue, blk, net, own_page, publish, until, word};

/// Pages for rings.
const RING_PAGES: u32 = 16;

/// The hostile backend of one connection.
pub struct Back {
    /// The connection.
    pub connection: Connection,
    /// Its protocol.
    pub protocol: Protocol,
    pages: Pages,
    own: SharedMem,
    env: DomainEnv,
    window: u32,
    mapped: heapless::Vec<(u32, u32), 4>,
    /// The rings, while mapped.
    pub queues: heapless::Vec<Queue, 2>,
    /// The frontend's buffers, while mapped.
    pub pool: Option<SharedMem>,
    /// The hello that is or was served.
    pub served: Pair,
    /// Number of the own hello.
    pub epoch: u32,
}

impl Back {
    /// The end of this domain's first connection as a backend.
    pub fn first() -> Self {
        let mut all = [Protocol::Blk, Protocol::Net]
            .into_iter()
            .flat_map(|protocol| conn::all(protocol, Role::Backend).map(move |c| (protocol, c)));
        let (protocol, connection) = all.next().expect("a connection");
        let pages = domain_rt::boot().grant_window_pages;
        Self {
            connection,
            protocol,
            pages: connection.pages(),
            own: own_page(connection.slot),
            env: DomainEnv,
            window: env::alloc_window(pages).expect("all of the window"),
            mapped: heapless::Vec::new(),
            queues: heapless::Vec::new(),
            pool: None,
            served: Pair::default(),
            epoch: 0,
        }
    }

    /// The own page.
    pub fn own(&self) -> SharedMem {
        self.own
    }

    /// Signals the frontend.
    pub fn notify(&mut self) {
        self.env.notify(self.connection.port());
    }

    /// Gives up what is mapped and waits for another offer; maps it. False if
    /// none came.
    pub fn accept(&mut self) -> bool {
        for (page, count) in core::mem::take(&mut self.mapped) {
            let unmapped = self.env.unmap(page, count);
            assert!(unmapped.is_ok(), "own mappings can always be removed: {unmapped:?}");
        }
        self.own.write_u32(word::STATE, State::Initialising as u32, SeqCst);
        self.notify();
        let mut offer = None;
        until(LIMIT, || {
            let seen = self.pages.peer.glance();
            if seen.is(State::Initialising) && seen.pair != self.served {
                offer = self.pages.peer.hello::<FrontHello>(&seen).ok().map(|h| (seen.pair, h));
            }
            offer.is_some()
        });
        let Some((pair, hello)) = offer else { return false };
        self.served = pair;
        self.map(&hello)
    }

    fn map(&mut self, hello: &FrontHello) -> bool {
        let kinds: &[(usize, usize)] = match self.protocol {
            Protocol::Blk => &blk::SIZES,
            Protocol::Net => &net::SIZES,
        };
        self.queues.clear();
        let mut page = self.window;
        for (queue, &(request, response)) in hello.queues.iter().zip(kinds) {
            let mem = self.map_range(queue.ring, page, MAP_WRITE);
            let layout = layout(queue.slots, request, response);
            let (Some(mem), Some(layout)) = (mem, layout) else { return false };
            assert!(self.queues.push(Queue::new(mem, layout)).is_ok(), "two queues at most");
            page += queue.ring.pages;
        }
        self.pool = self.map_range(hello.pool, self.window + RING_PAGES, MAP_WRITE | MAP_DMA);
        self.pool.is_some()
    }

    fn map_range(&mut self, range: GrantRange, page: u32, flags: u64) -> Option<SharedMem> {
        let peer = self.connection.boot.peer;
        let mem = self.env.map(peer, range.first, range.pages, page, flags).ok()?;
        self.mapped.push((page, range.pages)).ok()?;
        Some(mem)
    }

    /// The answer that an honest backend would give.
    pub fn hello(&self) -> BackHello {
        let (features, body) = match self.protocol {
            Protocol::Blk => {
                let sectors = 512 << 10;
                (FEATURE_FLUSH, BackBody::Blk { sectors, block_size: 512, read_only: false })
            }
            Protocol::Net => (0, BackBody::Net { mac: self.connection.boot.mac, mtu: 1500 }),
        };
        BackHello { version: VERSION, features, body }
    }

    /// Publishes an answer to the offer that was accepted.
    pub fn answer(&mut self, hello: &BackHello) {
        let mut bytes = [0; HELLO_MAX];
        let len = postcard::to_slice(hello, &mut bytes).expect("a hello is short").len();
        self.answer_bytes(&bytes[..len], len as u32, self.served, State::Connected as u32);
    }

    /// Publishes any bytes as an answer to any hello, in any state.
    pub fn answer_bytes(&mut self, bytes: &[u8], len: u32, to: Pair, state: u32) {
        self.epoch = self.epoch.wrapping_add(1);
        publish(self.own, bytes, len, self.epoch, (to.generation, to.epoch), state);
        self.notify();
    }

    /// Accepts and answers in good order, and waits until the frontend agrees.
    pub fn connect(&mut self) -> bool {
        if !self.accept() {
            return false;
        }
        let hello = self.hello();
        self.answer(&hello);
        until(LIMIT, || self.is_accepted() || !self.stands()) && self.stands()
    }

    /// Whether the frontend took the answer.
    pub fn is_accepted(&self) -> bool {
        let seen = self.pages.peer.glance();
        seen.pair == self.served && seen.is(State::Connected)
    }

    /// Whether the frontend stands by the hello that was accepted.
    pub fn stands(&self) -> bool {
        let seen = self.pages.peer.glance();
        seen.pair == self.served && (seen.is(State::Connected) || seen.is(State::Initialising))
    }

    /// Waits until it no longer does.
    pub fn dropped(&self, limit: u64) -> bool {
        until(limit, || !self.stands())
    }

    /// Waits until there are requests in a queue.
    pub fn has_requests(&self, queue: usize, count: u32) -> bool {
        let Some(queue) = self.queues.get(queue) else { return false };
        let there = || queue.requests_shown().wrapping_sub(queue.consumed) >= count;
        until(LIMIT, || there() || !self.stands()) && there()
    }

    /// Keeps busy with `step` for a while.
    pub fn storm(&mut self, ns: u64, mut step: impl FnMut(&mut Self, u32)) {
        let end = now_ns().saturating_add(ns);
        let mut count = 0;
        while now_ns() < end {
            let _ = events::take_all();
            events::breathe();
            step(self, count);
            count += 1;
        }
    }
}
