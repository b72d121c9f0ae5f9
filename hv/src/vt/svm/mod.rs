//! AMD SVM (APM vol. 2, chapter 15).

#![allow(unsafe_code)]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "registers cut to what CPUID reads; addresses of our own maps"
)]

mod enter;
mod vmcb;

use core::{
    arch::x86_64::__cpuid_count,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use ring_proto::{crash::CrashReport, layout};
use vmcb::{Segment, Vmcb, exit};
use x86_64::registers::{
    control::{Efer, EferFlags},
    model_specific::Msr,
};

use super::{Exit, Vcpu};
use crate::{cpu, memmap};
use log::info;

/// Guest registers that VMRUN does not switch, and the FPU.
#[derive(Debug)]
#[repr(C, align(64))]
struct Registers {
    /// RBX, RCX, RDX, RSI, RDI, RBP, R8–R15.
    gpr: [u64; 14],
    _pad: [u64; 2],
    fpu: cpu::Fpu,
}

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const PRED_CMD: u32 = 0x49;
const PRED_CMD_IBPB: u64 = 1;

const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 3;
const RDI: usize = 4;
const RBP: usize = 5;
const R8: usize = 6;

/// Entries to a guest that flushed its translations, since emulators keep none
/// and so hide a flush that is missing.
pub static FLUSHES: AtomicU64 = AtomicU64::new(0);
/// Whether [`forget_branches`] does anything.
static BARRIER: AtomicBool = AtomicBool::new(false);

/// Keeps what one domain taught the branch predictors from the next, where the
/// CPU offers it (IBPB; APM vol. 2, 3.2.9). To be called between two domains.
pub fn forget_branches() {
    if BARRIER.load(Ordering::Relaxed) {
        // SAFETY: `prepare` found that the CPU has the command, which only forgets.
        unsafe { Msr::new(PRED_CMD).write(PRED_CMD_IBPB) };
    }
}

/// Shared by all vCPUs: permission maps.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    iopm_none: u64,
    iopm_uart: u64,
    msrpm: u64,
}

impl Maps {
    /// Allocates the I/O and MSR permission maps: everything intercepted, but
    /// for ports 0x2f8–0x2ff in the map for the owner of the control UART. MSRs
    /// that the map has no bits for are intercepted always (APM vol. 2, 15.11),
    /// and so is an access that begins or ends at another port (15.10.1).
    pub fn new() -> Option<Self> {
        let iopm_none = memmap::alloc_frames(3, 4096)?;
        let iopm_uart = memmap::alloc_frames(3, 4096)?;
        let msrpm = memmap::alloc_frames(2, 4096)?;
        for (address, pages) in [(iopm_none, 3), (iopm_uart, 3), (msrpm, 2)] {
            // SAFETY: freshly allocated frames, identity mapped, nobody else's.
            unsafe { core::ptr::write_bytes(address as *mut u8, 0xff, pages * 4096) };
        }
        // SAFETY: inside the map allocated above; 0x2f8 / 8 = 0x5f.
        unsafe { ((iopm_uart + 0x5f) as *mut u8).write(0) };
        Some(Self { iopm_none, iopm_uart, msrpm })
    }
}

/// Where VMRUN keeps the host's state, by core; 0 = not prepared.
static SAVE_AREAS: [AtomicU64; cpu::MAX_CORES] = [const { AtomicU64::new(0) }; cpu::MAX_CORES];

/// Checks that the CPU can do it, and allocates what the cores need.
///
/// # Errors
/// A sentence for people.
pub fn prepare(cores: usize) -> Result<(), &'static str> {
    let features = cpu::features::get();
    for (there, why) in [
        (features.svm, "this CPU has no AMD SVM (with QEMU: -cpu EPYC or -cpu max)"),
        (features.nested_paging, "this CPU has no nested paging"),
        (features.gib_pages, "this CPU has no 1 GiB pages, which domains' page tables use"),
    ] {
        there.then_some(()).ok_or(why)?;
    }
    let barrier = features.ibpb && memmap::boot().option("ibpb") != Some("off");
    BARRIER.store(barrier, Ordering::Relaxed);
    info!("branch prediction barrier between domains: {}", if barrier { "on" } else { "off" });
    // SAFETY: reading VM_CR is allowed where CPUID offers SVM.
    if unsafe { Msr::new(VM_CR).read() } & VM_CR_SVMDIS != 0 {
        return Err("SVM is disabled by the firmware");
    }
    for area in SAVE_AREAS.iter().take(cores) {
        area.store(
            memmap::alloc_frames(1, 4096).ok_or("no memory for host save areas")?,
            Ordering::Release,
        );
    }
    Ok(())
}

/// Turns SVM on for this core, after [`prepare`].
pub fn enable_on_this_core() {
    let Some(area) = SAVE_AREAS.get(cpu::core()) else { return };
    // SAFETY: `prepare` found SVM; the save area is a frame of this core's own.
    unsafe {
        Efer::update(|f| {
            f.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE | EferFlags::NO_EXECUTE_ENABLE)
        });
        Msr::new(VM_HSAVE_PA).write(area.load(Ordering::Acquire));
    }
}

/// A vCPU under SVM.
#[derive(Debug)]
pub struct SvmVcpu {
    vmcb: &'static mut Vmcb,
    regs: &'static mut Registers,
    /// Where this vCPU's host state goes during a run.
    host_vmcb: u64,
    nested_root: u64,
    iopm: u64,
    msrpm: u64,
    flush: bool,
    /// It used x87. Else x87 is clean, as the hypervisor keeps it on every core.
    x87: bool,
}

impl SvmVcpu {
    /// A vCPU with nested tables at `nested_root`. `asid` is from 1 and
    /// belongs to this vCPU alone. `None` if memory is short.
    pub fn new(nested_root: u64, asid: u32, maps: Maps, uart: bool) -> Option<Self> {
        let vmcb = memmap::alloc_frames(1, 4096)?;
        let regs = memmap::alloc_frames(1, 4096)?;
        let host_vmcb = memmap::alloc_frames(1, 4096)?;
        // SAFETY: zeroed frames of our own, page aligned, identity mapped; all
        // zeroes is a valid value of both types.
        let (vmcb, regs) = unsafe { (&mut *(vmcb as *mut Vmcb), &mut *(regs as *mut Registers)) };
        vmcb.asid = asid;
        let Maps { iopm_none, iopm_uart, msrpm } = maps;
        let iopm = if uart { iopm_uart } else { iopm_none };
        Some(Self { vmcb, regs, host_vmcb, nested_root, iopm, msrpm, flush: true, x87: false })
    }

    /// Length of the instruction that exited, for those we skip.
    fn skip(&mut self, len: u64) {
        self.vmcb.rip = match self.vmcb.next_rip {
            // This CPU does not say.
            0 => self.vmcb.rip.wrapping_add(len),
            next => next,
        };
    }

    fn cpuid(&mut self) {
        const SVM: u32 = 1 << 2;
        const OSXSAVE_AVX_F16C_XSAVE: u32 = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
        const FMA: u32 = 1 << 12;
        const MONITOR: u32 = 1 << 3;
        const X2APIC_DEADLINE: u32 = 1 << 21 | 1 << 24;
        const HYPERVISOR: u32 = 1 << 31;
        let leaf = self.vmcb.rax as u32;
        let subleaf = self.regs.gpr[RCX] as u32;
        let mut r = __cpuid_count(leaf, subleaf);
        match leaf {
            1 => {
                r.ecx &= !(OSXSAVE_AVX_F16C_XSAVE | FMA | MONITOR | X2APIC_DEADLINE);
                r.ecx |= HYPERVISOR;
            }
            // AVX2 and later, and everything that would need a CR4 bit.
            7 => (r.ebx, r.ecx, r.edx) = (r.ebx & (1 << 9), 0, 0),
            0xd | 0x4000_0000..=0x4fff_ffff => (r.eax, r.ebx, r.ecx, r.edx) = (0, 0, 0, 0),
            0x8000_0001 => r.ecx &= !SVM,
            0x8000_000a => (r.eax, r.ebx, r.ecx, r.edx) = (0, 0, 0, 0),
            _ => {}
        }
        self.vmcb.rax = r.eax.into();
        self.regs.gpr[0] = r.ebx.into();
        self.regs.gpr[RCX] = r.ecx.into();
        self.regs.gpr[RDX] = r.edx.into();
        self.skip(2);
    }
}

impl Vcpu for SvmVcpu {
    fn reset(&mut self, entry: u64) {
        const NESTED_PAGING: u64 = 1;
        const V_INTR_MASKING: u64 = 1 << 24;
        const CR0_PE_MP_ET_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
        const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 1 << 5 | 1 << 9 | 1 << 10;
        const EFER_LME_LMA_NXE_SVME: u64 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12;
        const DEFAULT_PAT: u64 = 0x0007_0406_0007_0406;
        let asid = self.vmcb.asid;
        // SAFETY: all zeroes is a valid Vmcb, and this vCPU does not run now.
        unsafe { core::ptr::write_bytes(&raw mut *self.vmcb, 0, 1) };
        let v = &mut *self.vmcb;
        v.intercept_cr_write = vmcb::CR_WRITES;
        // Debug registers would outlive a switch to another domain.
        v.intercept_dr = u32::MAX;
        v.intercept_misc1 = vmcb::MISC1;
        v.intercept_misc2 = vmcb::MISC2;
        v.intercept_misc3 = vmcb::MISC3;
        v.intercept_exceptions = vmcb::EXCEPTIONS;
        v.iopm_base = self.iopm;
        v.msrpm_base = self.msrpm;
        v.asid = asid;
        v.interrupt_control = V_INTR_MASKING;
        v.nested_control = NESTED_PAGING;
        v.nested_cr3 = self.nested_root;
        let data = Segment { selector: 0x10, attributes: 0xc93, limit: u32::MAX, base: 0 };
        (v.ds, v.es, v.fs, v.gs, v.ss) = (data, data, data, data, data);
        v.cs = Segment { selector: 8, attributes: 0xa9b, limit: u32::MAX, base: 0 };
        v.tr = Segment { selector: 0, attributes: 0x8b, limit: 0xffff, base: 0 };
        v.ldtr = Segment { selector: 0, attributes: 0x82, limit: 0xffff, base: 0 };
        v.efer = EFER_LME_LMA_NXE_SVME;
        v.cr0 = CR0_PE_MP_ET_NE_WP_PG;
        v.cr3 = layout::PAGE_TABLES;
        v.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT;
        v.dr6 = 0xffff_0ff0;
        v.dr7 = 0x400;
        v.rflags = 2;
        v.rip = entry;
        v.pat = DEFAULT_PAT;
        self.regs.gpr = [0; 14];
        self.regs.gpr[RDI] = layout::BOOT_INFO;
        self.regs.fpu = cpu::Fpu::CLEAN;
        self.x87 = false;
        self.flush = true;
    }

    fn run(&mut self) -> Exit {
        const FLUSH_ALL: u32 = 1;
        const FLUSH_THIS_ASID: u32 = 3;
        self.vmcb.tlb_control = match (self.flush, cpu::features::get().flush_by_asid) {
            (false, _) => 0,
            (true, true) => FLUSH_THIS_ASID,
            (true, false) => FLUSH_ALL,
        };
        if core::mem::take(&mut self.flush) {
            FLUSHES.fetch_add(1, Ordering::Relaxed);
        }
        self.vmcb.clean = 0;
        // SAFETY: VMCB, register area and host area are this vCPU's own, and it
        // runs on this core only; SVM is enabled before any vCPU is made to run.
        unsafe {
            enter::run(&raw mut *self.vmcb as u64, &raw mut *self.regs, self.host_vmcb, self.x87);
        }
        // Few domains use x87, so it is loaded and cleared for those alone. (QEMU 7.2 has more
        // than time to lose: FXRSTOR of one core writes flags of core 0 without a lock.)
        self.x87 = !self.regs.fpu.is_x87_clean();
        if self.x87 {
            cpu::reset_fpu();
        }
        match self.vmcb.exit_code {
            exit::VMMCALL => {
                self.skip(3);
                Exit::Hypercall
            }
            exit::INTR | exit::NMI => Exit::Interrupt,
            exit::NPF => Exit::NestedFault(self.vmcb.exit_info2),
            exit::CPUID => {
                self.cpuid();
                Exit::Resume
            }
            exit::SHUTDOWN => Exit::Shutdown,
            // As in the hypervisor's own code: nobody knows what is broken.
            exit::MACHINE_CHECK => panic!("machine check while a domain ran"),
            code => Exit::Forbidden(code),
        }
    }

    fn hypercall(&self) -> (u64, [u64; 5]) {
        let g = &self.regs.gpr;
        (self.vmcb.rax, [g[RDI], g[RSI], g[RDX], g[RCX], g[R8]])
    }

    fn set_result(&mut self, status: u64, value: u64) {
        self.vmcb.rax = status;
        self.regs.gpr[RDX] = value;
    }

    fn flush_tlb(&mut self) {
        self.flush = true;
    }

    fn describe(&self, report: &mut CrashReport) -> u64 {
        let v = &*self.vmcb;
        let g = &self.regs.gpr;
        report.rip = v.rip;
        report.rsp = v.rsp;
        report.cr2 = v.cr2;
        report.error_code = v.exit_info1;
        report.registers = [
            v.rax, g[0], g[RCX], g[RDX], g[RSI], g[RDI], g[RBP], g[R8], g[7], g[8], g[9], g[10],
            g[11], g[12], g[13],
        ];
        g[RBP]
    }
}
