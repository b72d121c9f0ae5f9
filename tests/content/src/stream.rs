//! A stream whose every byte is known from its offset, and what its reader
//! says of it.

use crate::random::bytes;

/// Fills `buffer` with the bytes from `offset` on of the stream that `seed` names.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    buffer.iter_mut().zip(bytes(seed, offset)).for_each(|(to, byte)| *to = byte);
}

/// The offset in the stream of the first of `got`, which were read from
/// `offset` on, that is not as it must be.
pub fn first_wrong(seed: u64, offset: u64, got: &[u8]) -> Option<u64> {
    let mut both = got.iter().copied().zip(bytes(seed, offset));
    let at = both.position(|(got, wanted)| got != wanted)?;
    Some(offset.saturating_add(at as u64))
}

/// What a reader says of the stream, to whoever sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// So many bytes came, and all were right.
    Right(u64),
    /// The byte at this offset is wrong.
    Wrong(u64),
    /// The stream ended.
    End {
        /// Its bytes, which were right.
        bytes: u64,
        /// Their CRC-32.
        crc: u32,
    },
}

impl Note {
    /// Bytes of a note.
    pub const LEN: usize = 16;

    /// Its bytes: kind, checksum, count, little-endian.
    pub fn encode(self) -> [u8; Self::LEN] {
        let (kind, crc, count) = match self {
            Self::Right(bytes) => (1u32, 0u32, bytes),
            Self::Wrong(offset) => (2, 0, offset),
            Self::End { bytes, crc } => (3, crc, bytes),
        };
        let mut note = [0; Self::LEN];
        let parts = kind.to_le_bytes().into_iter().chain(crc.to_le_bytes());
        let parts = parts.chain(count.to_le_bytes());
        note.iter_mut().zip(parts).for_each(|(to, byte)| *to = byte);
        note
    }

    /// Reads one; `None` if these bytes are none.
    pub fn decode(bytes: [u8; Self::LEN]) -> Option<Self> {
        let [k0, k1, k2, k3, c0, c1, c2, c3, count @ ..] = bytes;
        let count = u64::from_le_bytes(count);
        match (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([c0, c1, c2, c3])) {
            (1, 0) => Some(Self::Right(count)),
            (2, 0) => Some(Self::Wrong(count)),
            (3, crc) => Some(Self::End { bytes: count, crc }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_found_wherever_it_is() {
        let mut buffer = [0; 100];
        fill(3, 1_000_003, &mut buffer);
        assert_eq!(first_wrong(3, 1_000_003, &buffer), None);
        assert_eq!(first_wrong(3, 1_000_004, &buffer[1..]), None);
        assert!(first_wrong(3, 1_000_004, &buffer).is_some(), "a byte too many");
        assert!(first_wrong(4, 1_000_003, &buffer).is_some(), "another stream");
        for at in 0..100 {
            let mut damaged = buffer;
            damaged[at] ^= 0x10;
            assert_eq!(first_wrong(3, 1_000_003, &damaged), Some(1_000_003 + at as u64));
        }
    }

    #[test]
    fn notes_come_back() {
        for note in [
            Note::Right(0),
            Note::Right(u64::MAX),
            Note::Wrong(1 << 40),
            Note::End { bytes: 12_345_678_901, crc: 0xdead_beef },
        ] {
            assert_eq!(Note::decode(note.encode()), Some(note));
        }
        assert_eq!(Note::decode([0; 16]), None);
        assert_eq!(Note::decode([0xff; 16]), None);
    }
}
