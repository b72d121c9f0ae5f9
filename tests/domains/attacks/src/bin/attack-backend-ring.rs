//! A driver that breaks the rules of the ring towards its guest: indices that
//! cannot be, answers to nothing, answers twice, outcomes that do not exist.
//!
//! The guest must drop it each time and offer itself anew, and be served in
//! full by the honest generation that follows. See `rings::acts`.
#![no_std]
#![no_main]

use attacks::rings::{
    LIMIT, WATCH,
    acts::{Act, Outcome, play},
    back::Back,
};
use ring_proto::{
    blk,
    boot::BootInfo,
    conn::Protocol,
    net::{self, RxRequest, RxResponse, TxResponse},
    ring::{Requests, Responses},
};

use core::sync::atomic::Ordering::SeqCst;

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    play("backend-ring", boot, |protocol| match protocol {
        Protocol::Blk => &BLK,
        Protocol::Net => &NET,
    })
}

/// The ring of answers of queue `$queue` jumps.
macro_rules! jump {
    ($what:expr, $queue:expr, $index:expr) => {
        Act {
            what: $what,
            wanted: Outcome::Dropped,
            run: |back| {
                jump(back, $queue, $index);
            },
        }
    };
}

macro_rules! drops {
    ($what:expr, $run:expr) => {
        Act { what: $what, wanted: Outcome::Dropped, run: $run }
    };
}

macro_rules! bears {
    ($what:expr, $run:expr) => {
        Act { what: $what, wanted: Outcome::Borne, run: $run }
    };
}

const BLK: [Act; 13] = [
    jump!("answers one backwards", 0, |_, shown| shown.wrapping_sub(shown + 1)),
    jump!("answers half around", 0, |at, _| at.wrapping_add(1 << 31)),
    jump!("more answers than requests", 0, |_, shown| shown + 65),
    jump!("a wild index", 0, |_, _| 0xdead_beef),
    drops!("an answer to nothing", |back| blk_answer(back, |id| (!id, 0))),
    drops!("an answer to an earlier request", |back| blk_answer(back, |id| (id ^ 1 << 16, 0))),
    drops!("an answer of no slot", |back| blk_answer(back, |id| (id | 0xffff, 0))),
    drops!("an outcome that is none", |back| blk_answer(back, |id| (id, 4))),
    drops!("the highest outcome", |back| blk_answer(back, |id| (id, 0xff))),
    drops!("an index that goes back", |back| {
        // Only what is behind what was seen: nothing was answered so far.
        blk_answer(back, |id| (id, 0xee));
        jump(back, 0, |_, _| 0);
    }),
    bears!("nothing is answered", |back| {
        back.has_requests(0, 1);
        back.dropped(4 * WATCH);
    }),
    bears!("the guest's words and slots are overwritten", |back| {
        back.has_requests(0, 1);
        scribble(back, 0);
    }),
    drops!("no longer there", |back| connected_as(back, 0)),
];

const NET: [Act; 19] = [
    jump!("tx: answers one backwards", 0, |at, _| at.wrapping_sub(1)),
    jump!("tx: answers half around", 0, |at, _| at.wrapping_add(1 << 31)),
    jump!("tx: more answers than frames", 0, |_, shown| shown + 129),
    jump!("rx: answers one backwards", 1, |at, _| at.wrapping_sub(1)),
    jump!("rx: answers half around", 1, |at, _| at.wrapping_add(1 << 31)),
    jump!("rx: more frames than buffers", 1, |_, shown| shown + 129),
    jump!("rx: a wild index", 1, |_, _| 0xdead_beef),
    drops!("tx: an answer to nothing", |back| {
        // Claims an answer whether or not a frame waits.
        if let Some(queue) = back.queues.first_mut() {
            queue.respond(&TxResponse { id: 0xffff_ffff, status: 0, reserved: [0; 3] });
        }
    }),
    drops!("rx: a frame for nothing", |back| rx_answer(back, |id| (!id, 60, 0))),
    drops!("rx: a frame for an earlier buffer", |back| rx_answer(back, |id| (id ^ 1 << 16, 60, 0))),
    drops!("rx: a frame for no buffer", |back| rx_answer(back, |id| (id | 0xffff, 60, 0))),
    drops!("rx: a frame twice", |back| {
        let mut first = None;
        rx_answer(back, |id| (*first.get_or_insert(id), 60, 0));
        rx_answer(back, |id| (*first.get_or_insert(id), 60, 0));
    }),
    drops!("rx: a frame too short", |back| rx_answer(back, |id| (id, 13, 0))),
    drops!("rx: a frame too long", |back| rx_answer(back, |id| (id, net::MAX_FRAME + 1, 0))),
    drops!("rx: a frame beyond all", |back| rx_answer(back, |id| (id, u32::MAX, 0))),
    drops!("rx: an outcome that is none", |back| rx_answer(back, |id| (id, 60, 3))),
    bears!("nothing is answered", |back| {
        back.dropped(4 * WATCH);
    }),
    bears!("the guest's words and slots are overwritten", |back| {
        scribble(back, 0);
        scribble(back, 1);
    }),
    drops!("an unknown state", |back| connected_as(back, 77)),
];

/// From what was answered and the requests that are shown to another index.
fn jump(back: &mut Back, queue: usize, index: fn(u32, u32) -> u32) {
    if let Some(queue) = back.queues.get(queue) {
        queue.set_responses(index(queue.produced, queue.requests_shown()));
    }
    back.notify();
}

/// Takes a request and answers with another id and status.
fn blk_answer(back: &mut Back, change: fn(u32) -> (u32, u8)) {
    if !back.has_requests(0, 1) {
        return;
    }
    if let Some(queue) = back.queues.first_mut()
        && let Some(request) = queue.request::<blk::Request>()
    {
        let (id, status) = change(request.id);
        queue.respond(&blk::Response { id, status, reserved: [0; 3] });
    }
    back.notify();
}

/// Takes a buffer and answers with another id, length and status.
fn rx_answer(back: &mut Back, mut change: impl FnMut(u32) -> (u32, u32, u8)) {
    if !back.has_requests(1, 1) {
        return;
    }
    if let Some(queue) = back.queues.get_mut(1)
        && let Some(request) = queue.request::<RxRequest>()
    {
        let (id, len, status) = change(request.id);
        queue.respond(&RxResponse { id, len, status, flags: 0, reserved: [0; 6] });
    }
    back.notify();
}

/// Overwrites what the guest wrote to the ring.
fn scribble(back: &mut Back, queue: usize) {
    let Some(queue) = back.queues.get(queue) else { return };
    let mem = queue.mem();
    use ring_proto::ring::Direction;
    mem.write_u32(Requests::PROD, 0xdead_beef, SeqCst);
    mem.write_u32(Responses::EVENT, 0xdead_beef, SeqCst);
    mem.write_u32(Requests::EVENT, 0x7fff_ffff, SeqCst);
    for at in (ring_proto::ring::HEADER..mem.len()).step_by(4) {
        mem.write_u32(at, 0xdead_beef, SeqCst);
    }
    back.notify();
    back.dropped(WATCH);
}

/// Shows another state in the middle of a connection.
fn connected_as(back: &mut Back, state: u32) {
    back.own().write_u32(attacks::rings::word::STATE, state, SeqCst);
    back.notify();
    back.dropped(LIMIT);
}
