//! DMA into a page that its owner has taken back. Two domains of this program
//! are connected: the *granter* (`role=granter`) lends a page, has the driver
//! domain's disk write there, so that the IOMMU knows the way by heart, and
//! revokes the grant. The driver domain goes on as if nothing had happened.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use attacks::{argument, begin, breach, done, rest};
use domain_rt::{
    conn, dma,
    env::{DomainEnv, alloc_grefs, alloc_shared, alloc_window},
    events,
    time::{MS, now_ns},
};
use driver_blk::{
    device::VirtioBlk,
    disk::{Disk, Io, Piece},
};
use ring_ends::Env;
use ring_proto::{
    PAGE_SIZE,
    blk::{Op, Status},
    boot::BootInfo,
    grant,
    hypercall::{MAP_DMA, MAP_WRITE},
    layout,
    shm::SharedMem,
};

domain_rt::entry!(main);

const NAME: &str = "dma-revoked";
/// What the disk writes, and what the granter keeps in its page.
const MARKER: [u8; PAGE_SIZE] = [0xa5; PAGE_SIZE];
const MINE: [u8; PAGE_SIZE] = [0x11; PAGE_SIZE];
/// Writes after the revocation.
const WRITES: u32 = 200;
const PATIENCE: u64 = 100_000 * MS;

// The steps, in word `STEP` of either end's page.
const GREF: usize = 64;
const STEP: usize = 68;
const LENT: u32 = 1;
const USED: u32 = 2;
const REVOKED: u32 = 3;
const OVER: u32 = 4;

/// Both ends' pages as plain words: these programs speak no protocol.
struct Pages {
    own: SharedMem,
    peer: SharedMem,
}

impl Pages {
    fn new() -> Self {
        assert!(domain_rt::boot().connection_count > 0, "there is no connection");
        let page = |at: u64| {
            // SAFETY: slot 0's pages, mapped for the domain's whole life; no reference to them.
            unsafe { SharedMem::new((layout::CONNECTIONS + at) as *mut u8, PAGE_SIZE) }
        };
        Self { own: page(0), peer: page(PAGE_SIZE as u64) }
    }

    fn say(&self, step: u32) {
        self.own.write_u32(STEP, step, Ordering::Release);
        let _ = domain_rt::hypercall::notify(conn::port(0));
    }

    fn wait(&self, step: u32) {
        let end = now_ns() + PATIENCE;
        while self.peer.read_u32(STEP, Ordering::Acquire) != step {
            assert!(now_ns() < end, "the peer does not come to step {step}");
            events::wait(now_ns() + MS);
            events::take_all();
        }
    }
}

fn main(boot: &'static BootInfo) -> ! {
    if argument(boot, "role") == Some("granter") { granter(boot) } else { driver(boot) }
}

fn granter(boot: &BootInfo) -> ! {
    domain_rt::set_ready();
    let pages = Pages::new();
    let page = alloc_shared(1).unwrap_or_else(|| panic!("no memory"));
    let gref = alloc_grefs(1).unwrap_or_else(|| panic!("no grant reference"));
    let flags = grant::MAP | grant::WRITE | grant::DMA;
    let holds = |expected: &[u8; PAGE_SIZE]| {
        let mut found = [0; PAGE_SIZE];
        page.copy_from(0, &mut found).is_ok() && found == *expected
    };
    DomainEnv.grant(gref, page.address(), boot.connections[0].peer, flags);
    pages.own.write_u32(GREF, gref, Ordering::Relaxed);
    pages.say(LENT);
    pages.wait(USED);
    assert!(holds(&MARKER), "the disk did not write while it might");
    if let Err(error) = DomainEnv.revoke(gref, 1) {
        breach!(NAME, "the grant cannot be revoked: {error:?}");
    }
    let _ = page.copy_to(0, &MINE);
    pages.say(REVOKED);
    pages.wait(OVER);
    if !holds(&MINE) {
        breach!(NAME, "the disk wrote to a page that its owner had taken back");
    }
    pages.say(OVER);
    rest()
}

fn driver(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let pages = Pages::new();
    let own = dma::alloc(PAGE_SIZE).unwrap_or_else(|| panic!("no DMA memory"));
    let _ = own.copy_to(0, &MARKER);
    let mut disk = VirtioBlk::open(0).unwrap_or_else(|error| panic!("the disk: {error}"));
    let mut run = |op, address| {
        let pieces = [Piece { address, len: PAGE_SIZE as u32 }];
        disk.run(&Io { op, sector: 0, sectors: 0, pieces: &pieces, cookie: 0 })
    };
    assert!(matches!(run(Op::Write, own.address()), Ok(Status::Ok)), "the disk works");
    pages.wait(LENT);
    let gref = pages.peer.read_u32(GREF, Ordering::Relaxed);
    let window = alloc_window(1).unwrap_or_else(|| panic!("no window"));
    let lent = DomainEnv
        .map(boot.connections[0].peer, gref, 1, window, MAP_WRITE | MAP_DMA)
        .unwrap_or_else(|error| panic!("the page cannot be mapped: {error:?}"));
    assert!(matches!(run(Op::Read, lent.address()), Ok(Status::Ok)), "DMA to the page works");
    pages.say(USED);
    pages.wait(REVOKED);
    let mut written = 0;
    for _ in 0..WRITES {
        written += u32::from(run(Op::Read, lent.address()).is_ok());
    }
    pages.say(OVER);
    pages.wait(OVER);
    done!(NAME, "tried={WRITES} written={written}");
}
