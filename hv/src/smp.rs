//! Starting the application processors, one after the other.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "boot only: numbers of the firmware or our own, and who cannot go on says so"
)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::boot::{self, AP_STACK, AP_TICKET};
use crate::{apic, cpu, irq, memmap, paging, time};

/// How long a processor may take to come up; long, since an emulator on a busy
/// host may keep it waiting.
const DEADLINE_NS: u64 = 2_000_000_000;
/// Between the INIT and the startup message. The 10 ms of the old MP
/// specification are for processors with an external APIC.
const INIT_NS: u64 = 10_000;
/// After a startup message, before it is repeated.
const STARTUP_NS: u64 = 200_000;
/// Between two looks at whether it is up.
const NAP_NS: u64 = 5_000;

/// Set when the application processors may go on.
static RELEASED: AtomicBool = AtomicBool::new(false);
/// TSC that the processor just started saw when it came up.
static AP_TSC: AtomicU64 = AtomicU64::new(0);

/// Starts the processors of `apic_ids` other than this one, as cores 1, 2, …
/// in that order, and returns how many cores are up. They wait for
/// [`release`]. Uses this core's timer. A processor that does not come up is reported and left out.
pub fn start(apic_ids: &[u32], max_cores: usize) -> usize {
    let own = apic::id();
    let mut cores = 1;
    let Some(page) = memmap::low_page() else {
        log::warn!("no RAM below 640 KiB to start other cores from");
        return cores;
    };
    let code = boot::trampoline();
    // SAFETY: usable RAM below 1 MiB, mapped, and nobody else's: the frame
    // allocator never has it. The code is shorter than a page.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), page as *mut u8, code.len()) };
    for &id in apic_ids.iter().filter(|&&id| id != own) {
        if cores >= max_cores.min(cpu::MAX_CORES) {
            break;
        }
        // The xAPIC's ids have eight bits, of which the last means all.
        if id < 0xff && start_one(id, cores, page) {
            cores += 1;
        } else {
            log::warn!("the processor with APIC id {id} does not start");
        }
    }
    // The naps' timer interrupts.
    irq::take_pending(cpu::core());
    cores
}

/// Waits until `done` holds, or until `ns` have passed, and says whether it
/// holds. Sleeps in short naps: an emulator that takes turns between
/// processors lets the others run meanwhile, and bounds a turn by the timer.
fn wait(ns: u64, done: impl Fn() -> bool) -> bool {
    let end = time::now_ns().saturating_add(ns);
    loop {
        let now = time::now_ns();
        if done() || now >= end {
            apic::disarm_timer();
            return done();
        }
        apic::arm_timer(end.min(now + NAP_NS));
        cpu::idle();
    }
}

fn start_one(apic_id: u32, core: usize, page: u64) -> bool {
    let Some(cpu) = cpu::get(core) else { return false };
    // A failed start leaves the stacks mapped; the next attempt for this
    // number maps new ones over them.
    AP_STACK.store(paging::add_stacks(core), Ordering::Relaxed);
    AP_TICKET.store(core as u32 + 1, Ordering::Release);
    let before = time::tsc();
    apic::send_init(apic_id);
    wait(INIT_NS, || false);
    apic::send_startup(apic_id, page);
    if !wait(STARTUP_NS, || AP_TICKET.load(Ordering::Acquire) == 0) {
        apic::send_startup(apic_id, page);
    }
    if !wait(DEADLINE_NS, || cpu.online()) {
        // Back to sleep with it, before it can take another's ticket or stack.
        apic::send_init(apic_id);
        AP_TICKET.store(0, Ordering::Release);
        return false;
    }
    let seen = AP_TSC.load(Ordering::Relaxed);
    if !(before..=time::tsc()).contains(&seen) {
        log::warn!("core {core}: its TSC differs from core 0's");
    }
    true
}

/// Lets the application processors go on into [`crate::start::run`].
pub fn release() {
    RELEASED.store(true, Ordering::Release);
    for core in 1..cpu::MAX_CORES {
        apic::send_kick(core);
    }
}

/// First Rust code of an application processor, on its main stack.
#[unsafe(no_mangle)]
extern "C" fn ap_entry(core: u32) -> ! {
    AP_TSC.store(time::tsc(), Ordering::Relaxed);
    cpu::init(core as usize);
    apic::init();
    cpu::this().set_online();
    while !RELEASED.load(Ordering::Acquire) {
        cpu::idle();
    }
    crate::start::run(core as usize)
}
