//! The supervisor's hypercalls, from a domain without the capability.
//!
//! Each is made with arguments that would do something: every domain of the
//! node is named, in every call.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use attacks::{begin, breach, done, hypercall::raw};
use ring_proto::{
    boot::BootInfo,
    hypercall::{Error, Nr},
};

domain_rt::entry!(main);

const NAME: &str = "forbidden-calls";
/// Domains that are named. There may be fewer.
const DOMAINS: u64 = 8;
/// The first and the last of the supervisor's numbers.
const NUMBERS: core::ops::RangeInclusive<u64> = Nr::DomainList as u64..=Nr::Check as u64;

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let mut room = [0xa5a5_a5a5_a5a5_a5a5u64; 512];
    let at = room.as_mut_ptr() as u64;
    let bytes = size_of_val(&room) as u64;
    let (mut tried, mut refused) = (0u64, 0u64);
    for nr in NUMBERS {
        for first in (0..DOMAINS).chain([at]) {
            for second in [0, 1, 2, 3, at] {
                let arguments = match Nr::from_raw(nr) {
                    Some(Nr::DomainList | Nr::ConnectionList) => [at, 8, 0, 0, 0],
                    Some(Nr::CrashRead | Nr::LogRead) => [first, at, bytes, 0, 0],
                    Some(Nr::NodeInfo) => [at, 0, 0, 0, 0],
                    _ => [first, second, 0, 0, 0],
                };
                // SAFETY: what may be written is `room`.
                let returned = unsafe { raw(nr, arguments) };
                tried += 1;
                if returned.error() == Some(Error::NotPermitted) {
                    refused += 1;
                } else {
                    breach!(NAME, "call {nr} with {arguments:x?} returned {returned:x?}");
                }
            }
        }
    }
    let is_changed = |word: &&u64| {
        // SAFETY: a word of a plain array; the hypervisor may have written to it.
        let now = unsafe { core::ptr::read_volatile(*word) };
        now != 0xa5a5_a5a5_a5a5_a5a5
    };
    let changed = room.iter().filter(is_changed).count();
    if changed != 0 {
        breach!(NAME, "{changed} words were written");
    }
    done!(NAME, "tried={tried} refused={refused}");
}
