//! A pair of NVMe's queues (section 4.1): commands in memory that the device reads, completions
//! in memory that it writes, and two doorbells.
//!
//! Nothing is believed that the device writes: a completion is copied once, and whose it says it
//! is, its owner checks.

use core::sync::atomic::{Ordering, fence};

use domain_rt::{device::Bar, dma};
use ring_proto::{PAGE_SIZE, shm::SharedMem};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Opcodes (sections 5 and 6).
#[expect(missing_docs, reason = "their names are the specification's")]
pub mod opcode {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const CREATE_SUBMISSIONS: u8 = 0x01;
    pub const CREATE_COMPLETIONS: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const SET_FEATURES: u8 = 0x09;
}

/// Bytes of a command, and of a completion.
const COMMAND: usize = 64;
const COMPLETION: usize = 16;
/// Where a completion's status is, whose lowest bit says whether it is new.
const STATUS: usize = 14;
const PAGE: u64 = PAGE_SIZE as u64;

/// A command (section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Command {
    /// What to do.
    pub opcode: u8,
    /// Data is given by [`Data`], no fused commands: 0.
    pub flags: u8,
    /// Comes back with the completion.
    pub id: u16,
    /// Namespace, from 1.
    pub namespace: u32,
    /// Not used.
    pub reserved: u64,
    /// Address of metadata; none.
    pub metadata: u64,
    /// Where the data is, see [`Data`].
    pub data: [u64; 2],
    /// Command dwords 10 to 15.
    pub words: [u32; 6],
}

/// A completion (section 4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct Completion {
    /// Of some commands.
    pub result: u32,
    /// Not used.
    pub reserved: u32,
    /// How far the device has read the commands.
    pub head: u16,
    /// Whose command it was.
    pub queue: u16,
    /// The command's id.
    pub id: u16,
    /// Phase and status.
    pub status: u16,
}

const _: () = assert!(size_of::<Command>() == COMMAND && size_of::<Completion>() == COMPLETION);

impl Command {
    /// A command without data.
    pub fn new(opcode: u8, namespace: u32) -> Self {
        Self { opcode, namespace, ..Self::default() }
    }
}

impl Completion {
    /// Status code and its type; 0: success.
    pub fn error(&self) -> u16 {
        self.status >> 1 & 0x7ff
    }
}

/// Where the data of a command is: its address, and that of its next page or of a list of all
/// further ones (section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data(pub [u64; 2]);

impl Data {
    /// `len` contiguous bytes at `address`. If they begin more than two pages, `put` writes the
    /// list at the address `list`: at a place in it, counted from 0, the address of a page; it
    /// says whether there is room. `None`: there is none.
    pub fn new(
        address: u64,
        len: u32,
        list: u64,
        mut put: impl FnMut(usize, u64) -> bool,
    ) -> Option<Self> {
        let end = address.checked_add(len.into())?;
        // Beginnings of pages behind the first.
        let second = (address / PAGE).checked_add(1)?.checked_mul(PAGE)?;
        let more = end.saturating_sub(second).div_ceil(PAGE);
        let mut pages = (0..more).map(|page| second.saturating_add(page.saturating_mul(PAGE)));
        Some(Self(match more {
            0 => [address, 0],
            1 => [address, second],
            _ if pages.by_ref().enumerate().all(|(place, page)| put(place, page)) => {
                [address, list]
            }
            _ => return None,
        }))
    }
}

/// A submission queue and its completion queue.
#[derive(Debug)]
pub struct Queue {
    commands: SharedMem,
    completions: SharedMem,
    size: u16,
    /// Where the next command goes.
    tail: u16,
    /// Where the next completion is.
    head: u16,
    /// What marks a completion as new: the device turns it with each round.
    phase: bool,
    /// What the device was told last.
    told: [u16; 2],
    registers: Bar,
    /// Offsets of both doorbells.
    doorbells: [usize; 2],
}

impl Queue {
    /// Queues number `id` of `size` entries in the DMA pool, which the device does not know of yet;
    /// `None`: there is no room for them, or no doorbell. `stride` bytes are between doorbells,
    /// the first of which is at `first`.
    pub fn new(registers: Bar, first: usize, stride: usize, id: u16, size: u16) -> Option<Self> {
        let place = |which| stride.checked_mul(which)?.checked_add(first);
        let pair = usize::from(id).checked_mul(2)?;
        let doorbells = [place(pair)?, place(pair.checked_add(1)?)?];
        let entries = usize::from(size);
        Some(Self {
            commands: dma::alloc(entries.checked_mul(COMMAND)?)?,
            completions: dma::alloc(entries.checked_mul(COMPLETION)?)?,
            size,
            tail: 0,
            head: 0,
            phase: true,
            told: [0; 2],
            registers,
            doorbells,
        })
    }

    /// Device addresses of the commands and of the completions.
    pub fn areas(&self) -> [u64; 2] {
        [self.commands.address(), self.completions.address()]
    }

    /// Puts a command behind the others. The caller has fewer under way than there are entries.
    pub fn push(&mut self, command: Command) {
        // The entry is within the queue.
        let _ = self.commands.write(usize::from(self.tail).saturating_mul(COMMAND), &command);
        self.tail = self.behind(self.tail);
    }

    /// Tells the device what was put into its queues and taken out.
    pub fn ring(&mut self) {
        // Commands are in memory before the device is told of them.
        fence(Ordering::SeqCst);
        let now = [self.tail, self.head];
        for ((place, told), now) in self.doorbells.iter().zip(&mut self.told).zip(now) {
            if *told != now {
                self.registers.write32(*place, now.into());
                *told = now;
            }
        }
    }

    /// Whether there is a completion to be taken.
    pub fn has_more(&self) -> bool {
        let at = usize::from(self.head).saturating_mul(COMPLETION).saturating_add(STATUS);
        let status: u16 = self.completions.read(at).unwrap_or(0);
        (status & 1 != 0) == self.phase
    }

    /// The next completion.
    pub fn pop(&mut self) -> Option<Completion> {
        if !self.has_more() {
            return None;
        }
        // The rest of it was written before its phase.
        fence(Ordering::Acquire);
        let at = usize::from(self.head).saturating_mul(COMPLETION);
        let completion = self.completions.read(at).ok()?;
        self.head = self.behind(self.head);
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Some(completion)
    }

    fn behind(&self, index: u16) -> u16 {
        let next = index.saturating_add(1);
        if next < self.size { next } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    #[test]
    fn data_is_told_page_by_page() {
        let mut list: Vec<u64> = Vec::new();
        let mut of = |address, len| {
            list.clear();
            let put = |place, page| {
                assert_eq!(place, list.len());
                list.push(page);
                list.len() <= 32
            };
            Data::new(address, len, 0x77_0000, put).map(|data| (data.0, list.clone()))
        };
        assert_eq!(of(0x1000, 4096), Some(([0x1000, 0], vec![])));
        assert_eq!(of(0x1e00, 512), Some(([0x1e00, 0], vec![])));
        assert_eq!(of(0x1e00, 1024), Some(([0x1e00, 0x2000], vec![])));
        assert_eq!(of(0x1000, 8192), Some(([0x1000, 0x2000], vec![])));
        let pages = (2..34).map(|page| page << 12).collect();
        assert_eq!(of(0x1e00, 128 << 10), Some(([0x1e00, 0x77_0000], pages)));
        assert_eq!(of(0x1e00, (128 << 10) + 4096), None, "no room for so many");
        assert_eq!(of(u64::MAX - 100, 512), None);
    }
}
