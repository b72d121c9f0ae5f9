//! A driver domain that does with its device what a compromised one would: it
//! has it read and write memory that is not its own, page by page over all of
//! the machine's memory, the interrupt addresses and the registers.
//!
//! `args` is `disk` or `nic`. The last log line says what came of it; the
//! system test reads that line, and QEMU's own record of refused accesses.
#![no_std]
#![no_main]

mod disk;
mod nic;

use domain_rt::{events, set_ready};
use ring_proto::{boot::BootInfo, layout};

domain_rt::entry!(main);

/// Places that deserve a name in the log.
const PLACES: [(&str, u64); 8] = [
    ("low memory", 0x1000),
    ("the hypervisor's text, or this domain's own in its own addresses", 0x20_0000),
    ("the hypervisor's data", 0x24_0000),
    ("this domain's heap, which is no DMA memory", layout::HEAP),
    ("this domain's boot information", layout::BOOT_INFO),
    ("a grant window without grants", layout::GRANT_WINDOW),
    ("interrupt messages and local APIC", 0xfee0_0000),
    ("the IOMMU's registers", 0xfed8_0000),
];

/// All addresses that are tried: the named ones, then one in each 16 MiB of the
/// first 8 GiB, where RAM and registers are.
fn targets() -> impl Iterator<Item = u64> {
    const STEP: u64 = 16 << 20;
    let sweep = (0..(8 << 30) / STEP).map(|i| i * STEP + 0x3000);
    PLACES.iter().map(|p| p.1).chain(sweep)
}

fn main(boot: &'static BootInfo) -> ! {
    for (name, address) in PLACES {
        log::info!("aims at {name}: {address:#x}");
    }
    match domain_rt::start::text(&boot.args) {
        "disk" => disk::attack(),
        "nic" => nic::attack(),
        other => panic!("args must be `disk` or `nic`, not {other:?}"),
    }
    set_ready();
    loop {
        events::wait(u64::MAX);
    }
}
