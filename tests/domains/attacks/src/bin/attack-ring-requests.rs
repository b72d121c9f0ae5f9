//! Requests that are malformed in every field: segments outside of the pool,
//! too many or too few of them, lengths that wrap, operations and flags that
//! do not exist.
//!
//! Each must be answered as invalid, and none may reach a device.
#![no_std]
#![no_main]

use attacks::{
    begin, breach, done,
    rings::{
        LIMIT,
        blk::{self, segment},
        front::Front,
        net, until,
    },
};
use ring_proto::{
    blk::{Op, Request, Segment, Status},
    conn::Protocol,
    net::{RxRequest, RxResponse, TxRequest},
};

domain_rt::entry!(main);

const NAME: &str = "ring-requests";

#[derive(Default)]
struct Counts {
    tried: u32,
    refused: u32,
    served: u32,
}

fn main(_: &'static domain_rt::ring_proto::boot::BootInfo) -> ! {
    begin(NAME);
    let mut counts = Counts::default();
    for mut front in Front::all() {
        if !front.is_welcome() {
            breach!(NAME, "{} does not serve", front.name());
            continue;
        }
        match front.protocol {
            Protocol::Blk => disk(&mut front, &mut counts),
            Protocol::Net => {
                transmit(&mut front, &mut counts);
                receive(&mut front, &mut counts);
            }
        }
        match front.is_served() {
            true => counts.served += 1,
            false => breach!(NAME, "{} no longer serves", front.name()),
        }
    }
    let Counts { tried, refused, served } = counts;
    done!(NAME, "tried={tried} refused={refused} served={served}")
}

/// Segments of which no request may be made, with the pool's length.
fn bad_segments(pool: u32) -> [Segment; 7] {
    let s = |offset, len| Segment { offset, len };
    [
        s(pool, 512),
        s(pool - 512, 1024),
        s(0, pool + 512),
        s(u32::MAX - 511, 512),
        s(u32::MAX - 511, u32::MAX - 511),
        s(512, u32::MAX - 511),
        s(0, 0),
    ]
}

fn disk(front: &mut Front, counts: &mut Counts) {
    let pool = front.pool.mem.len() as u32;
    let good = blk::request(0, Op::Read, 0, &segment(0, 512));
    let wrong = |change: fn(&mut Request)| {
        let mut request = good;
        change(&mut request);
        request
    };
    let mut bad = heapless::Vec::<Request, 64>::new();
    for op in [Op::Read, Op::Write] {
        for s in bad_segments(pool) {
            bad.push(blk::request(0, op, 0, &[s])).expect("room");
            bad.push(blk::request(0, op, 0, &[segment(0, 512)[0], s])).expect("room");
        }
        for (offset, len) in [(0, 511), (1, 512), (256, 512), (0, 513), (0, 1)] {
            bad.push(blk::request(0, op, 0, &segment(offset, len))).expect("room");
        }
        // Each within the pool, together too long.
        bad.push(blk::request(0, op, 0, &[segment(0, pool)[0], segment(0, 512)[0]])).expect("room");
    }
    bad.extend([
        wrong(|r| r.op = 5),
        wrong(|r| r.op = 0xff),
        wrong(|r| r.reserved = 1),
        wrong(|r| r.reserved = 0x8000),
        wrong(|r| r.segment_count = 0),
        wrong(|r| r.segment_count = 7),
        wrong(|r| r.segment_count = 0xff),
        wrong(|r| r.sectors = 1),
        wrong(|r| r.sectors = u64::MAX),
        wrong(|r| r.op = Op::Flush as u8),
        wrong(|r| r.op = Op::Discard as u8),
        wrong(|r| r.op = Op::WriteZeroes as u8),
    ]);
    for mut request in
        [Op::Flush, Op::Discard, Op::WriteZeroes].map(|op| blk::request(0, op, 0, &[]))
    {
        // A flush with a range, the others without.
        request.sector = 1;
        bad.push(request).expect("room");
    }
    let refused = [Status::Invalid as u8, Status::Unsupported as u8];
    for mut request in bad {
        request.id = front.id();
        counts.tried += 1;
        match blk::call(front, &request) {
            Some(status) if refused.contains(&status) => counts.refused += 1,
            other => log::warn!("{request:?} was answered {other:?}"),
        }
    }
}

fn transmit(front: &mut Front, counts: &mut Counts) {
    let pool = front.pool.mem.len() as u32;
    net::frame(front, 0);
    let good = net::request(0, &[Segment { offset: 0, len: net::SHORT }]);
    let wrong = |change: fn(&mut TxRequest)| {
        let mut request = good;
        change(&mut request);
        request
    };
    let mut bad = heapless::Vec::<TxRequest, 64>::new();
    for s in bad_segments(pool) {
        bad.push(net::request(0, &[s])).expect("room");
        bad.push(net::request(0, &[good.segments[0], s])).expect("room");
    }
    for len in [1, 13, 1515, 65_550, 65_551] {
        bad.push(net::request(0, &[Segment { offset: 0, len }])).expect("room");
    }
    bad.extend([
        wrong(|r| r.segment_count = 0),
        wrong(|r| r.segment_count = 4),
        wrong(|r| r.segment_count = 0xff),
        wrong(|r| r.flags = 2),
        wrong(|r| r.flags = 0x80),
        wrong(|r| r.reserved = [0, 0, 1]),
        wrong(|r| (r.flags, r.csum_start, r.csum_offset) = (1, 59, 0)),
        wrong(|r| (r.flags, r.csum_start, r.csum_offset) = (1, 0xffff, 0xffff)),
        wrong(|r| (r.gso_type, r.gso_size) = (1, 0)),
        wrong(|r| (r.gso_type, r.gso_size) = (1, 0xffff)),
        wrong(|r| r.gso_type = 2),
        wrong(|r| r.gso_size = 1),
    ]);
    for mut request in bad {
        request.id = front.id();
        counts.tried += 1;
        match net::call(front, &request) {
            Some(status) if status == ring_proto::net::Status::Invalid as u8 => counts.refused += 1,
            other => log::warn!("{request:?} was answered {other:?}"),
        }
    }
}

/// Buffers for received frames: all but the last are bad, and the frame must
/// come into the last.
fn receive(front: &mut Front, counts: &mut Counts) {
    let pool = front.pool.mem.len() as u32;
    let good = Segment { offset: 8192, len: 2048 };
    front.pool.mem.copy_to(good.offset as usize, &[0xee; 64]).expect("within the pool");
    for s in bad_segments(pool) {
        net::post(front, s);
        counts.tried += 1;
    }
    // Too short for any frame, and one with a reserved field.
    net::post(front, Segment { offset: 4096, len: 13 });
    let id = front.id();
    if let Some(queue) = front.queues.get_mut(1) {
        queue.put_request(&RxRequest { id, buffer: good, reserved: 1 });
    }
    counts.tried += 2;
    let last = net::post(front, good);
    if let Some(queue) = front.queues.get(1) {
        queue.show_requests();
    }
    let mut arrived = false;
    net::call_in(front);
    until(LIMIT, || {
        while let Some(answer) = front.queues.get_mut(1).and_then(|q| q.response::<RxResponse>()) {
            match answer.status {
                2 if answer.len == 0 && answer.id != last => counts.refused += 1,
                0 if answer.id == last => arrived = true,
                0 => breach!(NAME, "a frame came into a bad buffer: {answer:?}"),
                _ => log::warn!("a buffer was answered {answer:?}"),
            }
        }
        arrived || !front.is_connected()
    });
    if !arrived {
        breach!(NAME, "no frame came into the good buffer");
    }
}
