//! Datagrams: numbered, 64 to 1400 bytes of data that says what it is, to the
//! other end of the wire, which sends them back.
//!
//! Nobody promises that a datagram arrives, so one that does not is lost and no
//! more: another is sent for it, as the round lasts until as many came back as were
//! ordered. What comes back must be what was sent.

use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};

use domain_rt::{
    env::DomainEnv,
    events, random,
    time::{MS, NEVER, now_ns},
};
use guest_io::connect;
use judge_orders::{READ_ONLY, WRITE_ONLY, Wrong, wrong};
use ring_ends::{Counters, Progress, net::Frontend};
use smoltcp::wire::EthernetAddress;
use test_content::{
    label::{Damage, Label},
    random::mix,
};

use crate::{
    Step, Work,
    args::Ends,
    round::Round,
    wire::{FRAME, Frame, HEADERS, Wire},
};

/// Bytes of data of a datagram.
const LEN: (u64, u64) = (64, 1400);
const _: () = assert!(HEADERS + 1400 <= FRAME);
/// A datagram that the driver took is lost if it is not back after so long: a
/// hundred times what one takes there and back.
const LOST: u64 = 5 * MS;
/// Nor is one for whose buffer the driver gives no answer: it says so late if there
/// is nothing else to do. A hang is seen before.
const HELD: u64 = 20 * MS;
/// Most datagrams of a round, with all that are sent for lost ones.
const MOST: usize = 1 << 18;
/// Between two questions for the peer's address.
const ASK: u64 = 5 * MS;

/// What became of a datagram of this round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    UnderWay,
    Lost,
    Back,
}

pub(crate) struct Datagrams {
    front: Frontend,
    env: DomainEnv,
    wire: Wire,
    peer: EthernetAddress,
    writer: u64,
    seed: u64,
    /// Of this round's datagrams: least and most bytes of data.
    lengths: (u64, u64),
    fates: Vec<Fate>,
    /// Those under way and when they were sent, oldest first; some are back already.
    under_way: VecDeque<(u64, u64)>,
    /// Tx buffers that there are.
    buffers: usize,
    connects: u64,
    /// As transports do after a loss, one goes first.
    careful: bool,
    /// When a datagram came back, or the wait for it began, ns. Other frames tell nothing of
    /// the driver's work: one that sends rubbish still brings those that others send.
    heard: u64,
    /// How long nothing may come back until the driver is complained of, ns.
    patience: u64,
    quiet_until: Option<u64>,
    frame: Box<[u8; FRAME]>,
    /// As long as a buffer of the frontend.
    received: Box<[u8]>,
}

impl Datagrams {
    /// Connects, and asks for the peer's address.
    pub(crate) fn open(ends: Ends) -> Result<Self, &'static str> {
        let (connection, mut front) =
            connect::net().map_err(|_| "no net connection or no memory")?;
        let patience = connect::patience(&connection);
        front.complain_after(patience);
        let wire = Wire { ends, own: EthernetAddress(connection.boot.mac) };
        let mut this = Self {
            front,
            env: DomainEnv,
            wire,
            peer: EthernetAddress::BROADCAST,
            writer: random::seed(),
            seed: 0,
            lengths: LEN,
            fates: Vec::new(),
            under_way: VecDeque::new(),
            buffers: 0,
            connects: 0,
            careful: false,
            heard: 0,
            patience,
            quiet_until: None,
            frame: Box::new([0; FRAME]),
            received: vec![0; ring_ends::net::BUFFER].into(),
        };
        let mut ask_at = 0;
        loop {
            let _ = events::take_all();
            let progress = this.poll();
            this.buffers = this.buffers.max(this.front.tx_room());
            let received = this.front.receive(&mut this.received);
            if let Some(received) = received {
                let frame = this.received.get(..received.len).unwrap_or_default();
                if let Frame::Address(address) = this.wire.look(frame) {
                    this.peer = address;
                    return Ok(this);
                }
                continue;
            }
            let now = now_ns();
            if this.front.is_connected() && now >= ask_at {
                ask_at = now.saturating_add(ASK);
                let len = this.wire.ask(&mut this.frame);
                // If it is not taken, the next one may be.
                let _ = this.front.transmit(this.frame.get(..len).unwrap_or_default(), None);
                this.front.kick(&mut this.env);
            } else if progress.again {
                events::breathe();
            } else {
                let deadline = progress.deadline.unwrap_or(NEVER);
                let ask = if this.front.is_connected() { ask_at } else { NEVER };
                events::wait(deadline.min(ask));
            }
        }
    }

    /// Bytes of data of datagram `number`.
    fn len(&self, number: u64) -> usize {
        let (shortest, longest) = self.lengths;
        (shortest + mix(self.seed ^ number) % (longest - shortest + 1)) as usize
    }

    /// Whether a datagram can be sent.
    fn has_room(&self) -> bool {
        self.front.tx_room() > 0 && self.fates.len() < MOST
    }

    /// Sends the next datagram of the round. Returns whether it was taken.
    fn send(&mut self, round: &mut Round) -> bool {
        let number = round.seen.submitted;
        let label = Label { writer: self.writer, place: number, version: round.orders.round };
        let len = self.len(number);
        let frame = &mut self.frame;
        let len = self.wire.datagram(self.peer, frame, len, |payload| label.fill(payload));
        if self.front.transmit(frame.get(..len).unwrap_or_default(), None).is_err() {
            return false;
        }
        round.submitted();
        self.fates.push(Fate::UnderWay);
        self.under_way.push_back((number, now_ns()));
        true
    }

    /// Judges a frame that came.
    fn arrived(&mut self, len: usize, round: &mut Round) {
        let frame = self.received.get(..len).unwrap_or_default();
        let payload = match self.wire.look(frame) {
            Frame::Other | Frame::Address(_) => return,
            Frame::Damaged => {
                round.seen.damaged += 1;
                return;
            }
            Frame::Payload(payload) => payload,
        };
        let this_round = round.orders.round;
        let wrong = |what, place, offset: usize, label: Option<Label>| Wrong {
            what,
            place,
            offset: offset as u64,
            found_place: label.map_or(0, |label| label.place),
            found_version: label.map_or(0, |label| label.version),
            oldest: this_round,
            newest: this_round,
        };
        let label = match Label::read(payload) {
            Ok(label) => label,
            Err(Damage::NoLabel) => {
                return round.wrong(wrong(wrong::NO_LABEL, u64::MAX, 0, None));
            }
            Err(Damage::Length(label)) => {
                return round.wrong(wrong(wrong::PLACE, label.place, 0, Some(label)));
            }
            Err(Damage::Byte(label, at)) => {
                return round.wrong(wrong(wrong::BYTES, label.place, at, Some(label)));
            }
        };
        if label.writer != self.writer || label.version > this_round {
            return round.wrong(wrong(wrong::FUTURE, label.place, 0, Some(label)));
        }
        if label.version != this_round {
            round.seen.late += 1;
            return;
        }
        let in_range = payload.len() == self.len(label.place);
        match self.fates.get_mut(label.place as usize).filter(|_| in_range) {
            Some(fate @ Fate::UnderWay) => {
                *fate = Fate::Back;
                self.heard = now_ns();
                self.careful = false;
                round.completed();
            }
            Some(fate @ Fate::Lost) => {
                *fate = Fate::Back;
                round.completed_after_all();
            }
            Some(Fate::Back) => round.seen.duplicate += 1,
            // Nobody sent it.
            None => {
                round.wrong(wrong(wrong::FUTURE, label.place, 0, Some(label)));
            }
        }
    }

    /// Gives up on what is lost. Returns when to look again.
    fn give_up(&mut self, round: &mut Round) -> u64 {
        let now = now_ns();
        if !self.front.is_connected() {
            return NEVER;
        }
        // From the reconnect on, what was under way has its time once more.
        let connects = self.front.counters().connects;
        if self.connects != connects {
            self.connects = connects;
            self.careful = !self.under_way.is_empty();
            self.under_way.iter_mut().for_each(|(_, sent)| *sent = now);
            self.heard = now;
        }
        let patience = if self.front.tx_room() == self.buffers { LOST } else { HELD };
        while let Some(&(number, sent)) = self.under_way.front() {
            if let Some(fate @ Fate::UnderWay) = self.fates.get_mut(number as usize) {
                let deadline = sent.saturating_add(patience);
                if now < deadline {
                    return deadline;
                }
                *fate = Fate::Lost;
                round.gave_up();
                // As a guest does whose transport gets no answer from anybody.
                if now.saturating_sub(self.heard) >= self.patience {
                    self.heard = now;
                    self.front.complain(&mut self.env);
                }
            }
            self.under_way.pop_front();
        }
        NEVER
    }
}

impl Work for Datagrams {
    fn poll(&mut self) -> Progress {
        self.front.poll(&mut self.env)
    }

    fn counters(&self) -> Counters {
        self.front.counters()
    }

    fn begin(&mut self, round: &Round) {
        self.seed = round.orders.seed;
        self.lengths = match round.orders.flags & (READ_ONLY | WRITE_ONLY) {
            READ_ONLY => (LEN.0, LEN.0),
            WRITE_ONLY => (LEN.1, LEN.1),
            _ => LEN,
        };
        self.fates.clear();
        self.under_way.clear();
        self.connects = self.front.counters().connects;
        self.careful = false;
        self.heard = now_ns();
        self.quiet_until = None;
    }

    fn step(&mut self, round: &mut Round) -> Step {
        let mut again = false;
        while let Some(received) = self.front.receive(&mut self.received) {
            self.arrived(received.len, round);
            again = true;
        }
        let mut deadline = self.give_up(round);
        let window = if self.careful { 1 } else { round.orders.window };
        while round.may_submit(window) && self.has_room() && self.send(round) {
            again = true;
        }
        if self.has_room() {
            deadline = deadline.min(round.next_ns(window));
        }
        let mut done = false;
        if round.is_worked_off() {
            let quiet = now_ns().saturating_add(round.orders.quiet_ns);
            let until = *self.quiet_until.get_or_insert(quiet);
            deadline = deadline.min(until);
            done = now_ns() >= until;
        }
        self.front.kick(&mut self.env);
        Step { again, deadline, done }
    }
}
