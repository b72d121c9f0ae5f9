//! Ids that are used several times at once, and ids that look like indices.
//!
//! The backend must answer each request once, with the id it was given, and do
//! what each says.
#![no_std]
#![no_main]

use attacks::{
    begin, breach, done,
    rings::{
        LIMIT,
        blk::{self, segment},
        front::{Front, SLOTS},
        net, until,
    },
};
use ring_proto::{
    blk::{Op, Response, Segment, Status},
    conn::Protocol,
    net::TxResponse,
};

domain_rt::entry!(main);

const NAME: &str = "ring-ids";
/// Ids, each used by a ring full of requests at once.
const IDS: [u32; 5] = [0, 1, 63, 0xdead_beef, u32::MAX];

fn main(_: &'static domain_rt::ring_proto::boot::BootInfo) -> ! {
    begin(NAME);
    let (mut tried, mut answered, mut served) = (0, 0, 0);
    for mut front in Front::all() {
        if !front.is_welcome() {
            breach!(NAME, "{} does not serve", front.name());
            continue;
        }
        for id in IDS {
            tried += SLOTS;
            answered += match front.protocol {
                Protocol::Blk => write_all(&mut front, id),
                Protocol::Net => send_all(&mut front, id),
            };
        }
        match front.is_served() {
            true => served += 1,
            false => breach!(NAME, "{} no longer serves", front.name()),
        }
    }
    done!(NAME, "tried={tried} answered={answered} served={served}")
}

/// Content of sector `n` in the round of `id`.
fn content(id: u32, n: u32) -> [u8; 512] {
    let [a, b, ..] = (id ^ n.wrapping_mul(0x9e37_79b9)).to_le_bytes();
    core::array::from_fn(|i| if i % 2 == 0 { a } else { b.wrapping_add(n as u8) })
}

/// Writes as many sectors as the ring has slots under one id, and reads them
/// back under it, too.
fn write_all(front: &mut Front, id: u32) -> u32 {
    for n in 0..SLOTS {
        front.pool.mem.copy_to(n as usize * 512, &content(id, n)).expect("within the pool");
    }
    let written = all_at_once(front, id, Op::Write);
    front.pool.mem.clear();
    let read = all_at_once(front, id, Op::Read);
    if written != read {
        return written.min(read);
    }
    for n in 0..SLOTS {
        let mut found = [0; 512];
        front.pool.mem.copy_from(n as usize * 512, &mut found).expect("within the pool");
        if found != content(id, n) {
            breach!(NAME, "sector {n} of id {id:#x} has another content");
        }
    }
    read
}

fn all_at_once(front: &mut Front, id: u32, op: Op) -> u32 {
    let Some(queue) = front.queues.first_mut() else { return 0 };
    for n in 0..SLOTS {
        queue.put_request(&blk::request(id, op, u64::from(n), &segment(n * 512, 512)));
    }
    queue.show_requests();
    front.notify();
    let mut good = 0;
    until(LIMIT, || {
        while let Some(answer) = front.queues.first_mut().and_then(|q| q.response::<Response>()) {
            good += u32::from(answer.id == id && answer.status == Status::Ok as u8);
        }
        good >= SLOTS || !front.is_connected()
    });
    good
}

fn send_all(front: &mut Front, id: u32) -> u32 {
    net::frame(front, 0);
    let Some(queue) = front.queues.first_mut() else { return 0 };
    for _ in 0..SLOTS {
        queue.put_request(&net::request(id, &[Segment { offset: 0, len: net::SHORT }]));
    }
    queue.show_requests();
    front.notify();
    let mut good = 0;
    until(LIMIT, || {
        while let Some(answer) = front.queues.first_mut().and_then(|q| q.response::<TxResponse>()) {
            // Sent, or over a limit.
            good += u32::from(answer.id == id && answer.status <= 1);
        }
        good >= SLOTS || !front.is_connected()
    });
    good
}
