//! The driver, linked in.

use domain_rt::{dma, events};
use driver_net::device::{Buffers, MAX_HEAD, Piece, VirtioNet};
use ring_proto::shm::SharedMem;

use super::stack::Nic;
use crate::args::Args;

/// Frames that are being sent at a time.
const BUFFERS: usize = 128;
/// Bytes of the buffer of one.
const BUFFER: usize = 2048;
/// A longer frame's first bytes go with the driver's own head buffer, as in
/// the driver domain; the rest the NIC fetches from the frame's buffer.
const HEAD: usize = 128;

/// The NIC of device slot `slot`.
pub(super) struct Fused {
    nic: VirtioNet,
    mac: [u8; 6],
    memory: SharedMem,
    free: heapless::Vec<u32, BUFFERS>,
}

/// Runs the cases on this domain's NIC.
pub(crate) fn run(args: &Args) -> Result<(), &'static str> {
    // With a disk in slot 0 it is in slot 1.
    super::run_all(args, || Fused::open(1))
}

impl Fused {
    pub(super) fn open(slot: usize) -> Result<Self, &'static str> {
        let nic = Buffers::new().and_then(|buffers| VirtioNet::open(slot, buffers));
        let mut nic = nic.map_err(|_| "there is no NIC in the device slot")?;
        nic.interrupts_off();
        let mac = nic.mac().ok_or("the NIC has no address")?;
        let memory = dma::alloc(BUFFERS * BUFFER).ok_or("the DMA pool is too small")?;
        Ok(Self { nic, mac, memory, free: (0..BUFFERS as u32).collect() })
    }
}

impl Nic for Fused {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn look(&mut self) {
        while let Ok(Some(buffer)) = self.nic.next_sent() {
            // It came from there.
            let _ = self.free.push(buffer);
        }
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty() && self.nic.has_room()
    }

    fn send(&mut self, frame: &[u8]) {
        let Some(buffer) = self.free.pop() else { return };
        let at = buffer as usize * BUFFER;
        let head_len = if frame.len() <= MAX_HEAD { frame.len() } else { HEAD };
        let (head, rest) = frame.split_at(head_len);
        let piece = Piece { address: self.memory.address() + at as u64, len: rest.len() as u32 };
        let pieces = if rest.is_empty() { &[] } else { core::slice::from_ref(&piece) };
        let copied = self.memory.copy_to(at, rest).is_ok();
        if !copied || self.nic.send(head, pieces, None, buffer).is_err() {
            let _ = self.free.push(buffer);
        }
    }

    fn receive(&mut self, to: &mut [u8; 2048]) -> Option<usize> {
        self.nic.receive(to).ok().flatten()
    }

    fn kick(&mut self) {
        self.nic.kick();
    }

    fn rest(&mut self, deadline: u64) {
        // Buffers that were sent matter only if they are short.
        let short = if self.has_room() { 0 } else { self.nic.in_flight().div_ceil(2) };
        if !self.nic.interrupts_on(short) {
            events::wait(deadline);
        }
        self.nic.interrupts_off();
    }
}
