//! Instructions that reach past the domain: model-specific registers, I/O
//! ports, control and debug registers, SVM, caches, power.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::{arch::asm, fmt};

use attacks::sweep;
use ring_proto::boot::BootInfo;

domain_rt::entry!(main);

/// Registers of the APIC, the clock, memory types, debugging, SVM, system calls, performance,
/// and numbers outside of all maps.
const MSRS: [u32; 30] = [
    0x0,
    0x10,
    0x1b,
    0x48,
    0x49,
    0x8b,
    0xc1,
    0xfe,
    0x174,
    0x179,
    0x17a,
    0x1d9,
    0x200,
    0x277,
    0x2ff,
    0x38f,
    0x400,
    0x6e0,
    0x830,
    0x1fff,
    0x4000_0000,
    0xc000_0080,
    0xc000_0082,
    0xc000_0100,
    0xc000_0103,
    0xc001_0010,
    0xc001_0114,
    0xc001_0117,
    0xc001_1fff,
    0xffff_ffff,
];

/// Interrupt controllers, timers, keyboard (reset), clock, DMA, PCI, firmware's channels, UARTs,
/// power, and the port by which the machine ends.
const PORTS: [u16; 24] = [
    0x0, 0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xa1, 0xb2, 0xf4, 0x2f8,
    0x2ff, 0x3f8, 0x510, 0x604, 0xcf8, 0xcf9, 0xcfc, 0xffff,
];

#[derive(Clone, Copy)]
enum Case {
    ReadMsr(u32),
    WriteMsr(u32),
    In(u16),
    Out(u16),
    Other(&'static str, fn()),
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadMsr(msr) => write!(f, "rdmsr {msr:#x}"),
            Self::WriteMsr(msr) => write!(f, "wrmsr {msr:#x}"),
            Self::In(port) => write!(f, "in {port:#x}"),
            Self::Out(port) => write!(f, "out {port:#x}"),
            Self::Other(name, _) => f.write_str(name),
        }
    }
}

/// A case that is one instruction, or a few.
macro_rules! other {
    ($name:literal, $($code:tt)*) => {
        Case::Other($name, || {
            // SAFETY: it ends this generation, or is reported.
            unsafe { asm!($($code)*, options(nostack)) }
        })
    };
}

/// A frame of the domain's own that would be taken for a VMCB, and its address
/// for that of a frame of the machine.
#[repr(align(4096))]
struct Frame([u8; 4096]);
static VMCB: Frame = Frame([0; 4096]);

const OTHERS: &[Case] = &[
    other!("hlt", "cli", "hlt"),
    other!("invd", "invd"),
    other!("wbinvd", "wbinvd"),
    other!("rdpmc", "rdpmc", out("eax") _, out("edx") _, in("ecx") 0),
    other!("monitor", "monitor", in("rax") 0x1000_0000u64, in("ecx") 0, in("edx") 0),
    other!("mwait", "mwait", in("eax") 0, in("ecx") 0),
    other!("xsetbv", "xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0),
    other!("cr4 osxsave", "mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", out(reg) _),
    other!("cr4 vme", "mov {0}, cr4", "or {0}, 1", "mov cr4, {0}", out(reg) _),
    other!("cr4 smep smap", "mov {0}, cr4", "or {0}, 0x300000", "mov cr4, {0}", out(reg) _),
    other!("cr4 zero", "xor {0:e}, {0:e}", "mov cr4, {0}", out(reg) _),
    other!("cr0 real mode", "mov {0}, cr0", "btr {0}, 31", "btr {0}, 0", "mov cr0, {0}", out(reg) _),
    other!("dr0 write", "mov dr0, {0}", in(reg) 0x20_0000u64),
    other!("dr6 read", "mov {0}, dr6", out(reg) _),
    other!("dr7 write", "mov dr7, {0}", in(reg) 0x403u64),
    other!("int1", ".byte 0xf1"),
    other!("vmrun", "vmrun rax", in("rax") VMCB.0.as_ptr() as u64),
    other!("vmrun low", "vmrun rax", in("rax") 0x1000u64),
    other!("vmload", "vmload rax", in("rax") VMCB.0.as_ptr() as u64),
    other!("vmload low", "vmload rax", in("rax") 0x1000u64),
    other!("vmsave", "vmsave rax", in("rax") VMCB.0.as_ptr() as u64),
    other!("vmsave low", "vmsave rax", in("rax") 0x20_0000u64),
    other!("stgi", "stgi"),
    other!("clgi", "clgi"),
    other!("skinit", ".byte 0x0f, 0x01, 0xde", in("eax") 0),
    other!("invlpga", "invlpga rax, ecx", in("rax") 0, in("ecx") 0),
    other!("vmcall", ".byte 0x0f, 0x01, 0xc1"),
    other!("rsm", ".byte 0x0f, 0xaa"),
    other!("cr3 wild", "mov cr3, {0}", "mov {0}, [0]", inout(reg) 0xfee0_0000u64 => _),
    other!("triple fault", "lidt [{0}]", "int3", in(reg) VMCB.0.as_ptr() as u64),
];

fn main(_: &'static BootInfo) -> ! {
    let (msrs, ports) = (2 * MSRS.len(), 2 * PORTS.len());
    let case = |number: usize| match number {
        n if n < msrs && n % 2 == 0 => Case::ReadMsr(MSRS[n / 2]),
        n if n < msrs => Case::WriteMsr(MSRS[n / 2]),
        n if n < msrs + ports && n % 2 == 0 => Case::In(PORTS[(n - msrs) / 2]),
        n if n < msrs + ports => Case::Out(PORTS[(n - msrs) / 2]),
        n => OTHERS[n - msrs - ports],
    };
    sweep::run("privileged", msrs + ports + OTHERS.len(), |number, announce| {
        let case = case(number);
        announce(&case);
        // SAFETY: each ends this generation, or is reported. What they would
        // change belongs to nobody in this domain.
        unsafe {
            match case {
                Case::ReadMsr(msr) => {
                    asm!("rdmsr", in("ecx") msr, out("eax") _, out("edx") _, options(nostack));
                }
                Case::WriteMsr(msr) => {
                    asm!("wrmsr", in("ecx") msr, in("eax") 0, in("edx") 0, options(nostack));
                }
                Case::In(port) => asm!("in al, dx", in("dx") port, out("al") _, options(nostack)),
                // The value that resets the machine at some of these ports.
                Case::Out(port) => {
                    asm!("out dx, al", in("dx") port, in("al") 0xfeu8, options(nostack))
                }
                Case::Other(_, make) => make(),
            }
        }
    })
}
