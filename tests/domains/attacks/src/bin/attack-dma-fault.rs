//! One access of the disk to memory that is not the domain's, in each
//! generation, under an IOMMU that says who did it: that is its end.
#![no_std]
#![no_main]

use attacks::{begin, breach, done, targets};
use domain_rt::{
    dma, events,
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

const NAME: &str = "dma-fault";
/// Time for the hypervisor to hear of it.
const PATIENCE: u64 = 10_000 * MS;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let tried = boot.generation as usize - 1;
    let Some(&address) = targets::PLACES.get(tried) else {
        done!(NAME, "tried={tried}");
    };
    let own = dma::alloc(SECTOR as usize).unwrap_or_else(|| panic!("no DMA memory"));
    let mut disk = VirtioBlk::open(0).unwrap_or_else(|error| panic!("the disk: {error}"));
    // The odd ones are written, the even ones read; the pool comes first and is allowed.
    let op = if tried.is_multiple_of(2) { Op::Write } else { Op::Read };
    log::info!("attack: {NAME}: aims at {address:#x}");
    for address in [own.address(), address] {
        let pieces = [Piece { address, len: SECTOR as u32 }];
        let _ = disk.run(&Io { op, sector: 0, sectors: 0, pieces: &pieces, cookie: 0 });
    }
    let end = now_ns() + PATIENCE;
    while now_ns() < end {
        events::wait(now_ns() + MS);
        events::take_all();
    }
    breach!(NAME, "{op:?} at {address:#x} had no consequence");
    panic!("on to the next");
}
