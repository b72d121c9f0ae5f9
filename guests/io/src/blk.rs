//! A volume, for async code.
//!
//! Data is copied through the buffer pool that the frontend granted: the
//! caller's memory is never shared. Requests stay in the frontend until a
//! backend completed them, over any number of its lives, so a read or write
//! here ends with an error only if the device reports one.

use alloc::{collections::VecDeque, rc::Rc, vec::Vec};
use core::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use domain_rt::{env::DomainEnv, events, exec};
use ring_ends::blk::{Frontend, Geometry, Io};
use ring_proto::{
    PAGE_SIZE, Port,
    blk::{Op, SECTOR, SLOTS, Segment, Status},
    shm::SharedMem,
};

pub use crate::connect::SetupError;
use crate::{
    connect,
    pages::{PagePool, Run},
};

/// Most bytes of one request; larger reads and writes are split.
pub const PIECE: usize = 128 << 10;
/// Requests that one read or write keeps in flight.
const PIECES_AT_ONCE: usize = 8;
/// Pages of the buffer pool unless the guest chooses: 16 full pieces.
pub const DEFAULT_POOL_PAGES: u32 = 512;
const _: () = assert!(DEFAULT_POOL_PAGES as usize * PAGE_SIZE == 16 * PIECE);

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkError {
    /// The backend's answer.
    Device(Status),
    /// Not in whole sectors, or beyond any volume.
    BadRange,
}

impl fmt::Display for BlkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(status) => write!(f, "the device answered {status:?}"),
            Self::BadRange => f.write_str("not in whole sectors of a volume"),
        }
    }
}

impl core::error::Error for BlkError {}

/// A handle to a volume; clones are handles to the same one. Any number of
/// calls may be in flight.
#[derive(Clone)]
pub struct BlkClient {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    front: Frontend,
    env: DomainEnv,
    port: Port,
    peer: &'static str,
    pool: SharedMem,
    pages: PagePool,
    requests: Vec<Request>,
    /// Calls that wait for room, in order of arrival, so that a large request
    /// is not passed by small ones for ever.
    queue: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    pump: Option<Waker>,
    /// Calls that wait for the first connect.
    geometry_wakers: Vec<Waker>,
    connected: bool,
}

/// A place in the table of requests.
enum Request {
    Free,
    InFlight {
        run: Option<Run>,
        waker: Option<Waker>,
        /// Nobody waits for it any more.
        abandoned: bool,
    },
    Done {
        run: Option<Run>,
        status: Status,
    },
}

impl BlkClient {
    /// Takes this domain's first blk connection. Nothing happens until
    /// [`BlkClient::run`] is polled.
    pub fn new(pool_pages: u32) -> Result<Self, SetupError> {
        let (connection, mut front, pool) = connect::blk(pool_pages)?;
        front.complain_after(connect::patience(&connection));
        Ok(Self {
            shared: Rc::new(RefCell::new(Shared {
                front,
                env: DomainEnv,
                port: connection.port(),
                peer: connection.peer_name(),
                pool,
                pages: PagePool::new(pool_pages as usize),
                requests: (0..SLOTS).map(|_| Request::Free).collect(),
                queue: VecDeque::new(),
                next_ticket: 0,
                pump: None,
                geometry_wakers: Vec::new(),
                connected: false,
            })),
        })
    }

    /// Moves requests and responses, for ever. Spawn it once.
    pub async fn run(&self) -> ! {
        loop {
            poll_fn(|cx| self.shared.borrow_mut().turn(cx)).await
        }
    }

    /// The volume; waits until a backend has answered for the first time.
    pub async fn geometry(&self) -> Geometry {
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            if let Some(geometry) = shared.front.geometry() {
                return Poll::Ready(geometry);
            }
            shared.geometry_wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether the backend is there at the moment, and why it refused if it did.
    pub fn state(&self) -> (bool, Option<alloc::string::String>) {
        let shared = self.shared.borrow();
        (shared.front.is_connected(), shared.front.refusal().map(Into::into))
    }

    /// Reads from `sector` on.
    pub async fn read(&self, sector: u64, buf: &mut [u8]) -> Result<(), BlkError> {
        check(sector, buf.len())?;
        let mut flights: VecDeque<(Flight, &mut [u8])> = VecDeque::new();
        let mut at = sector;
        for piece in buf.chunks_mut(PIECE) {
            let flight = loop {
                if flights.len() < PIECES_AT_ONCE
                    && let Some(flight) = self.try_begin(Op::Read, at, piece.len())
                {
                    break flight;
                }
                // What this call holds must not wait for what it wants.
                match flights.pop_front() {
                    Some((flight, target)) => flight.read_into(target).await?,
                    None => break self.begin(Op::Read, at, piece.len()).await,
                }
            };
            flight.submit(&[]);
            // `check` saw that this does not wrap.
            at = at.saturating_add(piece.len() as u64 / SECTOR);
            flights.push_back((flight, piece));
        }
        for (flight, target) in flights {
            flight.read_into(target).await?;
        }
        Ok(())
    }

    /// Writes from `sector` on. Durable after the next [`BlkClient::flush`].
    pub async fn write(&self, sector: u64, buf: &[u8]) -> Result<(), BlkError> {
        check(sector, buf.len())?;
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut at = sector;
        for piece in buf.chunks(PIECE) {
            let flight = loop {
                if flights.len() < PIECES_AT_ONCE
                    && let Some(flight) = self.try_begin(Op::Write, at, piece.len())
                {
                    break flight;
                }
                match flights.pop_front() {
                    Some(flight) => flight.ok().await?,
                    None => break self.begin(Op::Write, at, piece.len()).await,
                }
            };
            flight.submit(piece);
            // `check` saw that this does not wrap.
            at = at.saturating_add(piece.len() as u64 / SECTOR);
            flights.push_back(flight);
        }
        for flight in flights {
            flight.ok().await?;
        }
        Ok(())
    }

    /// Makes every write that completed before this call durable. A volume
    /// without a volatile cache needs no flush.
    pub async fn flush(&self) -> Result<(), BlkError> {
        let flight = self.begin(Op::Flush, 0, 0).await;
        flight.submit(&[]);
        flight.ok().await
    }

    /// Room for a request, if there is some at once and nobody waits for it.
    fn try_begin(&self, op: Op, sector: u64, len: usize) -> Option<Flight> {
        let mut shared = self.shared.borrow_mut();
        if !shared.queue.is_empty() {
            return None;
        }
        let (index, run) = shared.reserve(len)?;
        Some(self.flight(index, run, op, sector, len))
    }

    /// Room for a request, waiting in line.
    async fn begin(&self, op: Op, sector: u64, len: usize) -> Flight {
        let place = {
            let mut shared = self.shared.borrow_mut();
            let ticket = shared.next_ticket;
            shared.next_ticket = shared.next_ticket.wrapping_add(1);
            shared.queue.push_back((ticket, Waker::noop().clone()));
            Place { shared: &self.shared, ticket }
        };
        let (index, run) = poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            let first = shared.queue.front().is_some_and(|(t, _)| *t == place.ticket);
            if first && let Some(reserved) = shared.reserve(len) {
                return Poll::Ready(reserved);
            }
            if let Some((_, waker)) = shared.queue.iter_mut().find(|(t, _)| *t == place.ticket) {
                waker.clone_from(cx.waker());
            }
            Poll::Pending
        })
        .await;
        self.flight(index, run, op, sector, len)
    }

    fn flight(&self, index: usize, run: Option<Run>, op: Op, sector: u64, len: usize) -> Flight {
        Flight { shared: self.shared.clone(), index, run, op, sector, len }
    }
}

fn check(sector: u64, len: usize) -> Result<(), BlkError> {
    let sectors = len as u64 / SECTOR;
    let whole = (len as u64).is_multiple_of(SECTOR) && sector.checked_add(sectors).is_some();
    if whole { Ok(()) } else { Err(BlkError::BadRange) }
}

/// A place in the queue for room; leaves it when dropped.
struct Place<'a> {
    shared: &'a RefCell<Shared>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.queue.retain(|(ticket, _)| *ticket != self.ticket);
        shared.wake_queue();
    }
}

/// A request with its room. Dropped before its end, the request goes on and
/// its room comes back once it ended.
struct Flight {
    shared: Rc<RefCell<Shared>>,
    index: usize,
    run: Option<Run>,
    op: Op,
    sector: u64,
    len: usize,
}

impl Flight {
    /// Where its data is in the pool.
    fn offset(&self) -> usize {
        self.run.map_or(0, |run| run.first.saturating_mul(PAGE_SIZE))
    }

    /// Hands the request to the frontend, with `data` if it is a write.
    fn submit(&self, data: &[u8]) {
        let mut shared = self.shared.borrow_mut();
        let offset = self.offset();
        // No pool and no piece is larger than 4 GiB.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let segment = Segment { offset: number(offset), len: number(self.len) };
        let segments = if self.len > 0 { core::slice::from_ref(&segment) } else { &[] };
        let copied = shared.pool.copy_to(offset, data).is_ok();
        let io = Io { op: self.op, sector: self.sector, sectors: 0, segments };
        // Neither fails: the run lies in the pool, and there is a place in
        // the table for no more requests than the frontend has slots.
        let taken = copied && shared.front.submit(io, self.index as u64).is_ok();
        debug_assert!(taken, "the frontend refused a request");
        if let Some(request) = shared.requests.get_mut(self.index) {
            *request = if taken {
                Request::InFlight { run: self.run, waker: None, abandoned: false }
            } else {
                Request::Done { run: self.run, status: Status::Invalid }
            };
        }
        if let Some(pump) = shared.pump.take() {
            pump.wake();
        }
    }

    async fn status(&self) -> Status {
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            match shared.requests.get_mut(self.index) {
                Some(Request::InFlight { waker, .. }) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                Some(Request::Done { status, .. }) => Poll::Ready(*status),
                Some(Request::Free) | None => Poll::Ready(Status::Invalid),
            }
        })
        .await
    }

    async fn ok(self) -> Result<(), BlkError> {
        match self.status().await {
            Status::Ok => Ok(()),
            status => Err(BlkError::Device(status)),
        }
    }

    async fn read_into(self, target: &mut [u8]) -> Result<(), BlkError> {
        match self.status().await {
            Status::Ok => {
                let offset = self.offset();
                let pool = self.shared.borrow().pool;
                pool.copy_from(offset, target).map_err(|_| BlkError::BadRange)
            }
            status => Err(BlkError::Device(status)),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        if let Some(Request::InFlight { abandoned, waker, .. }) =
            shared.requests.get_mut(self.index)
        {
            *abandoned = true;
            *waker = None;
        } else {
            shared.release(self.index);
        }
    }
}

impl Shared {
    /// A place in the table and pages for `len` bytes.
    fn reserve(&mut self, len: usize) -> Option<(usize, Option<Run>)> {
        let index = self.requests.iter().position(|r| matches!(r, Request::Free))?;
        let run = match len.div_ceil(PAGE_SIZE) {
            0 => None,
            pages => Some(self.pages.take(pages)?),
        };
        // Not in flight yet, and no longer free.
        *self.requests.get_mut(index)? = Request::Done { run, status: Status::Invalid };
        Some((index, run))
    }

    fn release(&mut self, index: usize) {
        let Some(request) = self.requests.get_mut(index) else { return };
        if let Request::InFlight { run: Some(run), .. } | Request::Done { run: Some(run), .. } =
            core::mem::replace(request, Request::Free)
        {
            self.pages.give(run);
        }
        self.wake_queue();
    }

    fn wake_queue(&mut self) {
        if let Some((_, waker)) = self.queue.front() {
            waker.wake_by_ref();
        }
    }

    /// One turn of the pump.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pump = Some(cx.waker().clone());
        events::take(self.port);
        let progress = self.front.poll(&mut self.env);
        let mut completed = false;
        while let Some(completion) = self.front.next_completion() {
            completed = true;
            // The token is the index that `submit` gave.
            let index = usize::try_from(completion.token).unwrap_or(usize::MAX);
            self.complete(index, completion.status);
        }
        self.report();
        if progress.again || completed {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(deadline) = progress.deadline {
            exec::wake_at(deadline, cx.waker());
        }
        if exec::poll_event(self.port, cx.waker()).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn complete(&mut self, index: usize, status: Status) {
        let Some(request) = self.requests.get_mut(index) else { return };
        let Request::InFlight { run, waker, abandoned } = request else { return };
        let (run, waker, abandoned) = (*run, waker.take(), *abandoned);
        *request = Request::Done { run, status };
        if abandoned {
            self.release(index);
        } else if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells of the connection's coming and going.
    fn report(&mut self) {
        let connected = self.front.is_connected();
        if connected == self.connected {
            return;
        }
        self.connected = connected;
        let peer = self.peer;
        match (connected, self.front.geometry()) {
            (true, Some(geometry)) => {
                self.geometry_wakers.drain(..).for_each(Waker::wake);
                let mib = geometry.sectors / ((1 << 20) / SECTOR);
                let replayed = self.front.counters().replayed;
                log::info!(
                    "disk: connected to `{peer}`, {mib} MiB, {replayed} requests replayed so far"
                );
            }
            _ => {
                let waiting = self.front.in_flight();
                log::warn!("disk: lost `{peer}`, {waiting} requests wait for it");
            }
        }
    }
}
