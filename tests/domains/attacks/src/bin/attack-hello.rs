//! Hellos that cannot be served: garbage, too long, of another version or
//! protocol, with grants that do not exist, are not meant for the backend,
//! overlap or do not end; and pairs that were answered before.
//!
//! Each must be refused in words, and a good hello after it served.
#![no_std]
#![no_main]

use attacks::{
    breach, done,
    rings::{
        LIMIT, WATCH,
        front::{Answer, Front},
        parts::{self, Todo},
        until,
    },
};
use domain_rt::env::DomainEnv;
use ring_ends::Env;
use ring_proto::{
    PAGE_SIZE,
    boot::BootInfo,
    conn::{FrontHello, GrantRange, HELLO_MAX},
    grant::{COPY, DMA, MAP, WRITE},
    layout,
};

domain_rt::entry!(main);

const NAME: &str = "hello";

fn main(boot: &'static BootInfo) -> ! {
    let count = GARBAGE.len() + FIELDS.len() + GRANTS.len() + RANGES.len() + OTHERS.len();
    let range = match parts::todo(NAME, boot, count) {
        Todo::Steps(range) => range,
        Todo::Rest { served } => done!(NAME, "served={served}"),
    };
    let (mut tried, mut right) = (0, 0);
    for mut front in Front::all() {
        for step in range.clone() {
            front.withdraw();
            front.grant();
            tried += 1;
            let (what, is_right) = take(&mut front, step);
            match is_right {
                true => right += 1,
                false => {
                    let (name, answer) = (front.name(), front.answer(0));
                    breach!(NAME, "{name}: {what} was answered {answer:?}");
                    // One is enough, and the next might wait as long.
                    parts::end(NAME, tried, right);
                }
            }
        }
    }
    parts::end(NAME, tried, right)
}

/// Takes a step; gives its name and whether it ended as it must.
fn take(front: &mut Front, step: usize) -> (&'static str, bool) {
    if step < GARBAGE.len() {
        return garbage(front, step);
    }
    let step = step - GARBAGE.len();
    if let Some((what, change)) = FIELDS.iter().chain(&RANGES).nth(step) {
        let mut hello = front.hello();
        change(&mut hello);
        front.offer(&hello);
        return (what, is_refused(front));
    }
    let step = step - FIELDS.len() - RANGES.len();
    if let Some(grant) = GRANTS.get(step) {
        return bad_grant(front, grant);
    }
    let (what, run) = OTHERS[step - GRANTS.len()];
    (what, run(front))
}

/// Whether the backend refuses the hello that was just offered, in words, and
/// not because the guest was barred.
fn is_refused(front: &mut Front) -> bool {
    matches!(front.answer(LIMIT), Answer::Refused(why) if !why.contains("too often"))
}

/// A name, and a length made of that of a good hello.
type Length = (&'static str, fn(u32) -> u32);

/// Bytes that are no hello, or a hello and more.
const GARBAGE: [Length; 9] = [
    ("nothing", |_| 0),
    ("ones", |_| HELLO_MAX as u32),
    ("half a hello", |len| len / 2),
    ("a hello and a byte", |len| len + 1),
    ("a hello and a page", |_| HELLO_MAX as u32),
    ("one byte too long", |_| HELLO_MAX as u32 + 1),
    ("a page too long", |_| 4096),
    ("a wild length", |_| 0xdead_beef),
    ("the longest", |_| u32::MAX),
];

fn garbage(front: &mut Front, step: usize) -> (&'static str, bool) {
    let (what, len) = GARBAGE[step];
    let mut bytes = [0; HELLO_MAX];
    let good = postcard::to_slice(&front.hello(), &mut bytes).expect("a hello is short").len();
    if what == "ones" {
        bytes.fill(0xff);
    }
    front.offer_bytes(&bytes, len(good as u32));
    (what, is_refused(front))
}

type Change = (&'static str, fn(&mut FrontHello));

/// Fields that do not do.
const FIELDS: [Change; 18] = [
    ("version 0", |h| h.version = 0),
    ("version 2", |h| h.version = 2),
    ("no protocol", |h| h.protocol = 0),
    ("another protocol", |h| h.protocol = 3 - h.protocol),
    ("a wild protocol", |h| h.protocol = 0xffff),
    ("no queue", |h| h.queues.clear()),
    ("too many queues", |h| while h.queues.push(h.queues[0]).is_ok() {}),
    ("no slots", |h| h.queues[0].slots = 0),
    ("3 slots", |h| h.queues[0].slots = 3),
    ("512 slots", |h| h.queues[0].slots = 512),
    ("all slots", |h| h.queues[0].slots = u32::MAX),
    ("a ring without pages", |h| h.queues[0].ring.pages = 0),
    ("a small ring", |h| h.queues[0].ring.pages -= 1),
    ("a huge ring", |h| h.queues[0].ring.pages = u32::MAX / 2),
    ("a ring that wraps", |h| h.queues[0].ring.first = u32::MAX),
    ("no pool", |h| h.pool.pages = 0),
    ("a huge pool", |h| h.pool.pages = 1 << 30),
    ("a pool that wraps", |h| h.pool = GrantRange { first: u32::MAX - 10, pages: 100 }),
];

/// Ranges of grants that overlap or do not end.
const RANGES: [Change; 4] = [
    ("a pool over the ring", |h| h.pool.first = h.queues[0].ring.first),
    ("a pool half over the ring", |h| h.pool.first -= 1),
    ("the end of the grant table", |h| h.pool.first = domain_rt::boot().grant_entries - 1),
    ("past the grant table", |h| h.pool.first = domain_rt::boot().grant_entries + 7),
];

/// A wrong entry for the last page of the pool: where it leads if not to the
/// pool, for whom if not for the backend, for what.
type Grant = (&'static str, Option<u64>, Option<u16>, u64);

const ALL: u64 = MAP | WRITE | DMA;

const GRANTS: [Grant; 9] = [
    ("a grant to nobody", None, Some(0xffff), ALL),
    ("a grant to the supervisor", None, Some(0), ALL),
    ("a grant to read", None, None, MAP | DMA),
    ("a grant without DMA", None, None, MAP | WRITE),
    ("a grant to copy", None, None, COPY | WRITE | DMA),
    ("the own text", Some(layout::IMAGE_BASE), None, ALL),
    ("the peer's end", Some(layout::CONNECTIONS + 4096), None, ALL),
    ("the hypervisor's low memory", Some(0x1000), None, ALL),
    ("the end of the world", Some(0xff_ffff_f000), None, ALL),
];

fn bad_grant(front: &mut Front, grant: &Grant) -> (&'static str, bool) {
    let &(what, address, grantee, flags) = grant;
    let pool = front.pool;
    let page = pool.pages() - 1;
    let own = pool.mem.address() + u64::from(page) * PAGE_SIZE as u64;
    let grantee = grantee.unwrap_or(front.connection.boot.peer);
    DomainEnv.grant(pool.first + page, address.unwrap_or(own), grantee, flags);
    let hello = front.hello();
    front.offer(&hello);
    (what, is_refused(front))
}

type Other = (&'static str, fn(&mut Front) -> bool);

const OTHERS: [Other; 3] = [
    ("grants that were revoked", |front| {
        front.revoke();
        let hello = front.hello();
        front.offer(&hello);
        is_refused(front)
    }),
    ("a pair that was disconnected", |front| {
        let hello = front.hello();
        front.offer(&hello);
        if !matches!(front.answer(LIMIT), Answer::Connected(_)) {
            return false;
        }
        let queue = front.queues[0];
        queue.set_requests(queue.produced.wrapping_add(1 << 30));
        front.notify();
        front.dropped(LIMIT) && is_ignored_again(front)
    }),
    ("a pair that was refused", |front| {
        front.offer_bytes(&[], 0);
        is_refused(front) && is_ignored_again(front)
    }),
];

/// Whether the last pair, now with a good hello, stays without a new answer.
fn is_ignored_again(front: &mut Front) -> bool {
    front.revoke();
    front.grant();
    let mut bytes = [0; HELLO_MAX];
    let len = postcard::to_slice(&front.hello(), &mut bytes).expect("a hello is short").len();
    let (epoch, answers) = (front.epoch, front.backend_epoch());
    !until(WATCH, || {
        front.offer_as(&bytes[..len], len as u32, epoch);
        front.is_connected() || front.backend_epoch() != answers
    })
}
