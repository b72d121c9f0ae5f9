//! The IP addresses that a vif may send from.

use std::net::IpAddr;

use ring_proto::boot::{Addresses, MAX_ADDRESSES};
use ring_proto::bundle;

use super::reader::{Field, ManifestError, Section};

/// Bits that an IPv4 address has in front in its mapped form.
const MAPPED: u8 = 96;

/// `addresses` of a net connection with MAC address `mac`. Without the key
/// addresses are not checked; an empty list lets no IP address through but
/// those of [`link_local`].
pub(super) fn addresses(
    section: &Section<'_>,
    before: &[bundle::Connection],
    backend: u16,
    mac: [u8; 6],
) -> Result<Addresses, ManifestError> {
    let mut all = Addresses::default();
    let Some(field) = section.get("addresses") else {
        return Ok(all);
    };
    all.checked = 1;
    let neighbours: Vec<_> = before.iter().filter(|other| other.backend == backend).collect();
    for item in field.array()? {
        let (address, prefix) = parse(&item)?;
        let taken = |other: &&&bundle::Connection| {
            let local = (link_local(other.mac), 128);
            let mut theirs = other.addresses.entries().chain([local]);
            theirs.any(|entry| overlap(entry, (address, prefix)))
        };
        if neighbours.iter().any(|other| taken(&other)) {
            return Err(item.wrong(format_args!(
                "has {}, of which another connection has a part",
                item.string()?
            )));
        }
        let index = usize::from(all.count);
        let (Some(entry), Some(bits)) = (all.list.get_mut(index), all.prefixes.get_mut(index))
        else {
            return Err(field.wrong(format_args!("has more than {MAX_ADDRESSES} entries")));
        };
        (*entry, *bits) = (address, prefix);
        all.count += 1;
    }
    let own = (link_local(mac), 128);
    let taken = |other: &&bundle::Connection| other.addresses.entries().any(|e| overlap(e, own));
    if neighbours.iter().any(taken) {
        return Err(
            field.wrong("belongs to a connection whose link-local address another connection has")
        );
    }
    Ok(all)
}

/// The link-local address that a station has without being told: fe80::/64 and
/// its modified EUI-64 (RFC 4291, appendix A).
pub(super) fn link_local(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

fn parse(field: &Field<'_>) -> Result<([u8; 16], u8), ManifestError> {
    let text = field.string()?;
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let parsed = address.parse::<IpAddr>().ok().and_then(|address| {
        let most: u8 = if address.is_ipv4() { 32 } else { 128 };
        let bits = prefix.map_or(Some(most), |prefix| prefix.parse().ok())?;
        (bits <= most).then_some((address, bits))
    });
    let Some((address, bits)) = parsed else {
        return Err(field.wrong(format_args!(
            "must have addresses such as \"10.0.2.15/32\" or \"fd00::5/128\", not \"{text}\""
        )));
    };
    let (octets, prefix) = match address {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), bits + MAPPED),
        IpAddr::V6(v6) => (v6.octets(), bits),
    };
    if address.is_multicast() || address.is_unspecified() {
        return Err(field.wrong(format_args!("has {text}, which no station sends from")));
    }
    if u128::from_be_bytes(octets) & !mask(prefix) != 0 {
        return Err(field.wrong(format_args!(
            "has {text}, with bits beyond the prefix; write {address} for that address alone"
        )));
    }
    Ok((octets, prefix))
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

fn overlap(a: ([u8; 16], u8), b: ([u8; 16], u8)) -> bool {
    let mask = mask(a.1.min(b.1));
    (u128::from_be_bytes(a.0) ^ u128::from_be_bytes(b.0)) & mask == 0
}
