//! Random hypercalls, a million and more, from the seed in `args`.
//!
//! A seed repeats its calls and what came of them: the digest over both shows
//! it. The first generation makes `calls` calls; later ones `again`, and must
//! come to the digest that the first had then. Grant entries at random are
//! written between the calls.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use attacks::{
    begin, breach,
    calls::{BOUNDARIES, Expected, PAST, addresses, expected, prints},
    done, grants,
    hypercall::{Returned, raw},
    number,
    random::Random,
};
use ring_proto::{boot::BootInfo, grant::GrantEntry, hypercall::Nr, layout};

domain_rt::entry!(main);

const NAME: &str = "hypercall-fuzz";
/// Bytes that calls may point at: random words.
const BUFFER: usize = 64 << 10;
/// Bytes of that, at the most, that a call prints.
const PRINTED: u64 = 0;
/// Between two entries of the grant table.
const OFFERS: u64 = 16;

fn main(_: &'static BootInfo) -> ! {
    let boot = begin(NAME);
    let seed = number(boot, "seed", 1);
    let again = number(boot, "again", 20_000);
    let calls = if boot.generation == 1 { number(boot, "calls", 1_000_000) } else { again };
    let mut fuzz = Fuzz::new(seed);
    for call in 0..calls {
        if call == again {
            log::info!("attack: {NAME}: prefix: digest={:016x}", fuzz.digest);
        }
        fuzz.step(call);
    }
    let Fuzz { digest, made, refused, .. } = fuzz;
    done!(NAME, "calls={made} refused={refused} digest={digest:016x}");
}

struct Fuzz {
    random: Random,
    buffer: &'static mut [u64],
    addresses: [u64; 29],
    digest: u64,
    made: u64,
    refused: u64,
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut buffer = alloc::vec![0; BUFFER / 8];
        buffer.fill_with(|| random.number());
        Self {
            buffer: buffer.leak(),
            addresses: addresses(),
            digest: 0xcbf2_9ce4_8422_2325,
            made: 0,
            refused: 0,
            random,
        }
    }

    fn step(&mut self, number: u64) {
        if number.is_multiple_of(OFFERS) {
            let gref = self.random.below(u64::from(domain_rt::boot().grant_entries)) as u32;
            grants::offer(gref, GrantEntry(self.value()));
        }
        let (nr, arguments) = loop {
            let nr = self.call_number();
            let mut arguments = [0; 5];
            arguments.fill_with(|| self.value());
            if nr == Nr::Wait as u64 {
                // Nor is it there to sleep.
                arguments[0] %= PAST;
            }
            // Ends are tested elsewhere.
            if expected(nr, arguments) != Expected::Ends && !prints(nr, arguments, PRINTED) {
                break (nr, arguments);
            }
        };
        // SAFETY: this domain has no grants and no capability, so none of the
        // calls that it may make writes to memory.
        let returned = unsafe { raw(nr, arguments) };
        self.made += 1;
        self.refused += u64::from(returned.status != 0);
        let fits = match expected(nr, arguments) {
            Expected::Error => returned.status != 0,
            Expected::Success => returned.status == 0,
            _ => true,
        };
        if !fits || returned.result().is_none() {
            breach!(NAME, "call {number}: {nr} with {arguments:x?} returned {returned:x?}");
        }
        self.note(nr, arguments, returned);
    }

    fn call_number(&mut self) -> u64 {
        match self.random.below(32) {
            0 => self.random.number(),
            1 => self.random.choose(&BOUNDARIES),
            _ => self.random.below(48),
        }
    }

    fn value(&mut self) -> u64 {
        let random = &mut self.random;
        let boot = domain_rt::boot();
        match random.below(16) {
            0 => random.number(),
            1 => random.number() >> random.below(64),
            2 => 1 << random.below(64),
            3 => random.choose(&BOUNDARIES).wrapping_add(random.below(17)).wrapping_sub(8),
            4 => random.choose(&self.addresses),
            5 => random.choose(&self.addresses).wrapping_add(random.below(0x2001)),
            6 => {
                layout::GRANT_WINDOW + (random.below(u64::from(boot.grant_window_pages) + 2) << 12)
            }
            7 => self.buffer.as_ptr() as u64 + random.below(BUFFER as u64 + 64),
            8 => self.buffer.as_ptr() as u64 + random.below(BUFFER as u64 / 8) * 8,
            // A grant of this domain's own, or of another.
            9 => {
                GrantEntry::new(
                    random.number() & 0xffff_f000,
                    random.below(8) as u16,
                    random.below(256),
                )
                .0
            }
            10 | 11 => random.below(8),
            12 => random.below(2050),
            _ => random.choose(&BOUNDARIES),
        }
    }

    /// Whether a grant of another domain is in use is not this domain's doing,
    /// nor is the time; all else must repeat.
    fn note(&mut self, nr: u64, arguments: [u64; 5], returned: Returned) {
        let known = Nr::from_raw(nr);
        let status = match known {
            Some(Nr::GrantMap | Nr::GrantCopy) => u64::from(returned.status != 0),
            _ => returned.status,
        };
        let value = if known == Some(Nr::Wait) { 0 } else { returned.value };
        for word in [nr].into_iter().chain(arguments).chain([status, value]) {
            self.digest = (self.digest ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.digest ^= self.digest >> 29;
        }
    }
}
