//! Whose turn it is.
//!
//! Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), in the form in
//! which the last request of a turn may overdraw the account, since its cost is
//! known only when it was taken. A client whose [`Limiter`] says no is passed
//! over, and keeps nothing for it but the rest of one turn.
//!
//! Turns decide only what waits. So while several clients have something to do,
//! no more than a window of work is with the device: what was handed to it is
//! beyond any order.

use heapless::Vec;
use ring_proto::MAX_DOMAIN_CONNECTIONS;

use crate::Limiter;

/// Most clients.
pub const MAX_CLIENTS: usize = MAX_DOMAIN_CONNECTIONS;
/// Weight that gets a quantum a turn.
const USUAL_WEIGHT: u64 = 256;

/// Windows that a client may fill as long as it is alone: who comes next waits
/// until they are drained.
const ALONE: u64 = 8;

#[derive(Debug)]
struct Client {
    /// Work that a turn is worth.
    quantum: i64,
    /// Work left in this turn; negative when overdrawn.
    account: i64,
    limiter: Limiter,
    /// It may have requests.
    backlog: bool,
    /// Its limiter said no at the last look.
    throttled: bool,
    /// Work that the device has of it.
    in_flight: u64,
}

/// The order in which clients are served.
#[derive(Debug)]
pub struct Turns {
    clients: Vec<Client, MAX_CLIENTS>,
    quantum: u64,
    window: u64,
    in_flight: u64,
    /// Whose turn it is.
    turn: usize,
    /// Its turn has begun.
    begun: bool,
    /// Turns left in this round.
    left: usize,
}

impl Turns {
    /// Without clients. A turn of weight 256 is worth `quantum`; while several
    /// clients are active the device has `window` of work, and one request more.
    pub fn new(quantum: u64, window: u64) -> Self {
        Self { clients: Vec::new(), quantum, window, in_flight: 0, turn: 0, begun: false, left: 0 }
    }

    /// Adds a client; returns its number, counting from 0. `None` = too many.
    pub fn add(&mut self, weight: u32, limiter: Limiter) -> Option<usize> {
        let quantum = self.quantum.saturating_mul(u64::from(weight.max(1))) / USUAL_WEIGHT;
        let client = Client {
            quantum: i64::try_from(quantum).unwrap_or(i64::MAX).max(1),
            account: 0,
            limiter,
            backlog: true,
            throttled: false,
            in_flight: 0,
        };
        self.clients.push(client).ok()?;
        self.clients.len().checked_sub(1)
    }

    /// A client may have requests.
    pub fn wake(&mut self, client: usize) {
        if let Some(client) = self.clients.get_mut(client) {
            client.backlog = true;
        }
    }

    /// Begins a round, in which each client gets one turn at most. A turn that
    /// was cut short for want of room goes on.
    pub fn begin_round(&mut self) {
        self.left = self.clients.len();
    }

    /// The client whose next request is to be taken. Call it while there is
    /// room for one, and tell what came of it by [`started`](Self::started) or
    /// [`empty`](Self::empty).
    pub fn pick(&mut self, now_ns: u64) -> Option<usize> {
        while self.left > 0 {
            let turn = self.turn;
            let Some(client) = self.clients.get_mut(turn) else {
                // There is none, or it was the last.
                self.turn = 0;
                if self.clients.is_empty() {
                    return None;
                }
                continue;
            };
            if client.backlog {
                client.throttled = !client.limiter.ready(now_ns);
            }
            if client.backlog && !client.throttled {
                if !self.begun {
                    self.begun = true;
                    let account = client.account.saturating_add(client.quantum);
                    client.account = account.min(client.quantum);
                }
                if client.account > 0 {
                    // A full window cuts the turn short.
                    return (!self.is_full()).then_some(turn);
                }
            }
            self.next_turn();
        }
        None
    }

    fn next_turn(&mut self) {
        self.turn = self.turn.saturating_add(1);
        self.begun = false;
        self.left = self.left.saturating_sub(1);
    }

    fn is_full(&self) -> bool {
        let active = |c: &&Client| c.in_flight > 0 || (c.backlog && !c.throttled);
        let contended = || self.clients.iter().filter(active).count() > 1;
        self.in_flight >= self.window
            && (self.in_flight >= self.window.saturating_mul(ALONE) || contended())
    }

    /// A request of `client` was taken: it costs `work`, and counts as so many
    /// operations and bytes before its limits. [`finished`](Self::finished)
    /// gives the work back.
    pub fn started(&mut self, client: usize, work: u64, ops: u64, bytes: u64) {
        self.charge(client, work, ops, bytes);
        if let Some(client) = self.clients.get_mut(client) {
            client.in_flight = client.in_flight.saturating_add(work);
            self.in_flight = self.in_flight.saturating_add(work);
        }
    }

    /// The same for something that the device does not get, or that goes on.
    pub fn charge(&mut self, client: usize, work: u64, ops: u64, bytes: u64) {
        if let Some(client) = self.clients.get_mut(client) {
            client.account = client.account.saturating_sub_unsigned(work);
            client.limiter.spend(ops, bytes);
        }
    }

    /// `client` has nothing to take. What it did not use of its turn is gone.
    pub fn empty(&mut self, client: usize) {
        if let Some(client) = self.clients.get_mut(client) {
            client.backlog = false;
            client.throttled = false;
            client.account = client.account.min(0);
        }
    }

    /// The device is done with a request that cost `work`.
    pub fn finished(&mut self, client: usize, work: u64) {
        if let Some(client) = self.clients.get_mut(client) {
            client.in_flight = client.in_flight.saturating_sub(work);
            self.in_flight = self.in_flight.saturating_sub(work);
        }
    }

    /// Whether a round would do something: somebody waits for its turn alone.
    pub fn wants_round(&self) -> bool {
        self.clients.iter().any(|c| c.backlog && !c.throttled) && !self.is_full()
    }

    /// When to begin a round at the latest, for the sake of those who wait for
    /// their limits.
    pub fn deadline(&self) -> Option<u64> {
        let throttled = self.clients.iter().filter(|c| c.backlog && c.throttled);
        throttled.map(|c| c.limiter.wake_at()).min()
    }
}
