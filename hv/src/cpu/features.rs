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
    /// Flush of a single ASID.
    pub flush_by_asid: bool,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// RDRAND.
    pub rdrand: bool,
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
    let leaf = |number: u32| {
        let there = __cpuid(number & 0x8000_0000).eax >= number;
        there.then(|| __cpuid_count(number, 0))
    };
    let mut f = Features::default();
    if let Some(one) = leaf(1) {
        f.rdrand = bit(one.ecx, 30);
    }
    if let Some(seven) = leaf(7) {
        f.smep = bit(seven.ebx, 7);
        f.smap = bit(seven.ebx, 20);
        f.umip = bit(seven.ecx, 2);
    }
    if let Some(extended) = leaf(0x8000_0001) {
        f.svm = bit(extended.ecx, 2);
        f.gib_pages = bit(extended.edx, 26);
    }
    if let Some(sizes) = leaf(0x8000_0008) {
        f.ibpb = bit(sizes.ebx, 12);
    }
    if let Some(svm) = leaf(0x8000_000a).filter(|_| f.svm) {
        f.asids = svm.ebx;
        f.nested_paging = bit(svm.edx, 0);
        f.flush_by_asid = bit(svm.edx, 6);
    }
    f
}
