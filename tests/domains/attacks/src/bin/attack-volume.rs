//! Sectors of somebody else: beyond the end of the own volume, before its
//! beginning by way of a wrap, with lengths that overflow.
//!
//! `before` and `after` are the distances in sectors from the own volume's
//! beginning to others'. All must be refused. What is read has to be the
//! marker that the own volume is filled with.
#![no_std]
#![no_main]

use attacks::{
    begin, breach, done, number,
    rings::{
        LIMIT,
        blk::{self, segment},
        front::{Answer, Front},
    },
};
use ring_proto::{
    blk::{Op, Request, Status},
    boot::BootInfo,
    conn::{BackBody, BackHello, Protocol},
};

domain_rt::entry!(main);

const NAME: &str = "volume";
/// What the own volume is filled with.
const OWN: u8 = 0xa7;
/// What the buffer is filled with before a read.
const BLANK: u8 = 0x5c;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let (before, after) = (number(boot, "before", 0), number(boot, "after", 0));
    let mut front = Front::all().find(|f| f.protocol == Protocol::Blk).expect("a volume");
    let (mut tried, mut refused) = (0, 0);
    let size = match front.connect().then(|| front.answer(LIMIT)) {
        Some(Answer::Connected(BackHello { body: BackBody::Blk { sectors, .. }, .. })) => sectors,
        other => panic!("no volume: {other:?}"),
    };
    let wrap = |distance: u64| 0u64.wrapping_sub(distance);
    let starts = [
        size,
        size - 1,
        size + 1,
        after,
        after + 7,
        wrap(before),
        wrap(before) + 40,
        wrap(1),
        wrap(2),
        wrap(8),
        1 << 63,
        (1 << 63) - 1,
        1 << 55,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        u64::from(u32::MAX) + 1,
    ];
    for start in starts {
        for op in [Op::Read, Op::Write, Op::Read] {
            // Two sectors, so that the last one of the volume is not enough.
            let request = blk::request(0, op, start, &segment(0, 1024));
            tried += 1;
            refused += u32::from(is_refused(&mut front, request));
        }
        for op in [Op::Discard, Op::WriteZeroes] {
            for sectors in [2, size, wrap(start), wrap(start) + 1, u64::MAX, 1 << 32] {
                if start < size && start.checked_add(sectors).is_some_and(|end| end <= size) {
                    continue;
                }
                let request = Request { sectors, ..blk::request(0, op, start, &[]) };
                tried += 1;
                refused += u32::from(is_refused(&mut front, request));
            }
        }
    }
    // The own sectors, first and last, are there and are the own ones.
    let mut served = 0;
    for start in [0, size - 2] {
        let request = blk::request(front.id(), Op::Read, start, &segment(0, 1024));
        fill(&front, BLANK);
        let answer = blk::call(&mut front, &request);
        served += u32::from(answer == Some(Status::Ok as u8) && holds(&front, OWN));
    }
    done!(NAME, "tried={tried} refused={refused} served={served}")
}

fn is_refused(front: &mut Front, mut request: Request) -> bool {
    request.id = front.id();
    fill(front, BLANK);
    let answer = blk::call(front, &request);
    if !holds(front, BLANK) {
        breach!(NAME, "read foreign data: {:?} at {:#x}", Op::from_raw(request.op), request.sector);
    }
    let refused = matches!(answer, Some(status) if status == Status::Invalid as u8 || status == Status::Unsupported as u8);
    if !refused {
        log::warn!("{request:?} was answered {answer:?}");
    }
    refused
}

fn fill(front: &Front, byte: u8) {
    front.pool.mem.copy_to(0, &[byte; 1024]).expect("within the pool");
}

fn holds(front: &Front, byte: u8) -> bool {
    let mut found = [0; 1024];
    front.pool.mem.copy_from(0, &mut found).expect("within the pool");
    found.iter().all(|&b| b == byte)
}
