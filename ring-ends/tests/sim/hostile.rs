//! Peers that write whatever they like into every page they can reach: bytes
//! at random, and well-formed things with random parts, so that they get far.

use std::sync::atomic::Ordering::Relaxed;

use ring_proto::conn::{BackBody, BackHello, FrontHello, GrantRange, Pair, QueueHello, State};
use ring_proto::shm::SharedMem;
use ring_proto::{blk, grant, net, ring};

use super::rng::Rng;
use super::{BACK, BACK_PAGE, FRONT, FRONT_PAGE, Sim};

/// Where a connection's shared memory is, and how its slots look.
#[derive(Clone, Copy)]
pub struct Shape {
    pub protocol: u16,
    /// First frame of each ring, one page each; second one for net only.
    pub rings: &'static [usize],
    pub pool: usize,
    pub pool_pages: usize,
    pub slots: u32,
    /// Bytes of request and response of each ring.
    pub sizes: &'static [(usize, usize)],
}

pub const BLK: Shape = Shape {
    protocol: 1,
    rings: &[super::blk::RING],
    pool: super::blk::POOL,
    pool_pages: super::blk::POOL_PAGES,
    slots: super::blk::SLOTS,
    sizes: &[(size_of::<blk::Request>(), size_of::<blk::Response>())],
};

pub const NET: Shape = Shape {
    protocol: 2,
    rings: &[super::net::TX_RING, super::net::RX_RING],
    pool: super::net::POOL,
    pool_pages: super::net::POOL_PAGES,
    slots: super::net::SLOTS,
    sizes: &[
        (size_of::<net::TxRequest>(), size_of::<net::TxResponse>()),
        (size_of::<net::RxRequest>(), size_of::<net::RxResponse>()),
    ],
};

fn junk(rng: &mut Rng, mem: SharedMem) {
    let len = 1 + rng.below(16) as usize;
    let at = rng.below((mem.len() - len) as u64 + 1) as usize;
    let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
    mem.copy_to(at, &bytes).unwrap();
}

/// A word that is often nearly right.
fn near(rng: &mut Rng, value: u32) -> u32 {
    match rng.below(8) {
        0 => rng.next() as u32,
        1 => value.wrapping_sub(1),
        2 => value,
        3 => value.wrapping_add(rng.below(40) as u32),
        _ => value.wrapping_add(1),
    }
}

fn bump(rng: &mut Rng, mem: SharedMem, at: usize) {
    let value = near(rng, mem.read_u32(at, Relaxed));
    mem.write_u32(at, value, Relaxed);
}

/// Words of the own end page, or the hello's bytes.
fn end_page(rng: &mut Rng, page: SharedMem) {
    match rng.below(6) {
        0 => page.write_u32(0, rng.below(5) as u32, Relaxed),
        1 => page.write_u32(0, rng.next() as u32, Relaxed),
        2 => {
            let word = 4 * (1 + rng.below(5) as usize);
            bump(rng, page, word);
        }
        3 => page.write_u32(20, near(rng, 40), Relaxed),
        4 => junk(rng, page.sub(64, 128).unwrap()),
        _ => junk(rng, page),
    }
}

/// One thing that a hostile backend does.
pub fn backend_step(sim: &Sim, shape: &Shape, rng: &mut Rng) {
    let which = rng.below(shape.rings.len() as u64) as usize;
    let ring = sim.frame(shape.rings[which]);
    let (request, response) = shape.sizes[which];
    let layout = ring::layout(shape.slots, request, response).unwrap();
    match rng.below(1000) {
        0 => end_page(rng, sim.frame(BACK_PAGE)),
        1 => junk(rng, ring),
        2..20 => junk(rng, sim.frame(shape.pool)),
        20..22 => ring.write_u32(64, rng.next() as u32, Relaxed),
        22 => bump(rng, ring, 128),
        23..100 => answer(sim, shape, rng),
        _ => {
            // A response with the id of some request, shown or not.
            let from = rng.below(u64::from(shape.slots)) as usize;
            let prod = ring.read_u32(128, Relaxed);
            let to = if rng.one_in(100) { from } else { (prod % shape.slots) as usize };
            // Mostly the right order, so that a while passes without an error.
            let from = if rng.one_in(300) { from } else { (prod % shape.slots) as usize };
            let id: u32 = ring.read(layout.requests + from * request).unwrap();
            let mut slot = vec![0; response];
            slot[..4].copy_from_slice(&near_id(rng, id).to_le_bytes());
            if which == 1 {
                slot[4..8].copy_from_slice(&(14 + rng.below(1510) as u32).to_le_bytes());
            }
            if rng.one_in(200) {
                let at = 4 + rng.below(response as u64 - 4) as usize;
                slot[at] = rng.next() as u8 % 5;
            }
            ring.copy_to(layout.responses + to * response, &slot).unwrap();
            let behind = ring.read_u32(0, Relaxed).wrapping_sub(prod);
            if behind > 0 && behind <= shape.slots || rng.one_in(1000) {
                ring.write_u32(128, prod.wrapping_add(1), Relaxed);
            }
        }
    }
}

fn near_id(rng: &mut Rng, id: u32) -> u32 {
    if rng.one_in(500) { near(rng, id) } else { id }
}

/// A proper answer to the frontend's present hello, more or less.
fn answer(sim: &Sim, shape: &Shape, rng: &mut Rng) {
    let seen = sim.pages(BACK).peer.glance();
    let own = sim.pages(BACK).own;
    if !seen.is(State::Initialising) && !rng.one_in(50) {
        return;
    }
    // The indices, as an honest backend begins.
    for &frame in shape.rings {
        sim.frame(frame).write_u32(128, 0, Relaxed);
        sim.frame(frame).write_u32(64, 1, Relaxed);
    }
    let blk = shape.protocol == 1;
    let body = match rng.below(24) {
        0 => BackBody::Refused { why: heapless::String::try_from("no").unwrap() },
        1 => BackBody::Blk { sectors: rng.next(), block_size: rng.next() as u32, read_only: true },
        2 => BackBody::Net { mac: [1; 6], mtu: rng.next() as u16 },
        _ if blk => BackBody::Blk {
            sectors: super::blk::SECTORS,
            block_size: 512,
            read_only: rng.one_in(4),
        },
        _ => BackBody::Net { mac: super::net::MAC, mtu: 1500 },
    };
    let features = if rng.one_in(20) { rng.next() as u32 } else { rng.below(4) as u32 };
    let hello = BackHello { version: 1 + u16::from(rng.one_in(40)), features, body };
    let answers = if rng.one_in(40) { Pair::default() } else { seen.pair };
    let state = if rng.one_in(20) { State::Closing } else { State::Connected };
    let epoch = rng.next() as u32;
    own.publish(&hello, epoch, answers, State::Initialising, state).unwrap();
}

/// Offers everything, as a frontend domain does when it starts.
pub fn grant_all(sim: &Sim, shape: &Shape) {
    let all = grant::MAP | grant::WRITE | grant::DMA;
    for frame in shape.rings.iter().copied().chain(shape.pool..shape.pool + shape.pool_pages) {
        sim.grant_anyhow(FRONT, frame as u32, frame, all);
    }
}

/// One thing that a hostile frontend does.
pub fn frontend_step(sim: &Sim, shape: &Shape, rng: &mut Rng) {
    let which = rng.below(shape.rings.len() as u64) as usize;
    let ring = sim.frame(shape.rings[which]);
    let (request, response) = shape.sizes[which];
    let layout = ring::layout(shape.slots, request, response).unwrap();
    match rng.below(1000) {
        0 => end_page(rng, sim.frame(FRONT_PAGE)),
        1 => junk(rng, ring),
        2..20 => junk(rng, sim.frame(shape.pool)),
        20..22 => ring.write_u32(192, rng.next() as u32, Relaxed),
        22 => bump(rng, ring, 0),
        23 => revoke(sim, shape, rng),
        24 => grant_all(sim, shape),
        25..80 => offer(sim, shape, rng),
        _ => {
            let prod = ring.read_u32(0, Relaxed);
            let at = layout.requests + (prod % shape.slots) as usize * request;
            let slot = request_slot(shape, which, rng);
            ring.copy_to(at, &slot).unwrap();
            if rng.one_in(20) {
                junk(rng, ring.sub(at, request).unwrap());
            }
            let ahead = prod.wrapping_sub(ring.read_u32(128, Relaxed));
            if ahead < shape.slots || rng.one_in(2000) {
                ring.write_u32(0, prod.wrapping_add(1), Relaxed);
            }
        }
    }
}

fn revoke(sim: &Sim, shape: &Shape, rng: &mut Rng) {
    use ring_ends::Env;
    let frame = match rng.below(3) {
        0 => *rng.pick(shape.rings),
        _ => shape.pool + rng.below(shape.pool_pages as u64) as usize,
    };
    sim.env(FRONT).revoke(frame as u32, 1).unwrap();
}

fn request_slot(shape: &Shape, which: usize, rng: &mut Rng) -> Vec<u8> {
    use zerocopy::IntoBytes;
    let limit = (shape.pool_pages * 4096) as u64;
    let mut segment = |unit: u64, most: u64| blk::Segment {
        offset: (rng.below(limit + 2 * unit) / unit * unit) as u32,
        len: (rng.below(most) / unit * unit) as u32,
    };
    let id = 7;
    if shape.protocol == 1 {
        let segments = [(); blk::MAX_SEGMENTS].map(|()| segment(512, 4096));
        let with_data = rng.one_in(2);
        let request = blk::Request {
            id,
            op: if with_data { rng.below(2) } else { rng.below(6) } as u8,
            segment_count: if with_data { rng.below(8) as u8 } else { 0 },
            reserved: 0,
            sector: rng.below(super::blk::SECTORS + 8),
            sectors: if with_data { 0 } else { rng.below(100) },
            segments,
        };
        request.as_bytes().to_vec()
    } else if which == 0 {
        let segments = [(); net::MAX_SEGMENTS].map(|()| segment(1, 700));
        let request = net::TxRequest {
            id,
            flags: u8::from(rng.one_in(4)),
            gso_type: u8::from(rng.one_in(8)),
            gso_size: if rng.one_in(8) { 500 } else { 0 },
            csum_start: rng.below(1000) as u16,
            csum_offset: rng.below(1000) as u16,
            segment_count: rng.below(5) as u8,
            reserved: [0; 3],
            segments,
        };
        request.as_bytes().to_vec()
    } else {
        let buffer = segment(1, 3000);
        net::RxRequest { id, buffer, reserved: 0 }.as_bytes().to_vec()
    }
}

/// A proper hello with a new epoch, more or less.
fn offer(sim: &Sim, shape: &Shape, rng: &mut Rng) {
    let own = sim.pages(FRONT).own;
    let page = sim.frame(FRONT_PAGE);
    if sim.pages(FRONT).peer.glance().is(State::Connected) && !rng.one_in(30) {
        return;
    }
    for &frame in shape.rings {
        sim.frame(frame).write_u32(0, 0, Relaxed);
        sim.frame(frame).write_u32(192, 1, Relaxed);
    }
    let mut odd = |value: u32| if rng.one_in(60) { near(rng, value) } else { value };
    let queues = shape
        .rings
        .iter()
        .map(|&frame| QueueHello {
            ring: GrantRange { first: odd(frame as u32), pages: odd(1) },
            slots: odd(shape.slots),
        })
        .collect();
    let hello = FrontHello {
        version: odd(1) as u16,
        protocol: odd(u32::from(shape.protocol)) as u16,
        features: odd(7),
        queues,
        pool: GrantRange { first: odd(shape.pool as u32), pages: odd(shape.pool_pages as u32) },
    };
    let epoch = near(rng, page.read_u32(8, Relaxed));
    own.publish(&hello, epoch, Pair::default(), State::Closing, State::Initialising).unwrap();
}
