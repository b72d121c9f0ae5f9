#![allow(unsafe_code)]
//! Hypercalls as safe functions.
//!
//! What makes them safe: the hypervisor reads and writes nothing but the
//! memory that an argument names, and each function here names memory that it
//! borrows for the call.

use core::arch::asm;

use ring_proto::{
    DomainId, Generation, GrantRef, Port,
    crash::{CrashRecord, CrashReport, Reason},
    event::Inject,
    hypercall::{
        ConnectionInfo, DomainInfo, EVERY_DOMAIN, GrantCopyOp, MAX_CONSOLE_WRITE, MAX_COPY_BATCH,
        NodeInfo, Nr,
    },
};
use zerocopy::FromZeros;

pub use ring_proto::hypercall::Error;

/// The bare call.
///
/// # Safety
///
/// Memory that the arguments name must be valid for what `nr` does with it.
unsafe fn call(nr: Nr, arguments: [u64; 5]) -> Result<u64, Error> {
    let [a, b, c, d, e] = arguments;
    let code: u64;
    let value: u64;
    // SAFETY: the convention of ring_proto::hypercall: RAX and RDX change and
    // no other register; memory as the caller vouches for.
    unsafe {
        asm!(
            "vmmcall",
            inlateout("rax") nr as u64 => code,
            in("rdi") a,
            in("rsi") b,
            inlateout("rdx") c => value,
            in("rcx") d,
            in("r8") e,
            options(nostack),
        );
    }
    if code == 0 { Ok(value) } else { Err(Error::from_raw(code).unwrap_or(Error::BadNumber)) }
}

/// A call that names no memory.
fn plain(nr: Nr, arguments: [u64; 5]) -> Result<u64, Error> {
    // SAFETY: none of the numbers used with `plain` takes an address, other
    // than of window pages, which are only ever accessed as shared memory.
    unsafe { call(nr, arguments) }
}

/// A number of the ABI as one of this machine, which has as many bits.
fn number(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Appends text to the domain's console. Lost if the hypervisor refuses it:
/// there is no other place to say so.
pub fn console_write(text: &[u8]) {
    for piece in text.chunks(number(MAX_CONSOLE_WRITE)) {
        // SAFETY: the hypervisor reads the borrowed slice.
        let _ =
            unsafe { call(Nr::ConsoleWrite, [piece.as_ptr() as u64, piece.len() as u64, 0, 0, 0]) };
    }
}

/// Sleeps until an event is pending or the clock reaches `deadline_ns`;
/// returns the time. Programs call [`crate::events::wait`].
pub fn wait(deadline_ns: u64) -> u64 {
    plain(Nr::Wait, [deadline_ns, 0, 0, 0, 0]).unwrap_or(0)
}

/// Signals the peer of the connection that `port` belongs to.
pub fn notify(port: Port) -> Result<(), Error> {
    plain(Nr::Notify, [u64::from(port), 0, 0, 0, 0]).map(drop)
}

/// Maps `count` (at most 512) grants of `granter` at `target` in the window.
pub fn grant_map(
    granter: DomainId,
    first: GrantRef,
    count: u32,
    target: u64,
    flags: u64,
) -> Result<(), Error> {
    plain(Nr::GrantMap, [u64::from(granter), u64::from(first), u64::from(count), target, flags])
        .map(drop)
}

/// Unmaps `count` (at most 512) pages of the window.
pub fn grant_unmap(target: u64, count: u32) -> Result<(), Error> {
    plain(Nr::GrantUnmap, [target, u64::from(count), 0, 0, 0]).map(drop)
}

/// Withdraws `count` (at most 512) own grants.
pub fn grant_revoke(first: GrantRef, count: u32) -> Result<(), Error> {
    plain(Nr::GrantRevoke, [u64::from(first), u64::from(count), 0, 0, 0]).map(drop)
}

/// Copies between own memory and copy grants of others; returns the number of
/// operations (at most 32) done before an error.
///
/// # Safety
///
/// For operations from a grant, `local` must name memory that may be
/// overwritten with any bytes.
pub unsafe fn grant_copy(operations: &[GrantCopyOp]) -> Result<usize, Error> {
    let count = operations.len().min(number(MAX_COPY_BATCH));
    // SAFETY: the slice is borrowed; the caller vouches for what it names.
    unsafe { call(Nr::GrantCopy, [operations.as_ptr() as u64, count as u64, 0, 0, 0]) }.map(number)
}

/// Tells the supervisor that the backend of the connection of `port` does not
/// complete requests, or broke the protocol.
pub fn complain(port: Port) -> Result<(), Error> {
    plain(Nr::Complain, [u64::from(port), 0, 0, 0, 0]).map(drop)
}

/// Gives up the rest of the time slice.
pub fn yield_now() {
    let _ = plain(Nr::Yield, [0; 5]);
}

/// Ends this generation in good order.
pub fn exit(code: u64) -> ! {
    let _ = plain(Nr::Exit, [code, 0, 0, 0, 0]);
    spin()
}

/// Ends this generation with a report.
pub fn crash(report: &CrashReport) -> ! {
    // SAFETY: the hypervisor reads the borrowed report.
    let _ = unsafe {
        call(
            Nr::Crash,
            [core::ptr::from_ref(report) as u64, size_of::<CrashReport>() as u64, 0, 0, 0],
        )
    };
    spin()
}

/// Should an ending call ever return, the watchdog ends it all the same.
fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Reads 1, 2 or 4 bytes of an own function's configuration space.
pub fn pci_config_read(slot: usize, offset: u16, width: u8) -> Result<u32, Error> {
    plain(Nr::PciConfig, [slot as u64, u64::from(offset), u64::from(width), 0, 0])
        .map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

/// Writes configuration space; the hypervisor lets little through.
pub fn pci_config_write(slot: usize, offset: u16, width: u8, value: u32) -> Result<(), Error> {
    plain(Nr::PciConfig, [slot as u64, u64::from(offset), u64::from(width), 1, u64::from(value)])
        .map(drop)
}

/// Routes an MSI-X message to `port`; it stays masked.
pub fn irq_bind(slot: usize, entry: u16, port: Port) -> Result<(), Error> {
    plain(Nr::IrqBind, [slot as u64, u64::from(entry), u64::from(port), 0, 0]).map(drop)
}

/// Unmasks the interrupt that is bound to `port`.
pub fn irq_unmask(port: Port) -> Result<(), Error> {
    plain(Nr::IrqUnmask, [u64::from(port), 0, 0, 0, 0]).map(drop)
}

/// Switches bus mastering. Call with `true` only after a device reset.
pub fn device_enable(slot: usize, on: bool) -> Result<(), Error> {
    plain(Nr::DeviceEnable, [slot as u64, u64::from(on), 0, 0, 0]).map(drop)
}

/// Fills `out` with the node's domains; returns how many there are.
pub fn domain_list(out: &mut [DomainInfo]) -> Result<usize, Error> {
    // SAFETY: the hypervisor writes plain data into the borrowed slice.
    unsafe { call(Nr::DomainList, [out.as_mut_ptr() as u64, out.len() as u64, 0, 0, 0]) }
        .map(number)
}

/// Fills `out` with the node's connections; returns how many there are.
pub fn connection_list(out: &mut [ConnectionInfo]) -> Result<usize, Error> {
    // SAFETY: the hypervisor writes plain data into the borrowed slice.
    unsafe { call(Nr::ConnectionList, [out.as_mut_ptr() as u64, out.len() as u64, 0, 0, 0]) }
        .map(number)
}

/// Builds and runs a domain that is stopped or dead.
pub fn start(domain: DomainId) -> Result<(), Error> {
    plain(Nr::Start, [u64::from(domain), 0, 0, 0, 0]).map(drop)
}

/// Ends a generation of a running domain: at an operator's order, or because it does no
/// work ([`Reason::Stalled`]).
pub fn stop(domain: DomainId, generation: Generation, reason: Reason) -> Result<(), Error> {
    let reason = if reason == Reason::Operator { 0 } else { reason as u64 };
    plain(Nr::Stop, [u64::from(domain), u64::from(generation), reason, 0, 0]).map(drop)
}

/// Stops a domain if it is alive in that generation, then starts it.
pub fn restart(domain: DomainId, generation: Generation) -> Result<(), Error> {
    plain(Nr::Restart, [u64::from(domain), u64::from(generation), 0, 0, 0]).map(drop)
}

/// Has a generation of a domain check itself, or also finish its work and take no more;
/// returns the check's number.
pub fn check(domain: DomainId, generation: Generation, drain: bool) -> Result<u32, Error> {
    let args = [u64::from(domain), u64::from(generation), drain.into(), 0, 0];
    let number = plain(Nr::Check, args)?;
    // Numbers of checks are words.
    Ok(u32::try_from(number).unwrap_or(0))
}

/// Writes part of the file that updates a domain.
pub fn image_write(domain: DomainId, offset: u32, bytes: &[u8]) -> Result<(), Error> {
    let (at, len) = (bytes.as_ptr() as u64, bytes.len() as u64);
    // SAFETY: the hypervisor reads the borrowed slice.
    unsafe { call(Nr::ImageWrite, [domain.into(), offset.into(), at, len, 0]) }.map(drop)
}

/// Has a piece of that file checked. `Ok(0)`: its image is on trial;
/// [`Error::Busy`]: call again; else so many bytes of `why` say why not.
pub fn image_commit(domain: DomainId, why: &mut [u8]) -> Result<usize, Error> {
    let (at, len) = (why.as_mut_ptr() as u64, why.len() as u64);
    // SAFETY: the hypervisor writes bytes into the borrowed slice.
    unsafe { call(Nr::ImageCommit, [domain.into(), at, len, 0, 0]) }.map(number)
}

/// Ends the trial of a domain's image: it is kept, or the one before returns.
pub fn image_judge(domain: DomainId, keep: bool) -> Result<(), Error> {
    plain(Nr::ImageJudge, [domain.into(), keep.into(), 0, 0, 0]).map(drop)
}

/// Makes a domain unstartable until it is released.
pub fn hold(domain: DomainId) -> Result<(), Error> {
    plain(Nr::Hold, [u64::from(domain), 0, 0, 0, 0]).map(drop)
}

/// Undoes [`hold`].
pub fn release(domain: DomainId) -> Result<(), Error> {
    plain(Nr::Release, [u64::from(domain), 0, 0, 0, 0]).map(drop)
}

/// The oldest kept crash record whose number is not below `sequence`.
pub fn crash_read(sequence: u64) -> Result<CrashRecord, Error> {
    let mut record = CrashRecord::new_zeroed();
    // SAFETY: the hypervisor writes plain data into the borrowed record.
    unsafe {
        call(
            Nr::CrashRead,
            [
                sequence,
                core::ptr::from_mut(&mut record) as u64,
                size_of::<CrashRecord>() as u64,
                0,
                0,
            ],
        )
    }?;
    Ok(record)
}

/// Has a generation of a domain misbehave.
pub fn inject(domain: DomainId, generation: Generation, kind: Inject) -> Result<(), Error> {
    plain(Nr::Inject, [u64::from(domain), u64::from(generation), kind as u64, 0, 0]).map(drop)
}

/// Fills `out` with console text from `cursor` on, of all domains or of one
/// generation (0 = all) of one; returns the new cursor. What was not written
/// stays zero.
pub fn log_read(
    cursor: u64,
    out: &mut [u8],
    of: Option<(DomainId, Generation)>,
) -> Result<u64, Error> {
    out.fill(0);
    let (domain, generation) = of.map_or((EVERY_DOMAIN, 0), |(d, g)| (d.into(), g.into()));
    let (at, len) = (out.as_mut_ptr() as u64, out.len() as u64);
    // SAFETY: the hypervisor writes bytes into the borrowed slice.
    unsafe { call(Nr::LogRead, [cursor, at, len, domain, generation]) }
}

/// Checks a domain's tables against the hypervisor's books; returns the number
/// of violations.
pub fn audit(domain: DomainId) -> Result<u64, Error> {
    plain(Nr::Audit, [u64::from(domain), 0, 0, 0, 0])
}

/// What is known of the node.
pub fn node_info() -> Result<NodeInfo, Error> {
    let mut info = NodeInfo::default();
    // SAFETY: the hypervisor writes plain data into the borrowed struct.
    unsafe { call(Nr::NodeInfo, [core::ptr::from_mut(&mut info) as u64, 0, 0, 0, 0]) }?;
    Ok(info)
}

/// Powers the node off.
pub fn shutdown(code: u64) -> Result<(), Error> {
    plain(Nr::Shutdown, [code, 0, 0, 0, 0]).map(drop)
}
