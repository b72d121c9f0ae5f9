//! Interrupt vectors, and taking note of those that arrived.
//!
//! A handler sets the vector's bit in its core's bitmap and acknowledges; the
//! core looks at the bitmap when it is ready. No handler runs any other code,
//! so none can meet a lock or a borrowed structure.

use core::sync::atomic::Ordering;

use x86_64::instructions::port::Port;

use crate::cpu;

/// The local APIC's timer.
pub const TIMER: u8 = 0x20;
/// Sent by another core: look at what it left for you.
pub const KICK: u8 = 0x21;
/// First vector for devices.
pub const DEVICE_FIRST: u8 = 0x30;
/// Last vector for devices. Those above are not acknowledged.
pub const DEVICE_LAST: u8 = 0xef;
/// Where the masked legacy controllers would put a spurious interrupt.
const LEGACY: u8 = 0xf0;
/// The local APIC's spurious vector.
pub const SPURIOUS: u8 = 0xff;

/// Takes the vectors that arrived on core `core`: bit `v % 64` of word
/// `v / 64` stands for vector `v`.
pub fn take_pending(core: usize) -> [u64; 4] {
    let mut vectors = [0; 4];
    let Some(cpu) = cpu::get(core) else { return vectors };
    for (word, pending) in vectors.iter_mut().zip(&cpu.pending) {
        // The plain load spares the locked exchange in the usual case.
        if pending.load(Ordering::Relaxed) != 0 {
            *word = pending.swap(0, Ordering::Acquire);
        }
    }
    vectors
}

/// Masks the two legacy interrupt controllers for good, with vectors that
/// nothing else uses.
#[allow(unsafe_code)]
pub fn mask_legacy() {
    // SAFETY: the 8259s belong to the hypervisor; all lines are masked.
    unsafe {
        for (base, vector, wiring) in [(0x20u16, LEGACY, 4u8), (0xa0, LEGACY + 8, 2)] {
            let mut command = Port::<u8>::new(base);
            let mut data = Port::<u8>::new(base | 1);
            command.write(0x11);
            data.write(vector);
            data.write(wiring);
            data.write(1);
            data.write(0xff);
        }
    }
}
