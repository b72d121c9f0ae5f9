//! A connection that comes and goes as fast as it can, changes its hello while
//! it is read, and takes its memory back while the device is at work there.
//!
//! The backend must answer seldom, survive, and serve an honest hello of a later
//! generation.
#![no_std]
#![no_main]

use attacks::{
    begin, breach, done,
    rings::{
        LIMIT,
        blk::{self, segment},
        front::{Answer, Front, POOL_PAGES, SLOTS, breathe},
        net, word,
    },
};
use domain_rt::{
    events,
    time::{MS, now_ns},
};
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, Segment},
    boot::BootInfo,
    conn::{HELLO_MAX, Protocol},
};

use core::sync::atomic::Ordering::SeqCst;

domain_rt::entry!(main);

const NAME: &str = "flap";
/// How long hellos are changed at the full rate.
const STORM: u64 = 700 * MS;
/// Generations that take their memory back, and times that each does.
const GENERATIONS: u32 = 5;
const REVOCATIONS: u32 = 9;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    match boot.generation {
        1 => storms(false),
        2 => storms(true),
        life if life <= 2 + GENERATIONS => {
            let mut under_way = 0;
            for mut front in Front::all() {
                for round in 0..REVOCATIONS {
                    let round = (life - 3) * REVOCATIONS + round;
                    under_way += u32::from(revoke_under_way(&mut front, round));
                }
            }
            log::info!("attack: {NAME}: revoked: under_way={under_way}");
            panic!("a part of the attack is over");
        }
        _ => {}
    }
    let mut served = 0;
    for mut front in Front::all() {
        match front.is_welcome() {
            true => served += 1,
            false => breach!(NAME, "{} no longer serves", front.name()),
        }
    }
    done!(NAME, "served={served}")
}

/// Hellos at the full rate until the backend has enough, and what it answers
/// in the end.
fn storms(forge: bool) -> ! {
    for mut front in Front::all() {
        let begin = now_ns();
        let (hellos, answers) = storm(&mut front, forge);
        let ms = (now_ns() - begin) / MS + 1;
        log::info!(
            "attack: {NAME}: storm: forge={forge} hellos={hellos} answers={answers} ms={ms}"
        );
    }
    panic!("a part of the attack is over");
}

/// New epochs as fast as they can be written, good ones and garbage in turn;
/// with `forge` under another generation each time, too, which the end's own
/// page allows to claim. Returns how many there were, and how many answers: they
/// are counted by the backend's epoch, of which only the first is the clock's.
fn storm(front: &mut Front, forge: bool) -> (u32, u32) {
    front.grant();
    let mut good = [0; HELLO_MAX];
    let len = postcard::to_slice(&front.hello(), &mut good).expect("a hello is short").len();
    let end = now_ns() + STORM;
    let (mut hellos, before, mut first) = (0, front.backend_epoch(), None);
    while now_ns() < end {
        let _ = events::take_all();
        events::breathe();
        if forge {
            front.own().write_u32(word::GENERATION, hellos, SeqCst);
        }
        let len = if hellos % 7 == 6 { 3 } else { len };
        front.offer_bytes(&good[..len], len as u32);
        hellos += 1;
        let epoch = front.backend_epoch();
        if epoch != before {
            first.get_or_insert(epoch);
        }
    }
    let answers = first.map_or(0, |first| front.backend_epoch().wrapping_sub(first) + 1);
    (hellos, answers)
}

/// Revokes everything while requests are in flight. Whether they were.
fn revoke_under_way(front: &mut Front, round: u32) -> bool {
    front.withdraw();
    front.grant();
    let hello = front.hello();
    front.offer(&hello);
    if !matches!(front.answer(LIMIT), Answer::Connected(_)) {
        breach!(NAME, "{} does not answer, round {round}", front.name());
        return false;
    }
    let Some(queue) = front.queues.first_mut() else { return false };
    let whole = POOL_PAGES * PAGE_SIZE as u32;
    match front.protocol {
        Protocol::Blk => {
            for n in 0..SLOTS / 4 {
                let op = if (n + round).is_multiple_of(2) { Op::Read } else { Op::Write };
                queue.put_request(&blk::request(n, op, 0, &segment(0, whole)));
            }
        }
        Protocol::Net => {
            for n in 0..SLOTS {
                let head = Segment { offset: 0, len: net::SHORT };
                let body = Segment { offset: n * 4096, len: 1400 };
                queue.put_request(&net::request(n, &[head, body]));
            }
        }
    }
    queue.show_requests();
    if front.protocol == Protocol::Net {
        net::frame(front, 0);
    }
    front.notify();
    // The backend gets a little further each time before the memory is gone.
    let until = now_ns() + u64::from(round % 16) * (MS / 16);
    while now_ns() < until {
        breathe();
    }
    let under_way = front.is_connected();
    front.revoke();
    under_way
}
