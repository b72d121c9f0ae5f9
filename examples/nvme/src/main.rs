//! The program of the domain: the device's driver on one side, and on the other what all block
//! driver domains have in common.
#![no_std]
#![no_main]

domain_rt::entry!(main);

fn main(boot: &'static ring_proto::boot::BootInfo) -> ! {
    driver_blk::service::serve::<driver_nvme::Nvme>(boot)
}
