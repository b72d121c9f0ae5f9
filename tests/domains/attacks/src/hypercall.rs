#![allow(unsafe_code)]
//! The bare hypercall, for arguments that no honest wrapper would pass.

use core::arch::asm;

use ring_proto::hypercall::{Error, Nr};

/// What a hypercall returned: RAX and RDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// 0 or an error code.
    pub status: u64,
    /// The value.
    pub value: u64,
}

impl Returned {
    /// The error, if it is one that is defined.
    pub fn error(self) -> Option<Error> {
        Error::from_raw(self.status)
    }

    /// As a result; an undefined code is `None`.
    pub fn result(self) -> Option<Result<u64, Error>> {
        if self.status == 0 { Some(Ok(self.value)) } else { self.error().map(Err) }
    }
}

/// Makes a hypercall with any number and any arguments.
///
/// # Safety
///
/// If the hypervisor writes to what the arguments name, as an honest one does
/// for some calls, that must not be memory that Rust relies on.
pub unsafe fn raw(nr: u64, arguments: [u64; 5]) -> Returned {
    let [a, b, c, d, e] = arguments;
    let (status, value);
    // SAFETY: the convention of ring_proto::hypercall: RAX and RDX change and
    // no other register; memory as the caller vouches for.
    unsafe {
        asm!(
            "vmmcall",
            inlateout("rax") nr => status,
            in("rdi") a,
            in("rsi") b,
            inlateout("rdx") c => value,
            in("rcx") d,
            in("r8") e,
            options(nostack),
        );
    }
    Returned { status, value }
}

/// A hypercall of a number that writes to no memory of the caller.
pub fn call(nr: Nr, arguments: [u64; 5]) -> Result<u64, Error> {
    let writes = matches!(
        nr,
        Nr::GrantCopy
            | Nr::DomainList
            | Nr::ConnectionList
            | Nr::CrashRead
            | Nr::LogRead
            | Nr::NodeInfo
    );
    assert!(!writes, "{nr:?} may write to memory: use `raw`");
    // SAFETY: it writes to none, as was checked.
    let returned = unsafe { raw(nr as u64, arguments) };
    match returned.result() {
        Some(result) => result,
        None => panic!("{nr:?} returned the undefined status {:#x}", returned.status),
    }
}
