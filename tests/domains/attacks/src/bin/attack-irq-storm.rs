//! An interrupt storm: the disk is kept busy with as many requests as it takes,
//! each of which is to interrupt, while the domain neither takes its events nor
//! waits, but now and then unmasks the interrupt again.
#![no_std]
#![no_main]

use attacks::{begin, done};
use domain_rt::{
    dma, hypercall as rt,
    time::{MS, now_ns},
};
use driver_blk::{
    device::VirtioBlk,
    disk::{Disk, Io, Piece},
};
use ring_proto::{
    blk::{Op, SECTOR},
    boot::BootInfo,
};

domain_rt::entry!(main);

const NAME: &str = "irq-storm";
const STORM: u64 = 6000 * MS;
/// Between two calls that let another interrupt through.
const PAUSE: u64 = 100 * MS;

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let own = dma::alloc(SECTOR as usize).unwrap_or_else(|| panic!("no DMA memory"));
    let mut disk = VirtioBlk::open(0).unwrap_or_else(|error| panic!("the disk: {error}"));
    let pieces = [Piece { address: own.address(), len: SECTOR as u32 }];
    let (mut requests, mut calls) = (0u64, 0u64);
    let (mut next, end) = (0, now_ns() + STORM);
    while now_ns() < end {
        while disk.has_room() {
            let io = Io { op: Op::Read, sector: 0, sectors: 0, pieces: &pieces, cookie: 0 };
            assert!(disk.submit(&io).is_ok(), "the request is right");
        }
        disk.kick();
        while let Ok(Some(_)) = disk.next_done() {
            requests += 1;
            // The next one is to interrupt, too.
            disk.set_interrupts(true);
        }
        if now_ns() > next {
            // Feeds the watchdog, and may unmask. No event is ever taken.
            rt::wait(0);
            let _ = rt::irq_unmask(disk.port());
            calls += 2;
            next = now_ns() + PAUSE;
        }
    }
    // The storm is over, also for whoever looks only later.
    disk.set_interrupts(false);
    while disk.in_flight() > 0 && disk.next_done().is_ok() {}
    done!(NAME, "requests={requests} calls={calls}");
}
