//! What is not this domain's connection: the peer's page to write, the pages
//! of connections that it does not have, ports of others, grants of others.
//!
//! An access to a page ends the generation; the next one goes on. The last one
//! tries the calls, which must all be refused.
#![no_std]
#![no_main]

use attacks::{begin, breach, done, hypercall};
use domain_rt::events;
use ring_proto::{
    MAX_DOMAIN_CONNECTIONS, PAGE_SIZE,
    boot::BootInfo,
    event::PORT_CONNECTIONS,
    hypercall::{Error, MAP_WRITE, Nr},
    layout,
};

domain_rt::entry!(main);

const NAME: &str = "connection";

/// Pages beside the own ones; whether to write.
fn pages(own: u64) -> [(&'static str, u64, bool); 7] {
    let end = |slot: u64, peer: u64| layout::CONNECTIONS + (slot * 2 + peer) * PAGE_SIZE as u64;
    let last = MAX_DOMAIN_CONNECTIONS as u64;
    [
        ("the peer's state", end(0, 1), true),
        ("the peer's hello", end(0, 1) + 64, true),
        ("the next slot", end(own, 0), true),
        ("the next slot's peer", end(own, 1), false),
        ("the last slot", end(last - 1, 0), false),
        ("behind the last slot", end(last, 0), true),
        ("before the first slot", layout::CONNECTIONS - 8, true),
    ]
}

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let pages = pages(boot.connection_count.into());
    if let Some((what, address, write)) = pages.get(boot.generation as usize - 1) {
        log::info!("touches {what} at {address:#x}");
        attacks::rings::touch(*address, *write);
        breach!(NAME, "{what} can be {}", if *write { "written" } else { "read" });
    }
    let (mut tried, mut refused) = (0, 0);
    let own =
        u64::from(PORT_CONNECTIONS)..u64::from(PORT_CONNECTIONS) + u64::from(boot.connection_count);
    let ports = (0..2048u64)
        .chain([1 << 16, 1 << 32, u64::MAX - 1, u64::MAX])
        .chain(own.clone().flat_map(|port| [port + (1 << 16), port + (1 << 32), port + (1 << 63)]));
    for port in ports.filter(|port| !own.contains(port)) {
        tried += 1;
        events::breathe();
        match hypercall::call(Nr::Notify, [port, 0, 0, 0, 0]) {
            Err(Error::NotFound | Error::BadArgument) => refused += 1,
            other => breach!(NAME, "notify of port {port:#x}: {other:?}"),
        }
    }
    for domain in 0..64u64 {
        for gref in (0..128).chain([2047, 2048, 4095, 4096, u64::from(u32::MAX), u64::MAX]) {
            tried += 1;
            events::breathe();
            let call = [domain, gref, 1, layout::GRANT_WINDOW, MAP_WRITE];
            match hypercall::call(Nr::GrantMap, call) {
                Err(_) => refused += 1,
                Ok(_) => breach!(NAME, "grant {gref} of domain {domain} was mapped"),
            }
        }
    }
    done!(NAME, "tried={tried} refused={refused} touched={}", pages.len())
}
