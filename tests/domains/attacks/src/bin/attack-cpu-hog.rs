//! Uses all the CPU time that it gets: in its first generation without ever
//! calling `wait`, in later ones with no more than the watchdog asks for.
#![no_std]
#![no_main]

use attacks::begin;
use domain_rt::{hypercall, time};
use ring_proto::boot::BootInfo;

domain_rt::entry!(main);

const NAME: &str = "cpu-hog";
/// Between two calls of `wait`.
const STRETCH: u64 = 50 * time::MS;

fn main(_: &'static BootInfo) -> ! {
    let boot = begin(NAME);
    loop {
        let until = time::now_ns() + STRETCH;
        while boot.generation == 1 || time::now_ns() < until {
            core::hint::spin_loop();
        }
        hypercall::wait(0);
    }
}
