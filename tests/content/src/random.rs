//! Reproducible numbers (SplitMix64).

/// Increment of SplitMix64: odd, so that the state takes all values.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads `n` over all 64 bits; different numbers stay different.
pub const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(GAMMA);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Bytes `from` and on of the endless sequence that `seed` names.
pub fn bytes(seed: u64, from: u64) -> impl Iterator<Item = u8> {
    let key = mix(seed);
    let words = (from / 8..=u64::MAX).flat_map(move |i| mix(key.wrapping_add(i)).to_le_bytes());
    // Less than 8.
    words.skip((from % 8) as usize)
}

/// A stream of numbers; each seed gives another.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next number.
    pub const fn number(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(GAMMA);
        number
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: u16) -> u16 {
        // No number below a u16 is larger than one.
        let number = self.number().checked_rem(end.into()).and_then(|n| u16::try_from(n).ok());
        number.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_the_same_from_wherever_it_is_read() {
        let whole: [u8; 64] = core::array::from_fn({
            let mut all = bytes(7, 0);
            move |_| all.next().unwrap()
        });
        for from in 0..40 {
            assert!(bytes(7, from).take(24).eq(whole[from as usize..][..24].iter().copied()));
        }
        assert!(!bytes(8, 0).take(64).eq(whole));
    }

    #[test]
    fn numbers_below() {
        let mut random = Random::new(1);
        let mut seen = [0; 5];
        (0..500).for_each(|_| seen[usize::from(random.below(5))] += 1);
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
