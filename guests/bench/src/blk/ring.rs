//! A volume of a driver domain, over a ring. Buffers are in the granted pool,
//! so the disk reads and writes them where they are.

use domain_rt::{env::DomainEnv, events, time::NEVER};
use guest_io::connect;
use ring_ends::{
    Progress,
    blk::{Frontend, Io},
};
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, Segment, Status},
    shm::SharedMem,
};

use super::{BUFFER, BUFFERS, Disk, SECTORS};
use crate::args::Args;

pub(super) struct Ring {
    pub(super) front: Frontend,
    env: DomainEnv,
    memory: SharedMem,
    progress: Progress,
}

/// Runs the cases on the volume of this domain's first blk connection.
pub(crate) fn run(args: &Args) -> Result<(), &'static str> {
    super::run_all(args, open)
}

/// The volume, once a driver answered.
pub(super) fn open() -> Result<Ring, &'static str> {
    let pages = (BUFFERS * BUFFER / PAGE_SIZE) as u32;
    let (_, front, memory) = connect::blk(pages).map_err(|_| "no blk connection, or no memory")?;
    let mut ring = Ring { front, env: DomainEnv, memory, progress: Progress::default() };
    while !ring.front.is_connected() {
        ring.look()?;
        if ring.front.refusal().is_some() {
            return Err("the blk driver refused the connection");
        }
        ring.rest();
    }
    match ring.front.geometry() {
        Some(geometry) if geometry.sectors >= SECTORS => Ok(ring),
        _ => Err("the volume is too small"),
    }
}

impl Disk for Ring {
    fn memory(&self) -> SharedMem {
        self.memory
    }

    fn first(&self) -> u64 {
        0
    }

    fn submit(
        &mut self,
        op: Op,
        sector: u64,
        index: usize,
        len: usize,
    ) -> Result<(), &'static str> {
        let segments = [Segment { offset: (index * BUFFER) as u32, len: len as u32 }];
        let io = Io { op, sector, sectors: 0, segments: &segments };
        self.front.submit(io, index as u64).map_err(|_| "the frontend refused a request")
    }

    fn kick(&mut self) {
        self.front.kick(&mut self.env);
    }

    fn look(&mut self) -> Result<(), &'static str> {
        // All of them: an event that nobody takes would keep this domain awake.
        let _ = events::take_all();
        self.progress = self.front.poll(&mut self.env);
        Ok(())
    }

    fn next_done(&mut self) -> Result<Option<usize>, &'static str> {
        match self.front.next_completion() {
            Some(done) if done.status == Status::Ok => Ok(Some(done.token as usize)),
            Some(_) => Err("the driver failed a request"),
            None => Ok(None),
        }
    }

    fn rest(&mut self) {
        if self.progress.again {
            events::breathe();
        } else {
            events::wait(self.progress.deadline.unwrap_or(NEVER));
        }
    }
}
