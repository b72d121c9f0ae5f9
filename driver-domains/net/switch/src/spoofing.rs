//! Tests: what a guest may claim, and what it must not.

use std::{vec, vec::Vec};

use super::*;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const ALL: Mac = [0xff; 6];
const A4: [u8; 4] = [10, 0, 2, 15];
const B4: [u8; 4] = [10, 0, 2, 16];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];
/// fe80::…, as A's MAC address makes it.
const A_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0xa];
const B_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0xb];
const NOBODY: [u8; 16] = [0; 16];

fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

fn list(entries: &[([u8; 16], u8)]) -> Addresses {
    let mut all = Addresses { checked: 1, count: entries.len() as u8, ..Addresses::default() };
    for (i, &(address, bits)) in entries.iter().enumerate() {
        (all.list[i], all.prefixes[i]) = (address, bits);
    }
    all
}

fn limits() -> FloodLimit {
    FloodLimit { per_second: 1, burst: 1 << 30 }
}

/// A at vif 0 and B at vif 1, with an IPv4 and an IPv6 address each.
fn switch() -> Switch {
    let mut switch = Switch::new(limits(), limits(), 7);
    for (mac, v4, v6) in [(A, A4, A6), (B, B4, B6)] {
        switch.add_vif(mac, &list(&[(mapped(v4), 128), (v6, 128)])).unwrap();
    }
    switch
}

/// The same without IP addresses.
fn unchecked() -> Switch {
    let mut switch = Switch::new(limits(), limits(), 7);
    for mac in [A, B] {
        switch.add_vif(mac, &Addresses::default()).unwrap();
    }
    switch
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&ALL[..], &A, &ethertype.to_be_bytes(), payload].concat()
}

fn arp(operation: u16, hardware: Mac, protocol: [u8; 4]) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4];
    let operation = operation.to_be_bytes();
    let parts = [&fixed[..], &operation, &hardware, &protocol, &[0; 6], &B4, &[0; 18]];
    ethernet(0x0806, &parts.concat())
}

fn ipv4(source: [u8; 4], to: [u8; 4], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(&[], source, to, fragment, protocol, payload)
}

fn ipv4_with(
    options: &[u8],
    source: [u8; 4],
    to: [u8; 4],
    fragment: u16,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend([source, to].concat());
    packet.extend(options);
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat()
}

fn ipv6(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend([source, B6].concat());
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// A neighbour discovery message with options `(kind, address)`.
fn ndp(kind: u8, target: Option<[u8; 16]>, options: &[(u8, Mac)]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.iter().flatten());
    for (kind, mac) in options {
        message.extend([*kind, 1]);
        message.extend(mac);
    }
    message
}

/// What becomes of a frame of vif 0, seen as the driver shows it: whole if it
/// is short, else its first 128 bytes.
fn fate(switch: &mut Switch, frame: &[u8]) -> Result<(), Drop> {
    checksummed(switch, frame, None)
}

fn checksummed(switch: &mut Switch, frame: &[u8], checksum: Option<Checksum>) -> Result<(), Drop> {
    let head = if frame.len() <= 244 { frame } else { &frame[..128] };
    match switch.forward(Port::Vif(0), head, frame.len(), checksum, 0) {
        Verdict::To(_) => Ok(()),
        Verdict::Drop(reason) => Err(reason),
    }
}

#[test]
fn g5_arp_claims_only_what_is_ones_own() {
    let mut s = switch();
    for (frame, want) in [
        (arp(1, A, A4), Ok(())),
        (arp(2, A, A4), Ok(())),
        (arp(1, A, [0; 4]), Ok(())),
        (arp(1, A, B4), Err(Drop::SpoofedArp)),
        (arp(2, A, B4), Err(Drop::SpoofedArp)),
        (arp(2, B, A4), Err(Drop::SpoofedArp)),
        (arp(1, B, B4), Err(Drop::SpoofedArp)),
        (arp(2, A, [0; 4]), Err(Drop::SpoofedArp)),
        (arp(3, A, A4), Err(Drop::Malformed)),
        (arp(8, A, A4), Err(Drop::Malformed)),
        (arp(1, A, A4)[..41].to_vec(), Err(Drop::Malformed)),
        (arp(1, A, A4)[..42].to_vec(), Ok(())),
        (ethernet(0x0806, &[]), Err(Drop::Malformed)),
    ] {
        assert_eq!(fate(&mut s, &frame), want, "{frame:02x?}");
    }
    // Lengths that move the fields.
    for at in 14..20 {
        let mut frame = arp(1, A, A4);
        frame[at] ^= 2;
        assert_eq!(fate(&mut s, &frame), Err(Drop::Malformed));
    }
}

#[test]
fn g5_ipv4_comes_from_ones_own_address() {
    let mut s = switch();
    for source in [B4, [10, 0, 2, 2], [127, 0, 0, 1], [255; 4], [224, 0, 0, 1]] {
        for fragment in [0, 0x4000, 0x2000, 7] {
            let frame = ipv4(source, B4, fragment, 6, &[0; 20]);
            assert_eq!(fate(&mut s, &frame), Err(Drop::SpoofedIp));
        }
    }
    for fragment in [0, 0x4000, 0x2000, 7] {
        for protocol in [1, 6, 17, 4, 255] {
            assert_eq!(fate(&mut s, &ipv4(A4, B4, fragment, protocol, &[0; 1400])), Ok(()));
        }
    }
    // Options do not hide anything, as many as there may be.
    assert_eq!(fate(&mut s, &ipv4_with(&[1; 40], A4, B4, 0, 6, &[0; 1400])), Ok(()));
    let frame = ipv4_with(&[1; 40], A4, B4, 0, 17, &udp(9, 68));
    assert_eq!(fate(&mut s, &frame), Err(Drop::Rogue));
    // Version, header length, total length, and what is cut off.
    let good = ipv4(A4, B4, 0, 6, &[0; 20]);
    for (at, value) in [(14, 0x55), (14, 0x44), (14, 0x4f), (14, 0x65), (16, 0xff), (17, 19)] {
        let mut frame = good.clone();
        frame[at] = value;
        if at == 16 {
            // Longer than the frame: nobody's business but the receiver's.
            assert_eq!(fate(&mut s, &frame), Ok(()));
        } else {
            assert_eq!(fate(&mut s, &frame), Err(Drop::Malformed), "{at} {value:x}");
        }
    }
    for len in 14..34 {
        assert_eq!(fate(&mut s, &good[..len]), Err(Drop::Malformed));
    }
}

#[test]
fn g5_no_guest_is_a_router_or_a_dhcp_server() {
    for s in [&mut switch(), &mut unchecked()] {
        let client = udp(68, 67);
        // A client without an address, and with one.
        assert_eq!(fate(s, &ipv4([0; 4], [255; 4], 0, 17, &client)), Ok(()));
        assert_eq!(fate(s, &ipv4(A4, [10, 0, 2, 2], 0, 17, &client)), Ok(()));
        // Without an address there is nothing else.
        let nobody: [(u16, [u8; 4], u8, Vec<u8>); 6] = [
            (0x2000, [255; 4], 17, client.clone()),
            (8, [255; 4], 17, client.clone()),
            (0, B4, 17, client.clone()),
            (0, [255; 4], 17, udp(68, 68)),
            (0, [255; 4], 17, udp(53, 67)),
            (0, [255; 4], 6, client.clone()),
        ];
        for (fragment, to, protocol, payload) in nobody {
            let frame = ipv4([0; 4], to, fragment, protocol, &payload);
            assert!(fate(s, &frame).is_err(), "{frame:02x?}");
        }
        // Servers, also in fragments, from whatever port.
        for (port, fragment) in [(67, 0), (67, 0x2000), (4011, 0), (68, 0x4000)] {
            let frame = ipv4(A4, B4, fragment, 17, &udp(port, 68));
            assert_eq!(fate(s, &frame), Err(Drop::Rogue));
        }
        // Ports that are cut off are nobody's.
        assert_eq!(fate(s, &ipv4(A4, B4, 0x2000, 17, &[0, 67])), Err(Drop::Malformed));
        for kind in [5, 9] {
            assert_eq!(fate(s, &ipv4(A4, B4, 0, 1, &[kind, 0, 0, 0])), Err(Drop::Rogue));
        }
        assert_eq!(fate(s, &ipv4(A4, B4, 0, 1, &[8, 0, 0, 0])), Ok(()));
        assert_eq!(fate(s, &ipv6(A_LOCAL, 17, &udp(547, 546))), Err(Drop::Rogue));
        assert_eq!(fate(s, &ipv6(A_LOCAL, 17, &udp(546, 547))), Ok(()));
        for kind in [134, 137, 138] {
            for source in [A6, A_LOCAL] {
                let frame = ipv6(source, 58, &ndp(kind, None, &[(1, A)]));
                assert_eq!(fate(s, &frame), Err(Drop::Rogue));
            }
        }
    }
}

#[test]
fn g5_ipv6_comes_from_ones_own_address() {
    let mut s = switch();
    for source in [A6, A_LOCAL] {
        for next in [6, 17, 58, 59, 50, 41] {
            assert_eq!(fate(&mut s, &ipv6(source, next, &[0; 1400])), Ok(()), "{next}");
        }
    }
    for source in [B6, B_LOCAL, [0xff; 16], mapped(B4), [0; 16]] {
        for next in [6, 17, 58, 59, 44] {
            let later = [6, 0, 0, 8].iter().chain(&[0; 1400]).copied().collect::<Vec<u8>>();
            let frame = ipv6(source, next, &later);
            assert_eq!(fate(&mut s, &frame), Err(Drop::SpoofedIp), "{source:x?} {next}");
        }
    }
    let good = ipv6(A6, 6, &[0; 20]);
    for len in 14..54 {
        assert_eq!(fate(&mut s, &good[..len]), Err(Drop::Malformed));
    }
    let mut frame = good;
    frame[14] = 0x45;
    assert_eq!(fate(&mut s, &frame), Err(Drop::Malformed));
}

#[test]
fn g5_ndp_claims_only_what_is_ones_own() {
    const UNMASKED: [(u8, Mac); 2] = [(1, B), (2, B)];
    let mut s = switch();
    for (source, message, want) in [
        (A6, ndp(135, Some(B6), &[(1, A)]), Ok(())),
        (A_LOCAL, ndp(135, Some(B6), &[]), Ok(())),
        (NOBODY, ndp(135, Some(A6), &[]), Ok(())),
        (NOBODY, ndp(135, Some(A_LOCAL), &[]), Ok(())),
        (A6, ndp(136, Some(A6), &[(2, A)]), Ok(())),
        (A6, ndp(136, Some(A_LOCAL), &[]), Ok(())),
        (NOBODY, ndp(133, None, &[]), Ok(())),
        (A_LOCAL, ndp(133, None, &[(1, A), (14, B)]), Ok(())),
        (NOBODY, ndp(143, None, &[]), Ok(())),
        (A6, ndp(128, None, &[]), Ok(())),
        // The victim's address is taken, or found taken.
        (A6, ndp(136, Some(B6), &[(2, A)]), Err(Drop::SpoofedNdp)),
        (A6, ndp(136, Some(B6), &[]), Err(Drop::SpoofedNdp)),
        (NOBODY, ndp(136, Some(A6), &[]), Err(Drop::SpoofedNdp)),
        (NOBODY, ndp(135, Some(B6), &[]), Err(Drop::SpoofedNdp)),
        (B6, ndp(136, Some(B6), &[(2, A)]), Err(Drop::SpoofedIp)),
        (B6, ndp(135, Some(A6), &[(1, A)]), Err(Drop::SpoofedIp)),
        (B_LOCAL, ndp(133, None, &[(1, A)]), Err(Drop::SpoofedIp)),
        // The victim's traffic is drawn to another link-layer address, or the
        // attacker's to the victim.
        (A6, ndp(136, Some(A6), &UNMASKED), Err(Drop::SpoofedNdp)),
        (A6, ndp(135, Some(B6), &[(1, B)]), Err(Drop::SpoofedNdp)),
        (A6, ndp(133, None, &[(14, A), (1, B)]), Err(Drop::SpoofedNdp)),
        (A6, ndp(135, Some(B6), &[(14, A); 9]), Err(Drop::Malformed)),
        (A6, ndp(135, None, &[]), Err(Drop::Malformed)),
        (NOBODY, ndp(128, None, &[]), Err(Drop::SpoofedIp)),
    ] {
        let frame = ipv6(source, 58, &message);
        assert_eq!(fate(&mut s, &frame), want, "{source:x?} {message:x?}");
        // The same behind extension headers.
        for (first, extensions) in [
            (0, &[58, 0, 5, 2, 0, 0, 1, 0][..]),
            (60, &[60, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0]),
            (43, &[51, 0, 0, 0, 0, 0, 0, 0, 58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (135, &[58, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let frame = ipv6(source, first, &[extensions, &message].concat());
            assert_eq!(fate(&mut s, &frame), want, "{first} {source:x?} {message:x?}");
        }
        // In a fragment it is not let through (RFC 6980).
        if (133..=137).contains(&message[0]) {
            let fragment = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &message].concat();
            let frame = ipv6(source, 44, &fragment);
            assert!(fate(&mut s, &frame).is_err(), "{message:x?}");
        }
    }
}

/// What would have to be seen to be judged, and is not, is dropped.
#[test]
fn g5_nothing_hides_beyond_the_head() {
    let mut s = switch();
    let solicitation = |options: &[(u8, Mac)]| ndp(135, Some(B6), options);
    // Long enough that only 128 bytes are seen; the options end far beyond.
    let mut message = solicitation(&[(14, A); 6]);
    message.extend([(1u8, B); 20].iter().flat_map(|(k, m)| [&[*k, 1][..], m].concat()));
    assert_eq!(fate(&mut s, &ipv6(A6, 58, &message)), Err(Drop::Malformed));
    // The last option that is seen ends where the head ends.
    let seen = 128 - 54;
    let mut message = ndp(133, None, &[]);
    let room = seen - message.len();
    message.extend([200, (room / 8) as u8]);
    message.resize(seen - seen % 8, 0);
    for _ in 0..20 {
        message.extend([&[1, 1][..], &B].concat());
    }
    assert!(fate(&mut s, &ipv6(A6, 58, &message)).is_err());
    // A chain of headers longer than the head, and one too many.
    let long = [&[58, 9][..], &[0; 78], &solicitation(&[(1, B)]), &[0; 200]].concat();
    assert_eq!(fate(&mut s, &ipv6(A6, 60, &long)), Err(Drop::Malformed));
    let many = [&[60, 0, 0, 0, 0, 0, 0, 0].repeat(6)[..], &[58, 0, 0, 0, 0, 0, 0, 0]].concat();
    let many = [&many[..], &ndp(134, None, &[])].concat();
    assert!(fate(&mut s, &ipv6(A6, 60, &many)).is_err());
    // First fragments have the whole chain (RFC 7112); others have a source.
    let first = [&[60, 0, 0, 1, 0, 0, 0, 9][..], &[58, 3, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(fate(&mut s, &ipv6(A6, 44, &first)), Err(Drop::Malformed));
    let later = [58, 0, 0, 0x40, 0, 0, 0, 9, 134, 0, 0, 0];
    assert_eq!(fate(&mut s, &ipv6(A6, 44, &later)), Ok(()));
    assert_eq!(fate(&mut s, &ipv6(B6, 44, &later)), Err(Drop::SpoofedIp));
    // An empty option does not go on for ever.
    let mut message = solicitation(&[]);
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fate(&mut s, &ipv6(A6, 58, &message)), Err(Drop::Malformed));
}

#[test]
fn g5_tags_and_other_protocols_are_refused() {
    let inner = &ipv4(B4, A4, 0, 6, &[0; 20])[12..];
    for tag in [0x8100u16, 0x88a8, 0x9100, 0x9200, 0x9300] {
        let frame = ethernet(tag, &[&[0, 5][..], inner].concat());
        assert_eq!(fate(&mut switch(), &frame), Err(Drop::Tagged));
        assert_eq!(fate(&mut unchecked(), &frame), Err(Drop::Tagged));
    }
    // RARP, LLC and SNAP, MPLS, PPPoE, EAPOL.
    for other in [0x8035u16, 0x0026, 0x8847, 0x8864, 0x888e, 0x88b5] {
        let frame = ethernet(other, &[0; 46]);
        assert_eq!(fate(&mut switch(), &frame), Err(Drop::Protocol));
        assert_eq!(fate(&mut unchecked(), &frame), Ok(()));
    }
}

/// The NIC writes the checksum after the frame was judged.
#[test]
fn g5_a_checksum_cannot_rewrite_what_was_checked() {
    let tcp = ipv4(A4, B4, 0x4000, 6, &[0; 40]);
    let udp = ipv6(A6, 17, &udp(9, 9));
    let ext = ipv6(A6, 60, &[&[17, 0, 0, 0, 0, 0, 0, 0][..], &[0; 8]].concat());
    for s in [&mut switch(), &mut unchecked()] {
        for (frame, start, offset) in [(&tcp, 34, 16), (&udp, 54, 6), (&ext, 62, 6)] {
            let checksum = |start, offset| Some(Checksum { start, offset });
            assert_eq!(checksummed(s, frame, checksum(start, offset)), Ok(()));
            // Over the source's MAC address, its IP address, anything else.
            for (start, offset) in
                [(0, 6), (6, 0), (14, 12), (0, 26), (start, 0), (start, 2), (start - 2, offset)]
            {
                let got = checksummed(s, frame, checksum(start, offset));
                assert_eq!(got, Err(Drop::Malformed), "{start} {offset}");
            }
        }
        let checksum = Some(Checksum { start: 14, offset: 14 });
        assert_eq!(checksummed(s, &arp(1, A, A4), checksum), Err(Drop::Malformed));
        let later = ipv4(A4, B4, 7, 6, &[0; 40]);
        let checksum = Some(Checksum { start: 34, offset: 16 });
        assert_eq!(checksummed(s, &later, checksum), Err(Drop::Malformed));
    }
}

#[test]
fn prefixes_and_lists_are_obeyed() {
    let mut net = A6;
    net[8..].fill(0);
    for (entries, good, bad) in [
        (&[(mapped([10, 0, 2, 0]), 120)][..], [10, 0, 2, 200], [10, 0, 3, 1]),
        (&[(mapped([10, 0, 2, 4]), 126)], [10, 0, 2, 7], [10, 0, 2, 8]),
        (&[(net, 64), (mapped(A4), 128)], A4, B4),
    ] {
        let mut s = Switch::new(limits(), limits(), 7);
        s.add_vif(A, &list(entries)).unwrap();
        assert_eq!(fate(&mut s, &ipv4(good, B4, 0, 6, &[0; 20])), Ok(()));
        assert_eq!(fate(&mut s, &ipv4(bad, B4, 0, 6, &[0; 20])), Err(Drop::SpoofedIp));
        assert_eq!(fate(&mut s, &ipv6(A_LOCAL, 6, &[0; 20])), Ok(()));
    }
    // An empty list: nothing but the address that a MAC address brings.
    let mut s = Switch::new(limits(), limits(), 7);
    s.add_vif(A, &list(&[])).unwrap();
    assert_eq!(fate(&mut s, &ipv4(A4, B4, 0, 6, &[0; 20])), Err(Drop::SpoofedIp));
    for source in [A6, [0; 16], mapped([0; 4])] {
        assert_eq!(fate(&mut s, &ipv6(source, 6, &[0; 20])), Err(Drop::SpoofedIp));
    }
    assert_eq!(fate(&mut s, &ipv6(A_LOCAL, 6, &[0; 20])), Ok(()));
    // Nonsense from the boot information lets nothing through that was not there.
    let odd = Addresses { count: 255, prefixes: [255; 4], ..list(&[(A6, 128)]) };
    let mut s = Switch::new(limits(), limits(), 7);
    s.add_vif(A, &odd).unwrap();
    assert_eq!(fate(&mut s, &ipv4(B4, A4, 0, 6, &[0; 20])), Err(Drop::SpoofedIp));
}

/// Random and mutated frames: nothing panics, and what passes has, by a parser
/// that somebody else wrote, no source but the vif's.
#[test]
fn g5_whatever_passes_has_its_own_source() {
    use etherparse::{LaxNetSlice, LaxSlicedPacket, LinkSlice};

    let seeds = [
        arp(1, A, A4),
        arp(2, A, B4),
        ipv4(A4, B4, 0, 6, &[0; 40]),
        ipv4(B4, A4, 0, 17, &udp(68, 67)),
        ipv4([0; 4], [255; 4], 0, 17, &udp(68, 67)),
        ipv6(A6, 58, &ndp(135, Some(B6), &[(1, A)])),
        ipv6(A_LOCAL, 58, &ndp(136, Some(A6), &[(2, A), (2, B)])),
        ipv6(A6, 60, &[&[58, 0, 0, 0, 0, 0, 0, 0][..], &ndp(133, None, &[])].concat()),
        ipv6(B6, 44, &[6, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]),
        ethernet(0x8100, &ipv4(B4, A4, 0, 6, &[0; 20])[12..]),
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let mut s = switch();
    let mut passed = 0;
    for _ in 0..400_000 {
        let mut frame = seeds[next(seeds.len())].clone();
        for _ in 0..next(4) {
            let at = 12 + next(frame.len() - 12);
            frame[at] = match next(4) {
                0 => next(256) as u8,
                1 => [0, 1, 4, 6, 16, 44, 58, 60, 67, 68, 134, 136, 255][next(13)],
                2 => frame[at] ^ 1 << next(8),
                _ => [10, 15, 16, 2, 0xb, 0xa][next(6)],
            };
        }
        if next(8) == 0 {
            frame.truncate(12 + next(frame.len() - 11));
        } else if next(8) == 0 {
            frame.resize(300, 0);
        }
        if fate(&mut s, &frame).is_err() {
            continue;
        }
        passed += 1;
        let parsed = LaxSlicedPacket::from_ethernet(&frame).unwrap();
        assert!(parsed.link_exts.is_empty(), "{frame:02x?}");
        let Some(LinkSlice::Ethernet2(link)) = &parsed.link else { panic!() };
        assert_eq!(link.source(), A);
        match &parsed.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                let source = ip.header().source();
                assert!(source == A4 || source == [0; 4], "{frame:02x?}");
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let source = ip.header().source();
                assert!([A6, A_LOCAL, NOBODY].contains(&source), "{frame:02x?}");
            }
            Some(LaxNetSlice::Arp(arp)) => {
                assert_eq!(arp.sender_hw_addr(), A);
                assert!([&A4[..], &[0; 4]].contains(&arp.sender_protocol_addr()), "{frame:02x?}");
            }
            None => panic!("neither IP nor ARP: {frame:02x?}"),
        }
        // A neighbour discovery message that etherparse finds claims nothing foreign.
        if let Some(etherparse::TransportSlice::Icmpv6(message)) = &parsed.transport {
            let kind = message.header().icmp_type.type_u8();
            assert!(![134, 137, 138].contains(&kind), "{frame:02x?}");
            if kind == 136 {
                let target = message.slice().get(8..24).unwrap();
                assert!(target == A6 || target == A_LOCAL, "{frame:02x?}");
            }
        }
    }
    assert!(passed > 50_000, "only {passed} passed");
}
