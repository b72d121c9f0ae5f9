//! Stations that were heard on the wire.

use crate::Mac;

const SETS: usize = 64;
const LAST_SET: u64 = SETS as u64 - 1;
const WAYS: usize = 4;
/// A station that was silent for so long is forgotten.
const AGE_NS: u64 = 300_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Station {
    mac: Mac,
    heard_ns: u64,
}

/// A table of fixed size; the one that was silent longest makes room.
#[derive(Debug)]
pub(crate) struct Stations {
    sets: [[Option<Station>; WAYS]; SETS],
    seed: u64,
}

impl Stations {
    pub(crate) fn new(seed: u64) -> Self {
        Self { sets: [[None; WAYS]; SETS], seed }
    }

    fn set(&self, mac: Mac) -> usize {
        let [a, b, c, d, e, f] = mac;
        let mixed = (u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) ^ self.seed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ self.seed.rotate_left(17)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 7;
        usize::try_from(mixed & LAST_SET).unwrap_or(0)
    }

    pub(crate) fn heard(&mut self, mac: Mac, now_ns: u64) {
        let set = self.set(mac);
        let Some(ways) = self.sets.get_mut(set) else { return };
        let known = ways.iter_mut().flatten().find(|s| s.mac == mac);
        if let Some(station) = known {
            station.heard_ns = now_ns;
            return;
        }
        if let Some(oldest) = ways.iter_mut().min_by_key(|way| way.map_or(0, |s| s.heard_ns)) {
            *oldest = Some(Station { mac, heard_ns: now_ns });
        }
    }

    pub(crate) fn knows(&self, mac: Mac, now_ns: u64) -> bool {
        self.sets.get(self.set(mac)).is_some_and(|ways| {
            ways.iter()
                .flatten()
                .any(|s| s.mac == mac && now_ns.saturating_sub(s.heard_ns) < AGE_NS)
        })
    }
}
