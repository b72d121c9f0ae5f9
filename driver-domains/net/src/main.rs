//! The program of the net driver domain.
#![no_std]
#![no_main]

domain_rt::entry!(main);

fn main(boot: &'static ring_proto::boot::BootInfo) -> ! {
    driver_net::service::run(boot)
}
