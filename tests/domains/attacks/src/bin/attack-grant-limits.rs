//! Maps as much as it can, over and over.
//!
//! `role=granter` offers all that its table holds, most to the attacker, one
//! reference to `role=neighbour`, which maps and unmaps that one all the time
//! and must not notice that the attacker's window is full.
#![no_std]
#![no_main]

use attacks::{
    argument, begin, breach, done,
    grants::{Page, map, offer, pause, wait_for, window_address},
    number, rest,
};
use domain_rt::hypercall as rt;
use ring_proto::{
    DomainId,
    boot::BootInfo,
    grant::{GrantEntry, MAP, WRITE},
    hypercall::MAP_WRITE,
};

domain_rt::entry!(main);

const NAME: &str = "grant-limits";
/// The neighbour's reference; the attacker's follow.
const NEIGHBOURS: u32 = 1;
const FIRST: u32 = 2;
/// Most pages that one call maps.
const BATCH: u32 = 512;
const ROUNDS: u64 = 20;

fn main(_: &'static BootInfo) -> ! {
    let boot = begin(NAME);
    let peer = |key| number(boot, key, 0) as DomainId;
    match argument(boot, "role") {
        Some("granter") => granter(boot, peer("attacker"), peer("neighbour")),
        Some("neighbour") => neighbour(peer("granter")),
        _ => attacker(boot, peer("granter")),
    }
}

fn granter(boot: &BootInfo, attacker: DomainId, neighbour: DomainId) -> ! {
    let page = Page::new(0);
    let entry = |domain| GrantEntry::new(page.address(), domain, MAP | WRITE);
    offer(NEIGHBOURS, entry(neighbour));
    (FIRST..boot.grant_entries).for_each(|gref| offer(gref, entry(attacker)));
    rest()
}

fn neighbour(granter: DomainId) -> ! {
    wait_for("the granter", 600, || map(granter, NEIGHBOURS, 0, MAP_WRITE).is_ok());
    let mut failures = 0u32;
    loop {
        let unmapped = rt::grant_unmap(window_address(0), 1);
        let mapped = map(granter, NEIGHBOURS, 0, MAP_WRITE);
        if (unmapped.is_err() || mapped.is_err()) && failures == 0 {
            failures += 1;
            breach!(NAME, "the neighbour was refused: {unmapped:?}, {mapped:?}");
        }
        pause();
    }
}

fn attacker(boot: &BootInfo, granter: DomainId) -> ! {
    let pages = boot.grant_window_pages;
    let (mut tried, mut refused) = (0u64, 0u64);
    let mut must_fail = |what: &str, result: Result<(), rt::Error>| {
        tried += 1;
        match result {
            Ok(()) => breach!(NAME, "{what} went through"),
            Err(_) => refused += 1,
        }
    };
    for round in 0..ROUNDS {
        let mut mapped = 0;
        while mapped < pages {
            let count = BATCH.min(pages - mapped);
            let target = window_address(mapped);
            let result = rt::grant_map(granter, FIRST + mapped, count, target, MAP_WRITE);
            if let Err(why) = result {
                // The granter may not be there yet.
                assert!(round == 0, "round {round}: refused at page {mapped}: {why:?}");
                pause();
                continue;
            }
            mapped += count;
        }
        let next = FIRST + pages;
        for page in [0, pages - 1, pages, pages + 1, 2 * pages - 1, 2 * pages, u32::MAX / 4096] {
            must_fail("one page more", map(granter, next, page, MAP_WRITE));
        }
        let last = window_address(pages - 1);
        must_fail("a range past the end", rt::grant_map(granter, next, 2, last, MAP_WRITE));
        must_fail("a batch past the end", rt::grant_map(granter, next, BATCH, last, 0));
        // The table has an end, too.
        must_fail("the table's end", map(granter, boot.grant_entries, 0, 0));
        for first in (0..pages).step_by(BATCH as usize) {
            if let Err(why) = rt::grant_unmap(window_address(first), BATCH.min(pages - first)) {
                panic!("unmapping failed: {why:?}");
            }
        }
        pause();
    }
    done!(NAME, "rounds={ROUNDS} tried={tried} refused={refused}");
}
