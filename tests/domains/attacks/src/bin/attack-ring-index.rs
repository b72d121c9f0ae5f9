//! Producer indices that cannot be: beyond the ring, far away, backwards.
//!
//! Each jump must cost the connection, and the next hello must be served.
#![no_std]
#![no_main]

use attacks::{
    breach, done,
    rings::{
        LIMIT,
        front::Front,
        net,
        parts::{self, Todo},
    },
};
use ring_proto::{boot::BootInfo, conn::Protocol};

domain_rt::entry!(main);

const NAME: &str = "ring-index";

type Jump = (&'static str, fn(u32, u32) -> u32);

/// From what was produced and the number of slots to the index that is shown.
const JUMPS: [Jump; 6] = [
    ("one too many", |at, slots| at.wrapping_add(slots + 1)),
    ("half around", |at, _| at.wrapping_add(1 << 31)),
    ("one backwards", |at, _| at.wrapping_sub(1)),
    ("a ring backwards", |at, slots| at.wrapping_sub(slots)),
    ("the highest", |at, _| if at > 0 { u32::MAX } else { u32::MAX - 1 }),
    ("a wild one", |_, _| 0xdead_beef),
];

fn main(boot: &'static BootInfo) -> ! {
    let range = match parts::todo(NAME, boot, JUMPS.len()) {
        Todo::Steps(range) => range,
        Todo::Rest { served } => done!(NAME, "served={served}"),
    };
    let (mut tried, mut dropped) = (0, 0);
    for mut front in Front::all() {
        for queue in 0..front.queue_count() {
            for (what, jump) in &JUMPS[range.clone()] {
                if !front.is_welcome() {
                    breach!(NAME, "{} no longer serves, before {what}", front.name());
                    continue;
                }
                let Some(ring) = front.queues.get(queue) else { continue };
                ring.set_requests(jump(ring.produced, ring.slots()));
                front.notify();
                tried += 1;
                // The backend looks at posted buffers when a frame comes.
                if front.protocol == Protocol::Net && queue == 1 {
                    net::call_in(&mut front);
                }
                match front.dropped(LIMIT) {
                    true => dropped += 1,
                    false => {
                        breach!(NAME, "{} queue {queue}: {what} was borne", front.name());
                        // One is enough, and the next would wait as long.
                        parts::end(NAME, tried, dropped);
                    }
                }
            }
        }
    }
    parts::end(NAME, tried, dropped)
}
