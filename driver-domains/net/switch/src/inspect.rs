//! Whose addresses a guest's frame claims.
//!
//! Only the head of a frame is looked at, and it may be all that there is. What
//! cannot be seen there is refused and not guessed: a chain of extension headers
//! that goes on beyond it, an option that is cut off.
//!
//! The parsers that there are read whole packets and are generous; here the
//! question is what *no* receiver could take for somebody else's, so this is a
//! reader of its own, without a single index or sum that could go wrong. The
//! tests hold it against `etherparse`.
//!
//! | frame | must be the vif's own |
//! |---|---|
//! | ARP (RFC 826) | sender's hardware and protocol address |
//! | IPv4 | source; 0.0.0.0 only for a DHCP client |
//! | IPv6 | source; :: only for neighbour discovery and MLD |
//! | NDP (RFC 4861) | link-layer options, target of an advertisement |
//!
//! Whatever addresses it has, a guest is no router and no DHCP server, and has
//! no tagged frames.

use core::ops::Range;

use crate::addresses::{Ip, Own, UNSPECIFIED, UNSPECIFIED_V4, v4, v6};
use crate::{Drop, HEADER};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Customer, service and the older tags (802.1Q, 802.1ad, QinQ).
const TAGS: [u16; 5] = [0x8100, 0x88a8, 0x9100, 0x9200, 0x9300];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
/// Mobility, HIP and Shim6: laid out like options (RFC 7045).
const LIKE_OPTIONS: [u8; 3] = [135, 139, 140];

/// Most extension headers of an IPv6 packet.
const MAX_EXTENSIONS: usize = 6;
/// Most options of a neighbour discovery message.
const MAX_OPTIONS: usize = 8;

/// A checksum that is to be filled in: where it begins, and where after that it
/// is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that counts.
    pub start: u16,
    /// Place of the sum, from there.
    pub offset: u16,
}

/// Where the header of the transport protocol is, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transport {
    protocol: u8,
    at: usize,
}

/// Bytes of a frame that can be seen.
#[derive(Clone, Copy)]
struct Head<'a>(&'a [u8]);

impl<'a> Head<'a> {
    fn bytes<const N: usize>(self, at: usize) -> Result<[u8; N], Drop> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<N>());
        bytes.copied().ok_or(Drop::Malformed)
    }

    fn byte(self, at: usize) -> Result<u8, Drop> {
        self.0.get(at).copied().ok_or(Drop::Malformed)
    }

    fn word(self, at: usize) -> Result<u16, Drop> {
        self.bytes(at).map(u16::from_be_bytes)
    }

    /// What lies before `end`.
    fn until(self, end: usize) -> Head<'a> {
        Head(self.0.get(..end).unwrap_or(self.0))
    }
}

/// A place further on. Nothing here comes near the end of the address space, and
/// what would is outside of every frame.
fn after(at: usize, more: usize) -> usize {
    at.saturating_add(more)
}

/// Checks a frame of a vif whose addresses are `own`, beyond its Ethernet
/// header's addresses. `head` is the frame or its beginning.
pub(crate) fn check(own: &Own, head: &[u8], checksum: Option<Checksum>) -> Result<(), Drop> {
    let head = Head(head);
    let transport = match head.word(12)? {
        IPV4 => ipv4(own, head)?,
        IPV6 => ipv6(own, head)?,
        ARP => {
            arp(own, head)?;
            None
        }
        tag if TAGS.contains(&tag) => return Err(Drop::Tagged),
        _ if own.checked => return Err(Drop::Protocol),
        _ => None,
    };
    match checksum {
        Some(checksum) => fits(checksum, transport),
        None => Ok(()),
    }
}

/// The NIC stores the sum after this check: anywhere but in the field that is
/// meant for it, it would rewrite what was checked.
fn fits(checksum: Checksum, transport: Option<Transport>) -> Result<(), Drop> {
    let Some(Transport { protocol, at }) = transport else { return Err(Drop::Malformed) };
    let field = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return Err(Drop::Malformed),
    };
    let fits = usize::from(checksum.start) == at && checksum.offset == field;
    if fits { Ok(()) } else { Err(Drop::Malformed) }
}

fn claim(own: &Own, ip: Ip) -> Result<(), Drop> {
    if own.has(ip) { Ok(()) } else { Err(Drop::SpoofedIp) }
}

fn arp(own: &Own, head: Head<'_>) -> Result<(), Drop> {
    const FIELDS: usize = HEADER;
    // Ethernet and IPv4, with lengths of addresses to match.
    if head.bytes(FIELDS)? != [0, 1, 8, 0, 6, 4] {
        return Err(Drop::Malformed);
    }
    let operation = head.word(FIELDS + 6)?;
    let hardware = head.bytes::<6>(FIELDS + 8)?;
    let protocol = v4(head.bytes(FIELDS + 14)?);
    // Target's addresses: the whole packet has to be there.
    head.bytes::<10>(FIELDS + 18)?;
    if hardware != own.mac {
        return Err(Drop::SpoofedArp);
    }
    match operation {
        // A probe claims nothing (RFC 5227, 2.1.1).
        1 if protocol == UNSPECIFIED_V4 => Ok(()),
        1 | 2 if own.has(protocol) => Ok(()),
        1 | 2 => Err(Drop::SpoofedArp),
        _ => Err(Drop::Malformed),
    }
}

fn ipv4(own: &Own, head: Head<'_>) -> Result<Option<Transport>, Drop> {
    const START: usize = HEADER;
    let first = head.byte(START)?;
    let header = usize::from(first & 0xf).saturating_mul(4);
    if first >> 4 != 4 || header < 20 {
        return Err(Drop::Malformed);
    }
    let fragment = head.word(START + 6)?;
    let protocol = head.byte(START + 9)?;
    let source = v4(head.bytes(START + 12)?);
    let to: [u8; 4] = head.bytes(START + 16)?;
    let end = after(START, head.word(START + 2)?.into());
    let at = after(START, header);
    // Options that are cut off hide where the payload begins.
    if at > head.0.len() || at > end {
        return Err(Drop::Malformed);
    }
    let first_part = fragment & 0x1fff == 0;
    let payload = head.until(end);
    let ports = if first_part && protocol == UDP {
        Some((payload.word(at)?, payload.word(after(at, 2))?))
    } else {
        None
    };
    if source == UNSPECIFIED_V4 {
        // A DHCP client that has no address yet (RFC 2131, 4.1), in one piece.
        let client = ports == Some((68, 67)) && fragment & 0x3fff == 0 && to == [0xff; 4];
        return if client { Ok(Some(Transport { protocol, at })) } else { Err(Drop::SpoofedIp) };
    }
    claim(own, source)?;
    // Only DHCP servers and relays send to clients, whatever port they use.
    if matches!(ports, Some((_, 68))) {
        return Err(Drop::Rogue);
    }
    // Redirect and router advertisement (RFC 792, RFC 1256).
    if first_part && protocol == ICMP && matches!(payload.byte(at)?, 5 | 9) {
        return Err(Drop::Rogue);
    }
    Ok(first_part.then_some(Transport { protocol, at }))
}

fn ipv6(own: &Own, head: Head<'_>) -> Result<Option<Transport>, Drop> {
    const START: usize = HEADER;
    const HEADER_LEN: usize = 40;
    if head.byte(START)? >> 4 != 6 {
        return Err(Drop::Malformed);
    }
    let source = v6(head.bytes(START + 8)?);
    head.bytes::<16>(START + 24)?;
    let somebody = if source == UNSPECIFIED {
        Err(Drop::SpoofedIp)
    } else {
        claim(own, source)?;
        Ok(())
    };
    let end = after(after(START, HEADER_LEN), head.word(START + 4)?.into());
    let packet = head.until(end);
    let mut next = head.byte(START + 6)?;
    let mut at = after(START, HEADER_LEN);
    let mut fragmented = false;
    for _ in 0..=MAX_EXTENSIONS {
        let options = matches!(next, HOP_BY_HOP | ROUTING | DESTINATION);
        let (following, len) = match next {
            _ if options || LIKE_OPTIONS.contains(&next) => {
                let [following, units] = packet.bytes(at)?;
                (following, after(usize::from(units).saturating_mul(8), 8))
            }
            AUTHENTICATION => {
                let [following, units] = packet.bytes(at)?;
                (following, after(usize::from(units).saturating_mul(4), 8))
            }
            FRAGMENT => {
                let [following, _, high, low] = packet.bytes(at)?;
                fragmented = true;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    // The rest of something whose first part was checked with
                    // its whole chain (RFC 7112).
                    return somebody.map(|()| None);
                }
                (following, 8)
            }
            ICMPV6 => {
                icmpv6(own, packet, at..end, somebody, fragmented)?;
                return Ok(Some(Transport { protocol: next, at }));
            }
            _ => {
                somebody?;
                // Only DHCPv6 servers and relays send to clients (RFC 8415, 7.2).
                if next == UDP && packet.word(after(at, 2))? == 546 {
                    return Err(Drop::Rogue);
                }
                return Ok(Some(Transport { protocol: next, at }));
            }
        };
        next = following;
        at = after(at, len);
    }
    Err(Drop::Malformed)
}

/// Neighbour discovery (RFC 4861) and what may come without an address. The
/// message stands at `place`.
fn icmpv6(
    own: &Own,
    packet: Head<'_>,
    place: Range<usize>,
    somebody: Result<(), Drop>,
    fragmented: bool,
) -> Result<(), Drop> {
    const ROUTER_SOLICITATION: u8 = 133;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;
    const RENUMBERING: u8 = 138;
    const MLD_REPORTS: [u8; 3] = [131, 132, 143];

    let Range { start: at, end } = place;
    let kind = packet.byte(at)?;
    let unspecified = somebody.is_err();
    let options = match kind {
        ROUTER_ADVERTISEMENT | REDIRECT | RENUMBERING => return Err(Drop::Rogue),
        // Neighbour discovery comes in one piece (RFC 6980).
        ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT if fragmented => {
            return Err(Drop::SpoofedNdp);
        }
        ROUTER_SOLICITATION => 8,
        NEIGHBOUR_SOLICITATION => {
            // Without a source it asks whether the target is free, to have it.
            let target = v6(packet.bytes(after(at, 8))?);
            if unspecified && !own.has(target) {
                return Err(Drop::SpoofedNdp);
            }
            24
        }
        NEIGHBOUR_ADVERTISEMENT => {
            let target = v6(packet.bytes(after(at, 8))?);
            if unspecified || !own.has(target) {
                return Err(Drop::SpoofedNdp);
            }
            24
        }
        _ if MLD_REPORTS.contains(&kind) => return Ok(()),
        _ => return somebody,
    };
    link_layer_options(own, packet, after(at, options)..end)
}

/// Options that fill `place`: addresses of the link layer are the vif's. All
/// have to be seen: `place` may end beyond the head.
fn link_layer_options(own: &Own, packet: Head<'_>, place: Range<usize>) -> Result<(), Drop> {
    const SOURCE: u8 = 1;
    const TARGET: u8 = 2;
    let Range { start: mut at, end } = place;
    for _ in 0..MAX_OPTIONS {
        if at == end {
            return Ok(());
        }
        let [kind, units] = packet.bytes(at)?;
        if units == 0 {
            return Err(Drop::Malformed);
        }
        if matches!(kind, SOURCE | TARGET) && packet.bytes(after(at, 2))? != own.mac {
            return Err(Drop::SpoofedNdp);
        }
        at = after(at, usize::from(units).saturating_mul(8));
    }
    Err(Drop::Malformed)
}
