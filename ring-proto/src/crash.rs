//! What is known about a death.

use serde::{Deserialize, Serialize};
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
        /// It runs and does no work: it found so itself, or the supervisor did
        /// after a frontend's complaint.
        Stalled = 10,
        /// Its heap is used up, reported by the domain.
        Memory = 11,
    }
}

numbered! {
    /// How the next generation came about.
    pub enum Rebuild: u16 {
        /// There is none yet.
        None = 0,
        /// Its memory was restored after the death.
        Cold = 1,
        /// A warm spare took over.
        Spare = 2,
    }
}

numbered! {
    /// How the devices of a domain are reset before a life begins. The driver
    /// resets its device in any case.
    pub enum Reset: u16 {
        /// By the driver alone.
        Driver = 0,
        /// Function-level reset.
        Function = 1,
        /// Reset of the bus behind their port.
        Bus = 2,
        /// A device does not answer: there is no life, the domain is held.
        Gone = 3,
    }
}

/// Value of [`CrashRecord::in_flight`]: the domain did not say.
pub const UNKNOWN: u32 = u32::MAX;

/// When each step from a death to service was done, ns on the node's clock;
/// 0 = not yet, or it does not apply. Steps that others carry out meanwhile
/// (peers reconnect) may interleave with those that follow here.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Serialize,
    Deserialize,
)]
#[repr(C)]
pub struct Timeline {
    /// It stopped working: what it reported, of a hang its last `wait`. Never
    /// after `detected`; what a domain says is for people only.
    pub died: u64,
    /// The hypervisor saw it.
    pub detected: u64,
    /// Its device and grants were out of its reach.
    pub quiesced: u64,
    /// Its peers and the supervisor were told.
    pub told: u64,
    /// The next generation was ordered.
    pub decided: u64,
    /// The memory of the next generation was pristine, or its spare's was at
    /// hand.
    pub restored: u64,
    /// The next generation could run.
    pub entered: u64,
    /// It enabled its first device; 0 also if it has none.
    pub enabled: u64,
    /// It said that it serves.
    pub ready: u64,
    /// It said that it completed a request of a guest.
    pub served: u64,
}

/// What a dying domain reports of itself with the `crash` hypercall.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CrashReport {
    /// [`Reason::Panic`], [`Reason::Exception`], [`Reason::Stalled`] or
    /// [`Reason::Memory`]; anything else counts as a panic.
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
    /// When the domain found out, ns on the node's clock; 0 = not told.
    pub time_ns: u64,
    /// Panic message and place, NUL-padded UTF-8.
    pub message: [u8; 192],
}

/// A death as the hypervisor recorded it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CrashRecord {
    /// Counts all deaths of the node, from 0.
    pub sequence: u64,
    /// What was done when.
    pub times: Timeline,
    /// For nested faults: the guest-physical address. For IOMMU faults: the address that the
    /// device used.
    pub fault_address: u64,
    /// The hypervisor's exit code (EXITCODE) that showed the death, if any.
    pub exit_code: u64,
    /// Domain.
    pub domain: u16,
    /// [`Rebuild`].
    pub rebuild: u16,
    /// Generation that died.
    pub generation: u32,
    /// Pages that were restored for the next generation; of a spare that took
    /// over, 0.
    pub pages_restored: u32,
    /// Requests that it had taken and not answered, as it said in its event
    /// page; [`UNKNOWN`] if it never did.
    pub in_flight: u32,
    /// [`crate::bundle::Image::crc`] of what it ran.
    pub image_crc: u32,
    /// 1 if the supervisor ordered this end, or an
    /// [`Inject`](crate::event::Inject) in this generation.
    pub ordered: u16,
    /// [`Reset`] for the next generation.
    pub reset: u16,
    /// What the domain reported or the hypervisor found in its registers and stack.
    pub report: CrashReport,
}
