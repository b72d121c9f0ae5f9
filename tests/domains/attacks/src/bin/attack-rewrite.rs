//! A slot that is rewritten while the backend works on it, from another core:
//! sectors that become foreign, segments that leave the pool, and frames whose
//! source address changes after it was judged.
//!
//! What is served must be what was checked: no foreign byte is read, nothing
//! but own sectors is written (the test looks at the disk), and no frame with
//! another source goes out (the test looks at the wire).
#![no_std]
#![no_main]

use attacks::{
    begin, breach, done, number,
    rings::{
        LIMIT, Queue,
        blk::{self, segment},
        front::{Front, SLOTS},
        net,
    },
};
use domain_rt::{
    events,
    time::{MS, now_ns},
};
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, Request, Response, Segment},
    boot::BootInfo,
    conn::Protocol,
    net::TxResponse,
};

use core::{mem::offset_of, sync::atomic::Ordering::Relaxed};

domain_rt::entry!(main);

const NAME: &str = "rewrite";
/// What the own volume is filled with, and what is written to it.
const OWN: u8 = 0xa7;
/// What buffers hold before a read.
const BLANK: u8 = 0x5c;
/// The source that frames pretend to have in between.
const SPOOFED: [u8; 6] = [0x02, 0xba, 0xad, 0xba, 0xad, 0x01];

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let foreign = number(boot, "after", 0) as u32;
    let time = number(boot, "ms", 2000) * MS;
    let (mut tried, mut answered, mut served) = (0, 0, 0);
    for mut front in Front::all() {
        if !front.is_welcome() {
            breach!(NAME, "{} does not serve", front.name());
            continue;
        }
        let end = now_ns() + time;
        let mut round = 0;
        while now_ns() < end && front.is_connected() {
            tried += SLOTS;
            answered += match front.protocol {
                Protocol::Blk => disk(&mut front, foreign, round),
                Protocol::Net => frames(&mut front),
            };
            round += 1;
        }
        match front.is_connected() && front.is_served() {
            true => served += 1,
            false => breach!(NAME, "{} no longer serves", front.name()),
        }
    }
    done!(NAME, "tried={tried} answered={answered} served={served}")
}

/// Changes words in turn between two values until all requests are answered.
fn flip<S: ring_proto::ring::Slot>(front: &mut Front, mut change: impl FnMut(&Queue, bool)) -> u32 {
    let end = now_ns() + LIMIT;
    let mut answered = 0;
    let mut bad = false;
    while answered < SLOTS && front.is_connected() && now_ns() < end {
        for _ in 0..16 {
            bad = !bad;
            if let Some(queue) = front.queues.first() {
                change(queue, bad);
            }
        }
        while front.queues.first_mut().and_then(|q| q.response::<S>()).is_some() {
            answered += 1;
        }
        let _ = events::take_all();
        events::breathe();
    }
    answered
}

fn disk(front: &mut Front, foreign: u32, round: u32) -> u32 {
    let op = if round % 4 == 3 { Op::Write } else { Op::Read };
    let fill = if op == Op::Write { OWN } else { BLANK };
    let memory = front.pool.mem;
    for n in 0..SLOTS as usize {
        memory.copy_to(n * PAGE_SIZE, &[fill; 512]).expect("within the pool");
    }
    let Some(queue) = front.queues.first_mut() else { return 0 };
    let first = queue.produced;
    for n in 0..SLOTS {
        queue.put_request(&blk::request(n, op, 0, &segment(n * PAGE_SIZE as u32, 512)));
    }
    queue.show_requests();
    front.notify();
    let pool = memory.len() as u32;
    let answered = flip::<Response>(front, |queue, bad| {
        for n in 0..SLOTS {
            let slot = queue.request_at::<Request>(first.wrapping_add(n));
            // Half of the slots lose their sector, half their segment.
            let (field, good, other) = match n % 2 {
                0 => (offset_of!(Request, sector), 0, foreign),
                _ => (offset_of!(Request, segments), n * PAGE_SIZE as u32, pool),
            };
            queue.mem().write_u32(slot + field, if bad { other } else { good }, Relaxed);
        }
    });
    for n in 0..SLOTS as usize {
        let mut found = [0; 512];
        memory.copy_from(n * PAGE_SIZE, &mut found).expect("within the pool");
        if found.iter().any(|&byte| byte != OWN && byte != BLANK) {
            breach!(NAME, "read foreign data: {:x?}", &found[..8]);
            break;
        }
    }
    answered
}

fn frames(front: &mut Front) -> u32 {
    let own = front.connection.boot.mac;
    for n in 0..SLOTS {
        net::frame(front, n * PAGE_SIZE as u32);
    }
    let Some(queue) = front.queues.first_mut() else { return 0 };
    for n in 0..SLOTS {
        // Long enough that the device takes a part of it from the pool itself.
        let frame = Segment { offset: n * PAGE_SIZE as u32, len: 1000 };
        queue.put_request(&net::request(n, &[frame]));
    }
    queue.show_requests();
    front.notify();
    let memory = front.pool.mem;
    flip::<TxResponse>(front, |_, bad| {
        for n in 0..SLOTS as usize {
            let source = if bad { SPOOFED } else { own };
            memory.copy_to(n * PAGE_SIZE + 6, &source).expect("within the pool");
        }
    })
}
