//! RING-7, RING-8, CONN-4, CONN-5 and CONN-8 in every interleaving and memory
//! order that loom knows.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p ring-proto --test loom --release --target-dir target/loom
//! ```
//!
//! Without `--cfg loom` this file is empty.
#![allow(missing_docs)]
#![allow(unexpected_cfgs)]
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;
use ring_proto::conn::{EndPage, OwnEnd, Pair, PeerEnd, State};
use ring_proto::ring::{BackRing, FrontRing, layout};
use ring_proto::shm::SharedMem;
use std::sync::atomic::Ordering::Relaxed;

/// Memory for a queue with 4-byte slots. Leaked: views are `'static`.
fn memory(slots: u32) -> SharedMem {
    let words = layout(slots, 4, 4).unwrap().total.div_ceil(4);
    SharedMem::model(Vec::leak((0..words).map(|_| AtomicU32::new(0)).collect()))
}

/// An event bit: set by the notifier, waited for by the sleeper.
type Event = Arc<(loom::sync::Mutex<bool>, loom::sync::Condvar)>;

fn notify(event: &Event) {
    *event.0.lock().unwrap() = true;
    event.1.notify_one();
}

/// Returns when the event was set. With a lost wakeup nobody ever sets it,
/// which loom reports as a deadlock.
fn wait(event: &Event) {
    let mut set = event.0.lock().unwrap();
    while !*set {
        set = event.1.wait(set).unwrap();
    }
    *set = false;
}

#[test]
fn ring_8_no_wakeup_is_lost_and_ring_7_slots_are_seen_whole() {
    loom::model(|| {
        let mem = memory(2);
        let mut front = FrontRing::<u32, u32>::new(mem, 2).unwrap();
        let mut back = BackRing::<u32, u32>::attach(mem, 2).unwrap();
        let event = Event::default();
        let theirs = event.clone();
        let frontend = thread::spawn(move || {
            for i in 1..=2 {
                front.push(&(i * 0x101)).unwrap();
                if front.publish() {
                    notify(&theirs);
                }
            }
        });
        let mut next = 1;
        while next <= 2 {
            match back.pop().unwrap() {
                Some(request) => {
                    assert_eq!(request, next * 0x101);
                    next += 1;
                }
                None if back.look_or_arm().unwrap() => {}
                None => wait(&event),
            }
        }
        frontend.join().unwrap();
    });
}

#[test]
fn ring_8_responses_wake_the_frontend() {
    loom::model(|| {
        let mem = memory(2);
        let mut front = FrontRing::<u32, u32>::new(mem, 2).unwrap();
        let mut back = BackRing::<u32, u32>::attach(mem, 2).unwrap();
        for i in 1..=2 {
            front.push(&i).unwrap();
        }
        let _ = front.publish();
        let event = Event::default();
        let theirs = event.clone();
        let backend = thread::spawn(move || {
            while let Some(request) = back.pop().unwrap() {
                back.push(&(request * 0x101)).unwrap();
                if back.publish() {
                    notify(&theirs);
                }
            }
        });
        let mut next = 1;
        while next <= 2 {
            match front.pop().unwrap() {
                Some(response) => {
                    assert_eq!(response, next * 0x101);
                    next += 1;
                }
                None if front.arm().unwrap() => {}
                None => wait(&event),
            }
        }
        backend.join().unwrap();
    });
}

fn page() -> SharedMem {
    let words = size_of::<EndPage>() / 4;
    SharedMem::model(Vec::leak((0..words).map(|_| AtomicU32::new(0)).collect()))
}

/// A hello whose every byte is its epoch.
fn publish(own: OwnEnd, epoch: u32) {
    let hello = [epoch as u8; 3];
    own.publish(&hello, epoch, Pair::default(), State::Closing, State::Initialising).unwrap();
}

#[test]
fn conn_4_conn_5_a_hello_is_read_as_it_was_published() {
    loom::model(|| {
        let mem = page();
        let (own, peer) = (OwnEnd::new(mem).unwrap(), PeerEnd::new(mem).unwrap());
        let writer = thread::spawn(move || {
            publish(own, 1);
            publish(own, 2);
        });
        let seen = peer.glance();
        if seen.is(State::Initialising) {
            // An error: it changed meanwhile.
            if let Ok(hello) = peer.hello::<[u8; 3]>(&seen) {
                assert_eq!(hello, [seen.pair.epoch as u8; 3]);
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn conn_8_who_reads_junk_sees_that_the_peer_has_left() {
    const JUNK: u32 = 0xdead_beef;
    loom::model(|| {
        let (mem, ring) = (page(), memory(1));
        let (own, peer) = (OwnEnd::new(mem).unwrap(), PeerEnd::new(mem).unwrap());
        publish(own, 1);
        let frontend = thread::spawn(move || {
            own.set_state(State::Closing);
            // The revocation.
            ring.write_u32(0, JUNK, Relaxed);
        });
        let read = ring.read_u32(0, Relaxed);
        if peer.still(Pair { generation: 0, epoch: 1 }, &[State::Initialising]) {
            assert_ne!(read, JUNK);
        }
        frontend.join().unwrap();
    });
}
