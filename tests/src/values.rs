//! Values whose bytes say what they are: bytes of another value, an older
//! version, or a wrong place within the value do not compare equal.

/// Largest value that the service takes.
pub const MAX: usize = 8 << 20;

/// A reproducible stream of numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream; each seed gives another.
    pub fn new(seed: u64) -> Self {
        // Any state but 0 will do.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.number() % (high - low + 1) as u64) as usize
    }
}

/// `len` bytes for `seed`.
pub fn value(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Says where `got` is not the value of `seed` and `len`; `None` if it is.
pub fn difference(got: &[u8], seed: u64, len: usize) -> Option<String> {
    let wanted = value(seed, len);
    if got == wanted {
        return None;
    }
    if got.len() != wanted.len() {
        return Some(format!("{} bytes instead of {len}", got.len()));
    }
    let wrong = got.iter().zip(&wanted).filter(|(a, b)| a != b).count();
    let first = got.iter().zip(&wanted).position(|(a, b)| a != b).unwrap_or(0);
    let kind = match got.get(first..len.min(first + 512)) {
        Some(part) if part.iter().all(|&byte| byte == 0) => ", zeros there",
        _ => "",
    };
    Some(format!("{wrong} of {len} bytes are wrong, the first at {first}{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ_by_seed_and_wrong_bytes_are_found() {
        assert_ne!(value(1, 100), value(2, 100));
        assert_eq!(value(1, 100)[..50], value(1, 50));
        let mut bytes = value(7, 1000);
        assert_eq!(difference(&bytes, 7, 1000), None);
        bytes[600] ^= 1;
        assert_eq!(
            difference(&bytes, 7, 1000).unwrap(),
            "1 of 1000 bytes are wrong, the first at 600"
        );
        assert_eq!(difference(&[], 7, 3).unwrap(), "0 bytes instead of 3");
    }
}
