#![allow(unsafe_code)]
//! Reading, writing and executing any guest-physical address.

use core::{arch::asm, fmt, sync::atomic::AtomicU64};

use ring_proto::layout;

/// What is done to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load of one byte.
    Read,
    /// A store of one byte.
    Write,
    /// A call.
    Execute,
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub kind: Kind,
    /// Guest-physical address.
    pub address: u64,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Execute => "execute",
        };
        write!(f, "{kind} {:#x}", self.address)
    }
}

impl Access {
    /// Does it.
    ///
    /// # Safety
    ///
    /// None that Rust knows: it is meant to end the domain. If it does not,
    /// whatever was at the address was changed, or run.
    pub unsafe fn make(self) {
        let at = window(self.address);
        // SAFETY: see above.
        unsafe {
            match self.kind {
                Kind::Read => {
                    asm!("mov {0}, byte ptr [{1}]", out(reg_byte) _, in(reg) at, options(nostack))
                }
                Kind::Write => asm!("mov byte ptr [{0}], 0xc3", in(reg) at, options(nostack)),
                // Whatever is there hardly follows the convention.
                Kind::Execute => asm!("call {0}", in(reg) at, clobber_abi("C")),
            }
        }
    }
}

/// A table of 1 GiB pages for addresses that the domain's identity map does
/// not reach.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static FAR: Table = Table([const { AtomicU64::new(0) }; 512]);

/// Entry of the top table that leads to [`FAR`].
const FAR_SLOT: u64 = 2;

/// The virtual address of a guest-physical one: the same, or, beyond the
/// identity map, one that is mapped for it now.
fn window(address: u64) -> u64 {
    use core::sync::atomic::Ordering::SeqCst;
    const GIANT: u64 = 1 << 30;
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    if address < layout::ADDRESS_SPACE {
        return address;
    }
    FAR.0[0].store(address & !(GIANT - 1) | PRESENT_WRITE | LARGE, SeqCst);
    let entry = (layout::PAGE_TABLES + FAR_SLOT * 8) as *mut u64;
    // SAFETY: the domain's own table, mapped for its whole life; Rust relies on
    // none of what the new entry maps.
    unsafe { AtomicU64::from_ptr(entry) }.store(FAR.0.as_ptr() as u64 | PRESENT_WRITE, SeqCst);
    let at = FAR_SLOT << 39 | address & (GIANT - 1);
    // SAFETY: only forgets a translation.
    unsafe { asm!("invlpg [{0}]", in(reg) at, options(nostack)) };
    at
}

/// Parts of the program, from the linker script.
pub mod image {
    unsafe extern "C" {
        static __text_start: u8;
        static __text_end: u8;
        static __stack_bottom: u8;
        static __stack_top: u8;
    }

    /// First and last-but-one address of the program's text.
    pub fn text() -> core::ops::Range<u64> {
        &raw const __text_start as u64..&raw const __text_end as u64
    }

    /// The same of its stack.
    pub fn stack() -> core::ops::Range<u64> {
        &raw const __stack_bottom as u64..&raw const __stack_top as u64
    }
}
