//! What this processor offers. Code asks here and works without what is not
//! offered.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use spin::Once;

/// Features of the boot processor; the others are taken to be alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Secure virtual machine.
    pub svm: bool,
    /// Address space identifiers, counting the host's.
    pub asids: u32,
    /// Nested paging.
    pub nested_paging: bool,
    /// The exit stores the next instruction's address.
    pub nrip_save: bool,
    /// The exit stores instruction bytes and operands.
    pub decode_assists: bool,
    /// Flush of a single ASID.
    pub flush_by_asid: bool,
    /// VMCB clean bits.
    pub vmcb_clean: bool,
    /// PAUSE filter.
    pub pause_filter: bool,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// No-execute pages.
    pub nx: bool,
    /// RDRAND.
    pub rdrand: bool,
    /// RDTSCP.
    pub rdtscp: bool,
    /// TSC that runs at one rate in all states.
    pub invariant_tsc: bool,
    /// Supervisor-mode execution prevention.
    pub smep: bool,
    /// User-mode instruction prevention.
    pub umip: bool,
    /// Indirect branch prediction barrier.
    pub ibpb: bool,
    /// x2APIC.
    pub x2apic: bool,
    /// The local APIC timer can take a TSC deadline.
    pub tsc_deadline: bool,
    /// Running under another hypervisor.
    pub hypervisor: bool,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

static FEATURES: Once<Features> = Once::new();

/// The features of this machine's processors.
pub fn get() -> &'static Features {
    FEATURES.call_once(probe)
}

fn probe() -> Features {
    let bit = |word: u32, n: u32| word >> n & 1 != 0;
    let mut f = Features { physical_bits: 36, ..Features::default() };
    let max = __cpuid(0).eax;
    let one = __cpuid(1);
    f.x2apic = bit(one.ecx, 21);
    f.tsc_deadline = bit(one.ecx, 24);
    f.rdrand = bit(one.ecx, 30);
    f.hypervisor = bit(one.ecx, 31);
    if max >= 7 {
        let seven = __cpuid_count(7, 0);
        f.smep = bit(seven.ebx, 7);
        f.umip = bit(seven.ecx, 2);
    }
    let max = __cpuid(0x8000_0000).eax;
    if max >= 0x8000_0001 {
        let leaf = __cpuid(0x8000_0001);
        f.svm = bit(leaf.ecx, 2);
        f.nx = bit(leaf.edx, 20);
        f.gib_pages = bit(leaf.edx, 26);
        f.rdtscp = bit(leaf.edx, 27);
    }
    if max >= 0x8000_0007 {
        f.invariant_tsc = bit(__cpuid(0x8000_0007).edx, 8);
    }
    if max >= 0x8000_0008 {
        let leaf = __cpuid(0x8000_0008);
        f.physical_bits = leaf.eax as u8;
        f.ibpb = bit(leaf.ebx, 12);
    }
    if f.svm && max >= 0x8000_000a {
        let leaf = __cpuid(0x8000_000a);
        f.asids = leaf.ebx;
        f.nested_paging = bit(leaf.edx, 0);
        f.nrip_save = bit(leaf.edx, 3);
        f.vmcb_clean = bit(leaf.edx, 5);
        f.flush_by_asid = bit(leaf.edx, 6);
        f.decode_assists = bit(leaf.edx, 7);
        f.pause_filter = bit(leaf.edx, 10);
    }
    f
}
