//! Uses a grant after its time: mapped twice, rewritten while mapped, revoked,
//! its granter dead and born again; and beyond its rights.
//!
//! `role=victim` grants honestly, to `peer`. In its first generation the
//! attacker goes through the life of a grant and ends with a write to a page
//! that it mapped read-only; in its second it executes a granted page.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::sync::atomic::Ordering::SeqCst;

use attacks::{
    access::{Access, Kind},
    argument, begin, breach, done,
    grants::{Page, map, offer, pause, wait_for, window, window_address},
    number, rest,
};
use domain_rt::hypercall as rt;
use ring_proto::{
    DomainId,
    boot::BootInfo,
    grant::{DMA, GrantEntry, MAP, WRITE},
    hypercall::{Error, MAP_DMA, MAP_WRITE},
};

domain_rt::entry!(main);

const NAME: &str = "grants-lifecycle";
/// References of the victim: the mailbox, a page to write to, one to read.
const MAILBOX: u32 = 1;
const SHARED: u32 = 2;
const READ_ONLY: u32 = 3;
/// Words of the mailbox: what is asked of the victim, how often, and how many
/// requests it has answered.
const REQUEST: usize = 0;
const ASKED: usize = 1;
const ANSWERED: usize = 2;
const ALIVE: usize = 3;
/// Requests.
const REWRITE: u64 = 1;
const REVOKE: u64 = 2;
const VERIFY: u64 = 3;
const DIE: u64 = 4;
/// What the attacker writes.
const JUNK: u64 = 0xbad0_bad0_bad0_bad0;
/// What the domain never granted; the generation is added.
const SECRET: u64 = 0x5ec2_e700_0000_0000;
/// What the victim's pages hold from the first moment on; the generation is
/// added.
const LIFE: u64 = 0x11fe_0000_0000_0000;
/// `ret`, eight times.
const RETURNS: u64 = 0xc3c3_c3c3_c3c3_c3c3;
const SECONDS: u64 = 120;

fn main(boot: &'static BootInfo) -> ! {
    let peer = number(boot, "peer", 0) as DomainId;
    begin(NAME);
    match (argument(boot, "role"), boot.generation) {
        (Some("victim"), _) => victim(boot, peer),
        (_, 1) => first_life(peer),
        (_, 2) => second_life(peer),
        _ => done!(NAME, "lives=2"),
    }
}

/// Does what it is asked to; never grants a page that holds a secret.
fn victim(boot: &BootInfo, peer: DomainId) -> ! {
    let secret = SECRET + u64::from(boot.generation);
    let life = LIFE + u64::from(boot.generation);
    let mailbox = Page::new(0);
    mailbox.0[ALIVE].store(life, SeqCst);
    let shared = Page::new(RETURNS);
    let private = Page::new(secret);
    let read_only = Page::new(life);
    let grant = |gref, page: &Page, flags| {
        offer(gref, GrantEntry::new(page.address(), peer, MAP | flags));
    };
    grant(SHARED, shared, WRITE);
    grant(READ_ONLY, read_only, 0);
    grant(MAILBOX, mailbox, WRITE);
    let mut revoked = false;
    let mut answered = 0;
    loop {
        pause();
        if mailbox.0[ASKED].load(SeqCst) == answered {
            continue;
        }
        match mailbox.0[REQUEST].load(SeqCst) {
            // As an entry that is in use must not be; the mapping stays where it is.
            REWRITE => grant(SHARED, private, WRITE | DMA),
            REVOKE => {
                if let Err(why) = rt::grant_revoke(SHARED, 1) {
                    breach!(NAME, "revoking failed: {why:?}");
                }
                shared.filled(secret);
                revoked = true;
            }
            VERIFY => {}
            DIE => panic!("asked to die"),
            _ => {}
        }
        if !private.is(secret) || !read_only.is(life) || revoked && !shared.is(secret) {
            breach!(NAME, "somebody wrote to a page that is not granted for it");
        }
        answered += 1;
        mailbox.0[ANSWERED].store(answered, SeqCst);
    }
}

struct Tally {
    tried: u64,
    refused: u64,
}

impl Tally {
    fn must_fail(&mut self, what: &str, result: Result<(), Error>) {
        self.tried += 1;
        match result {
            Ok(()) => breach!(NAME, "{what} went through"),
            Err(_) => self.refused += 1,
        }
    }
}

/// Asks the victim for something and waits until it is done.
fn ask(mailbox: &Page, request: u64) {
    mailbox.0[REQUEST].store(request, SeqCst);
    let asked = mailbox.0[ASKED].fetch_add(1, SeqCst) + 1;
    wait_for("the victim's answer", SECONDS, || mailbox.0[ANSWERED].load(SeqCst) >= asked);
}

fn first_life(peer: DomainId) -> ! {
    let mut tally = Tally { tried: 0, refused: 0 };
    let secret = |page: &Page| (0..8).any(|generation| page.has(SECRET + generation));
    wait_for("the victim", SECONDS, || map(peer, MAILBOX, 0, MAP_WRITE).is_ok());
    // SAFETY: mapped writable; revoked it shows a page of this domain's own.
    let mailbox = unsafe { window(0) };
    expect("mapping", map(peer, SHARED, 1, MAP_WRITE));
    // SAFETY: likewise.
    let shared = unsafe { window(1) };

    tally.must_fail("mapping a grant twice", map(peer, SHARED, 2, MAP_WRITE));
    tally.must_fail("mapping a grant twice to read", map(peer, SHARED, 2, 0));
    tally.must_fail("mapping over a mapping", map(peer, READ_ONLY, 1, 0));
    tally.must_fail("writing by a grant to read", map(peer, READ_ONLY, 2, MAP_WRITE));
    tally.must_fail("DMA by a grant without it", map(peer, READ_ONLY, 2, MAP_DMA));
    tally.must_fail("mapping past the window", map(peer, READ_ONLY, 512, 0));
    tally.must_fail("unmapping past the window", rt::grant_unmap(window_address(511), 2));

    ask(mailbox, REWRITE);
    shared.0[7].store(JUNK, SeqCst);
    if secret(shared) {
        breach!(NAME, "a mapping followed its rewritten entry");
    }
    tally.must_fail("mapping a rewritten entry in use", map(peer, SHARED, 2, MAP_WRITE));
    ask(mailbox, VERIFY);

    ask(mailbox, REVOKE);
    if secret(shared) {
        breach!(NAME, "a revoked page was read");
    }
    shared.filled(JUNK);
    ask(mailbox, VERIFY);
    tally.must_fail("mapping a revoked grant", map(peer, SHARED, 2, MAP_WRITE));
    expect("unmapping", rt::grant_unmap(window_address(1), 1));
    tally.must_fail("mapping a revoked grant again", map(peer, SHARED, 1, 0));

    expect("mapping to read", map(peer, READ_ONLY, 3, 0));
    // SAFETY: mapped, and only read.
    let read_only = unsafe { window(3) };
    mailbox.0[REQUEST].store(DIE, SeqCst);
    mailbox.0[ASKED].fetch_add(1, SeqCst);
    // The dead generation's grants are gone: what is written here reaches nobody.
    wait_for("the victim's death", SECONDS, || !read_only.has(LIFE + 1));
    mailbox.filled(JUNK);
    // Nothing but that, or nothing: the place is the victim's, which was cleared for its next life.
    let empty = |page: &Page| page.0.iter().all(|w| matches!(w.load(SeqCst), 0 | JUNK));
    wait_for("the victim's next life", SECONDS, || {
        if !empty(mailbox) || !empty(read_only) {
            breach!(NAME, "a mapping shows its granter's next generation");
            rest();
        }
        map(peer, MAILBOX, 4, MAP_WRITE).is_ok()
    });
    mailbox.filled(JUNK);
    // SAFETY: mapped writable.
    let new = unsafe { window(4) };
    ask(new, VERIFY);
    if new.has(JUNK) || !empty(mailbox) || !empty(read_only) {
        breach!(NAME, "a mapping of a dead generation reaches the next");
    }
    expect("unmapping what is revoked", rt::grant_unmap(window_address(0), 1));
    expect("unmapping what is revoked", rt::grant_unmap(window_address(3), 1));
    expect("mapping anew", map(peer, READ_ONLY, 5, 0));
    let Tally { tried, refused } = tally;
    log::info!("attack: {NAME}: first life: tried={tried} refused={refused}");
    // SAFETY: it ends this generation, or is reported.
    unsafe { Access { kind: Kind::Write, address: window_address(5) }.make() };
    breach!(NAME, "a page that is mapped to read was written");
    done!(NAME, "lives=1");
}

fn second_life(peer: DomainId) -> ! {
    wait_for("the victim", SECONDS, || map(peer, SHARED, 6, MAP_WRITE).is_ok());
    // SAFETY: it ends this generation, or is reported. The page is full of `ret`.
    unsafe { Access { kind: Kind::Execute, address: window_address(6) }.make() };
    breach!(NAME, "a granted page was executed");
    done!(NAME, "lives=2");
}

fn expect(what: &str, result: Result<(), Error>) {
    if let Err(why) = result {
        panic!("{what} failed: {why:?}");
    }
}
