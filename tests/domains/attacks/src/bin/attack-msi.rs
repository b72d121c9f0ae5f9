//! Forged interrupts: the disk writes to where messages go what others' look
//! like, every vector and every way of delivery, to every core. The own
//! device's interrupt is the only one that may come of it.
#![no_std]
#![no_main]

use attacks::{begin, done};
use domain_rt::dma;
use driver_blk::{
    device::VirtioBlk,
    disk::{Disk, Io, Piece},
};
use ring_proto::{
    blk::{Op, SECTOR, Status},
    boot::BootInfo,
};

domain_rt::entry!(main);

const NAME: &str = "msi";
const MESSAGES: u64 = 0xfee0_0000;
/// A message is one word; a sector has so many.
const WORDS: u32 = SECTOR as u32 / 4;
/// Vector and way of delivery (fixed, lowest priority, SMI, NMI, INIT, …).
const DATA: u32 = 1 << 11;
/// Cores, by the messages' address.
const CORES: u64 = 3;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let own = dma::alloc(SECTOR as usize).unwrap_or_else(|| panic!("no DMA memory"));
    let mut disk = VirtioBlk::open(0).unwrap_or_else(|error| panic!("the disk: {error}"));
    let mut run = |op, sector, address| {
        let pieces = [Piece { address, len: SECTOR as u32 }];
        match disk.run(&Io { op, sector, sectors: 0, pieces: &pieces, cookie: 0 }) {
            Ok(status) => status == Status::Ok,
            Err(error) => panic!("the disk: {error}"),
        }
    };
    let mut messages = 0;
    for first in (0..DATA).step_by(WORDS as usize) {
        let mut bytes = [0; SECTOR as usize];
        for (word, data) in bytes.chunks_exact_mut(4).zip(first..) {
            // Level-triggered ones would wait for an end that never comes.
            word.copy_from_slice(&data.to_le_bytes());
        }
        let _ = own.copy_to(0, &bytes);
        let sector = u64::from(first / WORDS);
        assert!(run(Op::Write, sector, own.address()), "the disk works where it may");
        for core in (0..CORES).chain([0xff]) {
            run(Op::Read, sector, MESSAGES | core << 12);
            messages += WORDS;
        }
    }
    let generation = boot.generation;
    done!(NAME, "messages={messages} generation={generation}");
}
