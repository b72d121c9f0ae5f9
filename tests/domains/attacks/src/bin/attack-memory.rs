//! Reads, writes and executes addresses outside of the domain's memory: the
//! pages on both sides of each of its regions, registers of the machine, all
//! powers of two, and what lies beyond the 512 GiB of the identity map.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use attacks::{
    access::{Access, Kind, image},
    sweep,
};
use ring_proto::{boot::BootInfo, layout};

domain_rt::entry!(main);

/// Most addresses.
const MOST: usize = 128;
const PAGE: u64 = 4096;
/// What is in the machine's own addresses, or was.
const PLACES: [u64; 18] = [
    0,             // a null pointer
    0x9_f000,      // firmware's data
    0xb_8000,      // the screen
    0xf_0000,      // ACPI tables
    0xb000_0000,   // PCI configuration space (q35)
    0xc000_0000,   // BARs
    0xe000_0000,   // the same, other machines
    0xfe00_0000,   // BARs
    0xfebf_f000,   // BARs
    0xfec0_0000,   // I/O APIC
    0xfed0_0000,   // HPET
    0xfed8_0000,   // AMD IOMMU
    0xfed9_0000,   // Intel IOMMU
    0xfee0_0000,   // local APIC, interrupt messages
    0xffff_f000,   // firmware's ROM
    0x1_0000_0000, // memory above 4 GiB
    0x70_0000_0000,
    0xfd_0000_0000, // HyperTransport's own
];

fn main(boot: &'static BootInfo) -> ! {
    let mut addresses = [0u64; MOST];
    let mut count = 0;
    let mut add = |address: u64| {
        let fresh = !addresses[..count].contains(&address) && !is_own(boot, address);
        if fresh && count < MOST {
            addresses[count] = address;
            count += 1;
        }
    };
    PLACES.into_iter().for_each(&mut add);
    for (start, end) in regions(boot) {
        add(start - PAGE);
        add(start - 1);
        add(end);
        add(end.next_multiple_of(2 << 20));
    }
    // What a domain with connections, a device or grants has there.
    for empty in [layout::CONNECTIONS, layout::DMA_POOL, layout::BARS, layout::GRANT_WINDOW] {
        add(empty);
        add(empty + PAGE);
    }
    (16..40).for_each(|bit| add(1 << bit));
    add(layout::ADDRESS_SPACE - PAGE);
    add(layout::ADDRESS_SPACE + PAGE);
    add((1 << 40) - PAGE);
    let addresses = &addresses[..count];

    const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Execute];
    sweep::run("memory", addresses.len() * KINDS.len(), |number, announce| {
        let access = Access { kind: KINDS[number % 3], address: addresses[number / 3] };
        announce(&access);
        // SAFETY: it ends this generation, or is reported.
        unsafe { access.make() };
    })
}

/// Start and end of each region of this domain, as far as it is told.
fn regions(boot: &BootInfo) -> [(u64, u64); 5] {
    let table = (u64::from(boot.grant_entries) * 8).next_multiple_of(PAGE);
    // Text to data lies together; below the stack there is a page that is not there.
    let stack = image::stack();
    [
        (layout::BOOT_INFO, layout::PAGE_TABLES + 2 * PAGE),
        (layout::GRANT_TABLE, layout::GRANT_TABLE + table),
        (image::text().start, stack.start - PAGE),
        (stack.start, stack.end),
        (layout::HEAP, layout::HEAP + boot.heap_len),
    ]
}

fn is_own(boot: &BootInfo, address: u64) -> bool {
    regions(boot).iter().any(|(start, end)| (*start..*end).contains(&address))
}
