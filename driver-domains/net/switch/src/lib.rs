//! Where an Ethernet frame goes: a switch between virtual interfaces (vifs)
//! and one wire.
//!
//! It sees addresses and lengths and answers with a [`Verdict`]; moving the
//! bytes is the driver domain's business. Its rules:
//!
//! - A vif sends from its own MAC address only, and the wire from none of a vif.
//!   Which station has which vif's address is never learned.
//! - A vif sends from its own IP addresses only and answers for no others, and
//!   is neither router nor DHCP server ([`inspect`]).
//! - Unicast to a vif's address goes to that vif and nowhere else. Other unicast
//!   from a vif goes to the wire, and from the wire nowhere: vif addresses are
//!   known, so nothing is flooded to guests to find somebody.
//! - Broadcast and multicast go everywhere but back. How many a port may send
//!   is limited, and so is unicast to stations that were never heard of on the
//!   wire, for other switches flood it.
//! - Frames to addresses that bridges keep to themselves (802.1D) go nowhere: a
//!   guest does not take part in the spanning tree of the machine room.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod addresses;
pub mod inspect;
mod learn;

use heapless::Vec;
use io_limits::Bucket;
use ring_proto::boot::Addresses;

use addresses::Own;
use inspect::Checksum;
use learn::Stations;

/// Most vifs.
pub const MAX_VIFS: usize = 12;
/// Bytes of a frame that [`Switch::forward`] must see.
pub const HEADER: usize = 14;
/// Longest frame.
pub const MAX_FRAME: usize = 1514;

/// A hardware address.
pub type Mac = [u8; 6];

/// A side of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The physical network.
    Wire,
    /// A vif, by the number that [`Switch::add_vif`] gave it.
    Vif(usize),
}

/// Why a frame goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Shorter than its header.
    Short,
    /// Longer than a frame may be.
    Long,
    /// Its source address is not the sender's.
    Spoofed,
    /// The sender's limit for floods is reached.
    Flood,
    /// Nobody here has that address.
    Unknown,
    /// To the sender itself, or to an address that bridges keep.
    Reserved,
    /// ARP with addresses that are not the sender's.
    SpoofedArp,
    /// The IP source is not the sender's.
    SpoofedIp,
    /// Neighbour discovery with addresses that are not the sender's.
    SpoofedNdp,
    /// What only a router or a DHCP server sends.
    Rogue,
    /// It has a VLAN tag.
    Tagged,
    /// Neither IP nor ARP, from a vif with IP addresses of its own.
    Protocol,
    /// A header is broken, or goes on beyond what can be seen.
    Malformed,
}

impl Drop {
    /// How many reasons there are.
    pub const COUNT: usize = 13;

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "too short",
            Self::Long => "too long",
            Self::Spoofed => "spoofed MAC address",
            Self::Flood => "flood",
            Self::Unknown => "unknown destination",
            Self::Reserved => "reserved destination",
            Self::SpoofedArp => "spoofed ARP",
            Self::SpoofedIp => "spoofed IP address",
            Self::SpoofedNdp => "spoofed neighbour discovery",
            Self::Rogue => "rogue router or DHCP server",
            Self::Tagged => "VLAN tag",
            Self::Protocol => "neither IP nor ARP",
            Self::Malformed => "malformed header",
        }
    }

    /// Whether no guest sends this by accident.
    pub fn is_hostile(self) -> bool {
        matches!(
            self,
            Self::Spoofed | Self::SpoofedArp | Self::SpoofedIp | Self::SpoofedNdp | Self::Rogue
        )
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To these ports.
    To(Targets),
    /// Nowhere.
    Drop(Drop),
}

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// The wire is among them.
    pub wire: bool,
    vifs: u16,
}

impl Targets {
    /// The vifs among them, ascending.
    pub fn vifs(self) -> impl Iterator<Item = usize> {
        (0..MAX_VIFS).filter(move |&i| self.vifs & bit(i) != 0)
    }

    /// Whether any vif is among them.
    pub fn any_vif(self) -> bool {
        self.vifs != 0
    }
}

/// How many floods a port may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodLimit {
    /// On average, frames a second.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// What a port did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that it sent.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames of it that went nowhere, by [`Drop`].
    pub dropped: [u64; Drop::COUNT],
}

#[derive(Debug)]
struct Side {
    bucket: Bucket,
    counters: Counters,
}

impl Side {
    fn new(floods: FloodLimit) -> Self {
        let bucket = Bucket::new(floods.per_second.into(), floods.burst.into(), 0);
        Self { bucket, counters: Counters::default() }
    }
}

#[derive(Debug)]
struct Vif {
    own: Own,
    side: Side,
}

/// Why a vif was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// There are [`MAX_VIFS`] already.
    TooMany,
    /// A multicast or zero address cannot be a station's.
    BadMac,
    /// Another vif has it.
    Duplicate,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    vifs: Vec<Vif, MAX_VIFS>,
    wire: Side,
    stations: Stations,
    vif_limit: FloodLimit,
}

impl Switch {
    /// Without vifs. `seed` should not be known outside, so that nobody can
    /// choose addresses that collide in the table of stations.
    pub fn new(vif_limit: FloodLimit, wire_limit: FloodLimit, seed: u64) -> Self {
        Self {
            vifs: Vec::new(),
            wire: Side::new(wire_limit),
            stations: Stations::new(seed),
            vif_limit,
        }
    }

    /// Adds a vif that may send from `mac` and `addresses`; returns its number,
    /// counting from 0.
    pub fn add_vif(&mut self, mac: Mac, addresses: &Addresses) -> Result<usize, AddError> {
        if is_group(mac) || mac == [0; 6] {
            return Err(AddError::BadMac);
        }
        if self.vif_of(mac).is_some() {
            return Err(AddError::Duplicate);
        }
        let vif = self.vifs.len();
        let side = Side::new(self.vif_limit);
        let own = Own::new(mac, addresses);
        self.vifs.push(Vif { own, side }).map_err(|_| AddError::TooMany)?;
        Ok(vif)
    }

    /// What `port` did so far; zeroes for a vif that is not there.
    pub fn counters(&self, port: Port) -> Counters {
        match port {
            Port::Wire => self.wire.counters,
            Port::Vif(i) => self.vifs.get(i).map(|v| v.side.counters).unwrap_or_default(),
        }
    }

    /// Decides about a frame of `len` bytes that begins with `head`, came in at
    /// `from` and gets `checksum` filled in on its way.
    pub fn forward(
        &mut self,
        from: Port,
        head: &[u8],
        len: usize,
        checksum: Option<Checksum>,
        now_ns: u64,
    ) -> Verdict {
        let verdict = match self.decide(from, head, len, checksum, now_ns) {
            Ok(targets) => Verdict::To(targets),
            Err(reason) => Verdict::Drop(reason),
        };
        let Some(side) = self.side(from) else { return verdict };
        let counters = &mut side.counters;
        counters.frames = counters.frames.saturating_add(1);
        counters.bytes = counters.bytes.saturating_add(len as u64);
        if let Verdict::Drop(reason) = verdict
            && let Some(count) = counters.dropped.get_mut(reason as usize)
        {
            *count = count.saturating_add(1);
        }
        verdict
    }

    fn decide(
        &mut self,
        from: Port,
        head: &[u8],
        len: usize,
        checksum: Option<Checksum>,
        now_ns: u64,
    ) -> Result<Targets, Drop> {
        let (to, source) = addresses(head).filter(|_| len >= HEADER).ok_or(Drop::Short)?;
        if len > MAX_FRAME {
            return Err(Drop::Long);
        }
        match from {
            Port::Vif(i) => {
                let own = self.vifs.get(i).map(|vif| &vif.own).ok_or(Drop::Spoofed)?;
                if own.mac != source {
                    return Err(Drop::Spoofed);
                }
                inspect::check(own, head, checksum)?;
            }
            Port::Wire => {
                if is_group(source) || self.vif_of(source).is_some() {
                    return Err(Drop::Spoofed);
                }
                self.stations.heard(source, now_ns);
            }
        }
        if is_kept_by_bridges(to) {
            return Err(Drop::Reserved);
        }
        if is_group(to) {
            return self.flood(from, self.all_but(from), now_ns);
        }
        match (self.vif_of(to), from) {
            (Some(vif), from) if from == Port::Vif(vif) => Err(Drop::Reserved),
            (Some(vif), _) => Ok(Targets { wire: false, vifs: bit(vif) }),
            (None, Port::Wire) => Err(Drop::Unknown),
            (None, Port::Vif(_)) => {
                let wire = Targets { wire: true, vifs: 0 };
                if self.stations.knows(to, now_ns) {
                    Ok(wire)
                } else {
                    self.flood(from, wire, now_ns)
                }
            }
        }
    }

    fn flood(&mut self, from: Port, targets: Targets, now_ns: u64) -> Result<Targets, Drop> {
        let allowed = self.side(from).is_some_and(|side| side.bucket.take(now_ns, 1));
        if allowed { Ok(targets) } else { Err(Drop::Flood) }
    }

    fn side(&mut self, port: Port) -> Option<&mut Side> {
        match port {
            Port::Wire => Some(&mut self.wire),
            Port::Vif(i) => self.vifs.get_mut(i).map(|vif| &mut vif.side),
        }
    }

    fn all_but(&self, from: Port) -> Targets {
        let all = (0..self.vifs.len()).fold(0, |all, vif| all | bit(vif));
        match from {
            Port::Wire => Targets { wire: false, vifs: all },
            Port::Vif(i) => Targets { wire: true, vifs: all & !bit(i) },
        }
    }

    fn vif_of(&self, mac: Mac) -> Option<usize> {
        self.vifs.iter().position(|vif| vif.own.mac == mac)
    }
}

/// A vif in [`Targets`].
fn bit(vif: usize) -> u16 {
    u32::try_from(vif).ok().and_then(|vif| 1u16.checked_shl(vif)).unwrap_or(0)
}

/// Destination and source of a frame.
fn addresses(head: &[u8]) -> Option<(Mac, Mac)> {
    let to = head.get(..6)?.try_into().ok()?;
    let from = head.get(6..12)?.try_into().ok()?;
    head.get(12..HEADER)?;
    Some((to, from))
}

/// Broadcast or multicast.
const fn is_group([first, ..]: Mac) -> bool {
    first & 1 != 0
}

/// 01:80:c2:00:00:00 to …:0f.
const fn is_kept_by_bridges(mac: Mac) -> bool {
    matches!(mac, [0x01, 0x80, 0xc2, 0, 0, 0..0x10])
}

#[cfg(test)]
mod spoofing;
#[cfg(test)]
mod tests;
