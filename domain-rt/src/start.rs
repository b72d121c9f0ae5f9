#![allow(unsafe_code)]
//! The first instructions of a domain, and what it was told about itself.

use core::sync::atomic::{AtomicBool, Ordering};

use ring_proto::{
    boot::BootInfo,
    event::{PORT_TAKEOVER, READY, SERVED, STANDBY},
    layout,
};

use crate::{console, events, fault, heap, hypercall, time::NEVER};

// RDI holds the address of the boot information. RSP is undefined.
core::arch::global_asm!(
    ".section .text.entry, \"ax\", @progbits",
    ".global _domain_start",
    "_domain_start:",
    "lea rsp, [rip + __stack_top]",
    "xor ebp, ebp",
    "cld",
    "call __domain_main",
    "ud2",
    ".text",
);

/// Makes a program of `main: fn(&'static BootInfo) -> !`.
///
/// The crate needs `bare-support` among its dependencies, and a build script
/// that includes `domain-rt/link/build.rs`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // The memory functions that the compiler expects.
        use bare_support as _;

        #[global_allocator]
        static __DOMAIN_HEAP: $crate::heap::Heap = $crate::heap::Heap::new();

        #[panic_handler]
        fn __domain_panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::panic::report(info)
        }

        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn __domain_main(_boot: u64) -> ! {
            let main: fn(&'static $crate::ring_proto::boot::BootInfo) -> ! = $main;
            main($crate::start::init(&__DOMAIN_HEAP))
        }
    };
}

/// What the hypervisor told this domain about itself.
pub fn boot() -> &'static BootInfo {
    // SAFETY: the hypervisor maps this page read-only before the first
    // instruction and never changes it; every bit pattern is a BootInfo.
    unsafe { &*(layout::BOOT_INFO as *const BootInfo) }
}

/// Text of a NUL-padded field of the boot information, up to the first NUL.
pub fn text(field: &[u8]) -> &str {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    core::str::from_utf8(field.get(..end).unwrap_or(field)).unwrap_or("?")
}

/// Sets up what [`entry!`] promises. Called once, before `main`.
///
/// # Panics
///
/// When called again: a second heap over the same memory would be the end of all soundness.
#[doc(hidden)]
pub fn init(heap: &heap::Heap) -> &'static BootInfo {
    static STARTED: AtomicBool = AtomicBool::new(false);
    assert!(!STARTED.swap(true, Ordering::Relaxed), "started twice");
    let boot = boot();
    fault::init();
    if boot.magic != ring_proto::boot::MAGIC || boot.abi != ring_proto::boot::ABI {
        // Nothing here can be relied on, not even the heap's length.
        hypercall::exit(1);
    }
    heap.init(layout::HEAP, boot.heap_len);
    console::init();
    boot
}

/// In a warm spare: says that it stands by, and returns once it is in its
/// principal's place. Before that it owns no device and no connection. Returns
/// at once in any other domain.
pub fn stand_by() {
    if boot().flags & ring_proto::boot::STANDBY == 0 {
        return;
    }
    events::page().ready.store(STANDBY, Ordering::Release);
    while !events::take_all().has(PORT_TAKEOVER) {
        events::wait(NEVER);
    }
}

/// Tells the hypervisor that this generation serves; it hears of it at the next
/// `wait`.
pub fn set_ready() {
    events::page().ready.store(READY, Ordering::Release);
}

/// Tells the hypervisor, once, that this generation completed a request of a
/// guest. To be called where it does: the time is recorded.
pub fn set_served() {
    let ready = &events::page().ready;
    if ready.load(Ordering::Relaxed) == READY {
        ready.store(SERVED, Ordering::Release);
        events::sleep(0);
    }
}

/// Says how many requests were taken and not answered, for the record of a
/// death. Cheap.
pub fn set_in_flight(requests: usize) {
    let count = u32::try_from(requests).unwrap_or(u32::MAX).saturating_add(1);
    events::page().in_flight.store(count, Ordering::Relaxed);
}
