//! One core: its private data, its tables, and the few places at which it
//! takes interrupts.
//!
//! The hypervisor runs with interrupts disabled. They are taken inside
//! [`interrupt_window`] and [`idle`] only, and by leaving a guest.
#![allow(unsafe_code)]

pub mod exception;
pub mod features;
pub mod stack;
mod tables;

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

/// Most cores that a node uses; others stay parked.
pub const MAX_CORES: usize = 8;

const IA32_GS_BASE: u32 = 0xc000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// A core's private data; its address is the core's GS base. The interrupt
/// stubs write here, so other cores may only read.
#[repr(C, align(64))]
pub struct PerCpu {
    /// Core number.
    core: AtomicU32,
    /// Local APIC id.
    apic_id: AtomicU32,
    /// Address of the local APIC's EOI register.
    pub(crate) eoi: AtomicU64,
    /// Vectors that arrived and were not taken yet.
    pub(crate) pending: [AtomicU64; 4],
    /// Up, with tables and local APIC.
    online: AtomicBool,
}

pub(crate) const OFFSET_EOI: usize = offset_of!(PerCpu, eoi);
pub(crate) const OFFSET_PENDING: usize = offset_of!(PerCpu, pending);

static CPUS: [PerCpu; MAX_CORES] = [const {
    PerCpu {
        core: AtomicU32::new(0),
        apic_id: AtomicU32::new(0),
        eoi: AtomicU64::new(0),
        pending: [const { AtomicU64::new(0) }; 4],
        online: AtomicBool::new(false),
    }
}; MAX_CORES];

/// The data of core `core`, if there can be such a core.
pub fn get(core: usize) -> Option<&'static PerCpu> {
    CPUS.get(core)
}

/// The data of this core.
#[expect(clippy::indexing_slicing, reason = "the mask keeps it below MAX_CORES")]
pub fn this() -> &'static PerCpu {
    &CPUS[core() & (MAX_CORES - 1)]
}

const _: () = assert!(MAX_CORES.is_power_of_two());

/// Number of the core that runs this.
#[inline]
pub fn core() -> usize {
    let core: u32;
    // SAFETY: `init` pointed GS at this core's `PerCpu` before anything asks.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) core, const offset_of!(PerCpu, core),
            options(nostack, preserves_flags, readonly));
    }
    core as usize
}

impl PerCpu {
    /// Makes it known as up; to be called by itself.
    pub(crate) fn set_online(&self) {
        self.online.store(true, Ordering::Release);
    }

    /// Its local APIC's id.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Whether it came up.
    pub fn online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }
}

/// An FXSAVE image.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Fpu([u64; 64]);

impl Fpu {
    /// What a program finds at its start (SysV ABI 3.4.1).
    pub const CLEAN: Self = {
        let mut image = [0; 64];
        (image[0], image[3]) = (0x37f, 0x1f80);
        Self(image)
    };

    /// Whether x87 is as in [`Self::CLEAN`]; SSE may differ.
    pub fn is_x87_clean(&self) -> bool {
        let [control, rip, rdp, _, registers @ ..] = &self.0;
        // Without a branch for each: this is asked at every entry.
        let any = registers.iter().take(16).fold(rip | rdp, |any, register| any | register);
        (*control, any) == (0x37f, 0)
    }
}

/// Clears this core's FPU.
pub fn reset_fpu() {
    // SAFETY: a valid image, with the modes that Rust code expects.
    unsafe { asm!("fxrstor64 [{}]", in(reg) &Fpu::CLEAN, clobber_abi("C"), options(nostack)) };
}

/// Sets up this core's tables, control registers and GS. Its stacks must be
/// mapped. Ends the time in which an exception is a triple fault.
#[expect(clippy::indexing_slicing, reason = "boot only: no core beyond MAX_CORES is started")]
pub fn init(core: usize) {
    let cpu = &CPUS[core];
    let id = core::arch::x86_64::__cpuid(1).ebx >> 24;
    cpu.core.store(u32::try_from(core).unwrap_or(0), Ordering::Relaxed);
    cpu.apic_id.store(id, Ordering::Relaxed);
    tables::load(core);
    reset_fpu();

    let mut cr4 = Cr4Flags::PAGE_GLOBAL | Cr4Flags::MACHINE_CHECK_EXCEPTION;
    let features = features::get();
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.smep);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.smap);
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.umip);
    let base = core::ptr::from_ref(cpu) as u64;
    // SAFETY: the new control bits only forbid or speed up; there is no user
    // code and nothing else uses GS.
    unsafe {
        Cr4::write(Cr4::read() | cr4);
        Msr::new(IA32_GS_BASE).write(base);
        Msr::new(IA32_KERNEL_GS_BASE).write(base);
    }
}

/// Takes the interrupts that are pending now.
#[inline]
pub fn interrupt_window() {
    // SAFETY: every vector has a stack of its own and a handler that only
    // notes its number. STI delays by one instruction, hence the NOP.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// Sleeps until an interrupt was taken. Call with interrupts disabled, after a
/// look at everything that could be pending: an interrupt that comes after the
/// look wakes the core, since STI lets none in before the HLT.
#[inline]
pub fn idle() {
    // SAFETY: as in `interrupt_window`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Stops this core for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing runs on this core any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
