//! The disk's volumes for the connections of this domain.
//!
//! One loop serves all: requests go from the rings into the device queue, and
//! completions back. Guests take turns, by weight and within their limits
//! (`io-limits`).

use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};

use domain_rt::{
    conn::{self, Connection},
    dma,
    env::{self, DomainEnv},
    events,
    panic::{give_up, stalled},
    refuse::{Refusal, Why, why},
    set_in_flight, set_ready, set_served, stand_by,
    time::{MS, NEVER, now_ns},
};
use io_limits::{Bucket, Limiter, Turns};
use ring_ends::{
    Window,
    blk::{Backend, BackendConfig, Tag, ValidRequest, Volume},
};
use ring_proto::{
    blk::{
        FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_REQUEST_BYTES, MAX_SEGMENTS, Op,
        SECTOR, Status,
    },
    boot::BootInfo,
    conn::{Protocol, Role},
};

use crate::{
    device::VirtioBlk,
    disk::{Disk, Done, Failure, Io, Misbehaved, POLL_NS, Piece, Refused, STUCK_NS},
    gpt,
};

/// Work that a connection of weight 256 may do in one turn, bytes.
const QUANTUM: u64 = MAX_REQUEST_BYTES as u64;
/// What a request costs beside its bytes: a small one is not free.
const REQUEST_COST: u64 = 4096;
/// Work that the disk holds while several guests have some: enough to keep it
/// busy, little enough that turns decide who is next.
const WINDOW: u64 = 2 * QUANTUM;
/// Requests that the disk works on at a time.
const COOKIES: u32 = 256;
/// A disk that finished nothing for so long does not work, if a guest has
/// complained.
const IDLE_NS: u64 = 1000 * MS;
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
    /// Was connected at the last look; for the log.
    connected: bool,
    /// How often the log may say so: a guest can come and go without end.
    comings: Bucket,
}

/// A request of a guest that the disk works on.
struct Work {
    client: usize,
    tag: Tag,
    op: Op,
    /// What it cost.
    cost: u64,
    /// Where a long discard or write-zeroes goes on, and how much is left.
    rest: Option<(u64, u64)>,
}

/// Serves the domain's first device for ever.
pub fn run(boot: &'static BootInfo) -> ! {
    serve::<VirtioBlk>(boot)
}

/// The same; tells `turn`, in each turn of the loop, whether the disk completed
/// something. For drivers with a bug on purpose.
pub fn run_with(boot: &'static BootInfo, turn: impl FnMut(bool)) -> ! {
    begin::<VirtioBlk>(boot, turn)
}

/// Serves it by another driver.
pub fn serve<D: Disk>(boot: &'static BootInfo) -> ! {
    begin::<D>(boot, |_| ())
}

fn begin<D: Disk>(boot: &'static BootInfo, turn: impl FnMut(bool)) -> ! {
    // Nearly all that comes before service is the disk's or the guests'.
    stand_by();
    let mut disk = match D::open(0) {
        Ok(disk) => disk,
        // The next life begins with a harder reset; the supervisor holds this
        // domain if that does not help.
        Err(error) => stalled(format_args!("no disk: {error}")),
    };
    // What an earlier generation wrote may still be in the disk's cache, and
    // a guest may have been told by now that it is durable or not; after this
    // flush all of it is.
    if let Err(error) = flush(&mut disk) {
        stalled(format_args!("the disk's cache cannot be flushed: {error}"));
    }
    let mut service = Service::new(boot, disk);
    service.run(turn)
}

fn flush(disk: &mut impl Disk) -> Result<(), Failure> {
    if !disk.has_cache() || disk.read_only() {
        return Ok(());
    }
    let io = Io { op: Op::Flush, sector: 0, sectors: 0, pieces: &[], cookie: 0 };
    match disk.run(&io)? {
        Status::Ok => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

struct Service<D> {
    disk: D,
    /// By number, as in `turns`.
    clients: Vec<Client>,
    turns: Turns,
    refused: Vec<Refusal>,
    work: Box<[Option<Work>]>,
    free_work: Vec<u32>,
    last_progress: u64,
    env: DomainEnv,
}

impl<D: Disk> Service<D> {
    fn new(boot: &BootInfo, mut disk: D) -> Self {
        let volumes = read_volumes(&mut disk);
        let connections: Vec<Connection> = conn::all(Protocol::Blk, Role::Backend).collect();
        let served = u32::try_from(connections.len()).unwrap_or(u32::MAX).max(1);
        let share = boot.grant_window_pages.checked_div(served).unwrap_or(0);
        let mut this = Self {
            disk,
            clients: Vec::new(),
            turns: Turns::new(QUANTUM, WINDOW),
            refused: Vec::new(),
            work: (0..COOKIES).map(|_| None).collect(),
            free_work: (0..COOKIES).collect(),
            last_progress: now_ns(),
            env: DomainEnv,
        };
        let mut taken = BTreeSet::new();
        for connection in connections {
            match this.client(connection, &volumes, &mut taken, share) {
                Ok(client) => this.clients.push(client),
                Err(why) => this.refused.push(Refusal::new(connection, why)),
            }
        }
        this
    }

    fn client(
        &mut self,
        connection: Connection,
        volumes: &Result<Vec<gpt::Volume>, Why>,
        taken: &mut BTreeSet<u64>,
        window_pages: u32,
    ) -> Result<Client, Why> {
        let volumes = volumes.as_ref().map_err(Clone::clone)?;
        let label = connection.volume();
        let mut named = volumes.iter().filter(|v| v.label == label);
        let volume = named.next().ok_or_else(|| why(format_args!("no volume {label:?}")))?;
        if named.next().is_some() {
            return Err(why(format_args!("several volumes are named {label:?}")));
        }
        if !taken.insert(volume.first) {
            return Err(why(format_args!("volume {label:?} belongs to another connection")));
        }
        let pool_pages = POOL_PAGES.min(window_pages.saturating_sub(RING_PAGES));
        let ring_page = env::alloc_window(RING_PAGES);
        let pool_page = env::alloc_window(pool_pages);
        let (Some(ring_page), Some(pool_page), 1..) = (ring_page, pool_page, pool_pages) else {
            return Err(why(format_args!("the grant window is too small")));
        };
        // What the table says lies on the disk, so none of this is out of range.
        let unit = u64::from(self.disk.block_size()) / SECTOR;
        let sectors = volume.blocks.saturating_mul(unit);
        let turn = self.turns.add(connection.boot.weight, Limiter::new(&connection.boot.limits));
        if turn != Some(self.clients.len()) {
            return Err(why(format_args!("there are too many connections")));
        }
        let offered = |op, feature| if self.disk.max_range(op) > 0 { feature } else { 0 };
        let backend = Backend::new(
            BackendConfig {
                pages: connection.pages(),
                port: connection.port(),
                peer: connection.boot.peer,
                window: Window { ring_page, ring_pages: RING_PAGES, pool_page, pool_pages },
            },
            Volume {
                sectors,
                block_size: self.disk.block_size(),
                read_only: self.disk.read_only(),
                features: FEATURE_FLUSH
                    | offered(Op::Discard, FEATURE_DISCARD)
                    | offered(Op::WriteZeroes, FEATURE_WRITE_ZEROES),
            },
        );
        log::info!("volume {label} for {}: {} KiB", connection.peer_name(), sectors / 2);
        let first = volume.first.saturating_mul(unit);
        let comings = Bucket::new(1, 16, 0);
        Ok(Client { connection, backend, first, connected: false, comings })
    }

    fn run(&mut self, mut turn: impl FnMut(bool)) -> ! {
        self.disk.set_interrupts(false);
        set_ready();
        let mut turns = 0u32;
        loop {
            turns = turns.wrapping_add(1);
            // The disk's interrupt and notifications only end the sleep: every
            // turn looks at everything.
            let _ = events::take_all();
            let mut busy = self.completions();
            turn(busy);
            busy |= self.requests();
            set_in_flight(self.work.len().saturating_sub(self.free_work.len()));
            // A poll asks for notifications, which cost the guests an exit
            // each, so while there is work anyway it comes seldom.
            if busy && !turns.is_multiple_of(POLL_TURNS) {
                events::breathe();
                continue;
            }
            let (again, deadline) = self.poll();
            let again = self.attend() || again;
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
        for (index, client) in self.clients.iter_mut().enumerate() {
            let was_up = client.backend.is_connected();
            let progress = client.backend.poll(&mut self.env);
            client.tell();
            deadline = deadline.min(progress.deadline.unwrap_or(NEVER));
            if progress.again {
                self.turns.wake(index);
                // Requests that wait for the guest's limits, or for the disk to
                // finish others, are no reason to go on.
                again |= !(was_up && client.backend.is_connected());
            }
        }
        for refused in &mut self.refused {
            refused.poll(&mut self.env);
        }
        again |= self.turns.wants_round();
        deadline = deadline.min(self.turns.deadline().unwrap_or(NEVER));
        let now = now_ns();
        if self.disk.in_flight() == 0 {
            self.last_progress = now;
        } else {
            let idle = now.saturating_sub(self.last_progress);
            // Its status is looked at only then, for that is slow.
            if idle > STUCK_NS || (idle > POLL_NS && self.disk.needs_reset()) {
                stalled(format_args!("the disk does not answer"));
            }
            deadline = deadline.min(now.saturating_add(POLL_NS));
        }
        // Requests that wait for room in the device queue are served after a
        // completion, which wakes us.
        (again && self.has_room(), deadline)
    }

    /// Answers the supervisor, if it wants to know something. The turn that
    /// ends here looked at every ring and at the device. Returns whether to go
    /// on without a sleep.
    fn attend(&mut self) -> bool {
        let Some(check) = events::check() else { return false };
        if check.drain {
            let mut again = false;
            for client in &mut self.clients {
                again |= client.backend.leave();
            }
            if self.clients.iter().all(|client| client.backend.has_left()) {
                // What was acknowledged is durable before the next generation comes.
                events::answer(check, flush(&mut self.disk).is_ok());
            }
            return again;
        }
        let well = match self.disk.in_flight() {
            // It has nothing to do: something to see it by.
            0 => flush(&mut self.disk).is_ok() && !self.disk.needs_reset(),
            _ => now_ns().saturating_sub(self.last_progress) < IDLE_NS,
        };
        events::answer(check, well);
        false
    }

    /// Takes requests, turn by turn. Returns whether there were any.
    fn requests(&mut self) -> bool {
        let mut any = false;
        let now = now_ns();
        self.turns.begin_round();
        while self.has_room()
            && let Some(index) = self.turns.pick(now)
        {
            let next = self.clients.get_mut(index).and_then(|c| c.backend.next_request());
            match next {
                Some(request) => {
                    any = true;
                    self.start(index, request);
                }
                None => self.turns.empty(index),
            }
        }
        self.disk.kick();
        if any {
            for client in &mut self.clients {
                client.backend.push_responses(&mut self.env);
            }
        }
        any
    }

    fn has_room(&self) -> bool {
        self.disk.has_room() && !self.free_work.is_empty()
    }

    /// Gives a request to the disk.
    fn start(&mut self, index: usize, request: ValidRequest) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if request.op == Op::Flush && !self.disk.has_cache() {
            self.turns.charge(index, REQUEST_COST, 1, 0);
            client.backend.complete(request.tag, Status::Ok);
            return;
        }
        // Zeroes are written like data; what is discarded is not.
        let bytes = match request.op {
            Op::Read | Op::Write | Op::WriteZeroes => request.sectors.saturating_mul(SECTOR),
            Op::Flush | Op::Discard => 0,
        };
        let cost = bytes.saturating_add(REQUEST_COST);
        self.turns.started(index, cost, 1, bytes);
        let sector = client.first.saturating_add(request.sector);
        let (sectors, rest) = split(&self.disk, request.op, sector, request.sectors);
        let mut pieces = heapless::Vec::<Piece, MAX_SEGMENTS>::new();
        for s in &request.segments {
            // As many as the request has segments.
            let _ = pieces.push(Piece { address: s.address, len: s.len });
        }
        let Some(cookie) = self.free_work.pop() else { contradiction() };
        let io = Io { op: request.op, sector, sectors, pieces: &pieces, cookie };
        match self.disk.submit(&io) {
            Ok(()) => {
                if let Some(work) = self.work.get_mut(cookie as usize) {
                    let (tag, op) = (request.tag, request.op);
                    *work = Some(Work { client: index, tag, op, cost, rest });
                }
            }
            Err(refused) => {
                self.free_work.push(cookie);
                self.turns.finished(index, cost);
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
                Err(Misbehaved) => give_up(format_args!("the disk broke the rules of its queue")),
            }
            any = true;
        }
        if any {
            self.last_progress = now_ns();
            self.disk.kick();
            for client in &mut self.clients {
                client.backend.push_responses(&mut self.env);
            }
            set_served();
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
                    // It goes on out of turn, and is paid for by later turns.
                    self.turns.charge(work.client, REQUEST_COST, 1, 0);
                    work.rest = rest;
                    *slot = Some(work);
                    return;
                }
                // There is room: one request just ended.
                Err(refused) => status = status_of(refused),
            }
        }
        self.free_work.push(done.cookie);
        self.turns.finished(work.client, work.cost);
        if let Some(client) = self.clients.get_mut(work.client) {
            client.backend.complete(work.tag, status);
        }
    }
}

/// How a request ends that the disk did not take.
fn status_of(refused: Refused) -> Status {
    match refused {
        Refused::Unsupported => Status::Unsupported,
        Refused::Invalid => Status::Invalid,
        Refused::Full => contradiction(),
    }
}

/// Ends this generation over its own books, which say that there is room where there
/// is none. The next one has the request again; an error would be the guest's.
#[track_caller]
fn contradiction() -> ! {
    give_up(format_args!("no room for a request, though there was some"))
}

/// The part of a range that one request to the disk may cover, and the rest.
fn split(disk: &impl Disk, op: Op, sector: u64, sectors: u64) -> (u32, Option<(u64, u64)>) {
    let now = u32::try_from(sectors).unwrap_or(u32::MAX).min(disk.max_range(op));
    let left = match op {
        Op::Discard | Op::WriteZeroes => sectors.saturating_sub(now.into()),
        _ => 0,
    };
    (now, (left > 0 && now > 0).then(|| (sector.saturating_add(now.into()), left)))
}

/// The disk's volumes, or why there are none.
fn read_volumes(disk: &mut impl Disk) -> Result<Vec<gpt::Volume>, Why> {
    const BOUNCE: usize = 1 << 16;
    let Some(bounce) = dma::alloc(BOUNCE) else {
        return Err(why(format_args!("the DMA pool is too small")));
    };
    let block_size = disk.block_size();
    let unit = u64::from(block_size) / SECTOR;
    let blocks = disk.sectors().checked_div(unit).unwrap_or(0);
    let block_size = usize::try_from(block_size).unwrap_or(0);
    let volumes = gpt::volumes(blocks, block_size, &mut |block, to| disk.read(block, to, bounce));
    dma::free(bounce);
    volumes.map_err(|error| why(format_args!("{error}")))
}

impl Client {
    /// Logs when the connection comes or goes, and what the guest does wrong.
    fn tell(&mut self) {
        if let Some(complaint) = self.backend.complaint() {
            log::warn!("{} {complaint}", self.connection.peer_name());
        }
        let connected = self.backend.is_connected();
        if connected == self.connected {
            return;
        }
        self.connected = connected;
        if self.comings.take(now_ns(), 1) {
            let what = if connected { "connected" } else { "disconnected" };
            log::info!("{} {what}", self.connection.peer_name());
        }
    }
}
