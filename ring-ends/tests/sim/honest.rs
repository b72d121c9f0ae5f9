//! Honest peers that follow a hostile one: they are served in full (CONN-13).

use ring_ends::{blk, net};
use ring_proto::blk::{Op, SECTOR, Segment, Status};

use super::{BACK, FRONT, Sim};

/// A new generation that behaves: everything asked for completes.
pub fn honest_blk_backend(sim: &Sim, front: &mut blk::Frontend) -> u64 {
    sim.end_generation(BACK);
    let mut back = blk::Backend::new(super::blk::back_config(sim), super::blk::volume());
    let (mut fe, mut be) = (sim.env(FRONT), sim.env(BACK));
    let mut done = 0;
    for _ in 0..100 {
        let _ = front.poll(&mut fe);
        let _ = back.poll(&mut be);
        while let Some(request) = back.next_request() {
            back.complete(request.tag, Status::Ok);
        }
        back.push_responses(&mut be);
        // A frontend that takes it for the former one waits up to a second (CONN-9).
        sim.advance(40_000_000);
        while front.next_completion().is_some() {
            done += 1;
        }
    }
    assert!(front.is_connected() && front.in_flight() == 0, "hangs: {:?}", front.counters());
    drop(back);
    sim.end_generation(BACK);
    done
}

/// A new generation that behaves: all buffers turn out to be there.
pub fn honest_net_backend(sim: &Sim, front: &mut net::Frontend) {
    sim.end_generation(BACK);
    let mut back = net::Backend::new(super::net::back_config(sim), super::net::vif());
    let (mut fe, mut be) = (sim.env(FRONT), sim.env(BACK));
    let mut to = [0; 1514];
    let (mut taken, mut got) = (0, 0);
    while front.receive(&mut to).is_some() {}
    for round in 0..100 {
        let _ = front.poll(&mut fe);
        let _ = back.poll(&mut be);
        while let Some(frame) = back.next_tx() {
            taken += 1;
            back.complete_tx(frame.tag, ring_proto::net::Status::Ok);
        }
        if round == 50 {
            assert_eq!(front.tx_room(), super::net::SLOTS as usize, "tx buffers leaked");
            taken = 0;
            for _ in 0..super::net::SLOTS {
                front.transmit(&to, None).unwrap();
                back.deliver(&to, false).unwrap();
            }
        }
        back.push_responses(&mut be);
        // A frontend that takes it for the former one waits up to a second (CONN-9).
        sim.advance(40_000_000);
        while round >= 50 && front.receive(&mut to).is_some() {
            got += 1;
        }
    }
    assert!(front.is_connected());
    assert_eq!((taken, got), (super::net::SLOTS, super::net::SLOTS));
    drop(back);
    sim.end_generation(BACK);
}

/// BLK-4, BLK-5: what the driver gets is within the volume and the pool.
pub fn check_request(sim: &Sim, request: &blk::ValidRequest) {
    assert!(request.sector + request.sectors <= super::blk::SECTORS);
    let bytes: u64 = request.segments.iter().map(|p| u64::from(p.len)).sum();
    match request.op {
        Op::Read | Op::Write => assert_eq!(bytes, request.sectors * SECTOR),
        _ => assert!(request.segments.is_empty()),
    }
    for piece in &request.segments {
        assert!(piece.len > 0 && piece.len.is_multiple_of(512) && piece.offset.is_multiple_of(512));
        assert!(sim.is_window(piece.address, piece.len as usize));
    }
}

/// A new generation that behaves is served.
pub fn honest_blk_frontend(sim: &Sim, back: &mut blk::Backend) {
    sim.end_generation(FRONT);
    // It has an event, and is through with it before the next generation has begun:
    // one that had shown its successor's number would else leave it its strikes
    // (CONN-14).
    while back.poll(&mut sim.env(BACK)).again {}
    let mut front = blk::Frontend::new(super::blk::front_config(sim)).unwrap();
    let (mut fe, mut be) = (sim.env(FRONT), sim.env(BACK));
    let mut done = 0;
    for token in 0..super::blk::SLOTS {
        let segments = [Segment { offset: 512 * token, len: 512 }];
        let io = blk::Io { op: Op::Read, sector: 1, sectors: 0, segments: &segments };
        front.submit(io, u64::from(token)).unwrap();
    }
    for _ in 0..20 {
        let _ = front.poll(&mut fe);
        let _ = back.poll(&mut be);
        while let Some(request) = back.next_request() {
            back.complete(request.tag, Status::Ok);
        }
        back.push_responses(&mut be);
        sim.advance(2_000_000);
        while let Some(completion) = front.next_completion() {
            assert_eq!(completion.status, Status::Ok);
            done += 1;
        }
    }
    assert_eq!(done, super::blk::SLOTS, "{:?}", back.counters());
    sim.end_generation(FRONT);
}

/// A new generation that behaves is served.
pub fn honest_net_frontend(sim: &Sim, back: &mut net::Backend) {
    sim.end_generation(FRONT);
    // It has an event, and is through with it before the next generation has begun:
    // one that had shown its successor's number would else leave it its strikes
    // (CONN-14).
    while back.poll(&mut sim.env(BACK)).again {}
    let mut front = net::Frontend::new(super::net::front_config(sim)).unwrap();
    let (mut fe, mut be) = (sim.env(FRONT), sim.env(BACK));
    let mut taken = 0;
    let mut to = [0; 1514];
    for round in 0..20 {
        let _ = front.poll(&mut fe);
        let _ = back.poll(&mut be);
        while let Some(frame) = back.next_tx() {
            taken += 1;
            back.complete_tx(frame.tag, ring_proto::net::Status::Ok);
        }
        if round == 10 {
            for _ in 0..super::net::SLOTS {
                front.transmit(&to, None).unwrap();
                back.deliver(&to, false).unwrap();
            }
        }
        back.push_responses(&mut be);
        sim.advance(2_000_000);
    }
    assert_eq!(taken, super::net::SLOTS, "{:?}", back.counters());
    let mut got = 0;
    while front.receive(&mut to).is_some() {
        got += 1;
    }
    assert_eq!(got, super::net::SLOTS);
    sim.end_generation(FRONT);
}

/// NET-2: what the driver gets is a frame, and within the pool. No feature was offered.
pub fn check_frame(sim: &Sim, frame: &net::TxFrame) {
    assert!((14..=1514).contains(&frame.len));
    assert!(frame.checksum.is_none() && frame.gso_size.is_none());
    let total: u32 = frame.segments.iter().map(|p| p.len).sum();
    assert_eq!(total, frame.len);
    for piece in &frame.segments {
        assert!(sim.is_window(piece.address, piece.len as usize));
    }
}
