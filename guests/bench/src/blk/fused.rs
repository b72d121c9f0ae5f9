//! The driver, linked in.

use domain_rt::{dma, events, time::now_ns};
use driver_blk::{
    device::VirtioBlk,
    disk::{Disk as _, Io, POLL_NS, Piece},
};
use ring_proto::{
    blk::{Op, Status},
    shm::SharedMem,
};

use super::{BUFFER, BUFFERS, Disk, FIRST_SECTOR, SECTORS};
use crate::args::Args;

struct Fused {
    disk: VirtioBlk,
    memory: SharedMem,
}

/// Runs the cases on this domain's disk.
pub(crate) fn run(args: &Args) -> Result<(), &'static str> {
    super::run_all(args, || {
        let mut disk = VirtioBlk::open(0).map_err(|_| "there is no disk in device slot 0")?;
        if disk.sectors() < FIRST_SECTOR + SECTORS {
            return Err("the disk is too small");
        }
        disk.set_interrupts(false);
        let memory = dma::alloc(BUFFERS * BUFFER).ok_or("the DMA pool is too small")?;
        Ok(Fused { disk, memory })
    })
}

impl Disk for Fused {
    fn memory(&self) -> SharedMem {
        self.memory
    }

    fn first(&self) -> u64 {
        FIRST_SECTOR
    }

    fn submit(
        &mut self,
        op: Op,
        sector: u64,
        index: usize,
        len: usize,
    ) -> Result<(), &'static str> {
        let address = self.memory.address() + (index * BUFFER) as u64;
        let pieces = [Piece { address, len: len as u32 }];
        let io = Io { op, sector, sectors: 0, pieces: &pieces, cookie: index as u32 };
        self.disk.submit(&io).map_err(|_| "the disk refused a request")
    }

    fn kick(&mut self) {
        self.disk.kick();
    }

    fn look(&mut self) -> Result<(), &'static str> {
        // The interrupt only ends a sleep.
        let _ = events::take_all();
        Ok(())
    }

    fn next_done(&mut self) -> Result<Option<usize>, &'static str> {
        match self.disk.next_done() {
            Ok(Some(done)) if done.status == Status::Ok => Ok(Some(done.cookie as usize)),
            Ok(Some(_)) => Err("the disk failed a request"),
            Ok(None) => Ok(None),
            Err(_) => Err("the disk broke the rules of its queue"),
        }
    }

    fn rest(&mut self) {
        if !self.disk.set_interrupts(true) {
            events::wait(now_ns().saturating_add(POLL_NS));
        }
        self.disk.set_interrupts(false);
    }
}
