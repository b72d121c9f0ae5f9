//! The blk driver domain's program.
#![no_std]
#![no_main]

domain_rt::entry!(main);

fn main(boot: &'static domain_rt::ring_proto::boot::BootInfo) -> ! {
    log::info!("hello {}", boot.domain);
    loop {
        domain_rt::events::wait(u64::MAX)
    }
}
