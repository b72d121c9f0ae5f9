//! A guest with a network frontend, a backend, and a wire that reflects.

use std::collections::{HashMap, VecDeque};

use ring_ends::Window;
use ring_ends::net::{Backend, BackendConfig, Frontend, FrontendConfig, TxFrame, Vif};
use ring_proto::net::{MAX_FRAME, Status};

use super::blk::Wake;
use super::rng::Rng;
use super::{BACK, FRONT, PORT, Sim};

pub const SLOTS: u32 = 16;
pub const TX_RING: usize = 2;
pub const RX_RING: usize = 4;
pub const POOL: usize = 8;
pub const POOL_PAGES: usize = 16;
pub const WINDOW: Window = Window { ring_page: 0, ring_pages: 4, pool_page: 8, pool_pages: 16 };
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub fn front_config(sim: &Sim) -> FrontendConfig {
    FrontendConfig {
        pages: sim.pages(FRONT),
        port: PORT,
        peer: BACK,
        tx_ring: sim.region(TX_RING, 1),
        rx_ring: sim.region(RX_RING, 1),
        pool: sim.region(POOL, POOL_PAGES),
        slots: SLOTS,
    }
}

pub fn back_config(sim: &Sim) -> BackendConfig {
    BackendConfig { pages: sim.pages(BACK), port: PORT, peer: FRONT, window: WINDOW }
}

pub fn vif() -> Vif {
    Vif { mac: MAC, mtu: 1500, features: 0 }
}

/// A frame that says its number and can be checked.
pub fn frame(number: u64, rng: &mut Rng) -> Vec<u8> {
    let len = 24 + rng.below(u64::from(MAX_FRAME) - 23) as usize;
    let mut bytes: Vec<u8> = (0..len).map(|i| (i as u64 * 31 + number) as u8).collect();
    bytes[14..22].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The number of an intact frame.
pub fn number(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[14..22].try_into().unwrap());
    for (i, &b) in bytes.iter().enumerate() {
        assert!((14..22).contains(&i) || b == (i as u64 * 31 + number) as u8, "torn frame");
    }
    number
}

pub struct World {
    pub sim: Sim,
    pub rng: Rng,
    pub front: Frontend,
    pub back: Option<Backend>,
    front_wake: Wake,
    back_wake: Wake,
    device: VecDeque<TxFrame>,
    /// Frames to be delivered to the guest.
    wire: VecDeque<Vec<u8>>,
    next: u64,
    /// How often each number was seen on the wire.
    pub sent: HashMap<u64, u32>,
    pub last_sent: u64,
    pub out_of_order: u64,
    /// Likewise by the guest.
    pub received: HashMap<u64, u32>,
    pub asked: u64,
    pub no_buffer: u64,
    pub lives: u64,
    /// What is sent comes back.
    pub reflects: bool,
}

impl World {
    pub fn new(rng: Rng) -> Self {
        let sim = Sim::new();
        Self {
            front: Frontend::new(front_config(&sim)).unwrap(),
            back: Some(Backend::new(back_config(&sim), vif())),
            sim,
            rng,
            front_wake: Wake::NOW,
            back_wake: Wake::NOW,
            device: VecDeque::new(),
            wire: VecDeque::new(),
            next: 1,
            sent: HashMap::new(),
            last_sent: 0,
            out_of_order: 0,
            received: HashMap::new(),
            asked: 0,
            no_buffer: 0,
            lives: 1,
            reflects: true,
        }
    }

    pub fn send(&mut self) -> bool {
        let bytes = frame(self.next, &mut self.rng);
        if self.front.transmit(&bytes, None).is_err() {
            return false;
        }
        self.next += 1;
        self.asked += 1;
        self.front.kick(&mut self.sim.env(FRONT));
        self.front_wake.again = true;
        true
    }

    pub fn run_front(&mut self) {
        self.sim.take_event(FRONT);
        self.front_wake = Wake::after(self.front.poll(&mut self.sim.env(FRONT)));
        let mut to = [0; MAX_FRAME as usize];
        while let Some(got) = self.front.receive(&mut to) {
            self.front_wake.again = true;
            *self.received.entry(number(&to[..got.len])).or_insert(0) += 1;
        }
    }

    pub fn run_back(&mut self) {
        let Some(back) = &mut self.back else { return };
        self.sim.take_event(BACK);
        let mut env = self.sim.env(BACK);
        self.back_wake = Wake::after(back.poll(&mut env));
        while let Some(frame) = back.next_tx() {
            self.back_wake.again = true;
            let mut head = [0; 14];
            assert_eq!(back.copy_head(&frame, &mut head), 14);
            self.device.push_back(frame);
        }
        while let Some(bytes) = self.wire.pop_front() {
            if back.deliver(&bytes, false).is_err() {
                self.no_buffer += 1;
            }
        }
        back.push_responses(&mut env);
    }

    /// The device sends its oldest frame.
    pub fn run_device(&mut self) -> bool {
        let Some(frame) = self.device.pop_front() else { return false };
        let mut bytes = Vec::new();
        for piece in &frame.segments {
            let Some(memory) = self.sim.dma(piece.address, piece.len as usize) else {
                bytes.clear();
                break;
            };
            let mut part = vec![0; piece.len as usize];
            memory.copy_from(0, &mut part).unwrap();
            bytes.extend(part);
        }
        if !bytes.is_empty() {
            let number = number(&bytes);
            *self.sent.entry(number).or_insert(0) += 1;
            self.out_of_order += u64::from(number < self.last_sent);
            self.last_sent = number;
            if self.reflects {
                self.wire.push_back(bytes);
            }
        }
        if let Some(back) = &mut self.back {
            back.complete_tx(frame.tag, Status::Ok);
            self.back_wake.again = true;
        }
        true
    }

    pub fn end_backend(&mut self) {
        self.back = None;
        let keep = self.rng.below(self.device.len() as u64 + 1);
        for _ in 0..keep {
            self.run_device();
        }
        self.device.clear();
        self.wire.clear();
        self.sim.end_generation(BACK);
        assert_eq!(self.sim.mapped_pages(), 0);
    }

    /// The backend is told to finish its work and leave, and is then replaced.
    pub fn plan_restart(&mut self) {
        let Some(back) = &mut self.back else { return };
        assert!(back.leave());
        self.back_wake.again = true;
        while !self.back.as_ref().is_some_and(Backend::has_left) {
            self.send();
            assert!(self.step(), "everybody sleeps and the backend has not left");
        }
        assert!(self.device.is_empty());
        self.end_backend();
        self.start_backend();
    }

    pub fn start_backend(&mut self) {
        self.lives += 1;
        self.back = Some(Backend::new(back_config(&self.sim), vif()));
        self.back_wake = Wake::NOW;
    }

    pub fn restart_frontend(&mut self) {
        self.sim.end_generation(FRONT);
        self.front = Frontend::new(front_config(&self.sim)).unwrap();
        self.front_wake = Wake::NOW;
    }

    pub fn glitch(&mut self) {
        if self.back.as_ref().is_some_and(Backend::is_connected) {
            let ring = *self.rng.pick(&[TX_RING, RX_RING]);
            let value = self.rng.next() as u32 | 1 << 20;
            self.sim.frame(ring).write_u32(128, value, std::sync::atomic::Ordering::Relaxed);
            self.front_wake.again = true;
        }
    }

    pub fn step(&mut self) -> bool {
        let now = self.sim.now();
        let due = |wake: &Wake| wake.again || wake.deadline.is_some_and(|d| d <= now);
        let front = due(&self.front_wake) || self.sim.has_event(FRONT);
        let back = self.back.is_some()
            && (due(&self.back_wake) || self.sim.has_event(BACK) || !self.wire.is_empty());
        let mut able = Vec::new();
        able.extend(front.then_some(0));
        able.extend(back.then_some(1));
        able.extend((!self.device.is_empty()).then_some(2));
        if able.is_empty() {
            let back = if self.back.is_some() { self.back_wake.deadline } else { None };
            let next = [self.front_wake.deadline, back].into_iter().flatten().min();
            let Some(next) = next else { return false };
            self.sim.advance(next.saturating_sub(now).max(1));
            return true;
        }
        match *self.rng.pick(&able) {
            0 => self.run_front(),
            1 => self.run_back(),
            _ => {
                self.run_device();
            }
        }
        self.sim.advance(1000);
        true
    }

    /// Runs until nobody has a reason to run.
    pub fn settle(&mut self) {
        if self.back.is_none() {
            self.start_backend();
        }
        for _ in 0..200_000 {
            if !self.step() {
                assert!(self.front.is_connected());
                return;
            }
        }
        panic!("never quiet");
    }
}
