//! DMA that comes after its owner's death. QEMU's `edu` device copies a tenth
//! of a second after it is told to: each generation tells it to write to the
//! pool and dies at once. The next one watches that memory, now its own.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use attacks::{begin, breach, done};
use domain_rt::{
    events, hypercall,
    time::{MS, now_ns},
};
use ring_proto::{boot::BootInfo, layout, shm::SharedMem};

domain_rt::entry!(main);

const NAME: &str = "dma-after-death";
const GENERATIONS: u32 = 10;
/// Longer than the device takes.
const WATCH: u64 = 300 * MS;
const PATIENCE: u64 = 30_000 * MS;
/// The device's own buffer.
const BUFFER: u64 = 0x4_0000;
const LEN: usize = 2048;
const MARKER: [u8; LEN] = [0x5a; LEN];

// Registers of the device (QEMU, docs/specs/edu.txt).
const SOURCE: u64 = 0x80;
const TARGET: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;

fn register(at: u64) -> *mut u64 {
    (layout::BARS + at) as *mut u64
}

/// Has the device copy.
fn copy(source: u64, target: u64, command: u64) {
    let values = [(SOURCE, source), (TARGET, target), (COUNT, LEN as u64), (COMMAND, command)];
    for (at, value) in values {
        // SAFETY: registers in BAR 0 of the own device.
        unsafe { register(at).write_volatile(value) };
    }
}

/// Waits until the device has copied.
fn finish() {
    let end = now_ns() + PATIENCE;
    // SAFETY: as above.
    while unsafe { register(COMMAND).read_volatile() } & RUN != 0 {
        assert!(now_ns() < end, "the device does not copy");
        events::wait(now_ns() + MS);
    }
}

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    // SAFETY: the pool is mapped for the domain's whole life; nothing has a reference to it.
    let pool = unsafe { SharedMem::new(layout::DMA_POOL as *mut u8, 2 * LEN) };
    let holds = |at, expected: &[u8; LEN]| {
        let mut found = [0; LEN];
        pool.copy_from(at, &mut found).is_ok() && found == *expected
    };
    let end = now_ns() + WATCH;
    while now_ns() < end {
        if !holds(0, &[0; LEN]) {
            breach!(NAME, "a dead generation's device wrote to the memory of its successor");
            break;
        }
        events::wait(now_ns() + MS);
    }
    if boot.generation > GENERATIONS {
        done!(NAME, "tried={GENERATIONS}");
    }
    if let Err(error) = hypercall::device_enable(0, true) {
        panic!("the device: {error:?}");
    }
    // Into the device's buffer, and for a proof that it works back to the second half.
    let _ = pool.copy_to(LEN, &MARKER);
    copy(pool.address() + LEN as u64, BUFFER, RUN);
    finish();
    let _ = pool.copy_to(LEN, &[0; LEN]);
    copy(BUFFER, pool.address() + LEN as u64, RUN | TO_MEMORY);
    finish();
    assert!(holds(LEN, &MARKER), "the device does not reach the pool: nothing is tried");
    copy(BUFFER, pool.address(), RUN | TO_MEMORY);
    panic!("dies with a copy under way");
}
