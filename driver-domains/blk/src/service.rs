//! The disk's volumes for the connections of this domain.
//!
//! One loop serves all: requests go from the rings into the device queue, and
//! completions back. Guests take turns; each turn is worth an amount of work
//! in proportion to the connection's weight (deficit round robin, where the
//! last request of a turn may overdraw the account).

use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};

use domain_rt::{
    conn::{self, Connection},
    dma,
    env::{self, DomainEnv},
    events, set_ready,
    time::{NEVER, now_ns},
    virtio::{Error, queue::Misbehaved},
};
use ring_ends::{
    Env, Window,
    blk::{Backend, BackendConfig, Tag, ValidRequest, Volume},
};
use ring_proto::{
    blk::{
        FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_REQUEST_BYTES, MAX_SEGMENTS, Op,
        SECTOR, Status,
    },
    boot::BootInfo,
    conn::{BackBody, BackHello, Pages, Pair, Protocol, Role, State, VERSION},
};

use crate::{
    device::{Done, Io, POLL_NS, Piece, Refused, STUCK_NS, VirtioBlk},
    gpt,
};

/// Work that a connection of weight 256 may do in one turn, bytes.
const QUANTUM: u64 = MAX_REQUEST_BYTES as u64;
/// What a request costs beside its bytes: a small one is not free.
const REQUEST_COST: u64 = 4096;
/// Busy turns between two looks at the handshakes.
const POLL_TURNS: u32 = 32;
/// Pages for the rings of one connection.
const RING_PAGES: u32 = 16;
/// Most pages of a connection's pool.
const POOL_PAGES: u32 = 4096;

/// A connection with a volume.
struct Client {
    connection: Connection,
    backend: Backend,
    /// First sector of the volume on the disk.
    first: u64,
    /// Work that a turn is worth.
    quantum: u64,
    /// Work left in this turn; negative when overdrawn.
    account: i64,
    /// Its ring may hold requests.
    backlog: bool,
    /// Was connected at the last look; for the log.
    connected: bool,
}

/// A connection that cannot be served.
struct Rejected {
    connection: Connection,
    pages: Pages,
    why: heapless::String<96>,
    answered: Option<Pair>,
}

/// A request of a guest that the disk works on.
struct Work {
    client: usize,
    tag: Tag,
    op: Op,
    /// Where a long discard or write-zeroes goes on, and how much is left.
    rest: Option<(u64, u64)>,
}

/// Serves the domain's first device for ever.
pub fn run(boot: &'static BootInfo) -> ! {
    let mut disk = match VirtioBlk::open(0) {
        Ok(disk) => disk,
        // The supervisor restarts this domain, and holds it if that does not
        // help.
        Err(error) => panic!("no disk: {error}"),
    };
    // What an earlier generation wrote may still be in the disk's cache, and
    // a guest may have been told by now that it is durable or not; after this
    // flush all of it is.
    if let Err(error) = flush(&mut disk) {
        panic!("the disk's cache cannot be flushed: {error}");
    }
    let mut service = Service::new(boot, disk);
    service.run()
}

fn flush(disk: &mut VirtioBlk) -> Result<(), Error> {
    if !disk.has_cache() || disk.read_only() {
        return Ok(());
    }
    let io = Io { op: Op::Flush, sector: 0, sectors: 0, pieces: &[], cookie: 0 };
    match disk.run(&io)? {
        Status::Ok => Ok(()),
        _ => Err(Error::Misbehaved),
    }
}

struct Service {
    disk: VirtioBlk,
    clients: Vec<Client>,
    rejected: Vec<Rejected>,
    work: Box<[Option<Work>]>,
    free_work: Vec<u32>,
    /// Whose turn is next.
    turn: usize,
    last_progress: u64,
    env: DomainEnv,
}

impl Service {
    fn new(boot: &BootInfo, mut disk: VirtioBlk) -> Self {
        let volumes = read_volumes(&mut disk);
        let connections: Vec<Connection> = conn::all(Protocol::Blk, Role::Backend).collect();
        let share = boot.grant_window_pages / connections.len().max(1) as u32;
        let mut this = Self {
            disk,
            clients: Vec::new(),
            rejected: Vec::new(),
            work: (0..256).map(|_| None).collect(),
            free_work: (0..256).collect(),
            turn: 0,
            last_progress: now_ns(),
            env: DomainEnv,
        };
        let mut taken = BTreeSet::new();
        for connection in connections {
            match this.client(connection, &volumes, &mut taken, share) {
                Ok(client) => this.clients.push(client),
                Err(why) => {
                    log::error!("{} is not served: {why}", connection.peer_name());
                    this.rejected.push(Rejected {
                        connection,
                        pages: connection.pages(),
                        why,
                        answered: None,
                    });
                }
            }
        }
        this
    }

    fn client(
        &self,
        connection: Connection,
        volumes: &Result<Vec<gpt::Volume>, heapless::String<96>>,
        taken: &mut BTreeSet<u64>,
        window_pages: u32,
    ) -> Result<Client, heapless::String<96>> {
        let volumes = volumes.as_ref().map_err(Clone::clone)?;
        let label = connection.volume();
        let mut named = volumes.iter().filter(|v| v.label == label);
        let volume = named.next().ok_or_else(|| reason(format_args!("no volume {label:?}")))?;
        if named.next().is_some() {
            return Err(reason(format_args!("several volumes are named {label:?}")));
        }
        if !taken.insert(volume.first) {
            return Err(reason(format_args!("volume {label:?} belongs to another connection")));
        }
        let pool_pages = POOL_PAGES.min(window_pages.saturating_sub(RING_PAGES));
        let ring_page = env::alloc_window(RING_PAGES);
        let pool_page = env::alloc_window(pool_pages);
        let (Some(ring_page), Some(pool_page)) = (ring_page, pool_page) else {
            return Err(reason(format_args!("the grant window is too small")));
        };
        let unit = u64::from(self.disk.block_size()) / SECTOR;
        let offered = |op, feature| if self.disk.max_range(op) > 0 { feature } else { 0 };
        let backend = Backend::new(
            BackendConfig {
                pages: connection.pages(),
                port: connection.port(),
                peer: connection.boot.peer,
                window: Window { ring_page, ring_pages: RING_PAGES, pool_page, pool_pages },
            },
            Volume {
                sectors: volume.blocks * unit,
                block_size: self.disk.block_size(),
                read_only: self.disk.read_only(),
                features: FEATURE_FLUSH
                    | offered(Op::Discard, FEATURE_DISCARD)
                    | offered(Op::WriteZeroes, FEATURE_WRITE_ZEROES),
            },
        );
        log::info!(
            "volume {label} for {}: {} KiB",
            connection.peer_name(),
            volume.blocks * unit / 2
        );
        Ok(Client {
            connection,
            backend,
            first: volume.first * unit,
            quantum: (u64::from(connection.boot.weight.max(1)) * QUANTUM / 256).max(REQUEST_COST),
            account: 0,
            backlog: true,
            connected: false,
        })
    }

    fn run(&mut self) -> ! {
        self.disk.set_interrupts(false);
        set_ready();
        let mut turns = 0u32;
        loop {
            turns = turns.wrapping_add(1);
            // The disk's interrupt and notifications only end the sleep: every
            // turn looks at everything.
            let _ = events::take_all();
            let mut busy = self.completions();
            busy |= self.requests();
            // A poll asks for notifications, which cost the guests an exit
            // each, so while there is work anyway it comes seldom.
            if busy && !turns.is_multiple_of(POLL_TURNS) {
                events::breathe();
                continue;
            }
            let (again, deadline) = self.poll();
            if busy || again {
                events::breathe();
            } else if !self.disk.set_interrupts(true) {
                events::wait(deadline);
                self.disk.set_interrupts(false);
            }
        }
    }

    /// Looks after handshakes. Returns whether to go on without a sleep, and
    /// when to look again at the latest.
    fn poll(&mut self) -> (bool, u64) {
        let mut again = false;
        let mut deadline = NEVER;
        for client in &mut self.clients {
            let progress = client.backend.poll(&mut self.env);
            client.backlog |= progress.again;
            client.tell();
            again |= progress.again;
            deadline = deadline.min(progress.deadline.unwrap_or(NEVER));
        }
        for rejected in &mut self.rejected {
            rejected.poll(&mut self.env);
        }
        let now = now_ns();
        if self.disk.in_flight() == 0 {
            self.last_progress = now;
        } else {
            let idle = now.saturating_sub(self.last_progress);
            // Its status is looked at only then, for that is slow.
            if idle > STUCK_NS || (idle > POLL_NS && self.disk.needs_reset()) {
                panic!("the disk does not answer");
            }
            deadline = deadline.min(now.saturating_add(POLL_NS));
        }
        // Requests that wait for room in the device queue are served after a
        // completion, which wakes us.
        let stalled = !self.disk.has_room() || self.free_work.is_empty();
        (again && !stalled, deadline)
    }

    /// Takes requests, turn by turn. Returns whether there were any.
    fn requests(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.clients.len() {
            let index = self.turn % self.clients.len().max(1);
            if !self.take_turn(index, &mut any) {
                // No room: this client goes on when there is.
                break;
            }
            self.turn = index + 1;
        }
        self.disk.kick();
        if any {
            for client in &mut self.clients {
                client.backend.push_responses(&mut self.env);
            }
        }
        any
    }

    /// One turn of a client; `false` if it was cut short for want of room.
    fn take_turn(&mut self, index: usize, any: &mut bool) -> bool {
        let Some(client) = self.clients.get_mut(index) else { return true };
        if !client.backlog {
            return true;
        }
        if client.account <= 0 {
            client.account = client.account.saturating_add_unsigned(client.quantum);
        }
        loop {
            if !self.disk.has_room() || self.free_work.is_empty() {
                return false;
            }
            let Some(client) = self.clients.get_mut(index) else { return true };
            if client.account <= 0 {
                return true;
            }
            let Some(request) = client.backend.next_request() else {
                client.account = 0;
                client.backlog = false;
                return true;
            };
            *any = true;
            let bytes = match request.op {
                Op::Read | Op::Write => request.sectors.saturating_mul(SECTOR),
                _ => 0,
            };
            client.account = client.account.saturating_sub_unsigned(bytes + REQUEST_COST);
            self.start(index, request);
        }
    }

    /// Gives a request to the disk.
    fn start(&mut self, index: usize, request: ValidRequest) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if request.op == Op::Flush && !self.disk.has_cache() {
            client.backend.complete(request.tag, Status::Ok);
            return;
        }
        let sector = client.first.saturating_add(request.sector);
        let (sectors, rest) = split(&self.disk, request.op, sector, request.sectors);
        let mut pieces = heapless::Vec::<Piece, MAX_SEGMENTS>::new();
        for s in &request.segments {
            // As many as the request has segments.
            let _ = pieces.push(Piece { address: s.address, len: s.len });
        }
        let Some(cookie) = self.free_work.pop() else {
            client.backend.complete(request.tag, Status::IoError);
            return;
        };
        let io = Io { op: request.op, sector, sectors, pieces: &pieces, cookie };
        match self.disk.submit(&io) {
            Ok(()) => {
                if let Some(work) = self.work.get_mut(cookie as usize) {
                    *work = Some(Work { client: index, tag: request.tag, op: request.op, rest });
                }
            }
            Err(refused) => {
                self.free_work.push(cookie);
                client.backend.complete(request.tag, status_of(refused));
            }
        }
    }

    /// Takes what the disk finished. Returns whether there was anything.
    fn completions(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.disk.next_done() {
                Ok(Some(done)) => self.finish(done),
                Ok(None) => break,
                // The device is reset by the next generation.
                Err(Misbehaved) => panic!("the disk broke the rules of its queue"),
            }
            any = true;
        }
        if any {
            self.last_progress = now_ns();
            self.disk.kick();
            for client in &mut self.clients {
                client.backend.push_responses(&mut self.env);
            }
        }
        any
    }

    fn finish(&mut self, done: Done) {
        let Some(slot) = self.work.get_mut(done.cookie as usize) else { return };
        let Some(mut work) = slot.take() else { return };
        let mut status = done.status;
        if let (Status::Ok, Some((sector, left))) = (status, work.rest) {
            let (sectors, rest) = split(&self.disk, work.op, sector, left);
            let io = Io { op: work.op, sector, sectors, pieces: &[], cookie: done.cookie };
            match self.disk.submit(&io) {
                Ok(()) => {
                    work.rest = rest;
                    *slot = Some(work);
                    return;
                }
                // There is room: one request just ended.
                Err(refused) => status = status_of(refused),
            }
        }
        self.free_work.push(done.cookie);
        if let Some(client) = self.clients.get_mut(work.client) {
            client.backend.complete(work.tag, status);
        }
    }
}

fn status_of(refused: Refused) -> Status {
    match refused {
        Refused::Unsupported => Status::Unsupported,
        Refused::Invalid => Status::Invalid,
        Refused::Full => Status::IoError,
    }
}

/// The part of a range that one request to the disk may cover, and the rest.
fn split(disk: &VirtioBlk, op: Op, sector: u64, sectors: u64) -> (u32, Option<(u64, u64)>) {
    let most = u64::from(disk.max_range(op));
    let now = sectors.min(most);
    let left = match op {
        Op::Discard | Op::WriteZeroes => sectors - now,
        _ => 0,
    };
    (now as u32, (left > 0 && now > 0).then(|| (sector + now, left)))
}

/// The disk's volumes, or why there are none.
fn read_volumes(disk: &mut VirtioBlk) -> Result<Vec<gpt::Volume>, heapless::String<96>> {
    const BOUNCE: usize = 1 << 16;
    let Some(bounce) = dma::alloc(BOUNCE) else {
        return Err(reason(format_args!("the DMA pool is too small")));
    };
    let block_size = disk.block_size();
    let blocks = disk.sectors() / (u64::from(block_size) / SECTOR);
    let volumes =
        gpt::volumes(blocks, block_size as usize, &mut |block, to| disk.read(block, to, bounce));
    dma::free(bounce);
    volumes.map_err(|error| reason(format_args!("{error}")))
}

/// Text of bounded length; what does not fit is left out.
fn reason(text: core::fmt::Arguments<'_>) -> heapless::String<96> {
    use core::fmt::Write;
    struct Cut(heapless::String<96>);
    impl Write for Cut {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            for c in text.chars() {
                if self.0.push(c).is_err() {
                    break;
                }
            }
            Ok(())
        }
    }
    let mut cut = Cut(heapless::String::new());
    // Cut never fails.
    let _ = cut.write_fmt(text);
    cut.0
}

impl Client {
    /// Logs when the connection comes or goes, and what the guest does wrong.
    fn tell(&mut self) {
        if let Some(complaint) = self.backend.complaint() {
            log::warn!("{} {complaint}", self.connection.peer_name());
        }
        let connected = self.backend.is_connected();
        if connected != self.connected {
            self.connected = connected;
            let what = if connected { "connected" } else { "disconnected" };
            log::info!("{} {what}", self.connection.peer_name());
        }
    }
}

impl Rejected {
    /// Answers every offer with the reason.
    fn poll(&mut self, env: &mut DomainEnv) {
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
