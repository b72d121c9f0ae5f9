//! Frames that claim addresses of others, or a part that is not a guest's.
//!
//! Every frame of the attack carries a mark behind its packet, `HOSTILE:` or, if
//! all that it claims is the sender's own, `HONEST:`. A second domain with
//! `args = "role=victim"` looks at what reaches it; the test looks at the wire.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use attacks::{
    argument, begin, breach, done, set_ready,
    vif::{Mac, Vif},
};
use ring_ends::net::Checksum;
use ring_proto::{boot::BootInfo, conn::Protocol};

domain_rt::entry!(main);

const NAME: &str = "spoof";
/// Rounds of the whole list.
const ROUNDS: usize = 4;
const VICTIM: Mac = [2, 0, 0, 0, 0, 0x66];
const ALL: Mac = [0xff; 6];
const OWN4: [u8; 4] = [10, 0, 2, 77];
const VICTIM4: [u8; 4] = [10, 0, 2, 66];
const OWN6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77];
const VICTIM6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x66];
const VICTIM_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0x66];

fn main(boot: &'static BootInfo) -> ! {
    if argument(boot, "role") == Some("victim") {
        watch();
    }
    begin(NAME);
    let own = domain_rt::conn::all(Protocol::Net, ring_proto::conn::Role::Frontend).next();
    let own = own.map_or([0; 6], |connection| connection.boot.mac);
    let hostile = hostile(own);
    let honest = [
        ethernet(own, 0x0806, &arp(1, own, OWN4)),
        ethernet(own, 0x0800, &ipv4(OWN4, 17, &udp(9, 9))),
        ethernet(own, 0x86dd, &ipv6(OWN6, 17, &udp(9, 9))),
        ethernet(own, 0x86dd, &ipv6(OWN6, 58, &ndp(136, OWN6, Some((2, own))))),
    ];
    let mut vif = Vif::open();
    let (mut tried, mut sent) = (0u64, 0u64);
    for _ in 0..ROUNDS {
        for (kind, frame, checksum) in &hostile {
            vif.send(&marked(frame, "HOSTILE", kind), *checksum);
            tried += 1;
        }
        for frame in &honest {
            vif.send(&marked(frame, "HONEST", "-"), None);
            sent += 1;
        }
    }
    // What was sent is on its way; the last frame is honest and shows it.
    vif.send(&marked(&honest[1], "HONEST", "LAST"), None);
    for _ in 0..200 {
        vif.rest();
    }
    done!(NAME, "tried={tried} honest={sent}");
}

/// The frames that must go nowhere, by kind.
fn hostile(own: Mac) -> Vec<(&'static str, Vec<u8>, Option<Checksum>)> {
    let mut all = Vec::new();
    let mut add = |kind, ethertype, packet: Vec<u8>| {
        all.push((kind, ethernet(own, ethertype, &packet), None));
    };
    // The victim's addresses in place of one's own.
    add("arp", 0x0806, arp(2, own, VICTIM4));
    add("arp", 0x0806, arp(1, own, VICTIM4));
    add("arp", 0x0806, arp(2, VICTIM, OWN4));
    add("ipv4", 0x0800, ipv4(VICTIM4, 17, &udp(9, 9)));
    add("ipv4", 0x0800, ipv4([10, 0, 2, 15], 6, &[0; 20]));
    add("ipv4", 0x0800, ipv4([0; 4], 17, &udp(9, 9)));
    add("ipv6", 0x86dd, ipv6(VICTIM6, 17, &udp(9, 9)));
    add("ipv6", 0x86dd, ipv6(VICTIM_LOCAL, 6, &[0; 20]));
    add("ndp", 0x86dd, ipv6(OWN6, 58, &ndp(136, VICTIM6, Some((2, own)))));
    add("ndp", 0x86dd, ipv6(OWN6, 58, &ndp(136, OWN6, Some((2, VICTIM)))));
    add("ndp", 0x86dd, ipv6(OWN6, 58, &ndp(135, VICTIM6, Some((1, VICTIM)))));
    // Behind a header of options, and in the first fragment.
    let advertisement = ndp(136, VICTIM6, Some((2, own)));
    let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &advertisement].concat();
    add("ndp", 0x86dd, ipv6(OWN6, 60, &hidden));
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &advertisement].concat();
    add("ndp", 0x86dd, ipv6(OWN6, 44, &fragment));
    // A router, a DHCP server.
    add("rogue", 0x86dd, ipv6(OWN6, 58, &ndp(134, OWN6, Some((1, own)))));
    add("rogue", 0x86dd, ipv6(OWN6, 58, &ndp(137, OWN6, None)));
    add("rogue", 0x86dd, ipv6(OWN6, 17, &udp(547, 546)));
    add("rogue", 0x0800, ipv4(OWN4, 17, &udp(67, 68)));
    add("rogue", 0x0800, ipv4(OWN4, 1, &[5, 1, 0, 0, 10, 0, 2, 77]));
    // The victim's address behind a tag, and in another protocol.
    let inner = [&[0, 5, 8, 0][..], &ipv4(VICTIM4, 17, &udp(9, 9))].concat();
    add("tag", 0x8100, inner.clone());
    add("tag", 0x88a8, inner);
    add("protocol", 0x88b5, Vec::from([0; 40]));
    // The checksum, which the NIC fills in later, lands on the source's address.
    for (start, offset) in [(0, 6), (14, 12), (34, 0)] {
        let frame = ethernet(own, 0x0800, &ipv4(OWN4, 6, &[0; 40]));
        all.push(("checksum", frame, Some(Checksum { start, offset })));
    }
    all.push(("mac", ethernet(VICTIM, 0x0800, &ipv4(OWN4, 17, &udp(9, 9))), None));
    all.push(("mac", ethernet(ALL, 0x0800, &ipv4(OWN4, 17, &udp(9, 9))), None));
    all
}

fn marked(frame: &[u8], what: &str, kind: &str) -> Vec<u8> {
    [frame, what.as_bytes(), b":", kind.as_bytes(), b";"].concat()
}

fn ethernet(source: Mac, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&ALL[..], &source, &ethertype.to_be_bytes(), packet].concat()
}

fn arp(operation: u16, hardware: Mac, protocol: [u8; 4]) -> Vec<u8> {
    let operation = operation.to_be_bytes();
    [&[0, 1, 8, 0, 6, 4][..], &operation, &hardware, &protocol, &[0; 6], &VICTIM4].concat()
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat()
}

fn ipv4(source: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len() as u16).to_be_bytes();
    let start = [0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    let mut header = [&start[..], &source, &[255; 4]].concat();
    let words = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, payload].concat()
}

fn ipv6(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let start = [0x60, 0, 0, 0, len[0], len[1], next, 255];
    [&start[..], &source, &VICTIM6, payload].concat()
}

fn ndp(kind: u8, target: [u8; 16], option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut message = Vec::from([kind, 0, 0, 0, 0, 0, 0, 0]);
    // A router advertisement has two timers here and no target.
    message.extend_from_slice(if kind == 134 { &target[..8] } else { &target });
    if let Some((kind, mac)) = option {
        message.extend_from_slice(&[kind, 1]);
        message.extend_from_slice(&mac);
    }
    message
}

/// The victim: looks at what comes, for ever.
fn watch() -> ! {
    set_ready();
    let mut vif = Vif::open();
    let mut frame = [0; 2048];
    let mut honest = 0u64;
    loop {
        vif.rest();
        while let Some(len) = vif.receive(&mut frame) {
            let frame = &frame[..len];
            let has = |mark: &[u8]| frame.windows(mark.len()).any(|part| part == mark);
            if has(b"HOSTILE:") {
                let kind = frame.rsplit(|&byte| byte == b':').next().unwrap_or_default();
                let kind = core::str::from_utf8(kind).unwrap_or("?");
                breach!(NAME, "the victim received {kind}");
            }
            honest += u64::from(has(b"HONEST:"));
            if has(b"HONEST:LAST") {
                log::info!("attack: {NAME}: heard {honest}");
            }
        }
    }
}
