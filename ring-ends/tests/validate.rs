//! What an end makes of single wrong slots: one hand-made peer, one deviation
//! at a time.
#![allow(missing_docs)]

mod sim;

use ring_ends::{Window, blk, net};
use ring_proto::blk::{
    FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, MAX_SEGMENTS, Op, Request, Response,
    Segment, Status,
};
use ring_proto::conn::{
    BackBody, BackHello, FrontHello, GrantRange, Pair, QueueHello, State, VERSION,
};
use ring_proto::net::{RxRequest, RxResponse, TxRequest, TxResponse};
use ring_proto::ring::{BackRing, FrontRing, Slot};
use sim::hostile::{BLK, NET, Shape, grant_all};
use sim::{BACK, FRONT, Sim};
use std::sync::atomic::Ordering::Relaxed;

type BlkRing = FrontRing<Request, Response>;

/// Answers the frontend's offer by hand.
fn answer(sim: &Sim, body: BackBody, features: u32) {
    let hello = BackHello { version: VERSION, features, body };
    let answers = sim.pages(BACK).peer.glance().pair;
    let own = sim.pages(BACK).own;
    own.publish(&hello, 1, answers, State::Initialising, State::Connected).unwrap();
}

/// Offers everything by hand.
fn offer(sim: &Sim, shape: &Shape, features: u32) {
    let queues = shape.rings.iter().map(|&frame| QueueHello {
        ring: GrantRange { first: frame as u32, pages: 1 },
        slots: shape.slots,
    });
    let hello = FrontHello {
        version: VERSION,
        protocol: shape.protocol,
        features,
        queues: queues.collect(),
        pool: GrantRange { first: shape.pool as u32, pages: shape.pool_pages as u32 },
    };
    let own = sim.pages(FRONT).own;
    own.publish(&hello, 1, Pair::default(), State::Closing, State::Initialising).unwrap();
}

/// A backend and its frontend's ring, made by hand and offered with `features`.
fn offered_blk(volume: blk::Volume, features: u32) -> (Sim, blk::Backend, BlkRing) {
    let sim = Sim::new();
    grant_all(&sim, &BLK);
    let mut back = blk::Backend::new(sim::blk::back_config(&sim), volume);
    let ring = FrontRing::new(sim.frame(sim::blk::RING), sim::blk::SLOTS).unwrap();
    offer(&sim, &BLK, features);
    let mut env = sim.env(BACK);
    let _ = (back.poll(&mut env), back.poll(&mut env));
    assert!(back.is_connected());
    (sim, back, ring)
}

/// Likewise for net, with the ring that is in `frame`.
fn offered_net<Q: Slot, S: Slot>(
    vif: net::Vif,
    frame: usize,
    features: u32,
) -> (Sim, net::Backend, FrontRing<Q, S>) {
    let sim = Sim::new();
    grant_all(&sim, &NET);
    let mut back = net::Backend::new(sim::net::back_config(&sim), vif);
    let ring = FrontRing::new(sim.frame(frame), sim::net::SLOTS).unwrap();
    offer(&sim, &NET, features);
    let mut env = sim.env(BACK);
    let _ = (back.poll(&mut env), back.poll(&mut env));
    assert!(back.is_connected());
    (sim, back, ring)
}

#[test]
fn blk_7_only_answers_to_requests_that_are_out_are_taken() {
    // (id of the answer, given ids (a, b) of the two requests; status)
    type Deviation = fn(u32, u32) -> Vec<(u32, u8)>;
    let cases: [(&str, Deviation, u64); 7] = [
        ("good, in the other order", |a, b| vec![(b, 0), (a, 1)], 0),
        ("another entry", |a, _| vec![(a + 2, 0)], 1),
        ("beyond the table", |a, _| vec![(a + 100, 0)], 1),
        ("an earlier use of the entry", |a, _| vec![(a ^ 1 << 16, 0)], 1),
        ("twice the same", |a, _| vec![(a, 0), (a, 0)], 1),
        ("a status that is not defined", |a, _| vec![(a, 4)], 1),
        ("any id", |_, _| vec![(u32::MAX, 0)], 1),
    ];
    for (name, deviation, misbehaviours) in cases {
        let sim = Sim::new();
        let mut env = sim.env(FRONT);
        let mut front = blk::Frontend::new(sim::blk::front_config(&sim)).unwrap();
        let _ = front.poll(&mut env);
        let ring = sim.frame(sim::blk::RING);
        let mut back = BackRing::<Request, Response>::attach(ring, sim::blk::SLOTS).unwrap();
        answer(&sim, BackBody::Blk { sectors: 100, block_size: 512, read_only: false }, 0);
        let segments = [Segment { offset: 0, len: 512 }];
        for token in 0..2 {
            let op = ring_proto::blk::Op::Read;
            let io = blk::Io { op, sector: token, sectors: 0, segments: &segments };
            front.submit(io, token).unwrap();
        }
        let _ = front.poll(&mut env);
        let a = back.pop().unwrap().unwrap().id;
        let b = back.pop().unwrap().unwrap().id;
        for (id, status) in deviation(a, b) {
            back.push(&Response { id, status, reserved: [0; 3] }).unwrap();
        }
        let _ = back.publish();
        let _ = front.poll(&mut env);
        assert_eq!(front.counters().misbehaviours, misbehaviours, "{name}");
        assert_eq!(front.is_connected(), misbehaviours == 0, "{name}");
    }
}

/// A frontend with requests submitted, and the ring of a hand-made backend that
/// offered it a volume.
fn asked(
    volume: BackBody,
    features: u32,
    requests: &[blk::Io<'_>],
) -> (Sim, blk::Frontend, BackRing<Request, Response>) {
    let sim = Sim::new();
    let mut front = blk::Frontend::new(sim::blk::front_config(&sim)).unwrap();
    for (token, &io) in (0..).zip(requests) {
        front.submit(io, token).unwrap();
    }
    let ring = connected(&sim, &mut front, volume, features);
    (sim, front, ring)
}

/// Answers the offer that the frontend makes as soon as its pause is over.
fn connected(
    sim: &Sim,
    front: &mut blk::Frontend,
    volume: BackBody,
    features: u32,
) -> BackRing<Request, Response> {
    let mut env = sim.env(FRONT);
    while let Some(pause) = front.poll(&mut env).deadline {
        sim.advance(pause.saturating_sub(sim.now()));
    }
    let mem = sim.frame(sim::blk::RING);
    let ring = BackRing::<Request, Response>::attach(mem, sim::blk::SLOTS).unwrap();
    answer(sim, volume, features);
    let _ = (front.poll(&mut env), front.poll(&mut env));
    assert!(front.is_connected());
    ring
}

const FEATURES: u32 = FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES;

/// A request for the first eight sectors, or of them.
fn eight(op: Op) -> blk::Io<'static> {
    const DATA: &[Segment] = &[Segment { offset: 0, len: 4096 }];
    let segments = if matches!(op, Op::Read | Op::Write) { DATA } else { &[] };
    let sectors = if matches!(op, Op::Discard | Op::WriteZeroes) { 8 } else { 0 };
    blk::Io { op, sector: 0, sectors, segments }
}

#[test]
fn blk_12_a_backend_that_refuses_what_it_offers_misbehaves() {
    use Status::{Invalid, IoError, Unsupported};
    let volume = BackBody::Blk { sectors: 100, block_size: 512, read_only: false };
    for (op, status, is_breach) in [
        (Op::Read, Invalid, true),
        (Op::Write, Unsupported, true),
        (Op::Flush, Unsupported, true),
        (Op::Discard, Invalid, true),
        (Op::Discard, Unsupported, false),
        (Op::WriteZeroes, Unsupported, false),
        (Op::Read, IoError, false),
    ] {
        let (sim, mut front, mut ring) = asked(volume.clone(), FEATURES, &[eight(op)]);
        for times in 1.. {
            let id = ring.pop().unwrap().unwrap().id;
            ring.push(&Response { id, status: status as u8, reserved: [0; 3] }).unwrap();
            let _ = (ring.publish(), front.poll(&mut sim.env(FRONT)));
            let counts = front.counters();
            if let Some(end) = front.next_completion() {
                // The guest does not wait for ever for a backend that means it.
                assert_eq!((end.status, times), (status, if is_breach { 6 } else { 1 }), "{op:?}");
                assert_eq!((counts.misbehaviours, counts.replayed), (times - 1, times - 1));
                assert!(front.is_connected());
                break;
            }
            assert_eq!((counts.misbehaviours, counts.replayed), (times, times), "{op:?}");
            assert!(times < 6 && !front.is_connected());
            ring = connected(&sim, &mut front, volume.clone(), FEATURES);
        }
    }
}

#[test]
fn blk_12_what_is_not_on_offer_is_not_sent() {
    use Status::{Invalid, IoError, Unsupported};
    let volume = |sectors, block_size, read_only| BackBody::Blk { sectors, block_size, read_only };
    let half = blk::Io { sector: 4, ..eight(Op::Read) };
    for (volume, features, io, end) in [
        (volume(8, 4096, false), FEATURES, eight(Op::Write), None),
        (volume(8, 4096, true), FEATURES, eight(Op::Write), Some(Unsupported)),
        (volume(8, 4096, true), FEATURES, eight(Op::Discard), Some(Unsupported)),
        (volume(8, 4096, true), FEATURES, eight(Op::Read), None),
        (volume(8, 512, false), 0, eight(Op::Flush), Some(Unsupported)),
        (volume(8, 512, false), FEATURE_FLUSH, eight(Op::Flush), None),
        (volume(8, 512, false), FEATURE_FLUSH, eight(Op::Discard), Some(Unsupported)),
        (volume(8, 512, false), FEATURE_DISCARD, eight(Op::WriteZeroes), Some(Unsupported)),
        (volume(7, 512, false), FEATURES, eight(Op::WriteZeroes), Some(IoError)),
        (volume(16, 2048, false), FEATURES, half, None),
        (volume(16, 4096, false), FEATURES, half, Some(Invalid)),
    ] {
        let (_sim, mut front, mut ring) = asked(volume, features, &[io]);
        assert_eq!(ring.pop().unwrap().is_none(), end.is_some(), "{io:?}");
        assert_eq!(front.next_completion().map(|done| done.status), end, "{io:?}");
        assert_eq!(front.counters().misbehaviours, 0);
    }
}

#[test]
fn net_7_only_answers_to_requests_that_are_out_are_taken() {
    type Deviation = fn(u32, u32) -> (u32, RxResponse);
    fn rx(id: u32, len: u32, status: u8) -> RxResponse {
        RxResponse { id, len, status, flags: 0, reserved: [0; 6] }
    }
    let cases: [(&str, Deviation, u64); 10] = [
        ("good", |t, r| (t, rx(r, 60, 0)), 0),
        ("dropped", |t, r| (t, rx(r, 0, 1)), 0),
        ("tx: an earlier use of the entry", |t, r| (t ^ 1 << 16, rx(r, 60, 0)), 1),
        ("tx: a free entry", |t, r| (t ^ 1, rx(r, 60, 0)), 1),
        ("tx: beyond the table", |t, r| (t | 0x8000, rx(r, 60, 0)), 1),
        ("rx: an earlier use of the entry", |t, r| (t, rx(r ^ 1 << 16, 60, 0)), 1),
        ("rx: beyond the table", |t, r| (t, rx(r | 0x8000, 60, 0)), 1),
        ("rx: too short", |t, r| (t, rx(r, 13, 0)), 1),
        ("rx: too long", |t, r| (t, rx(r, 1515, 0)), 1),
        ("rx: a status that is not defined", |t, r| (t, rx(r, 60, 3)), 1),
    ];
    for (name, deviation, misbehaviours) in cases {
        let sim = Sim::new();
        let mut env = sim.env(FRONT);
        let mut front = net::Frontend::new(sim::net::front_config(&sim)).unwrap();
        let _ = front.poll(&mut env);
        let (tx, rx) = (sim.frame(sim::net::TX_RING), sim.frame(sim::net::RX_RING));
        let slots = sim::net::SLOTS;
        let mut tx = BackRing::<TxRequest, TxResponse>::attach(tx, slots).unwrap();
        let mut rx = BackRing::<RxRequest, RxResponse>::attach(rx, slots).unwrap();
        answer(&sim, BackBody::Net { mac: sim::net::MAC, mtu: 1500 }, 0);
        let _ = front.poll(&mut env);
        front.transmit(&[1; 60], None).unwrap();
        front.kick(&mut env);
        let (t, r) = (tx.pop().unwrap().unwrap().id, rx.pop().unwrap().unwrap().id);
        let (id, response) = deviation(t, r);
        tx.push(&TxResponse { id, status: 0, reserved: [0; 3] }).unwrap();
        rx.push(&response).unwrap();
        let _ = (tx.publish(), rx.publish());
        let _ = front.poll(&mut env);
        assert_eq!(front.counters().misbehaviours, misbehaviours, "{name}");
        assert_eq!(front.is_connected(), misbehaviours == 0, "{name}");
    }
}

fn segments<const N: usize>(list: &[(u32, u32)]) -> [Segment; N] {
    let mut all = [Segment::default(); N];
    for (to, &(offset, len)) in all.iter_mut().zip(list) {
        *to = Segment { offset, len };
    }
    all
}

/// One change to a good request.
type Change<T> = fn(&mut T);

#[test]
fn blk_4_each_malformed_request_is_answered_and_nothing_is_disconnected() {
    const K: u32 = 1024;
    let good = Request {
        id: 5,
        op: 1,
        segment_count: 2,
        reserved: 0,
        sector: 8,
        sectors: 0,
        segments: segments(&[(0, 4 * K), (64 * K, 4 * K)]),
    };
    let cases: [(&str, Change<Request>, Option<Status>); 26] = [
        ("good", |_| {}, None),
        ("read", |r| r.op = 0, None),
        ("up to the end", |r| r.sector = 4096 - 16, None),
        ("a megabyte", |r| r.segments[0].len = 1020 * K, None),
        ("flush", |r| (r.op, r.segment_count, r.sector) = (2, 0, 0), None),
        ("write-zeroes", |r| (r.op, r.segment_count, r.sectors) = (4, 0, 8), None),
        ("all of it", |r| (r.op, r.segment_count, r.sector, r.sectors) = (4, 0, 0, 4096), None),
        ("discard", |r| (r.op, r.segment_count, r.sectors) = (3, 0, 8), Some(Status::Unsupported)),
        ("operation", |r| r.op = 5, Some(Status::Invalid)),
        ("reserved", |r| r.reserved = 1, Some(Status::Invalid)),
        ("no segment", |r| r.segment_count = 0, Some(Status::Invalid)),
        ("six segments", |r| (r.segment_count, r.segments) = (6, [r.segments[0]; 6]), None),
        (
            "too many segments",
            |r| (r.segment_count, r.segments) = (7, [r.segments[0]; 6]),
            Some(Status::Invalid),
        ),
        ("more than a megabyte", |r| r.segments[0].len = 1024 * K, Some(Status::Invalid)),
        ("empty segment", |r| r.segments[1].len = 0, Some(Status::Invalid)),
        ("odd length", |r| r.segments[0].len = 1000, Some(Status::Invalid)),
        ("odd offset", |r| r.segments[0].offset = 100, Some(Status::Invalid)),
        ("beyond the pool", |r| r.segments[0].offset = 2045 * K, Some(Status::Invalid)),
        ("wrapping", |r| r.segments[0].offset = u32::MAX - 511, Some(Status::Invalid)),
        ("sectors in a write", |r| r.sectors = 8, Some(Status::Invalid)),
        ("beyond the volume", |r| r.sector = 4096 - 8, Some(Status::Invalid)),
        ("wrapping sector", |r| r.sector = u64::MAX - 7, Some(Status::Invalid)),
        ("half a block", |r| r.sector = 9, Some(Status::Invalid)),
        ("length of half a block", |r| r.segments[1].len = 512, Some(Status::Invalid)),
        ("flush with data", |r| (r.op, r.sector) = (2, 0), Some(Status::Invalid)),
        ("zeroes nowhere", |r| (r.op, r.segment_count) = (4, 0), Some(Status::Invalid)),
    ];
    run_blk_cases(&good, &cases);
}

/// Many grants of few frames: what matters is the arithmetic.
fn run_blk_cases(good: &Request, cases: &[(&str, Change<Request>, Option<Status>)]) {
    let sim = Sim::new();
    let all = ring_proto::grant::MAP | ring_proto::grant::WRITE | ring_proto::grant::DMA;
    const POOL_PAGES: u32 = 512;
    sim.grant_anyhow(FRONT, 2, 2, all);
    for page in 0..POOL_PAGES {
        sim.grant_anyhow(FRONT, 1000 + page, 8 + page as usize % 16, all);
    }
    let window = Window { ring_page: 0, ring_pages: 1, pool_page: 8, pool_pages: POOL_PAGES };
    let config = blk::BackendConfig { window, ..sim::blk::back_config(&sim) };
    let volume = blk::Volume {
        sectors: 4096,
        block_size: 4096,
        read_only: false,
        features: ring_proto::blk::FEATURE_FLUSH | ring_proto::blk::FEATURE_WRITE_ZEROES,
    };
    let mut back = blk::Backend::new(config, volume);
    let mut env = sim.env(BACK);
    let mut ring = FrontRing::<Request, Response>::new(sim.frame(2), 16).unwrap();
    let hello = FrontHello {
        version: VERSION,
        protocol: 1,
        features: u32::MAX,
        queues: [QueueHello { ring: GrantRange { first: 2, pages: 1 }, slots: 16 }]
            .into_iter()
            .collect(),
        pool: GrantRange { first: 1000, pages: POOL_PAGES },
    };
    let own = sim.pages(FRONT).own;
    own.publish(&hello, 1, Pair::default(), State::Closing, State::Initialising).unwrap();
    for (name, change, wrong) in cases {
        let mut request = *good;
        change(&mut request);
        ring.push(&request).unwrap();
        let _ = ring.publish();
        let _ = (back.poll(&mut env), back.poll(&mut env));
        let valid = back.next_request();
        assert_eq!(valid.is_none(), wrong.is_some(), "{name}");
        if let Some(valid) = valid {
            assert!(valid.segments.len() <= MAX_SEGMENTS);
            back.complete(valid.tag, Status::Ok);
        }
        back.push_responses(&mut env);
        let response = ring.pop().unwrap().unwrap();
        assert_eq!(response.id, 5);
        assert_eq!(Status::from_raw(response.status), Some(wrong.unwrap_or(Status::Ok)), "{name}");
        assert!(back.is_connected());
    }
}

#[test]
fn blk_4_a_read_only_volume_is_not_written() {
    let volume = blk::Volume { read_only: true, ..sim::blk::volume() };
    let (sim, mut back, mut ring) = offered_blk(volume, 7);
    let mut env = sim.env(BACK);
    for (op, segment_count, sectors) in [(1, 1, 0), (3, 0, 8), (4, 0, 8), (0, 1, 0)] {
        let segments = segments(&[(0, 4096)]);
        let (id, sector, reserved) = (op.into(), 0, 0);
        let request = Request { id, op, segment_count, reserved, sector, sectors, segments };
        ring.push(&request).unwrap();
    }
    let _ = (back.poll(&mut env), ring.publish(), back.poll(&mut env));
    assert_eq!(back.next_request().unwrap().op, ring_proto::blk::Op::Read);
    assert!(back.next_request().is_none());
    assert_eq!(back.counters().invalid, 3);
}

#[test]
fn net_2_each_malformed_frame_is_answered_and_nothing_is_disconnected() {
    let good = TxRequest {
        id: 5,
        flags: 0,
        gso_type: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        segment_count: 2,
        reserved: [0; 3],
        segments: segments(&[(1, 14), (5000, 100)]),
    };
    let csum: Change<TxRequest> = |r| (r.flags, r.csum_start, r.csum_offset) = (1, 34, 16);
    let cases: [(&str, Change<TxRequest>, bool); 18] = [
        ("good", |_| {}, true),
        ("checksum", csum, true),
        ("checksum at the end", |r| (r.flags, r.csum_start, r.csum_offset) = (1, 100, 12), true),
        ("segmentation", |r| (r.flags, r.gso_type, r.gso_size) = (1, 1, 50), true),
        ("checksum outside", |r| (r.flags, r.csum_start, r.csum_offset) = (1, 100, 13), false),
        ("checksum far out", |r| (r.flags, r.csum_start) = (1, u16::MAX), false),
        ("unknown flag", |r| r.flags = 2, false),
        ("unknown offload", |r| (r.flags, r.gso_type, r.gso_size) = (1, 2, 50), false),
        ("offload without checksum", |r| (r.gso_type, r.gso_size) = (1, 50), false),
        ("offload of nothing", |r| (r.flags, r.gso_type) = (1, 1), false),
        ("size without offload", |r| r.gso_size = 50, false),
        ("reserved", |r| r.reserved[2] = 1, false),
        ("no segment", |r| r.segment_count = 0, false),
        ("three segments", |r| (r.segment_count, r.segments) = (3, [r.segments[0]; 3]), true),
        ("too many segments", |r| (r.segment_count, r.segments) = (4, [r.segments[0]; 3]), false),
        ("too long", |r| r.segments[1].len = 1501, false),
        ("too short", |r| (r.segment_count, r.segments[0].len) = (1, 13), false),
        ("beyond the pool", |r| r.segments[1].offset = 16 * 4096 - 99, false),
    ];
    for features in [ring_proto::net::FEATURE_TX_CSUM | ring_proto::net::FEATURE_TX_TSO4, 0] {
        let vif = net::Vif { features, ..sim::net::vif() };
        let (sim, mut back, mut ring) =
            offered_net::<TxRequest, TxResponse>(vif, sim::net::TX_RING, u32::MAX);
        let mut env = sim.env(BACK);
        for (name, change, valid) in &cases {
            let mut request = good;
            change(&mut request);
            // Without the features everything that uses them is malformed.
            let valid = *valid && (features != 0 || (request.flags == 0 && request.gso_type == 0));
            ring.push(&request).unwrap();
            let _ = ring.publish();
            let _ = (back.poll(&mut env), back.poll(&mut env));
            let frame = back.next_tx();
            assert_eq!(frame.is_some(), valid, "{name}, features {features}");
            if let Some(frame) = frame {
                back.complete_tx(frame.tag, ring_proto::net::Status::Ok);
            }
            back.push_responses(&mut env);
            let response = ring.pop().unwrap().unwrap();
            assert_eq!((response.id, response.status), (5, if valid { 0 } else { 2 }), "{name}");
            assert!(back.is_connected());
        }
    }
}

#[test]
fn net_5_bad_rx_buffers_are_answered_and_skipped() {
    let (sim, mut back, mut ring) =
        offered_net::<RxRequest, RxResponse>(sim::net::vif(), sim::net::RX_RING, 0);
    let mut env = sim.env(BACK);
    let buffers = [(0, 59), (16 * 4096 - 59, 60), (u32::MAX, u32::MAX), (0, 0), (4096, 60)];
    for (id, (offset, len)) in (0..).zip(buffers) {
        ring.push(&RxRequest { id, buffer: Segment { offset, len }, reserved: 0 }).unwrap();
    }
    let _ = (back.poll(&mut env), ring.publish(), back.poll(&mut env));
    back.deliver(&[7; 60], true).unwrap();
    back.push_responses(&mut env);
    for id in 0..5 {
        let response = ring.pop().unwrap().unwrap();
        assert_eq!((response.id, response.status), (id, if id < 4 { 2 } else { 0 }));
    }
    let mut got = [0; 61];
    sim.frames(sim::net::POOL, 16).copy_from(4096, &mut got).unwrap();
    assert_eq!((&got[..60], got[60]), (&[7; 60][..], 0));
}

#[test]
fn ring_9_in_one_round_no_more_is_taken_than_the_ring_holds() {
    let (sim, mut back, mut ring) = offered_blk(sim::blk::volume(), 0);
    let mut env = sim.env(BACK);
    let slots = sim::blk::SLOTS;
    let segments = segments(&[(0, 512)]);
    let (id, op, segment_count, sector, sectors) = (1, 0, 1, 0, 0);
    let request = Request { id, op, segment_count, reserved: 0, sector, sectors, segments };
    for _ in 0..slots {
        ring.push(&request).unwrap();
    }
    // A frontend that claims another request whenever one was answered.
    let mem = sim.frame(sim::blk::RING);
    let mut claimed = 0;
    for _ in 0..2 {
        let mut taken = 0;
        loop {
            claimed += 1;
            mem.write_u32(0, claimed, Relaxed);
            let Some(valid) = back.next_request() else { break };
            back.complete(valid.tag, Status::Ok);
            taken += 1;
            assert!(taken <= slots);
        }
        claimed -= 1;
        assert_eq!(taken, slots);
        back.push_responses(&mut env);
    }
    assert_eq!(back.counters().misbehaviours, 0);
}

#[test]
fn ring_5_a_slot_that_changes_while_it_is_read_is_used_as_it_was_checked() {
    let (sim, mut back, mut ring) = offered_blk(sim::blk::volume(), 7);
    let mut env = sim.env(BACK);
    let mem = sim.frame(sim::blk::RING);
    // Another CPU writes a good and a bad request into the first slot, in turn.
    let good = Request {
        id: 1,
        op: 0,
        segment_count: 1,
        reserved: 0,
        sector: 3,
        sectors: 0,
        segments: segments(&[(0, 512)]),
    };
    let bad = Request { sector: u64::MAX, segments: segments(&[(u32::MAX, u32::MAX)]), ..good };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut served, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                for slot in 0..sim::blk::SLOTS as usize {
                    mem.write(256 + slot * size_of::<Request>(), &good).unwrap();
                    mem.write(256 + slot * size_of::<Request>(), &bad).unwrap();
                }
            }
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while (served < 100 || refused < 100) && std::time::Instant::now() < deadline {
            ring.push(&good).unwrap();
            let _ = ring.publish();
            // On a busy machine the other thread needs to be let in.
            std::thread::yield_now();
            let _ = back.poll(&mut env);
            if let Some(request) = back.next_request() {
                sim::honest::check_request(&sim, &request);
                back.complete(request.tag, Status::Ok);
                served += 1;
            } else {
                refused += 1;
            }
            back.push_responses(&mut env);
            let response = ring.pop().unwrap().unwrap();
            assert_eq!(response.id, 1);
        }
        stop.store(true, Relaxed);
    });
    assert!(served >= 100 && refused >= 100, "{served} served, {refused} refused");
    assert!(back.is_connected());
}

#[test]
fn net_4_a_copied_head_does_not_change_with_the_original() {
    let (sim, mut back, mut ring) =
        offered_net::<TxRequest, TxResponse>(sim::net::vif(), sim::net::TX_RING, 0);
    let mut env = sim.env(BACK);
    let pool = sim.frames(sim::net::POOL, sim::net::POOL_PAGES);
    let bytes: Vec<u8> = (0..100).collect();
    // A head of 14 bytes lies in two segments, the second one on another page.
    pool.copy_to(4090, &bytes[..6]).unwrap();
    pool.copy_to(9000, &bytes[6..]).unwrap();
    ring.push(&TxRequest {
        id: 5,
        flags: 0,
        gso_type: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        segment_count: 2,
        reserved: [0; 3],
        segments: segments(&[(4090, 6), (9000, 94)]),
    })
    .unwrap();
    let _ = (back.poll(&mut env), ring.publish(), back.poll(&mut env));
    let frame = back.next_tx().unwrap();
    let mut head = [0xee; 14];
    assert_eq!(back.copy_head(&frame, &mut head), 14);
    pool.clear();
    assert_eq!(head, bytes[..14]);
    // No more than there is, also of a buffer that is longer than the frame.
    let mut whole = [0xee; 120];
    assert_eq!(back.copy_head(&frame, &mut whole), 100);
    assert_eq!((whole[99], whole[100]), (0, 0xee));
}
