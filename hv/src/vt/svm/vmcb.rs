//! The virtual machine control block (AMD APM vol. 2, appendix B).

/// A segment register in the state save area.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Segment {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// Offsets are checked below.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub intercept_cr_read: u16,
    pub intercept_cr_write: u16,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept_misc1: u32,
    pub intercept_misc2: u32,
    pub intercept_misc3: u32,
    _r0: [u8; 0x28],
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub interrupt_control: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_control: u64,
    _r1: [u8; 0x18],
    pub nested_cr3: u64,
    pub lbr_control: u64,
    pub clean: u64,
    pub next_rip: u64,
    _r2: [u8; 0x330],
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    _r3: [u8; 0x30],
    pub efer: u64,
    _r4: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    _r5: [u8; 0x58],
    pub rsp: u64,
    _r6: [u8; 0x18],
    pub rax: u64,
    _r7: [u8; 0x40],
    pub cr2: u64,
    _r8: [u8; 0x20],
    pub pat: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Vmcb, iopm_base) == 0x40);
    assert!(offset_of!(Vmcb, asid) == 0x58);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, nested_control) == 0x90);
    assert!(offset_of!(Vmcb, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, es) == 0x400);
    assert!(offset_of!(Vmcb, tr) == 0x490);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, pat) == 0x668);
    assert!(size_of::<Vmcb>() == 0x1000);
};

/// Intercept bits of `intercept_misc1`: everything that a domain has no
/// business with, and external interrupts.
pub const MISC1: u32 = {
    const INTR_NMI_SMI_INIT: u32 = 0xf;
    const RDPMC: u32 = 1 << 15;
    const CPUID_RSM: u32 = 3 << 18;
    const INVD: u32 = 1 << 22;
    const HLT: u32 = 1 << 24;
    const INVLPGA: u32 = 1 << 26;
    const IOIO_MSR: u32 = 3 << 27;
    const TASK_SWITCH_FERR_FREEZE: u32 = 3 << 29;
    const SHUTDOWN: u32 = 1 << 31;
    let instructions = RDPMC | CPUID_RSM | INVD | HLT | INVLPGA | IOIO_MSR;
    INTR_NMI_SMI_INIT | instructions | TASK_SWITCH_FERR_FREEZE | SHUTDOWN
};

/// Intercept bits of `intercept_misc2`: all of the SVM instructions, WBINVD,
/// MONITOR, MWAIT, XSETBV, RDPRU. RDTSCP is free: it reads the node's clock.
pub const MISC2: u32 = {
    const SVM_INSTRUCTIONS: u32 = 0x7f;
    const ICEBP: u32 = 1 << 8;
    const WBINVD: u32 = 1 << 9;
    const MONITOR_MWAIT: u32 = 7 << 10;
    const XSETBV: u32 = 1 << 13;
    const RDPRU: u32 = 1 << 14;
    SVM_INSTRUCTIONS | ICEBP | WBINVD | MONITOR_MWAIT | XSETBV | RDPRU
};

/// Intercept bits of `intercept_misc3`: INVLPGB, legal or not, INVPCID,
/// MCOMMIT, TLBSYNC.
pub const MISC3: u32 = 0x1f;

/// No domain writes a control register. CR4 above all: with OSXSAVE it could
/// set XCR0 on CPUs that do not intercept XSETBV (QEMU 7.2 is one), and what
/// XSAVE then keeps is not switched between domains.
pub const CR_WRITES: u16 = u16::MAX;

/// Intercepted exceptions. A domain that has the delivery of a #DB or an #AC
/// raise the same again would hold its core for ever, past all interrupts. A
/// machine check is the node's.
pub const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// Exit codes (APM vol. 2, appendix C).
pub mod exit {
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const MACHINE_CHECK: u64 = 0x52;
    pub const CPUID: u64 = 0x72;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMMCALL: u64 = 0x81;
    pub const NPF: u64 = 0x400;
}
