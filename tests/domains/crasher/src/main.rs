//! The blk driver with a bug: generations in the range that the domain's `args`
//! name die as soon as they start, or once the disk has completed requests of
//! guests so many times as a third number says. What such a bug is to a node: a
//! driver that no restart repairs, until somebody repairs what it stumbled over.
//! With `args` "reset" it takes the disk only after somebody else has reset it.
#![no_std]
#![no_main]

use domain_rt::{
    panic::{give_up, stalled},
    start::text,
    virtio::{Device, DeviceType},
};
use ring_proto::boot::BootInfo;

domain_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    if text(&boot.args) == "reset" {
        // A disk that the driver's own reset does not help.
        match Device::find(0, DeviceType::Block) {
            Ok(disk) if disk.is_reset() => {}
            Ok(_) => stalled(format_args!("the disk is as an earlier life left it")),
            Err(error) => stalled(format_args!("no disk: {error}")),
        }
        driver_blk::service::run(boot)
    }
    // `FIRST LAST`, both inclusive, and perhaps `TIMES`.
    let mut numbers = text(&boot.args).split(' ').filter_map(|word| word.parse::<u32>().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else {
        give_up(format_args!("args must be the first and the last generation to crash"));
    };
    let doomed = (first..=last).contains(&boot.generation);
    let mut left = numbers.next().unwrap_or(0);
    let mut turn = |done: bool| {
        if doomed && left == 0 {
            give_up(format_args!("a bug in generation {}", boot.generation));
        }
        left = left.saturating_sub(done.into());
    };
    turn(false);
    driver_blk::service::run_with(boot, turn)
}
