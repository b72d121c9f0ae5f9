//! Where an Ethernet frame goes: a switch between virtual interfaces (vifs)
//! and one wire.
//!
//! It sees addresses and lengths and answers with a [`Verdict`]; moving the
//! bytes is the driver domain's business. Its rules:
//!
//! - A vif sends from its own MAC address only, and the wire from none of a vif.
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

mod bucket;
mod learn;

use heapless::Vec;

use bucket::Bucket;
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
        (0..MAX_VIFS).filter(move |&i| self.vifs & (1 << i) != 0)
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
    /// Frames of it that went nowhere, by reason: short, long, spoofed,
    /// flood, unknown, reserved.
    pub dropped: [u64; 6],
}

#[derive(Debug)]
struct Side {
    bucket: Bucket,
    counters: Counters,
}

#[derive(Debug)]
struct Vif {
    mac: Mac,
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
            wire: Side { bucket: Bucket::new(wire_limit), counters: Counters::default() },
            stations: Stations::new(seed),
            vif_limit,
        }
    }

    /// Adds a vif; returns its number, counting from 0.
    pub fn add_vif(&mut self, mac: Mac) -> Result<usize, AddError> {
        if is_group(mac) || mac == [0; 6] {
            return Err(AddError::BadMac);
        }
        if self.vif_of(mac).is_some() {
            return Err(AddError::Duplicate);
        }
        let side = Side { bucket: Bucket::new(self.vif_limit), counters: Counters::default() };
        self.vifs.push(Vif { mac, side }).map_err(|_| AddError::TooMany)?;
        Ok(self.vifs.len() - 1)
    }

    /// What `port` did so far; zeroes for a vif that is not there.
    pub fn counters(&self, port: Port) -> Counters {
        match port {
            Port::Wire => self.wire.counters,
            Port::Vif(i) => self.vifs.get(i).map(|v| v.side.counters).unwrap_or_default(),
        }
    }

    /// Decides about a frame of `len` bytes that begins with `head` and came
    /// in at `from`.
    pub fn forward(&mut self, from: Port, head: &[u8], len: usize, now_ns: u64) -> Verdict {
        let verdict = self.decide(from, head, len, now_ns);
        let Some(side) = self.side(from) else { return verdict };
        side.counters.frames += 1;
        side.counters.bytes = side.counters.bytes.saturating_add(len as u64);
        if let Verdict::Drop(reason) = verdict
            && let Some(count) = side.counters.dropped.get_mut(reason as usize)
        {
            *count += 1;
        }
        verdict
    }

    fn decide(&mut self, from: Port, head: &[u8], len: usize, now_ns: u64) -> Verdict {
        let Some((to, source)) = addresses(head).filter(|_| len >= HEADER) else {
            return Verdict::Drop(Drop::Short);
        };
        if len > MAX_FRAME {
            return Verdict::Drop(Drop::Long);
        }
        let genuine = match from {
            Port::Vif(i) => self.vifs.get(i).is_some_and(|vif| vif.mac == source),
            Port::Wire => !is_group(source) && self.vif_of(source).is_none(),
        };
        if !genuine {
            return Verdict::Drop(Drop::Spoofed);
        }
        if from == Port::Wire {
            self.stations.heard(source, now_ns);
        }
        if is_kept_by_bridges(to) {
            return Verdict::Drop(Drop::Reserved);
        }
        if is_group(to) {
            return self.flood(from, self.all_but(from), now_ns);
        }
        match (self.vif_of(to), from) {
            (Some(vif), from) if from == Port::Vif(vif) => Verdict::Drop(Drop::Reserved),
            (Some(vif), _) => Verdict::To(Targets { wire: false, vifs: 1 << vif }),
            (None, Port::Wire) => Verdict::Drop(Drop::Unknown),
            (None, Port::Vif(_)) => {
                let wire = Targets { wire: true, vifs: 0 };
                if self.stations.knows(to, now_ns) {
                    Verdict::To(wire)
                } else {
                    self.flood(from, wire, now_ns)
                }
            }
        }
    }

    fn flood(&mut self, from: Port, targets: Targets, now_ns: u64) -> Verdict {
        let allowed = self.side(from).is_some_and(|side| side.bucket.take(now_ns));
        if allowed { Verdict::To(targets) } else { Verdict::Drop(Drop::Flood) }
    }

    fn side(&mut self, port: Port) -> Option<&mut Side> {
        match port {
            Port::Wire => Some(&mut self.wire),
            Port::Vif(i) => self.vifs.get_mut(i).map(|vif| &mut vif.side),
        }
    }

    fn all_but(&self, from: Port) -> Targets {
        let all = (1u16 << self.vifs.len()) - 1;
        match from {
            Port::Wire => Targets { wire: false, vifs: all },
            Port::Vif(i) => Targets { wire: true, vifs: all & !(1 << i) },
        }
    }

    fn vif_of(&self, mac: Mac) -> Option<usize> {
        self.vifs.iter().position(|vif| vif.mac == mac)
    }
}

/// Destination and source of a frame.
fn addresses(head: &[u8]) -> Option<(Mac, Mac)> {
    let to = head.get(..6)?.try_into().ok()?;
    let from = head.get(6..12)?.try_into().ok()?;
    head.get(12..HEADER)?;
    Some((to, from))
}

/// Broadcast or multicast.
const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// 01:80:c2:00:00:00 to …:0f.
fn is_kept_by_bridges(mac: Mac) -> bool {
    mac[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac[5] < 0x10
}

#[cfg(test)]
mod tests;
