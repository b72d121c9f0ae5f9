//! Frames from guests and from the wire, as the switch judges them. What it
//! lets through from a guest is read again by `etherparse`: it claims no
//! address but the guest's own.

use arbitrary::{Arbitrary, Result, Unstructured};
use etherparse::{LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use net_switch::inspect::Checksum;
use net_switch::{FloodLimit, MAX_FRAME, Port, Switch, Verdict};
use ring_proto::boot::Addresses;

/// The last vif has no list of IP addresses.
const MACS: [[u8; 6]; 3] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
const V4: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];
const V6: [[u8; 16]; 2] = [
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
];
/// ARP, IPv4, IPv6, a tag, and something else.
const TYPES: [u16; 5] = [0x0806, 0x0800, 0x86dd, 0x8100, 0x88cc];

fn addresses(vif: usize) -> Addresses {
    let mut all = Addresses::default();
    if let (Some([a, b, c, d]), Some(v6)) = (V4.get(vif), V6.get(vif)) {
        (all.checked, all.count) = (1, 2);
        all.list[0] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, *a, *b, *c, *d];
        all.list[1] = *v6;
        (all.prefixes[0], all.prefixes[1]) = (128, 128);
    }
    all
}

/// The address that a vif's station gives itself.
fn link_local(vif: usize) -> [u8; 16] {
    let [a, b, c, d, e, f] = MACS[vif];
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// A script of frames; each says where it comes from.
pub fn run(data: &[u8]) {
    let limit = FloodLimit { per_second: 100, burst: 10 };
    let mut switch = Switch::new(limit, limit, 1);
    for (vif, mac) in MACS.into_iter().enumerate() {
        switch.add_vif(mac, &addresses(vif)).expect("good addresses");
    }
    let mut input = Unstructured::new(data);
    let mut now = 0;
    while !input.is_empty() && frame(&mut switch, &mut input, &mut now).is_ok() {}
}

fn mac(input: &mut Unstructured<'_>) -> Result<[u8; 6]> {
    let which = u8::arbitrary(input)?;
    match which {
        0..128 => Ok(MACS[usize::from(which % 3)]),
        128..160 => Ok([0xff; 6]),
        _ => <[u8; 6]>::arbitrary(input),
    }
}

fn frame(switch: &mut Switch, input: &mut Unstructured<'_>, now: &mut u64) -> Result<()> {
    let from = u8::arbitrary(input)?;
    let port = match from % 5 {
        vif @ 0..4 => Port::Vif(vif.into()),
        _ => Port::Wire,
    };
    *now += 1 << (from / 5 % 40);
    let flags = u8::arbitrary(input)?;
    let mut whole = Vec::new();
    whole.extend(mac(input)?);
    match MACS.get(usize::from(from % 5)) {
        Some(own) if flags & 1 == 0 => whole.extend(own),
        _ => whole.extend(mac(input)?),
    }
    whole.extend(match TYPES.get(usize::from(flags / 32)) {
        Some(known) => known.to_be_bytes(),
        None => <[u8; 2]>::arbitrary(input)?,
    });
    let rest = usize::from(u8::arbitrary(input)?).min(input.len());
    whole.extend_from_slice(input.bytes(rest)?);
    // The driver shows the beginning only, and says how long the frame is.
    let shown = if flags & 2 == 0 { whole.len() } else { usize::from(u8::arbitrary(input)?) };
    let head = &whole[..shown.min(whole.len())];
    let len = if flags & 4 == 0 { whole.len() } else { u16::arbitrary(input)?.into() };
    let checksum = if flags & 8 == 0 {
        None
    } else {
        let (start, offset) = <(u8, u8)>::arbitrary(input)?;
        Some(Checksum { start: start.into(), offset: offset.into() })
    };
    let Verdict::To(targets) = switch.forward(port, head, len, checksum, *now) else {
        return Ok(());
    };
    assert!((14..=MAX_FRAME).contains(&len) && head.len() >= 14);
    let source: [u8; 6] = head[6..12].try_into().unwrap();
    match port {
        Port::Vif(vif) => {
            assert_eq!(Some(&source), MACS.get(vif), "spoofed");
            assert!(targets.vifs().all(|to| to != vif), "back to its sender");
            // What was not shown a receiver would see all the same.
            if len >= whole.len() {
                claims_its_own(vif, &whole);
            }
            if let Some(Checksum { start, offset }) = checksum {
                // The sum goes into a UDP or TCP header, behind what was checked.
                assert!(matches!(offset, 6 | 16) && start >= 14 + 20);
            }
        }
        Port::Wire => {
            assert!(!MACS.contains(&source), "spoofed from the wire");
            assert!(!targets.wire, "back to the wire");
        }
    }
    assert!(targets.vifs().all(|to| to < MACS.len()));
    if head[0] & 1 == 0 {
        let to = &head[..6];
        assert!(targets.vifs().all(|vif| MACS[vif] == to), "unicast to somebody else");
    }
    Ok(())
}

/// As `etherparse` reads it, a frame of this vif claims no foreign address.
fn claims_its_own(vif: usize, frame: &[u8]) {
    let Ok(parsed) = LaxSlicedPacket::from_ethernet(frame) else { return };
    // A tag within MACsec is a station's that takes its frames apart, and no bridge's.
    assert!(!matches!(parsed.link_exts.first(), Some(LaxLinkExtSlice::Vlan(_))), "tagged");
    let (Some(v4), Some(v6)) = (V4.get(vif), V6.get(vif)) else { return };
    assert!(parsed.link_exts.is_empty(), "MACsec");
    match &parsed.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let source = ip.header().source();
            assert!(source == *v4 || source == [0; 4], "IPv4 {source:?}");
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let source = ip.header().source();
            assert!([*v6, link_local(vif), [0; 16]].contains(&source), "IPv6 {source:?}");
        }
        Some(LaxNetSlice::Arp(arp)) => {
            assert_eq!(arp.sender_hw_addr(), MACS[vif], "ARP");
            let protocol = arp.sender_protocol_addr();
            assert!(protocol == v4 || protocol == [0; 4], "ARP {protocol:?}");
        }
        None => panic!("neither IP nor ARP: {frame:02x?}"),
    }
    if let Some(TransportSlice::Icmpv6(message)) = &parsed.transport {
        let kind = message.header().icmp_type.type_u8();
        assert!(![134, 137, 138].contains(&kind), "a router's or a reserved message");
        if kind == 136
            && let Some(target) = message.slice().get(8..24)
        {
            assert!(target == v6 || target == link_local(vif), "NDP {target:?}");
        }
    }
}
