//! What is known about a death.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::hypercall::numbered;

/// Frames of a backtrace.
pub const BACKTRACE: usize = 16;

numbered! {
    /// Why a generation ended.
    pub enum Reason: u32 {
        /// Still alive, or never started.
        None = 0,
        /// A Rust panic, reported by the domain.
        Panic = 1,
        /// A CPU exception, reported by the domain's own handler.
        Exception = 2,
        /// An access that the nested page tables forbid.
        NestedFault = 3,
        /// Shutdown (triple fault).
        Shutdown = 4,
        /// It did not call `wait` within its watchdog bound.
        Watchdog = 5,
        /// An instruction or exit that domains may not cause.
        Forbidden = 6,
        /// The IOMMU saw a forbidden access by its device.
        IommuFault = 7,
        /// The operator or supervisor ended it.
        Operator = 8,
        /// It called `exit`.
        Exit = 9,
    }
}

/// What a dying domain reports of itself with the `crash` hypercall.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CrashReport {
    /// [`Reason::Panic`] or [`Reason::Exception`].
    pub reason: u32,
    /// Exception vector, for exceptions.
    pub vector: u32,
    /// Exception error code.
    pub error_code: u64,
    /// Instruction at fault (exceptions) or of the panic.
    pub rip: u64,
    /// Stack pointer there.
    pub rsp: u64,
    /// CR2, for page faults.
    pub cr2: u64,
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8–R15 where known.
    pub registers: [u64; 15],
    /// Return addresses, innermost first, 0-terminated.
    pub backtrace: [u64; BACKTRACE],
    /// Panic message and place, NUL-padded UTF-8.
    pub message: [u8; 192],
}

/// A death as the hypervisor recorded it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CrashRecord {
    /// Counts all deaths of the node, from 0.
    pub sequence: u64,
    /// When it was detected, ns on the node's clock.
    pub detected_ns: u64,
    /// When its device and grants were out of its reach.
    pub quiesced_ns: u64,
    /// When the next generation was entered; 0 = not yet.
    pub restarted_ns: u64,
    /// When the next generation declared itself ready; 0 = not yet.
    pub ready_ns: u64,
    /// For nested faults: the guest-physical address. For IOMMU faults: the address that the
    /// device used.
    pub fault_address: u64,
    /// The hypervisor's exit code (EXITCODE) that showed the death, if any.
    pub exit_code: u64,
    /// Domain.
    pub domain: u16,
    /// Padding.
    pub reserved: u16,
    /// Generation that died.
    pub generation: u32,
    /// What the domain reported or the hypervisor found in its registers and stack.
    pub report: CrashReport,
}
