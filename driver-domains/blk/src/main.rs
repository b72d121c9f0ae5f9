//! The program of the blk driver domain.
#![no_std]
#![no_main]

domain_rt::entry!(main);

fn main(boot: &'static ring_proto::boot::BootInfo) -> ! {
    driver_blk::service::run(boot)
}
