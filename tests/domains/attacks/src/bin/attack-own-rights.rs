//! Does with the domain's own memory what its rights forbid: writes to text,
//! constants and boot information, executes data, heap, stack, tables and
//! pages that the hypervisor shares, and runs over the end of the stack.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

extern crate alloc;

use core::sync::atomic::{AtomicU8, Ordering};

use attacks::{
    access::{Access, Kind, image},
    sweep,
};
use ring_proto::{boot::BootInfo, layout};

domain_rt::entry!(main);

const RETURN: u8 = 0xc3;
static CONSTANT: [u8; 64] = [RETURN; 64];
static DATA: AtomicU8 = AtomicU8::new(RETURN);

fn main(_: &'static BootInfo) -> ! {
    let heap = alloc::boxed::Box::new(AtomicU8::new(RETURN));
    let stack = AtomicU8::new(RETURN);
    let address = |place: &AtomicU8| place.as_ptr() as u64;
    let (heap_at, stack_at) = (address(&heap), address(&stack));
    let constant = CONSTANT.as_ptr() as u64;
    let text = image::text();
    let write = |address| Access { kind: Kind::Write, address };
    let execute = |address| Access { kind: Kind::Execute, address };
    let cases = [
        write(text.start),
        write(text.start + 0x1000),
        write(text.end - 1),
        write(constant),
        write(layout::BOOT_INFO),
        write(layout::BOOT_INFO + 0xfff),
        execute(constant),
        execute(address(&DATA)),
        execute(heap_at),
        execute(stack_at),
        execute(layout::BOOT_INFO + 0xff0),
        execute(layout::EVENT_PAGE + 0x800),
        execute(layout::PAGE_TABLES + 0xff8),
        execute(layout::GRANT_TABLE + 0x800),
        // The guard page below the stack.
        write(image::stack().start - 1),
        write(image::stack().start - 0x1000),
        Access { kind: Kind::Read, address: image::stack().start - 8 },
        execute(image::stack().start - 0x800),
    ];
    sweep::run("own-rights", cases.len(), |number, announce| {
        let access = cases[number];
        announce(&access);
        if access.kind == Kind::Execute {
            plant(access.address);
        }
        stack.store(RETURN, Ordering::SeqCst);
        // SAFETY: it ends this generation, or is reported.
        unsafe { access.make() };
    })
}

/// Puts a `ret` where it may be written, so that running it would succeed.
fn plant(address: u64) {
    let shared = [layout::EVENT_PAGE, layout::PAGE_TABLES, layout::GRANT_TABLE];
    if shared.contains(&(address & !0xfff)) {
        // SAFETY: the domain's own page, mapped for its whole life, and of no
        // meaning at that place.
        unsafe { AtomicU8::from_ptr(address as *mut u8) }.store(RETURN, Ordering::SeqCst);
    }
}
