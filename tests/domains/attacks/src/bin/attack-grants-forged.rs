//! Grants what it does not own to an accomplice, which maps and copies it.
//!
//! `role=granter` writes entries for pages that are not its to give: the
//! hypervisor's, firmware's, its own tables, text and boot information, device
//! registers, the grant window, addresses that are nowhere. `role=grantee`, a
//! domain of the same program, tries them all, with all flags.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use attacks::{
    access::image,
    argument, begin, breach, done,
    grants::{Page, copy, map, offer, pause, wait_for, window},
    number, rest,
};
use ring_proto::{
    DomainId,
    boot::BootInfo,
    grant::{COPY, DMA, GrantEntry, MAP, WRITE},
    hypercall::MAP_WRITE,
    layout,
};

domain_rt::entry!(main);

const NAME: &str = "grants-forged";
/// The one honest grant: a page whose first word is the number of forged ones.
const MAILBOX: u32 = 1;
const FIRST: u32 = 2;
const PAGE: u64 = 4096;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let peer = number(boot, "peer", 0) as DomainId;
    match argument(boot, "role") {
        Some("granter") => granter(boot, peer),
        Some("grantee") => grantee(peer),
        other => panic!("role={other:?}"),
    }
}

fn granter(boot: &BootInfo, peer: DomainId) -> ! {
    let mut next = FIRST;
    let mut forge = |address: u64| {
        for flags in [MAP | WRITE | DMA | COPY, MAP, COPY] {
            offer(next, GrantEntry::new(address, peer, flags));
            next += 1;
        }
    };
    let table = u64::from(boot.grant_entries) * 8;
    let stack = image::stack();
    let own = [
        (layout::BOOT_INFO, layout::PAGE_TABLES + 2 * PAGE),
        (layout::CONNECTIONS, layout::CONNECTIONS + 4 * PAGE),
        (layout::GRANT_TABLE, layout::GRANT_TABLE + table),
        (layout::IMAGE_BASE, image::text().end),
        (stack.start - PAGE, stack.start),
        (layout::GRANT_WINDOW, layout::GRANT_WINDOW + 2 * PAGE),
        (layout::BARS, layout::BARS + 2 * PAGE),
        (layout::DMA_POOL, layout::DMA_POOL + 2 * PAGE),
        (layout::HEAP - PAGE, layout::HEAP),
        (layout::HEAP + boot.heap_len, layout::HEAP + boot.heap_len + PAGE),
    ];
    for (start, end) in own {
        (start & !(PAGE - 1)..end).step_by(PAGE as usize).for_each(&mut forge);
    }
    // What the machine has at these addresses: firmware, the hypervisor, device registers. (From
    // 2 MiB on, the domain has its own image there.)
    (0..32).map(|i| i << 16).for_each(&mut forge);
    [0xfec0_0000, 0xfed8_0000, 0xfee0_0000, 0xb000_0000, 0x1020_0000_0000]
        .into_iter()
        .for_each(&mut forge);
    (32..52).map(|bit| 1 << bit).for_each(&mut forge);
    let mailbox = Page::new(0);
    mailbox.0[0].store(u64::from(next - FIRST), Ordering::SeqCst);
    offer(MAILBOX, GrantEntry::new(mailbox.address(), peer, MAP | WRITE));
    rest()
}

fn grantee(peer: DomainId) -> ! {
    wait_for("the honest grant", 600, || map(peer, MAILBOX, 0, MAP_WRITE).is_ok());
    // SAFETY: it was just mapped, and is never unmapped.
    let count = unsafe { window(0) }.0[0].load(Ordering::SeqCst) as u32;
    let (mut tried, mut refused) = (0u64, 0u64);
    let word = AtomicU64::new(0);
    for gref in FIRST..FIRST + count {
        for flags in 0..4 {
            tried += 1;
            match map(peer, gref, 1, flags) {
                Err(_) => refused += 1,
                Ok(()) => {
                    // SAFETY: it was just mapped.
                    let value = unsafe { window(1) }.0[0].load(Ordering::SeqCst);
                    breach!(NAME, "forged grant {gref} was mapped with flags {flags}: {value:#x}");
                    let _ =
                        domain_rt::hypercall::grant_unmap(attacks::grants::window_address(1), 1);
                }
            }
        }
        for to_grant in [false, true] {
            tried += 1;
            match copy(peer, gref, &word, to_grant) {
                Err(_) => refused += 1,
                Ok(()) => breach!(NAME, "forged grant {gref} was copied: {word:?}"),
            }
        }
        pause();
    }
    done!(NAME, "tried={tried} refused={refused}");
}
