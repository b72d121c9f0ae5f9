//! What this processor offers. Code asks here and works without what is not
//! offered.

use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use spin::Once;

/// Features of the boot processor; the others are taken to be alike.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Secure virtual machine.
    pub svm: bool,
    /// Address space identifiers, counting the host's.
    pub asids: u32,
    /// Nested paging.
    pub nested_paging: bool,
    /// Flush of a single ASID.
    pub flush_by_asid: bool,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// Supervisor-mode execution prevention.
    pub smep: bool,
    /// Supervisor-mode access prevention.
    pub smap: bool,
    /// User-mode instruction prevention.
    pub umip: bool,
    /// Indirect branch prediction barrier.
    pub ibpb: bool,
}

static FEATURES: Once<Features> = Once::new();

/// The features of this machine's processors.
pub fn get() -> &'static Features {
    FEATURES.call_once(probe)
}

fn probe() -> Features {
    let bit = |word: u32, n: u32| word >> n & 1 != 0;
    // A leaf that is not there has no features.
    let leaf = |number: u32| match __cpuid(number & 0x8000_0000).eax >= number {
        true => __cpuid_count(number, 0),
        false => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
    };
    let (seven, extended, svm) = (leaf(7), leaf(0x8000_0001), leaf(0x8000_000a));
    Features {
        svm: bit(extended.ecx, 2),
        asids: svm.ebx,
        nested_paging: bit(svm.edx, 0),
        flush_by_asid: bit(svm.edx, 6),
        gib_pages: bit(extended.edx, 26),
        smep: bit(seven.ebx, 7),
        smap: bit(seven.ebx, 20),
        umip: bit(seven.ecx, 2),
        ibpb: bit(leaf(0x8000_0008).ebx, 12),
    }
}
