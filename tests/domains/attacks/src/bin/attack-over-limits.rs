//! As much of a volume and of the wire as there is, from a guest with limits.
//!
//! It counts by the node's clock, after what the buckets hold at the beginning
//! is used up.
#![no_std]
#![no_main]

use attacks::{
    begin, done,
    vif::{Vif, region},
};
use domain_rt::{
    conn,
    env::DomainEnv,
    events,
    time::{MS, now_ns},
};
use ring_ends::blk::{Frontend, FrontendConfig, Io, ring_pages};
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, SECTOR, SLOTS, Segment, Status},
    boot::BootInfo,
    conn::{Protocol, Role},
};

domain_rt::entry!(main);

const NAME: &str = "over-limits";
/// Before it counts.
const WARM_NS: u64 = 1_000 * MS;
/// While it counts.
const COUNT_NS: u64 = 4_000 * MS;
/// Bytes of a large request.
const LARGE: u32 = 128 << 10;
/// EtherType of the frames, for experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let mut disk = Disk::open();
    let (ops, op_ms) = disk.read_for(4096);
    let (pieces, byte_ms) = disk.read_for(LARGE);
    let bytes = pieces * u64::from(LARGE);
    let (frames, frame_ms) = send_for();
    let per_second = |count: u64, ms: u64| count * 1000 / ms.max(1);
    done!(
        NAME,
        "ops={} bytes={} frames={} failed={}",
        per_second(ops, op_ms),
        per_second(bytes, byte_ms),
        per_second(frames, frame_ms),
        disk.failed
    );
}

/// The volume.
struct Disk {
    front: Frontend,
    failed: u64,
}

impl Disk {
    fn open() -> Self {
        let found = conn::all(Protocol::Blk, Role::Frontend).next();
        let connection = found.expect("a blk connection");
        let config = FrontendConfig {
            pages: connection.pages(),
            port: connection.port(),
            peer: connection.boot.peer,
            ring: region(ring_pages(SLOTS).expect("slots") as usize),
            pool: region(LARGE as usize / PAGE_SIZE),
            slots: SLOTS,
        };
        Self { front: Frontend::new(config).expect("a frontend"), failed: 0 }
    }

    /// Reads as fast as it can, `len` bytes at a time; returns the requests
    /// that ended while it counted, and the milliseconds.
    fn read_for(&mut self, len: u32) -> (u64, u64) {
        let mut count = 0;
        let start = now_ns();
        let mut counted_from = None;
        loop {
            let now = now_ns();
            let passed = now.saturating_sub(start);
            if counted_from.is_none() && passed >= WARM_NS {
                (counted_from, count) = (Some(now), 0);
            }
            if let Some(from) = counted_from
                && passed >= WARM_NS + COUNT_NS
            {
                return (count, now.saturating_sub(from) / MS);
            }
            // All read into the same memory: nobody looks at it.
            let segments = [Segment { offset: 0, len }];
            let io = Io { op: Op::Read, sector: 8 * SECTOR, sectors: 0, segments: &segments };
            while self.front.submit(io, 0).is_ok() {}
            let _ = events::take_all();
            let progress = self.front.poll(&mut DomainEnv);
            while let Some(done) = self.front.next_completion() {
                count += 1;
                self.failed += u64::from(done.status != Status::Ok);
            }
            if progress.again {
                events::breathe();
            } else {
                events::wait(now.saturating_add(MS));
            }
        }
    }
}

/// Sends frames to the wire as fast as it can; returns those that were taken
/// while it counted, and the milliseconds.
fn send_for() -> (u64, u64) {
    let own = conn::all(Protocol::Net, Role::Frontend).next();
    let own = own.map(|connection| connection.boot.mac).unwrap_or_default();
    // QEMU's router, which speaks on the wire: not a flood.
    let mut frame = [0; 200];
    frame[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    let mut vif = Vif::open();
    let mut count = 0;
    let start = now_ns();
    let mut counted_from = None;
    loop {
        vif.send(&frame, None);
        count += 1;
        let now = now_ns();
        let passed = now.saturating_sub(start);
        if counted_from.is_none() && passed >= WARM_NS {
            (counted_from, count) = (Some(now), 0);
        }
        if let Some(from) = counted_from
            && passed >= WARM_NS + COUNT_NS
        {
            return (count, now.saturating_sub(from) / MS);
        }
    }
}
