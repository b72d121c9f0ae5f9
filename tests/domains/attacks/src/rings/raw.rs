#![allow(unsafe_code)]
//! Addresses that no honest wrapper hands out.

use ring_proto::{PAGE_SIZE, layout, shm::SharedMem};

/// The own page of connection slot `slot`, to be written with anything.
pub fn own_page(slot: usize) -> SharedMem {
    assert!(slot < domain_rt::boot().connection_count as usize, "no connection {slot}");
    let address = layout::CONNECTIONS + slot as u64 * 2 * PAGE_SIZE as u64;
    // SAFETY: the hypervisor maps the page for the domain's whole life, and
    // nothing makes a reference to it.
    unsafe { SharedMem::new(address as *mut u8, PAGE_SIZE) }
}

/// Reads or writes the word at an address that is not there, it is hoped.
pub fn touch(address: u64, write: bool) {
    // SAFETY: where the hypervisor does its duty the access ends this
    // generation. Where it does not, what is touched is another domain's.
    unsafe {
        if write {
            core::arch::asm!("mov dword ptr [{0}], 2", in(reg) address, options(nostack));
        } else {
            core::arch::asm!("mov {0:e}, [{0}]", inout(reg) address => _, options(nostack));
        }
    }
}
