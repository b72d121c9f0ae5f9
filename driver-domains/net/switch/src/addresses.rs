//! The addresses that a vif may send from.

use ring_proto::boot::Addresses;

use crate::Mac;

/// An IP address; IPv4 in its mapped form (RFC 4291, 2.5.5.2).
pub(crate) type Ip = u128;

/// What is in front of a mapped IPv4 address.
const MAPPED: u128 = 0xffff << 32;
/// The unspecified IPv6 address.
pub(crate) const UNSPECIFIED: Ip = 0;
/// The unspecified IPv4 address, mapped.
pub(crate) const UNSPECIFIED_V4: Ip = MAPPED;

pub(crate) fn v4(address: [u8; 4]) -> Ip {
    MAPPED | u128::from(u32::from_be_bytes(address))
}

pub(crate) fn v6(address: [u8; 16]) -> Ip {
    u128::from_be_bytes(address)
}

/// Addresses of one vif.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) mac: Mac,
    /// IP addresses count.
    pub(crate) checked: bool,
    /// Address and mask; what is not in use fits nothing.
    entries: [(Ip, u128); ring_proto::boot::MAX_ADDRESSES],
    link_local: Ip,
}

impl Own {
    pub(crate) fn new(mac: Mac, addresses: &Addresses) -> Self {
        // No address has a bit outside of an empty mask.
        let mut entries = [(1, 0); _];
        for (entry, (address, prefix)) in entries.iter_mut().zip(addresses.entries()) {
            let beyond = 128u32.saturating_sub(prefix.into());
            let mask = u128::MAX.checked_shl(beyond).unwrap_or(0);
            *entry = (v6(address) & mask, mask);
        }
        Self { mac, checked: addresses.checked != 0, entries, link_local: link_local(mac) }
    }

    /// Whether `ip` is one of them. Without a list every address is.
    pub(crate) fn has(&self, ip: Ip) -> bool {
        !self.checked
            || self.entries.iter().any(|&(address, mask)| ip & mask == address)
            || ip == self.link_local
    }
}

/// The address that a station gives itself: fe80::/64 and its modified EUI-64
/// (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: Mac) -> Ip {
    v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
