//! Maps and copies grants that name somebody else, of every domain of the node.
//!
//! A second domain, `role=victim`, grants a page with a secret to a third one
//! that never takes it. The attacker goes through all references of all
//! domains, with all flags, by mapping and by copying both ways.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use attacks::{
    argument, begin, breach, done,
    grants::{Page, copy, map, offer, pause},
    number,
};
use ring_proto::{
    DomainId,
    boot::BootInfo,
    grant::{COPY, DMA, GrantEntry, MAP, WRITE},
    hypercall::HYPERVISOR,
};

domain_rt::entry!(main);

const NAME: &str = "grants-foreign";
const SECRET: u64 = 0x5ec2_e700_5ec2_e701;
const JUNK: u64 = 0xbad0_bad0_bad0_bad0;
/// References that are tried: all of a table of usual size, and beyond.
const REFERENCES: u32 = 2050;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    if argument(boot, "role") == Some("victim") {
        victim(number(boot, "friend", 0) as DomainId);
    }
    let (mut tried, mut refused) = (0u64, 0u64);
    let mut judge = |what: &str, granter: u16, gref: u32, went: bool| {
        tried += 1;
        if went {
            breach!(NAME, "{what} of grant {gref} of domain {granter} went through");
        } else {
            refused += 1;
        }
    };
    let word = AtomicU64::new(0);
    for granter in (0..8).chain([255, 256, HYPERVISOR]) {
        for gref in (0..REFERENCES).chain([1 << 31, u32::MAX]) {
            for flags in 0..4 {
                judge("mapping", granter, gref, map(granter, gref, 0, flags).is_ok());
            }
            judge("copying out", granter, gref, copy(granter, gref, &word, false).is_ok());
            word.store(JUNK, Ordering::SeqCst);
            judge("copying in", granter, gref, copy(granter, gref, &word, true).is_ok());
            if word.swap(0, Ordering::SeqCst) == SECRET {
                breach!(NAME, "the secret was read");
            }
            if gref % 64 == 0 {
                // It feeds the watchdog.
                domain_rt::hypercall::wait(0);
            }
        }
    }
    done!(NAME, "tried={tried} refused={refused}");
}

/// Grants a secret page to `friend` and watches it.
fn victim(friend: DomainId) -> ! {
    let page = Page::new(SECRET);
    offer(1, GrantEntry::new(page.address(), friend, MAP | WRITE | DMA));
    offer(2, GrantEntry::new(page.address(), friend, COPY | WRITE));
    let mut said = false;
    loop {
        if !page.is(SECRET) && !said {
            said = true;
            breach!(NAME, "somebody wrote to the victim's page");
        }
        pause();
    }
}
