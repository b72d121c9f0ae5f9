//! Every hypercall that a domain may make, with every pair of boundary values
//! in every pair of its arguments; all other numbers with every value in every
//! argument. The caller has nothing, so almost all must be refused.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use attacks::{
    begin, breach,
    calls::{BOUNDARIES, Expected, addresses, expected, prints},
    done,
    hypercall::raw,
};
use ring_proto::{boot::BootInfo, hypercall::Nr};

domain_rt::entry!(main);

const NAME: &str = "call-arguments";
/// Numbers that are tried: all that are defined, those between, and some more.
const NUMBERS: u64 = 48;

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let mut tally = Tally::default();
    let addresses = addresses();
    let values = || BOUNDARIES.into_iter().chain(addresses);
    for nr in (0..NUMBERS).chain([63, 64, 255, 256, 1 << 31, 1 << 32, 1 << 63, u64::MAX]) {
        tally.call(nr, [0; 5]);
        // Of those that this domain may not make, or that do not exist, one value will do.
        let is_allowed = nr < Nr::DomainList as u64 && Nr::from_raw(nr).is_some();
        for first in 0..5 {
            for a in values() {
                let mut arguments = [0; 5];
                arguments[first] = a;
                tally.call(nr, arguments);
                for second in (first + 1..5).filter(|_| is_allowed) {
                    for b in values() {
                        arguments[second] = b;
                        tally.call(nr, arguments);
                    }
                    arguments[second] = 0;
                }
                // It feeds the watchdog.
                domain_rt::hypercall::wait(0);
            }
        }
    }
    let Tally { tried, right, refused } = tally;
    done!(NAME, "tried={tried} right={right} refused={refused}");
}

#[derive(Default)]
struct Tally {
    tried: u64,
    right: u64,
    refused: u64,
}

impl Tally {
    fn call(&mut self, nr: u64, arguments: [u64; 5]) {
        let expected = expected(nr, arguments);
        if expected == Expected::Ends || prints(nr, arguments, 0) {
            return;
        }
        // SAFETY: this domain has no grants and no capability, so none of the
        // calls that it may make writes to memory.
        let returned = unsafe { raw(nr, arguments) };
        self.tried += 1;
        let is_error = returned.status != 0;
        self.refused += u64::from(is_error);
        let fits = match expected {
            Expected::Error => is_error,
            Expected::Success => !is_error,
            _ => true,
        };
        // An undefined code would be a bug, too.
        if fits && returned.result().is_some() {
            self.right += 1;
        } else {
            breach!(NAME, "call {nr} with {arguments:x?} returned {returned:x?}, not {expected:?}");
        }
    }
}
