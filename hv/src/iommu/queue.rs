//! The queue by which a unit gets its commands. AMD-Vi's command buffer and
//! VT-d's invalidation queue differ in the place of their registers only.
#![expect(clippy::arithmetic_side_effects, reason = "offsets within our own ring")]

use super::{Error, PATIENCE};
use crate::phys::PhysIo;

/// A command, 128 bits.
pub type Command = [u64; 2];

/// Bytes of a slot.
const SLOT: u64 = 16;
/// Bytes of the ring: 256 slots.
pub const RING: u64 = 256 * SLOT;

/// A unit's command queue.
#[derive(Debug)]
pub struct Queue<IO> {
    io: IO,
    /// Address of the ring, one frame.
    pub ring: u64,
    /// Registers that hold the byte offsets of the next slot read and written.
    head: u64,
    tail: u64,
    at: u64,
    /// Where the unit writes how far it came.
    completion: u64,
    completed: u32,
    /// Has the unit write a number to an address, after all commands before.
    barrier: fn(u64, u32) -> Command,
    /// The unit once did not answer; nothing is expected of it any more.
    pub broken: bool,
}

impl<IO: PhysIo> Queue<IO> {
    /// A queue with `frames` (two) and the registers at `head` and `tail`. The
    /// unit has to be told of [`Queue::ring`] and to start at its beginning.
    pub fn new(
        io: IO,
        frames: u64,
        [head, tail]: [u64; 2],
        barrier: fn(u64, u32) -> Command,
    ) -> Self {
        let completion = frames + RING;
        io.write::<u64>(completion, 0);
        let ring = frames;
        Self { io, ring, head, tail, at: 0, completion, completed: 0, barrier, broken: false }
    }

    /// Hands commands to the unit. They have been carried out only when a
    /// [`Queue::wait`] after it has returned `Ok`.
    pub fn submit(&mut self, commands: &[Command]) -> Result<(), Error> {
        for [low, high] in commands {
            let next = (self.at + SLOT) % RING;
            // One slot stays empty, so that full and empty differ.
            self.until(|queue| queue.io.read::<u64>(queue.head) % RING != next)?;
            self.io.write::<u64>(self.ring + self.at, *low);
            self.io.write::<u64>(self.ring + self.at + 8, *high);
            self.at = next;
            self.io.write::<u64>(self.tail, next);
        }
        Ok(())
    }

    /// Returns once all submitted commands have been carried out.
    pub fn wait(&mut self) -> Result<(), Error> {
        self.completed = self.completed.wrapping_add(1);
        let number = self.completed;
        self.submit(&[(self.barrier)(self.completion, number)])?;
        self.until(|queue| queue.io.read::<u32>(queue.completion) == number)
    }

    /// Waits until `done`, but not for ever.
    pub fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        if !self.broken {
            for _ in 0..PATIENCE {
                if done(self) {
                    return Ok(());
                }
                core::hint::spin_loop();
            }
            self.broken = true;
        }
        Err(Error::Hardware)
    }
}

/// Hands commands to all units and waits until all have carried them out.
pub fn run<IO: PhysIo, U>(
    units: &mut [U],
    queue: impl Fn(&mut U) -> &mut Queue<IO>,
    commands: &[Command],
) -> Result<(), Error> {
    // All are told before any is waited for; one that fails does not keep
    // the others from being told.
    let mut result = Ok(());
    for unit in &mut *units {
        result = result.and(queue(unit).submit(commands));
    }
    for unit in units {
        result = result.and(queue(unit).wait());
    }
    result
}
