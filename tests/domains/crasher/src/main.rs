//! The blk driver with a bug: generations in the range that the domain's `args`
//! name die as soon as they start. What such a bug is to a node: a driver that
//! no restart repairs, until somebody repairs what it stumbled over.
#![no_std]
#![no_main]

use domain_rt::{panic::give_up, start::text};
use ring_proto::boot::BootInfo;

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    // `FIRST LAST`, both inclusive.
    let mut numbers = text(&boot.args).split(' ').filter_map(|word| word.parse::<u32>().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else {
        give_up(format_args!("args must be the first and the last generation to crash"));
    };
    if (first..=last).contains(&boot.generation) {
        give_up(format_args!("a bug in generation {}", boot.generation));
    }
    driver_blk::service::run(boot)
}
