//! A NIC and the wire behind it, which loses frames.
//!
//! A frame says whose it is and which; see [`Frame`].

use std::collections::VecDeque;

use fastrand::Rng;
use ring_proto::DomainId;

use crate::hv::Hv;

/// Bytes of every frame.
pub(crate) const FRAME: usize = 64;
/// Bytes at its front that a driver copies, as it would copy headers; the rest
/// goes out by DMA.
pub(crate) const HEAD: usize = 32;
/// Frames that wait in the NIC for the driver.
const RX: usize = 4;

/// What stands in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Number of the guest, counting from 0.
    pub(crate) guest: usize,
    /// From 0, in the order of being sent by it (or to it).
    pub(crate) number: usize,
}

impl Frame {
    /// Its bytes.
    pub(crate) fn bytes(self) -> [u8; FRAME] {
        let word = ((self.guest as u64) << 32 | self.number as u64).wrapping_mul(0x9e37_79b9) | 1;
        let mut bytes = [0; FRAME];
        for (chunk, i) in bytes.chunks_exact_mut(8).zip(0u64..) {
            chunk.copy_from_slice(&word.wrapping_mul(2 * i + 1).to_le_bytes());
        }
        bytes[..2].copy_from_slice(&(self.guest as u16).to_le_bytes());
        bytes[2..6].copy_from_slice(&(self.number as u32).to_le_bytes());
        bytes
    }

    /// The frame that has these bytes, whole and unchanged.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (&[a, b, c, d, e, f], _) = bytes.split_first_chunk::<6>()?;
        let guest = u16::from_le_bytes([a, b]).into();
        let this = Self { guest, number: u32::from_le_bytes([c, d, e, f]) as usize };
        (this.bytes() == bytes).then_some(this)
    }
}

#[derive(Debug)]
struct Sending {
    head: [u8; HEAD],
    /// I/O address of the rest.
    rest: u64,
    cookie: u32,
    /// Who sent it: number and generation.
    from: (usize, u32),
}

/// The NIC.
#[derive(Debug)]
pub(crate) struct Nic {
    owner: DomainId,
    tx: VecDeque<Sending>,
    sent: VecDeque<u32>,
    rx: VecDeque<[u8; FRAME]>,
    interrupts: bool,
    pub(crate) stuck: bool,
    pub(crate) late: Option<bool>,
    pub(crate) loses: u8,
}

impl Nic {
    pub(crate) fn new(owner: DomainId) -> Self {
        Self {
            owner,
            tx: VecDeque::new(),
            sent: VecDeque::new(),
            rx: VecDeque::new(),
            interrupts: false,
            stuck: false,
            late: None,
            loses: 0,
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.late.is_some() || (!self.tx.is_empty() && !self.stuck)
    }

    /// Frames that it is to send or has sent without its driver's noticing. (A
    /// received frame whose interrupt was lost waits for the next one.)
    pub(crate) fn queued(&self) -> usize {
        self.tx.len() + self.sent.len()
    }

    pub(crate) fn reset(&mut self) {
        self.tx.clear();
        self.sent.clear();
        self.rx.clear();
        (self.stuck, self.interrupts, self.late) = (false, false, None);
    }

    pub(crate) fn send(&mut self, head: [u8; HEAD], rest: u64, cookie: u32, from: (usize, u32)) {
        self.tx.push_back(Sending { head, rest, cookie, from });
    }

    pub(crate) fn next_sent(&mut self) -> Option<u32> {
        self.sent.pop_front()
    }

    pub(crate) fn receive(&mut self) -> Option<[u8; FRAME]> {
        self.rx.pop_front()
    }

    /// As [`crate::disk::Disk::set_interrupts`].
    pub(crate) fn set_interrupts(&mut self, on: bool) -> bool {
        self.interrupts = on;
        on && !(self.sent.is_empty() && self.rx.is_empty())
    }

    /// A frame comes in. False if it was lost: nobody listens, or too many wait.
    pub(crate) fn arrives(&mut self, hv: &mut Hv, rng: &mut Rng, frame: Frame) -> bool {
        // Receive buffers are memory, too.
        if !hv.guests[self.owner].attached || self.rx.len() >= RX {
            return false;
        }
        self.rx.push_back(frame.bytes());
        self.tell(hv, rng);
        true
    }

    fn tell(&mut self, hv: &mut Hv, rng: &mut Rng) {
        if self.interrupts {
            let lost = rng.u8(..) < self.loses;
            if lost || rng.u8(..) < 64 {
                self.late = Some(!lost);
            } else {
                hv.interrupt(self.owner);
            }
        }
    }

    /// Does a piece of its work. Returns the frame that it put on the wire, and
    /// which generation of which guest sent it.
    pub(crate) fn step(
        &mut self,
        hv: &mut Hv,
        rng: &mut Rng,
    ) -> Option<([u8; FRAME], (usize, u32))> {
        if self.late.is_some() && (self.tx.is_empty() || self.stuck || rng.bool()) {
            if self.late.take() == Some(true) {
                hv.interrupt(self.owner);
            }
            return None;
        }
        if self.stuck {
            return None;
        }
        let Sending { head, rest, cookie, from } = self.tx.pop_front()?;
        let mut frame = [0; FRAME];
        frame[..HEAD].copy_from_slice(&head);
        let mem = hv.dma(self.owner, rest, (FRAME - HEAD) as u64, false).ok()?;
        mem.copy_from(0, &mut frame[HEAD..]).ok()?;
        self.sent.push_back(cookie);
        self.tell(hv, rng);
        Some((frame, from))
    }
}
