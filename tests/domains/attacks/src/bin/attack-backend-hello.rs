//! A driver whose answers to its guest's hello are garbage, of another version
//! or protocol, out of all bounds, or meant for another hello, and one that
//! comes and goes as fast as it can.
//!
//! The guest must drop or ignore it, and be served in full by the honest
//! generation that follows. See `rings::acts`.
#![no_std]
#![no_main]

use attacks::rings::{
    LIMIT, WATCH,
    acts::{Act, Outcome, play},
    back::Back,
};
use domain_rt::time::MS;
use ring_proto::{
    boot::BootInfo,
    conn::{BackBody, BackHello, HELLO_MAX, Pair, Protocol, State},
};

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    play("backend-hello", boot, |protocol| match protocol {
        Protocol::Blk => &BLK,
        Protocol::Net => &NET,
    })
}

macro_rules! bytes {
    ($what:expr, $len:expr) => {
        Act { what: $what, wanted: Outcome::Dropped, run: |back| bytes(back, $len) }
    };
}

macro_rules! hello {
    ($what:expr, $change:expr) => {
        Act { what: $what, wanted: Outcome::Dropped, run: |back| changed(back, $change) }
    };
}

macro_rules! ignored {
    ($what:expr, $to:expr, $state:expr) => {
        Act { what: $what, wanted: Outcome::Borne, run: |back| ignored(back, $to, $state) }
    };
}

const CONNECTED: u32 = State::Connected as u32;

const BLK: [Act; 17] = [
    bytes!("nothing", |_| 0),
    bytes!("half an answer", |len| len / 2),
    bytes!("an answer and a byte", |len| len + 1),
    bytes!("one byte too long", |_| HELLO_MAX as u32 + 1),
    bytes!("the longest", |_| u32::MAX),
    hello!("version 2", |h| h.version = 2),
    hello!("features that nobody offered", |h| h.features = u32::MAX),
    hello!("another protocol", |h| h.body = BackBody::Net { mac: [2; 6], mtu: 1500 }),
    hello!("blocks of 0 bytes", |h| h.body = disk(1 << 19, 0)),
    hello!("blocks of 511 bytes", |h| h.body = disk(1 << 19, 511)),
    hello!("blocks of 2 GiB", |h| h.body = disk(1 << 19, 1 << 31)),
    hello!("more sectors than bytes", |h| h.body = disk(u64::MAX, 512)),
    ignored!("an answer to the next hello", |p| Pair { epoch: p.epoch + 1, ..p }, CONNECTED),
    ignored!(
        "an answer to another life",
        |p| Pair { generation: p.generation + 1, ..p },
        CONNECTED
    ),
    ignored!("an unknown state", |p| p, 77),
    Act { what: "comes and goes", wanted: Outcome::Dropped, run: flap },
    Act { what: "another epoch", wanted: Outcome::Dropped, run: another_epoch },
];

const NET: [Act; 13] = [
    bytes!("nothing", |_| 0),
    bytes!("an answer and a byte", |len| len + 1),
    bytes!("one byte too long", |_| HELLO_MAX as u32 + 1),
    hello!("version 0", |h| h.version = 0),
    hello!("features that nobody offered", |h| h.features = u32::MAX),
    hello!("another protocol", |h| h.body = disk(1 << 19, 512)),
    hello!("refused, and yet connected", |h| h.body =
        BackBody::Refused { why: Default::default() }),
    hello!("frames of no length", |h| h.body = BackBody::Net { mac: [2; 6], mtu: 0 }),
    hello!("frames too long", |h| h.body = BackBody::Net { mac: [2; 6], mtu: 1501 }),
    ignored!(
        "an answer to an earlier hello",
        |p| Pair { epoch: p.epoch.wrapping_sub(1), ..p },
        CONNECTED
    ),
    ignored!("still starting", |p| p, State::Initialising as u32),
    Act { what: "comes and goes", wanted: Outcome::Dropped, run: flap },
    Act { what: "another epoch", wanted: Outcome::Dropped, run: another_epoch },
];

fn disk(sectors: u64, block_size: u32) -> BackBody {
    BackBody::Blk { sectors, block_size, read_only: false }
}

/// The honest answer in bytes, with another length.
fn bytes(back: &mut Back, len: fn(u32) -> u32) {
    let mut bytes = [0; HELLO_MAX];
    let good = postcard::to_slice(&back.hello(), &mut bytes).expect("a hello is short").len();
    back.answer_bytes(&bytes, len(good as u32), back.served, CONNECTED);
}

/// An answer with another field.
fn changed(back: &mut Back, change: fn(&mut BackHello)) {
    let mut hello = back.hello();
    change(&mut hello);
    back.answer(&hello);
}

/// A good answer for another hello or in another state.
fn ignored(back: &mut Back, to: fn(Pair) -> Pair, state: u32) {
    let mut bytes = [0; HELLO_MAX];
    let len = postcard::to_slice(&back.hello(), &mut bytes).expect("a hello is short").len();
    back.answer_bytes(&bytes[..len], len as u32, to(back.served), state);
    back.dropped(WATCH);
}

/// Answers, closes, answers, and never waits for what becomes of it.
fn flap(back: &mut Back) {
    let hello = back.hello();
    let mut bytes = [0; HELLO_MAX];
    let len = postcard::to_slice(&hello, &mut bytes).expect("a hello is short").len();
    back.storm(200 * MS, |back, count| {
        let states = [State::Connected, State::Closing, State::Initialising, State::Closed];
        let state = states[count as usize % states.len()];
        back.answer_bytes(&bytes[..len], len as u32, back.served, state as u32);
    });
    back.answer_bytes(&bytes[..len], len as u32, back.served, State::Closing as u32);
    back.dropped(LIMIT);
}

/// Connects in good order, then shows the same answer under another number.
fn another_epoch(back: &mut Back) {
    let hello = back.hello();
    back.answer(&hello);
    attacks::rings::until(LIMIT, || back.is_accepted() || !back.stands());
    back.answer(&hello);
}
