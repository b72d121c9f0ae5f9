//! Both ends of both protocols against a hostile peer (RING, CONN, BLK, NET).
//!
//! The input is a script: what the peer writes into the pages that it shares,
//! and when the end under test, its device and the clock have their turns. An
//! act takes a byte, so that the fuzzer can cut and join scripts. At the end
//! an honest generation follows and is served in full.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use arbitrary::{Arbitrary, Result, Unstructured};
use ring_ends::{Counters, blk, net};
use ring_proto::blk::{MAX_SEGMENTS, Op, Segment, Status};
use ring_proto::conn::{BackBody, BackHello, FrontHello, GrantRange, Pair, QueueHello, State};
use ring_proto::ring::layout;
use ring_proto::shm::SharedMem;
use zerocopy::IntoBytes;

use crate::sim::honest::{
    check_frame, check_request, honest_blk_backend, honest_blk_frontend, honest_net_backend,
    honest_net_frontend,
};
use crate::sim::hostile::{BLK, NET, Shape, grant_all};
use crate::sim::{self, BACK, BACK_PAGE, FRONT, FRONT_PAGE, Sim};

/// More environment calls than any one call of an end makes.
const MOST_CALLS: u64 = 16;
/// Pages of the backend's part of the window.
const MOST_MAPPED: usize = 20;
/// Words that mean something: of an end page, and of a ring's header.
const WORDS: [usize; 9] = [0, 4, 8, 12, 16, 20, 64, 128, 192];

/// A number close to `value`, or any.
fn near(input: &mut Unstructured<'_>, value: u32) -> Result<u32> {
    Ok(match u8::arbitrary(input)? {
        by @ 0..=0xdf => value.wrapping_add(u32::from(by % 8)).wrapping_sub(1),
        by @ 0xe0..=0xf0 => u32::from(by % 16),
        _ => u32::arbitrary(input)?,
    })
}

/// `value`, sometimes another one.
fn odd(input: &mut Unstructured<'_>, value: u32) -> Result<u32> {
    if u8::arbitrary(input)? < 0xf0 { Ok(value) } else { near(input, value) }
}

/// The peer writes something into a page that it shares.
fn tamper(input: &mut Unstructured<'_>, sim: &Sim, page: usize, shape: &Shape) -> Result<()> {
    let which = usize::from(u8::arbitrary(input)?);
    let mem = match which % 4 {
        0 => sim.frame(page),
        1 | 2 => sim.frame(shape.rings[which / 4 % shape.rings.len()]),
        _ => sim.frame(shape.pool + which / 4 % shape.pool_pages),
    };
    let kind = u8::arbitrary(input)?;
    if kind & 1 == 0 {
        let at = WORDS[usize::from(kind / 2) % WORDS.len()];
        let value = near(input, mem.read_u32(at, Relaxed))?;
        mem.write_u32(at, value, Relaxed);
    } else {
        let at = usize::from(u16::arbitrary(input)?) % mem.len();
        let most = usize::from(kind / 2 % 32).min(mem.len() - at);
        let bytes = input.bytes(most.min(input.len()))?;
        mem.copy_to(at, bytes).unwrap();
    }
    Ok(())
}

fn advance(input: &mut Unstructured<'_>, sim: &Sim) -> Result<()> {
    // From a nanosecond to half an hour.
    sim.advance(1 << (u8::arbitrary(input)? % 41));
    Ok(())
}

/// The frontend's hello, mostly a good one, under a new epoch.
fn offer(input: &mut Unstructured<'_>, sim: &Sim, shape: &Shape) -> Result<()> {
    let flags = u8::arbitrary(input)?;
    let mut or_odd = |value| if flags & 1 == 0 { Ok(value) } else { odd(input, value) };
    let mut queues = heapless::Vec::new();
    for &frame in shape.rings {
        let ring = GrantRange { first: or_odd(frame as u32)?, pages: or_odd(1)? };
        queues.push(QueueHello { ring, slots: or_odd(shape.slots)? }).unwrap();
    }
    let pool =
        GrantRange { first: or_odd(shape.pool as u32)?, pages: or_odd(shape.pool_pages as u32)? };
    let hello = FrontHello {
        version: or_odd(1)? as u16,
        protocol: or_odd(u32::from(shape.protocol))? as u16,
        features: or_odd(7)?,
        queues,
        pool,
    };
    if flags & 2 == 0 {
        for &frame in shape.rings {
            sim.frame(frame).write_u32(0, 0, Relaxed);
        }
    }
    let epoch = sim.frame(FRONT_PAGE).read_u32(8, Relaxed).wrapping_add(1);
    let own = sim.pages(FRONT).own;
    own.publish(&hello, epoch, Pair::default(), State::Closing, State::Initialising).unwrap();
    Ok(())
}

fn segment(input: &mut Unstructured<'_>, unit: u32) -> Result<Segment> {
    let (offset, len) = (u32::from(u8::arbitrary(input)?), u32::from(u8::arbitrary(input)?));
    if offset == 0xff {
        return Ok(Segment { offset: u32::arbitrary(input)?, len: u32::arbitrary(input)? });
    }
    Ok(Segment { offset: offset * unit, len: len % 16 * unit })
}

fn sector(input: &mut Unstructured<'_>) -> Result<u64> {
    let sector = u8::arbitrary(input)?;
    if sector == 0xff { u64::arbitrary(input) } else { Ok(u64::from(sector)) }
}

/// The next request slot of a ring, and one more in its index.
fn request(input: &mut Unstructured<'_>, sim: &Sim, shape: &Shape) -> Result<()> {
    let flags = usize::from(u8::arbitrary(input)?);
    let which = flags % shape.rings.len();
    let ring = sim.frame(shape.rings[which]);
    let id = u32::from(u8::arbitrary(input)?);
    let slot = if shape.protocol == BLK.protocol {
        let (op, count) = (u8::arbitrary(input)?, u8::arbitrary(input)?);
        let mut segments = [Segment::default(); MAX_SEGMENTS];
        for to in segments.iter_mut().take(usize::from(count % 8)) {
            *to = segment(input, 512)?;
        }
        let op = if op < 0xfc { op % 5 } else { op };
        let ranged = matches!(Op::from_raw(op), Some(Op::Discard | Op::WriteZeroes));
        let request = ring_proto::blk::Request {
            id,
            op,
            segment_count: if ranged || op == 2 { count >> 7 } else { count % 8 },
            reserved: u16::from(flags & 0x80 != 0),
            sector: if op == 2 { u64::from(count & 1) } else { sector(input)? },
            sectors: if ranged || flags & 0x40 != 0 { sector(input)? } else { 0 },
            segments,
        };
        request.as_bytes().to_vec()
    } else if which == 0 {
        let count = u8::arbitrary(input)?;
        let mut segments = [Segment::default(); ring_proto::net::MAX_SEGMENTS];
        for to in segments.iter_mut().take(usize::from(count % 4)) {
            *to = segment(input, 61)?;
        }
        let mut request = ring_proto::net::TxRequest {
            id,
            flags: 0,
            gso_type: 0,
            gso_size: 0,
            csum_start: 0,
            csum_offset: 0,
            segment_count: count % 5,
            reserved: [0; 3],
            segments,
        };
        if flags & 0x80 != 0 {
            request.flags = u8::arbitrary(input)? % 4;
            request.gso_type = u8::arbitrary(input)? % 3;
            request.gso_size = u16::arbitrary(input)?;
            request.csum_start = u16::arbitrary(input)?;
            request.csum_offset = u16::arbitrary(input)?;
            request.reserved[2] = u8::from(flags & 0x40 != 0);
        }
        request.as_bytes().to_vec()
    } else {
        let buffer = if flags & 0x80 == 0 {
            Segment { offset: id % 31 * 2048, len: 2048 }
        } else {
            segment(input, 256)?
        };
        let reserved = u32::from(flags & 0x40 != 0);
        ring_proto::net::RxRequest { id, buffer, reserved }.as_bytes().to_vec()
    };
    let (size, answer) = shape.sizes[which];
    let at = layout(shape.slots, size, answer).unwrap().requests;
    let prod = ring.read_u32(0, Relaxed);
    ring.copy_to(at + (prod % shape.slots) as usize * size, &slot).unwrap();
    ring.write_u32(0, prod.wrapping_add(1), Relaxed);
    Ok(())
}

/// What both backends have in common, for [`against_backend`].
trait Back {
    const SHAPE: Shape;
    type Tag;
    fn poll(&mut self, sim: &Sim);
    /// Takes a request and checks it.
    fn take(&mut self, sim: &Sim) -> Option<Self::Tag>;
    fn complete(&mut self, tag: Self::Tag, odd: bool);
    fn push(&mut self, sim: &Sim);
    /// The wire brings a frame.
    fn deliver(&mut self, len: usize);
    fn in_flight(&self) -> usize;
    fn counters(&self) -> Counters;
    fn honest(&mut self, sim: &Sim);
}

impl Back for blk::Backend {
    const SHAPE: Shape = BLK;
    type Tag = blk::Tag;

    fn poll(&mut self, sim: &Sim) {
        let _ = self.poll(&mut sim.env(BACK));
    }

    fn take(&mut self, sim: &Sim) -> Option<blk::Tag> {
        let request = self.next_request()?;
        check_request(sim, &request);
        Some(request.tag)
    }

    fn complete(&mut self, tag: blk::Tag, odd: bool) {
        self.complete(tag, if odd { Status::IoError } else { Status::Ok });
    }

    fn push(&mut self, sim: &Sim) {
        self.push_responses(&mut sim.env(BACK));
    }

    fn deliver(&mut self, _: usize) {}

    fn in_flight(&self) -> usize {
        self.in_flight() as usize
    }

    fn counters(&self) -> Counters {
        self.counters()
    }

    fn honest(&mut self, sim: &Sim) {
        honest_blk_frontend(sim, self);
    }
}

impl Back for net::Backend {
    const SHAPE: Shape = NET;
    type Tag = net::Tag;

    fn poll(&mut self, sim: &Sim) {
        let _ = self.poll(&mut sim.env(BACK));
    }

    fn take(&mut self, sim: &Sim) -> Option<net::Tag> {
        let frame = self.next_tx()?;
        check_frame(sim, &frame);
        let mut head = [0; 64];
        let copied = self.copy_head(&frame, &mut head);
        assert_eq!(copied, (frame.len as usize).min(head.len()));
        Some(frame.tag)
    }

    fn complete(&mut self, tag: net::Tag, odd: bool) {
        use ring_proto::net::Status;
        self.complete_tx(tag, if odd { Status::Dropped } else { Status::Ok });
    }

    fn push(&mut self, sim: &Sim) {
        self.push_responses(&mut sim.env(BACK));
    }

    fn deliver(&mut self, len: usize) {
        let _ = self.deliver(&[7; 1600][..len.min(1600)], len & 1 != 0);
    }

    fn in_flight(&self) -> usize {
        self.in_flight() as usize
    }

    fn counters(&self) -> Counters {
        self.counters()
    }

    fn honest(&mut self, sim: &Sim) {
        honest_net_frontend(sim, self);
    }
}

fn against_backend<B: Back>(mut back: B, sim: &Sim, data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut device = VecDeque::new();
    grant_all(sim, &B::SHAPE);
    while !input.is_empty() {
        let calls = sim.calls(BACK);
        if frontend_act(&mut back, sim, &mut input, &mut device).is_err() {
            break;
        }
        assert!(sim.calls(BACK) - calls <= MOST_CALLS, "RING-9");
        assert_eq!(back.in_flight(), device.len());
        assert!(device.len() <= 256, "RING-3");
        assert!(sim.mapped_pages() <= MOST_MAPPED, "CONN-12");
    }
    for tag in device.drain(..) {
        back.complete(tag, false);
    }
    let strikes = back.counters();
    assert!(strikes.barred <= strikes.connects + strikes.misbehaviours, "CONN-14");
    back.honest(sim);
}

/// One act of the hostile frontend, of the backend, of its device, or of time.
fn frontend_act<B: Back>(
    back: &mut B,
    sim: &Sim,
    input: &mut Unstructured<'_>,
    device: &mut VecDeque<B::Tag>,
) -> Result<()> {
    match u8::arbitrary(input)? % 16 {
        0 | 1 => tamper(input, sim, FRONT_PAGE, &B::SHAPE)?,
        2..=4 => request(input, sim, &B::SHAPE)?,
        5 => {
            offer(input, sim, &B::SHAPE)?;
            back.poll(sim);
        }
        6 => {
            let page = usize::from(u8::arbitrary(input)?);
            let shape = &B::SHAPE;
            let frame = match page % 4 {
                0 => shape.rings[page / 4 % shape.rings.len()],
                _ => shape.pool + page / 4 % shape.pool_pages,
            };
            ring_ends::Env::revoke(&mut sim.env(FRONT), frame as u32, 1).unwrap();
        }
        7 => grant_all(sim, &B::SHAPE),
        8 | 9 => back.poll(sim),
        10 => device.extend(back.take(sim)),
        11 => {
            while let Some(tag) = back.take(sim) {
                device.push_back(tag);
            }
        }
        12 => {
            let which = u8::arbitrary(input)?;
            if let Some(tag) = device.remove(usize::from(which / 2) % device.len().max(1)) {
                back.complete(tag, which & 1 != 0);
            }
        }
        13 => {
            back.push(sim);
            back.deliver(usize::from(u16::arbitrary(input)? % 1700));
        }
        14 => advance(input, sim)?,
        _ => {
            sim.end_generation(FRONT);
            grant_all(sim, &B::SHAPE);
        }
    }
    Ok(())
}

pub fn blk_backend(data: &[u8]) {
    let sim = Sim::new();
    let back = blk::Backend::new(sim::blk::back_config(&sim), sim::blk::volume());
    against_backend(back, &sim, data);
}

pub fn net_backend(data: &[u8]) {
    let sim = Sim::new();
    let back = net::Backend::new(sim::net::back_config(&sim), sim::net::vif());
    against_backend(back, &sim, data);
}

/// A backend's answer to the present offer, mostly a good one.
fn answer(input: &mut Unstructured<'_>, sim: &Sim, shape: &Shape) -> Result<()> {
    let flags = u8::arbitrary(input)?;
    if flags & 1 == 0 {
        for &frame in shape.rings {
            sim.frame(frame).write_u32(128, 0, Relaxed);
        }
    }
    let blk = shape.protocol == BLK.protocol;
    let body = match u8::arbitrary(input)? {
        0xff => BackBody::Refused { why: heapless::String::try_from("no").unwrap() },
        0xfe => BackBody::Blk {
            sectors: u64::arbitrary(input)?,
            block_size: u32::arbitrary(input)?,
            read_only: flags & 2 != 0,
        },
        0xfd => BackBody::Net { mac: [1; 6], mtu: u16::arbitrary(input)? },
        _ if blk => {
            BackBody::Blk { sectors: sim::blk::SECTORS, block_size: 512, read_only: flags & 2 != 0 }
        }
        _ => BackBody::Net { mac: sim::net::MAC, mtu: 1500 },
    };
    let features = if flags & 4 == 0 { 3 } else { u32::arbitrary(input)? };
    let hello = BackHello { version: 1 + u16::from(flags >= 0xfc), features, body };
    let seen = sim.pages(BACK).peer.glance();
    let answers = if flags & 0x18 == 0x18 { Pair::default() } else { seen.pair };
    let state = if flags & 0xe0 == 0xe0 { State::Closing } else { State::Connected };
    let epoch = sim.frame(BACK_PAGE).read_u32(8, Relaxed).wrapping_add(1);
    let own = sim.pages(BACK).own;
    own.publish(&hello, epoch, answers, State::Initialising, state).unwrap();
    Ok(())
}

/// Responses, mostly to requests that are out and in their order.
fn respond(input: &mut Unstructured<'_>, sim: &Sim, shape: &Shape) -> Result<()> {
    let flags = usize::from(u8::arbitrary(input)?);
    let which = flags % shape.rings.len();
    let ring: SharedMem = sim.frame(shape.rings[which]);
    let (request, response) = shape.sizes[which];
    let layout = layout(shape.slots, request, response).unwrap();
    for _ in 0..=(flags >> 1) % 4 {
        let prod = ring.read_u32(128, Relaxed);
        let from = if flags < 0xf0 { prod } else { near(input, prod)? } % shape.slots;
        let id: u32 = ring.read(layout.requests + from as usize * request).unwrap();
        let id = odd(input, id)?;
        let mut slot = vec![0; response];
        slot[..4].copy_from_slice(&id.to_le_bytes());
        if which == 1 {
            let len = 14 + u32::from(u8::arbitrary(input)?) * 6;
            slot[4..8].copy_from_slice(&len.to_le_bytes());
        }
        if flags & 0xc0 == 0x80 {
            let at = 4 + usize::from(u8::arbitrary(input)?) % (response - 4);
            slot[at] = u8::arbitrary(input)? % 5;
        }
        ring.copy_to(layout.responses + (prod % shape.slots) as usize * response, &slot).unwrap();
        let behind = ring.read_u32(0, Relaxed).wrapping_sub(prod);
        if (1..=shape.slots).contains(&behind) || flags & 0xc0 == 0xc0 {
            ring.write_u32(128, prod.wrapping_add(1), Relaxed);
        }
    }
    Ok(())
}

/// What the hostile backend and time do; false if the act is the frontend's.
fn backend_act(act: u8, sim: &Sim, input: &mut Unstructured<'_>, shape: &Shape) -> Result<bool> {
    match act % 16 {
        0 | 1 => tamper(input, sim, BACK_PAGE, shape)?,
        2..=4 => respond(input, sim, shape)?,
        5 | 6 => answer(input, sim, shape)?,
        7 => advance(input, sim)?,
        8 if input.ratio(1, 4)? => sim.end_generation(BACK),
        _ => return Ok(false),
    }
    Ok(true)
}

pub fn blk_frontend(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let sim = Sim::new();
    let mut env = sim.env(FRONT);
    let mut front = blk::Frontend::new(sim::blk::front_config(&sim)).unwrap();
    let (mut token, mut done) = (0, 0);
    while !input.is_empty() {
        let Ok(act) = u8::arbitrary(&mut input) else { break };
        let calls = sim.calls(FRONT);
        match backend_act(act, &sim, &mut input, &BLK) {
            Ok(true) => {}
            Ok(false) if act % 16 <= 12 => {
                let _ = front.poll(&mut env);
            }
            Ok(false) if act % 16 <= 14 => {
                let what = input.arbitrary::<[u8; 3]>().unwrap_or_default();
                let segments = [Segment {
                    offset: u32::from(what[0] % 16) * 2048,
                    len: 512 * (1 + u32::from(what[1] % 4)),
                }];
                let op = Op::from_raw(what[1] / 4 % 5).unwrap_or(Op::Flush);
                let data = matches!(op, Op::Read | Op::Write);
                let io = blk::Io {
                    op,
                    sector: u64::from(what[2]),
                    sectors: if data || op == Op::Flush { 0 } else { 3 },
                    segments: if data { &segments } else { &[] },
                };
                token += u64::from(front.submit(io, token).is_ok());
            }
            Ok(false) => {
                while let Some(completion) = front.next_completion() {
                    assert!(completion.token < token, "BLK-9");
                    done += 1;
                }
                front.kick(&mut env);
            }
            Err(_) => break,
        }
        assert!(sim.calls(FRONT) - calls <= MOST_CALLS, "RING-9");
        assert_eq!(front.in_flight() + front.room(), sim::blk::SLOTS as usize);
        assert_eq!(done + front.in_flight() as u64, token, "BLK-9");
    }
    done += honest_blk_backend(&sim, &mut front);
    assert_eq!(done, token, "BLK-9");
}

pub fn net_frontend(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let sim = Sim::new();
    let mut env = sim.env(FRONT);
    let mut front = net::Frontend::new(sim::net::front_config(&sim)).unwrap();
    let mut to = [0; 1514];
    while !input.is_empty() {
        let Ok(act) = u8::arbitrary(&mut input) else { break };
        let calls = sim.calls(FRONT);
        match backend_act(act, &sim, &mut input, &NET) {
            Ok(true) => {}
            Ok(false) if act % 16 <= 12 => {
                let _ = front.poll(&mut env);
            }
            Ok(false) if act % 16 == 13 => {
                let len = usize::from(u16::arbitrary(&mut input).unwrap_or_default() % 1515);
                let _ = front.transmit(&to[..len], None);
            }
            Ok(false) if act & 0x10 != 0 => {
                if let Some(buffer) = front.tx_buffer() {
                    front.cancel(buffer);
                }
            }
            Ok(false) => {
                while let Some(got) = front.receive(&mut to) {
                    assert!((14..=to.len()).contains(&got.len), "NET-3");
                }
                front.kick(&mut env);
            }
            Err(_) => break,
        }
        assert!(sim.calls(FRONT) - calls <= MOST_CALLS, "RING-9");
        assert!(front.rx_ready() <= sim::net::SLOTS as usize);
    }
    honest_net_backend(&sim, &mut front);
}
