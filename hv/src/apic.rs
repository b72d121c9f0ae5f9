//! The local APIC, by its memory-mapped registers (xAPIC).
//!
//! Everything goes through `read` and `write` here, so x2APIC (where the
//! registers are MSRs) has one place to go; the EOI in the interrupt stub is
//! the only other access.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "register addresses, and 64-bit factors in 128 bits"
)]

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::registers::model_specific::Msr;

use crate::{cpu, irq, time};

const IA32_APIC_BASE: u32 = 0x1b;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const ERROR_STATUS: u64 = 0x280;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_THERMAL: u64 = 0x330;
const LVT_COUNTERS: u64 = 0x340;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

const COMMAND_PENDING: u32 = 1 << 12;
const COMMAND_ASSERT: u32 = 1 << 14;
const COMMAND_LEVEL: u32 = 1 << 15;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_STARTUP: u32 = 6 << 8;
const ALL_BUT_SELF: u32 = 3 << 18;

/// Looks at a pending command before it counts as stuck.
const COMMAND_POLLS: u32 = 1_000_000;

/// Address of the registers, the same on all cores; 0 = not set up.
static BASE: AtomicU64 = AtomicU64::new(0);
/// Timer ticks per ns, 32.32 fixed point.
static TIMER_RATE: AtomicU64 = AtomicU64::new(0);

fn read(register: u64) -> u32 {
    // SAFETY: `init` stored the address of mapped registers, all 32 bits wide.
    unsafe { ((BASE.load(Ordering::Relaxed) + register) as *const u32).read_volatile() }
}

fn write(register: u64, value: u32) {
    // SAFETY: likewise; the local APIC belongs to the hypervisor.
    unsafe { ((BASE.load(Ordering::Relaxed) + register) as *mut u32).write_volatile(value) }
}

/// Enables this core's local APIC with everything masked.
///
/// # Panics
/// Where the firmware left it in x2APIC mode, from which there is no way back
/// without a reset.
pub fn init() {
    // SAFETY: every processor with SVM has this MSR; setting the enable bit
    // changes nothing else.
    let base = unsafe {
        let mut msr = Msr::new(IA32_APIC_BASE);
        let value = msr.read();
        assert!(value & BASE_X2APIC == 0, "the firmware left the local APIC in x2APIC mode");
        msr.write(value | BASE_ENABLE);
        value & BASE_ADDRESS
    };
    BASE.store(base, Ordering::Relaxed);
    cpu::this().eoi.store(base + EOI, Ordering::Relaxed);
    for lvt in [LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_ERROR] {
        write(lvt, MASKED);
    }
    write(LVT_LINT1, LVT_NMI);
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(irq::SPURIOUS));
    write(ERROR_STATUS, 0);
    write(DIVIDE, DIVIDE_BY_1);
    write(INITIAL_COUNT, 0);
    // Software-enabled now, so the mask can go.
    write(LVT_TIMER, u32::from(irq::TIMER));
}

/// Whether [`init`] ran on some core.
pub fn ready() -> bool {
    BASE.load(Ordering::Relaxed) != 0
}

/// This core's local APIC id.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Measures the timer's rate by the TSC, whose rate is known after `window`.
/// `None` if that fails.
pub(crate) fn calibrate(window: impl FnOnce() -> Option<()>) -> Option<()> {
    write(LVT_TIMER, MASKED);
    write(INITIAL_COUNT, u32::MAX);
    let (from, most) = time::reading(|| read(CURRENT_COUNT));
    window()?;
    let (to, least) = time::reading(|| read(CURRENT_COUNT));
    let tsc = u128::from(to.wrapping_sub(from));
    // ticks per ns = ticks / (tsc × mult), all in 32.32.
    let ticks = u128::from(most.wrapping_sub(least));
    let rate = (ticks << 64) / (tsc * u128::from(time::tsc_mult())).max(1);
    TIMER_RATE.store(u64::try_from(rate).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    write(INITIAL_COUNT, 0);
    write(LVT_TIMER, u32::from(irq::TIMER));
    Some(())
}

/// The timer's ticks per ns, 32.32 fixed point.
pub fn timer_rate() -> u64 {
    TIMER_RATE.load(Ordering::Relaxed)
}

/// Has this core interrupted at vector [`irq::TIMER`] when the node's clock
/// reaches `deadline_ns`. Replaces an earlier deadline; one in the past comes
/// at once. One that is farther away than the counter reaches (some seconds)
/// comes early, so who waits for a time looks at the clock and arms again.
pub fn arm_timer(deadline_ns: u64) {
    let ns = deadline_ns.saturating_sub(time::now_ns());
    let ticks = (u128::from(ns) * u128::from(timer_rate())) >> 32;
    // One more, so that it never comes before the deadline. Zero would disarm.
    write(INITIAL_COUNT, u32::try_from(ticks + 1).unwrap_or(u32::MAX));
}

/// Takes back what [`arm_timer`] set. An interrupt that is already pending
/// still comes.
pub fn disarm_timer() {
    write(INITIAL_COUNT, 0);
}

fn command(apic_id: u32, low: u32) {
    write(COMMAND_HIGH, apic_id << 24);
    write(COMMAND, low);
    let mut polls = 0;
    while read(COMMAND) & COMMAND_PENDING != 0 && polls < COMMAND_POLLS {
        core::hint::spin_loop();
        polls += 1;
    }
}

/// Has core `core` leave its guest or its sleep, at vector [`irq::KICK`].
pub fn send_kick(core: usize) {
    if let Some(cpu) = cpu::get(core).filter(|cpu| cpu.online()) {
        command(cpu.apic_id(), COMMAND_ASSERT | u32::from(irq::KICK));
    }
}

/// Sends every other core a non-maskable interrupt.
pub(crate) fn send_nmi_to_others() {
    command(0, ALL_BUT_SELF | COMMAND_ASSERT | DELIVER_NMI);
}

/// Resets a processor to where it waits for a startup message.
pub(crate) fn send_init(apic_id: u32) {
    command(apic_id, COMMAND_LEVEL | COMMAND_ASSERT | DELIVER_INIT);
    command(apic_id, COMMAND_LEVEL | DELIVER_INIT);
}

/// Starts a processor at the page at `address`.
pub(crate) fn send_startup(apic_id: u32, address: u64) {
    command(apic_id, COMMAND_ASSERT | DELIVER_STARTUP | (address >> 12) as u32 & 0xff);
}
