//! An allocator that hands a block out a second time.
//!
//! A driver takes no memory from its heap while it serves, so the fault strikes its next life:
//! the moment orders a panic, and one of the allocations of the generation that follows is the
//! fault's. Its guests wait meanwhile for what they asked the one before.
//!
//! The machine stops where a random call of the allocator returns. From then on each block that is
//! handed out and each that is given back is noted; and a little later the one that is handed
//! out is another, which is in use.

use anyhow::{Context, Result};
use fault::mutate::Program;
use fault::plan::Fault;

use super::gdb::{RAX, RDI, RSI, Registers};

/// Blocks from which the one is taken that is handed out again.
const BLOCKS: u8 = 3;

/// Where a driver's allocator hands blocks out and takes them back.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    /// Behind each of its calls.
    returns: Vec<u64>,
    /// First instruction of what takes a block back.
    frees: u64,
}

impl Allocator {
    /// That of a program: the one of the domains' runtime.
    ///
    /// # Errors
    ///
    /// It has none.
    pub fn find(program: &Program) -> Result<Self> {
        let symbol = |name: &str| {
            program.symbol(name).with_context(|| format!("there is no symbol `{name}`"))
        };
        let (allocate, frees) = (symbol("Talc<S,B>::allocate")?, symbol("Talc<S,B>::deallocate")?);
        // Orders to misbehave take memory as well, and none of them is given.
        let is_used = |at| program.function_at(at).is_some_and(|f| !f.name.contains("misbehave"));
        let calls = program.calls().filter(|call| call.near_branch_target() == allocate);
        let returns = calls.map(|call| call.next_ip()).filter(|at| is_used(*at)).collect();
        Ok(Self { returns, frees })
    }

    /// One that is called at one place.
    #[cfg(test)]
    pub fn sample() -> Self {
        Self { returns: vec![0x1000], frees: 0x2000 }
    }

    /// A fault, and what it is for people; `None` if there is no place for it.
    pub fn choose(&self, rng: &mut fastrand::Rng) -> Option<(Fault, String)> {
        let address = *rng.choice(&self.returns)?;
        let (blocks, fraction) = (rng.u8(1..=BLOCKS), rng.u16(..));
        let text = format!("of {blocks} blocks from this one on, one is handed out twice");
        Some((Fault::Reuse { address, blocks, fraction }, text))
    }

    /// Where the machine must stop once the first block is known.
    pub fn places(&self) -> Vec<u64> {
        self.returns.iter().copied().chain([self.frees]).collect()
    }
}

/// Blocks that were handed out and are in use.
#[derive(Debug, Default)]
pub struct Blocks {
    live: Vec<u64>,
    handed: u8,
}

/// What is to be done at a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is the first block: stop at the other places as well.
    First,
    /// Go on.
    On,
    /// The allocator hands this block out.
    HandOut(u64),
}

impl Blocks {
    /// The driver came to one of [`Allocator::places`]. The fault is that of one
    /// of the first `blocks` which are still in use.
    pub fn step(
        &mut self,
        allocator: &Allocator,
        registers: &Registers,
        (blocks, fraction): (u8, u16),
    ) -> Step {
        if registers.rip() == allocator.frees {
            // Which register has the address is the compiler's choice; no other argument is one.
            let [first, second] = [RDI, RSI].map(|register| registers.general[register]);
            self.live.retain(|block| *block != first && *block != second);
            return Step::On;
        }
        if self.handed >= blocks && !self.live.is_empty() {
            let chosen = (self.live.len() * usize::from(fraction)) >> 16;
            return Step::HandOut(self.live[chosen]);
        }
        self.handed = self.handed.saturating_add(1);
        // None: the heap is used up.
        if registers.general[RAX] != 0 {
            self.live.push(registers.general[RAX]);
        }
        if self.handed == 1 { Step::First } else { Step::On }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETURN: u64 = 0x1000;
    const FREE: u64 = 0x2000;

    fn at(rip: u64, register: usize, value: u64) -> Registers {
        let mut registers = Registers { general: [0; 17], cr3: 0 };
        registers.general[super::super::gdb::RIP] = rip;
        registers.general[register] = value;
        registers
    }

    /// What is done at the end of these allocations and frees.
    fn steps(which: (u8, u16), stops: &[Registers]) -> Vec<Step> {
        let mut blocks = Blocks::default();
        stops.iter().map(|stop| blocks.step(&Allocator::sample(), stop, which)).collect()
    }

    #[test]
    fn one_that_is_in_use_is_handed_out_again() {
        let block = |address| at(RETURN, RAX, address);
        assert_eq!(steps((1, 0), &[block(64), block(96)]), [Step::First, Step::HandOut(64)]);
        let three = [block(64), block(96), block(128), block(160)];
        assert_eq!(steps((3, 0x8000), &three)[3], Step::HandOut(96));
        assert_eq!(steps((3, 0xffff), &three)[3], Step::HandOut(128));
    }

    #[test]
    fn one_that_was_given_back_is_not() {
        let block = |address| at(RETURN, RAX, address);
        for register in [RDI, RSI] {
            let stops = [block(64), at(FREE, register, 64), block(64), block(96)];
            let steps = steps((1, 0), &stops);
            // It is the allocator's own to hand out.
            assert_eq!(steps, [Step::First, Step::On, Step::On, Step::HandOut(64)]);
        }
        let stops = [block(64), block(96), at(FREE, RSI, 64), block(128)];
        assert_eq!(steps((2, 0), &stops)[3], Step::HandOut(96));
    }

    #[test]
    fn no_memory_is_no_block() {
        let none = at(RETURN, RAX, 0);
        assert_eq!(steps((1, 0), &[none, none, none]), [Step::First, Step::On, Step::On]);
    }

    #[test]
    fn choices_are_within_the_program() {
        for seed in 0..100 {
            let (fault, _) =
                Allocator::sample().choose(&mut fastrand::Rng::with_seed(seed)).unwrap();
            let Fault::Reuse { address, blocks, .. } = fault else { panic!("{fault:?}") };
            assert!(address == RETURN && (1..=BLOCKS).contains(&blocks), "{fault:?}");
        }
        assert!(Allocator::default().choose(&mut fastrand::Rng::with_seed(0)).is_none());
    }
}
