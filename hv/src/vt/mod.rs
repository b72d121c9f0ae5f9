//! Hardware virtualisation behind one trait: AMD SVM today, Intel VMX to fit.
//!
//! A [`Vcpu`] runs a unikernel domain: 64-bit, identity mapped, never
//! interrupted. What a domain may not do surfaces as [`Exit::Forbidden`].

pub mod npt;
pub mod svm;

use ring_proto::crash::CrashReport;

/// Why a guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A hypercall; see [`Vcpu::hypercall`].
    Hypercall,
    /// A physical interrupt arrived.
    Interrupt,
    /// The nested page tables forbid an access to this guest-physical address.
    NestedFault(u64),
    /// Triple fault.
    Shutdown,
    /// Something that domains may not do; the hardware's exit code.
    Forbidden(u64),
    /// Handled inside; run again.
    Resume,
}

/// One virtual CPU.
pub trait Vcpu {
    /// Puts it into the entry state of a domain: 64-bit mode, all registers
    /// zero, `entry` in RIP and the boot information's address in RDI.
    fn reset(&mut self, entry: u64);
    /// Runs until the next exit. Interrupts must be off.
    fn run(&mut self) -> Exit;
    /// A hypercall's number and arguments, after [`Exit::Hypercall`].
    fn hypercall(&self) -> (u64, [u64; 5]);
    /// Sets a hypercall's result.
    fn set_result(&mut self, status: u64, value: u64);
    /// Drops its cached translations before it runs next.
    fn flush_tlb(&mut self);
    /// Fills in registers for a death that the domain did not report itself.
    /// Returns the frame pointer.
    fn describe(&self, report: &mut CrashReport) -> u64;
}
