//! Broadcasts without end, to starve the switch, the neighbours and the wire.
//!
//! A second domain with `args = "role=victim"` counts what reaches it; the test
//! counts what is on the wire.
#![no_std]
#![no_main]

use attacks::{argument, begin, done, set_ready, vif::Vif};
use domain_rt::time::{MS, now_ns};
use ring_proto::boot::BootInfo;

domain_rt::entry!(main);

const NAME: &str = "flood";
/// How long it goes on, on the node's clock.
const FLOOD_NS: u64 = 4_000 * MS;
/// EtherType of the frames, for experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const MARK: &[u8] = b"FLOOD";
const END: &[u8] = b"END";
const VICTIM: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

fn main(boot: &'static BootInfo) -> ! {
    if argument(boot, "role") == Some("victim") {
        count();
    }
    begin(NAME);
    let own =
        domain_rt::conn::all(ring_proto::conn::Protocol::Net, ring_proto::conn::Role::Frontend);
    let own = own.map(|connection| connection.boot.mac).next().unwrap_or_default();
    let mut vif = Vif::open();
    let mut broadcast = frame([0xff; 6], own, MARK);
    let mut multicast = frame([0x33, 0x33, 0, 0, 0, 1], own, MARK);
    // A station that nobody ever heard: other switches flood it.
    let mut stranger = frame([2, 1, 2, 3, 4, 5], own, MARK);
    let mut sent = 0u64;
    let start = now_ns();
    while now_ns().saturating_sub(start) < FLOOD_NS {
        for frame in [&mut broadcast, &mut multicast, &mut stranger] {
            frame[40..48].copy_from_slice(&sent.to_be_bytes());
            vif.send(frame, None);
            sent += 1;
        }
    }
    let ms = now_ns().saturating_sub(start) / MS;
    for _ in 0..8 {
        vif.send(&frame(VICTIM, own, END), None);
    }
    for _ in 0..200 {
        vif.rest();
    }
    done!(NAME, "sent={sent} ms={ms}");
}

fn frame(to: [u8; 6], from: [u8; 6], mark: &[u8]) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame[14..14 + mark.len()].copy_from_slice(mark);
    frame
}

/// The victim: counts the flood until its end.
fn count() -> ! {
    set_ready();
    let mut vif = Vif::open();
    let mut frame = [0; 2048];
    let (mut frames, mut ended) = (0u64, false);
    loop {
        vif.rest();
        while let Some(len) = vif.receive(&mut frame) {
            let payload = frame.get(14..len).unwrap_or_default();
            frames += u64::from(payload.starts_with(MARK));
            if payload.starts_with(END) && !ended {
                ended = true;
                log::info!("attack: {NAME}: heard frames={frames}");
            }
        }
    }
}
