//! A driver that lies about data: reads give garbage, writes are dropped and
//! called done, some requests fail, some are answered twice; frames of garbage
//! come in at the full rate, and what is sent goes nowhere.
//!
//! It may withhold and corrupt what it is given. The guest must not die of it,
//! must not hand garbage on as a value, and must be served in full by the
//! honest generation that follows. The first generation is honest, too.
#![no_std]
#![no_main]

use attacks::{
    begin, breach,
    random::Random,
    rings::{acts::honest, back::Back, net::SHORT},
};
use ring_proto::{
    blk::{Op, Request, Response, Status},
    boot::BootInfo,
    conn::Protocol,
    net::{MAX_FRAME, RxRequest, RxResponse, TxRequest, TxResponse},
};

domain_rt::entry!(main);

const NAME: &str = "backend-data";
/// So many lies, or frames of garbage, are worth a line.
const LIES: u32 = 12;
const FRAMES: u32 = 1000;

fn main(boot: &'static BootInfo) -> ! {
    if boot.generation != 2 {
        honest(boot);
    }
    begin(NAME);
    let mut back = Back::first();
    let mut random = Random::new(7);
    let (mut lies, mut twice, mut frames, mut connects) = (0, 0, 0, 0);
    let mut said = false;
    // It never stops of itself: a guest that asks is not to wait in vain.
    back.storm(u64::MAX, |back, _| {
        if !back.stands() {
            match back.connect() {
                true => connects += 1,
                false => breach!(NAME, "the guest made no offer"),
            }
            return;
        }
        match back.protocol {
            Protocol::Blk => {
                let (one, two) = disk(back, &mut random);
                (lies, twice) = (lies + one, twice + two);
            }
            Protocol::Net => frames += wire(back, &mut random),
        }
        if !said && (lies >= LIES || frames >= FRAMES) {
            said = true;
            let what = format_args!("lies={lies} twice={twice} frames={frames}");
            log::info!("attack: {NAME}: done: {what} connects={connects}");
        }
    });
    unreachable!("it lies for ever")
}

/// Answers all requests that are there. How many, and how many twice.
fn disk(back: &mut Back, random: &mut Random) -> (u32, u32) {
    let Some(pool) = back.pool else { return (0, 0) };
    let (mut lies, mut twice) = (0, 0);
    while let Some(request) = back.queues.first_mut().and_then(|q| q.request::<Request>()) {
        lies += 1;
        let status = if random.below(5) == 0 { Status::IoError } else { Status::Ok };
        if request.op == Op::Read as u8 {
            for segment in request.segments.iter().take(request.segment_count.into()) {
                let garbage: [u8; 512] = core::array::from_fn(|_| random.number() as u8);
                for at in (segment.offset..segment.offset.saturating_add(segment.len)).step_by(512)
                {
                    if pool.copy_to(at as usize, &garbage).is_err() {
                        breach!(NAME, "the guest's own segment is outside of its pool");
                    }
                }
            }
        }
        let Some(queue) = back.queues.first_mut() else { break };
        let response = Response { id: request.id, status: status as u8, reserved: [0; 3] };
        queue.respond(&response);
        if random.below(8) == 0 {
            queue.respond(&response);
            twice += 1;
        }
    }
    back.notify();
    (lies, twice)
}

/// Fills all buffers with garbage frames and swallows what is sent.
fn wire(back: &mut Back, random: &mut Random) -> u32 {
    let Some(pool) = back.pool else { return 0 };
    let mac = back.connection.boot.mac;
    if let Some(queue) = back.queues.first_mut() {
        while let Some(request) = queue.request::<TxRequest>() {
            queue.respond(&TxResponse { id: request.id, status: 0, reserved: [0; 3] });
        }
    }
    let mut frames = 0;
    if let Some(queue) = back.queues.get_mut(1) {
        while let Some(request) = queue.request::<RxRequest>() {
            let len = u64::from(SHORT) + random.below(u64::from(MAX_FRAME - SHORT) + 1);
            let mut frame = [0; MAX_FRAME as usize];
            frame.iter_mut().for_each(|byte| *byte = random.number() as u8);
            frame[..6].copy_from_slice(&mac);
            // ARP, IPv4 (whose first byte says so), or anything.
            match random.below(4) {
                0 => frame[12..14].copy_from_slice(&[8, 6]),
                1 | 2 => frame[12..15].copy_from_slice(&[8, 0, 0x45]),
                _ => {}
            }
            let _ = pool.copy_to(request.buffer.offset as usize, &frame[..len as usize]);
            let (id, len) = (request.id, len as u32);
            queue.respond(&RxResponse { id, len, status: 0, flags: 2, reserved: [0; 6] });
            frames += 1;
        }
    }
    back.notify();
    frames
}
