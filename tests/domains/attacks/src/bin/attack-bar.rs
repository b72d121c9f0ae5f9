//! Registers that are not the domain's, by the CPU: the MSI-X table and the
//! pending bits of the own device, what lies behind its BARs, and registers of
//! the machine and of others by their machine addresses. One attempt in each
//! generation: none outlives its own.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use attacks::{begin, breach, done};
use ring_proto::{boot::BootInfo, layout};

domain_rt::entry!(main);

const NAME: &str = "bar";
/// Of QEMU's virtio devices: table at 0, pending bits at 0x800.
const MSIX_BAR: u64 = layout::BARS + layout::BAR_STRIDE;

/// Address, and whether to write there.
const TARGETS: [(u64, bool); 10] = [
    (MSIX_BAR, false),
    (MSIX_BAR, true),
    (MSIX_BAR + 0x800, false),
    (MSIX_BAR + 0xffc, true),
    // Behind the registers in BAR 4, before those of BAR 0, in a slot without a device.
    (layout::BARS + 4 * layout::BAR_STRIDE + 0x4000, false),
    (layout::BARS - 4, false),
    (layout::BARS + layout::BAR_SLOT_STRIDE + layout::BAR_STRIDE, true),
    // Local APIC, IOMMU, configuration space of the host bridge.
    (0xfee0_0300, true),
    (0xfed8_0000, false),
    (0xb000_0000, false),
];

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let Some(&(address, write)) = TARGETS.get(boot.generation as usize - 1) else {
        done!(NAME, "tried={}", TARGETS.len());
    };
    let register = address as *mut u32;
    // SAFETY: no Rust object is there. It is mapped for the CPU (all of the
    // address space is), so what happens is for the nested tables to decide.
    let seen = unsafe {
        if write {
            register.write_volatile(0);
        }
        register.read_volatile()
    };
    breach!(NAME, "{address:#x} holds {seen:#x}, wrote: {write}");
    done!(NAME, "tried=0");
}
