//! Random reads and writes of 4 KiB without end, while the driver dies over and
//! over.

use alloc::vec;

use domain_rt::{events, set_ready, time::MS};
use ring_proto::blk::Op;

use super::{BUFFER, BUFFERS, CASES, Disk, Sectors, ring};
use crate::outage::Outages;

/// Bytes of a request.
const LEN: usize = 4096;
/// Until the line about an outage is written: no request can be lost.
const SETTLE: u64 = 2 * MS;

/// Returns only if a request fails.
pub(crate) fn run() -> Result<(), &'static str> {
    let [.., case] = &CASES;
    let mut ring = ring::open()?;
    let mut data = vec![0x5au8; LEN];
    let mut sectors = Sectors::new(case, ring.first());
    let mut outages = Outages::new("blk", SETTLE);
    let memory = ring.memory();
    // Buffers take turns at reading and writing.
    let mut ops = [Op::Read; BUFFERS];
    let mut submit = |ring: &mut ring::Ring, index: usize, op: &mut Op, data: &[u8]| {
        *op = if *op == Op::Read { Op::Write } else { Op::Read };
        if *op == Op::Write {
            memory.copy_to(index * BUFFER, data).map_err(|_| "a buffer is not in the pool")?;
        }
        ring.submit(*op, sectors.next(), index, LEN)
    };
    for (index, op) in ops.iter_mut().enumerate() {
        submit(&mut ring, index, op, &data)?;
    }
    ring.kick();
    set_ready();
    loop {
        ring.look()?;
        outages.look(ring.front.counters());
        let mut any = false;
        while let Some(index) = ring.next_done()? {
            any = true;
            outages.completed();
            let Some(op) = ops.get_mut(index) else { return Err("an answer to no request") };
            if *op == Op::Read {
                memory
                    .copy_from(index * BUFFER, &mut data)
                    .map_err(|_| "a buffer is not in the pool")?;
            }
            submit(&mut ring, index, op, &data)?;
        }
        if outages.is_settled() {
            outages.tell(0);
        }
        if any {
            ring.kick();
            events::breathe();
        } else {
            ring.rest();
        }
    }
}
