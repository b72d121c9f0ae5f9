//! A disk in the hands of the attacker is to read and write memory that is not
//! the domain's: of the hypervisor and of other domains, page by page over the
//! machine's memory; registers of the IOMMU, the interrupt controllers and
//! other devices; pages of the window into which nothing was granted.
//!
//! First the disk takes what it
//! can get and keeps it, and we look at the loot; if there is none, it overwrites.
#![no_std]
#![no_main]

use attacks::{begin, breach, done, targets};
use domain_rt::{dma, virtio::Error};
use driver_blk::{
    device::VirtioBlk,
    disk::{Disk, Io, Piece},
};
use ring_proto::{
    blk::{Op, SECTOR, Status},
    boot::BootInfo,
    shm::SharedMem,
};

domain_rt::entry!(main);

const NAME: &str = "dma";
/// What fills the place of the loot before, and what overwrites targets.
const MARKER: u8 = 0xa5;
const LEN: usize = SECTOR as usize;

struct Attacker {
    disk: VirtioBlk,
    own: SharedMem,
}

impl Attacker {
    /// One sector between the disk and `address`.
    fn io(&mut self, op: Op, sector: u64, address: u64) -> bool {
        let pieces = [Piece { address, len: LEN as u32 }];
        let io = Io { op, sector, sectors: 0, pieces: &pieces, cookie: 0 };
        match self.disk.run(&io) {
            Ok(status) => status == Status::Ok,
            Err(error) => {
                // A device that gave up starts anew.
                log::info!("{op:?} at {address:#x}: {error}; reset");
                self.disk = open().unwrap_or_else(|error| panic!("the disk: {error}"));
                false
            }
        }
    }

    fn fill(&self, byte: u8) {
        let _ = self.own.copy_to(0, &[byte; LEN]);
    }

    fn own(&mut self, op: Op, sector: u64) {
        assert!(self.io(op, sector, self.own.address()), "the disk works where it may");
    }
}

fn open() -> Result<VirtioBlk, Error> {
    VirtioBlk::open(0)
}

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let own = dma::alloc(LEN).unwrap_or_else(|| panic!("no DMA memory"));
    let disk = open().unwrap_or_else(|error| panic!("the disk: {error}"));
    let mut attacker = Attacker { disk, own };
    let (mut tried, mut stolen) = (0u32, 0u32);
    attacker.fill(MARKER);
    for (i, address) in targets::all().enumerate() {
        attacker.own(Op::Write, i as u64);
        attacker.io(Op::Write, i as u64, address);
        tried += 1;
    }
    for (i, address) in targets::all().enumerate() {
        attacker.own(Op::Read, i as u64);
        if let Some(word) = loot(attacker.own) {
            breach!(NAME, "the disk read {word:#x} at {address:#x}");
            stolen += 1;
        }
    }
    if stolen != 0 {
        done!(NAME, "tried={tried} stolen={stolen}");
    }
    attacker.fill(MARKER);
    attacker.own(Op::Write, 0);
    // Later ones first: the hypervisor's memory may well be the end.
    for address in (0..tried as usize).rev().filter_map(|i| targets::all().nth(i)) {
        attacker.io(Op::Read, 0, address);
        tried += 1;
    }
    done!(NAME, "tried={tried} stolen={stolen}");
}

/// The first word of what was stolen; `None` if there is nothing but filler.
fn loot(memory: SharedMem) -> Option<u64> {
    let mut found = [0; LEN];
    memory.copy_from(0, &mut found).ok()?;
    let filler = |byte| found.iter().all(|&b| b == byte);
    if filler(0) || filler(0xff) || filler(MARKER) {
        return None;
    }
    found.iter().position(|&b| b != 0).map(|at| {
        let word = found.get(at & !7..).and_then(|rest| rest.first_chunk());
        word.map_or(0, |&word| u64::from_le_bytes(word))
    })
}
