//! Machine addresses that no device of a domain has any business with.

use ring_proto::layout;

/// Low memory; the hypervisor's text and data; the registers of AMD-Vi and
/// VT-d; the I/O APIC's; configuration space; the domain's own memory that is
/// not for DMA; the window for grants, without a grant.
pub const PLACES: [u64; 10] = [
    0x1000,
    0x20_0000,
    0x24_0000,
    0xfed8_0000,
    0xfed9_0000,
    0xfec0_0000,
    0xb000_0000,
    layout::HEAP,
    layout::BOOT_INFO,
    layout::GRANT_WINDOW,
];

/// The places, one page in each 2 MiB of the first 512 MiB and in each 64 MiB
/// of the first 8 GiB, and each page where QEMU's firmware puts devices.
pub fn all() -> impl Iterator<Item = u64> {
    let memory = (0..256).map(|i| i * (2 << 20) + 0x3000);
    let further = (8..128).map(|i| i * (64 << 20) + 0x3000);
    let devices = (0xfea0_0000..0xfec0_0000).chain(0xfe00_0000..0xfe04_0000).step_by(0x1000);
    PLACES.into_iter().chain(memory).chain(further).chain(devices)
}
