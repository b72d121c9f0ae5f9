//! Through a disk: reads make it write memory, writes make it read memory and
//! leave what it read on the disk for us to look at.

use domain_rt::{dma, virtio::Error};
use driver_blk::device::{Io, Piece, VirtioBlk};
use ring_proto::{
    blk::{Op, Status},
    shm::SharedMem,
};

/// Where on the disk the loot goes: past what the test's volumes use.
const LOOT: u64 = 64;
const LEN: u32 = 512;
/// What the loot's place held before.
const MARKER: u8 = 0xa5;

/// One request to the memory at `address`.
fn io(disk: &mut VirtioBlk, op: Op, address: u64) -> Result<Status, Error> {
    let pieces = [Piece { address, len: LEN }];
    disk.run(&Io { op, sector: LOOT, sectors: 0, pieces: &pieces, cookie: 0 })
}

/// Tries all targets in both directions.
pub fn attack() {
    let mut disk = VirtioBlk::open(0).expect("the disk opens");
    let own = dma::alloc(LEN as usize).expect("there is DMA memory");
    let mut check = |op, address| match io(&mut disk, op, address) {
        Ok(status) => status == Status::Ok,
        Err(error) => {
            // A device that gave up starts anew.
            log::info!("{op:?} at {address:#x}: {error:?}; reset");
            disk = VirtioBlk::open(0).expect("the disk opens again");
            false
        }
    };
    fill(own, MARKER);
    assert!(check(Op::Write, own.address()), "the disk works where it may");
    let (mut tries, mut leaks) = (0, 0);
    for address in super::targets() {
        // The device is to write there: blocked, or somebody is dead now.
        check(Op::Read, address);
        // The device is to read there and store what it finds.
        check(Op::Write, address);
        fill(own, 0);
        assert!(check(Op::Read, own.address()), "the disk works where it may");
        if let Some(first) = loot(own) {
            log::error!("LEAK: memory at {address:#x} begins with {first:#x}");
            leaks += 1;
        }
        fill(own, MARKER);
        assert!(check(Op::Write, own.address()), "the disk works where it may");
        tries += 2;
    }
    log::info!("rogue: {tries} accesses by the disk tried, {leaks} leaks");
}

fn fill(memory: SharedMem, byte: u8) {
    memory.copy_to(0, &[byte; LEN as usize]).expect("within the buffer");
}

/// The first word of what was stolen; `None` if there is nothing but filler.
fn loot(memory: SharedMem) -> Option<u64> {
    let mut found = [0; LEN as usize];
    memory.copy_from(0, &mut found).ok()?;
    let filler = |byte| found.iter().all(|&b| b == byte);
    if filler(0) || filler(0xff) || filler(MARKER) {
        return None;
    }
    found.first_chunk().map(|&word| u64::from_le_bytes(word))
}
