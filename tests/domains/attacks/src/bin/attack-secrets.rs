//! Looks in its memory for what the former generation left there.
//!
//! Odd generations fill all that they can write to and die; even ones look.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::hint::black_box;

use attacks::{access::image, begin, breach, done};
use ring_proto::{boot::BootInfo, layout};

domain_rt::entry!(main);

const NAME: &str = "secrets";
/// In no image as such, and no instruction has it as an operand.
const MASK: u64 = 0x55aa_33cc_0f0f_f0f0;
const MASKED: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// Generations that look.
const LOOKS: u32 = 2;

fn secret() -> u64 {
    black_box(MASKED) ^ black_box(MASK)
}

fn main(_: &'static BootInfo) -> ! {
    let boot = begin(NAME);
    if boot.generation % 2 == 1 {
        fill(boot);
    }
    look(boot);
    if boot.generation < 2 * LOOKS {
        panic!("another round");
    }
    done!(NAME, "looks={LOOKS}");
}

/// Memory that a domain can write to, beside its image: start and bytes.
fn places(boot: &BootInfo) -> [(u64, u64); 4] {
    let image = image::text();
    [
        (layout::HEAP, boot.heap_len),
        (layout::GRANT_TABLE, u64::from(boot.grant_entries) * 8),
        // The second table; the first has this domain's map in its first word.
        (layout::PAGE_TABLES + 8, 0xff8),
        (image.end.next_multiple_of(4096), 0),
    ]
}

fn fill(boot: &BootInfo) -> ! {
    let secret = secret();
    for (start, len) in places(boot) {
        for at in (start..start + len).step_by(8) {
            // SAFETY: the domain's own memory. What the runtime kept there is
            // lost, and nothing of it is used any more: the program ends by a
            // bare hypercall.
            unsafe { (at as *mut u64).write_volatile(secret) };
        }
    }
    // Most of the stack below this frame.
    let stack = image::stack();
    let here = &raw const secret as u64 & !7;
    for at in (stack.start..here.saturating_sub(4096)).step_by(8) {
        // SAFETY: the unused part of this program's stack.
        unsafe { (at as *mut u64).write_volatile(secret) };
    }
    // SAFETY: names no memory.
    unsafe { attacks::hypercall::raw(ring_proto::hypercall::Nr::Crash as u64, [0; 5]) };
    attacks::rest()
}

fn look(boot: &BootInfo) {
    let secret = secret();
    let stack = image::stack();
    let here = &raw const secret as u64 & !7;
    let unused = (stack.start, here.saturating_sub(4096) - stack.start);
    let places = places(boot).into_iter().chain([unused]);
    let (mut found, mut looked) = (0u64, 0u64);
    for (start, len) in places {
        for at in (start..start + len).step_by(8) {
            looked += 8;
            // SAFETY: the domain's own memory; any bits are a number.
            found += u64::from(unsafe { (at as *const u64).read_volatile() } == secret);
        }
    }
    if looked < boot.heap_len {
        breach!(NAME, "only {looked} bytes were looked at");
    }
    if found != 0 {
        breach!(NAME, "{found} words of the former generation are left");
    }
}
