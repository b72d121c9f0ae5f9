//! The node's clock: the TSC, measured once against the ACPI timer.
//!
//! ns = ((tsc − base) × mult) >> 32, the same on all cores and in all domains.
#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "64-bit factors in 128 bits; the clock runs for 584 years"
)]

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use crate::{acpi::PmTimer, apic};

/// Ticks of the ACPI timer per second.
const PM_HZ: u64 = 3_579_545;
/// ns that the measurement takes.
const WINDOW_NS: u64 = 2_000_000;
/// Of how many readings the quickest is taken, at each end of the window.
const READINGS: u32 = 8;
/// Looks at a reference that does not move before it counts as broken.
const POLLS: u32 = 10_000_000;

static BASE: AtomicU64 = AtomicU64::new(0);
static MULT: AtomicU64 = AtomicU64::new(1 << 32);

/// The time stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC has no effect and is never disabled for the hypervisor.
    unsafe { _rdtsc() }
}

/// Sets time 0 to now. Before [`calibrate`], a tick passes for a nanosecond.
pub fn start() {
    BASE.store(tsc(), Ordering::Relaxed);
}

/// TSC at time 0.
pub fn tsc_base() -> u64 {
    BASE.load(Ordering::Relaxed)
}

/// ns per tick, 32.32 fixed point.
pub fn tsc_mult() -> u64 {
    MULT.load(Ordering::Relaxed)
}

/// The node's clock, ns.
#[inline]
pub fn now_ns() -> u64 {
    let ticks = tsc().saturating_sub(tsc_base());
    ((u128::from(ticks) * u128::from(tsc_mult())) >> 32) as u64
}

/// The quickest of some readings, which is the least disturbed by
/// interruptions from below: the TSC when it was taken, and its value.
pub fn reading(mut read: impl FnMut() -> u32) -> (u64, u32) {
    let mut best = (u64::MAX, (0, 0));
    for _ in 0..READINGS {
        let before = tsc();
        let value = read();
        let took = tsc().wrapping_sub(before);
        if took < best.0 {
            best = (took, (before.wrapping_add(took / 2), value));
        }
    }
    best.1
}

/// Measures the rates of the TSC and of this core's local APIC timer, in about
/// 2 ms, against the ACPI timer `pm`. `None` where there is none, or it stands
/// still.
pub fn calibrate(pm: Option<PmTimer>) -> Option<()> {
    apic::calibrate(|| {
        let (ticks, ns) = pm_window(pm?)?;
        let mult = (u128::from(ns) << 32) / u128::from(ticks.max(1));
        MULT.store(u64::try_from(mult).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        Some(())
    })
}

/// (TSC ticks, ns) of a window on the ACPI timer.
fn pm_window(pm: PmTimer) -> Option<(u64, u64)> {
    let mask = if pm.wide { u32::MAX } else { 0x00ff_ffff };
    let mut timer = Port::<u32>::new(pm.port);
    // SAFETY: the firmware says that the ACPI timer is there; reading it has
    // no effect.
    let mut read = || unsafe { timer.read() } & mask;
    let want = (WINDOW_NS * PM_HZ / 1_000_000_000) as u32;
    let start = reading(&mut read);
    let mut polls = 0;
    while read().wrapping_sub(start.1) & mask < want {
        polls += 1;
        // A timer that stands still, or reads as all ones, shows itself soon.
        if polls == POLLS || (polls == 1000 && read() == start.1) {
            return None;
        }
    }
    let end = reading(&mut read);
    let ticks = u64::from(end.1.wrapping_sub(start.1) & mask);
    Some((end.0.wrapping_sub(start.0), ticks * 1_000_000_000 / PM_HZ))
}
