//! Labelled data of any length: from the bytes alone one can tell who wrote them,
//! where they belong, in which version, and whether one of them is another.
//!
//! A label is in front. The bytes behind follow from it, and who reads compares
//! every one, so that no checksum over them is needed: the label has one of its
//! own. They are cheap to make, as those who write and read them share a
//! processor with what they test.

use core::fmt;

use crate::random::mix;

/// Bytes of a label, and fewest of labelled data.
pub const LABEL: usize = 32;
/// Bytes of the label that its checksum covers, and that come before it.
const COVERED: usize = 28;
/// Odd, so that the words of 2^64 words differ.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Who wrote it.
    pub writer: u64,
    /// Where it belongs.
    pub place: u64,
    /// Which it is of those that were there.
    pub version: u64,
}

/// Why bytes are not what a label says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// There is no label: too few bytes, or its checksum is wrong.
    NoLabel,
    /// The label is of data of another length.
    Length(Label),
    /// The byte at this offset is another.
    Byte(Label, usize),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLabel => f.write_str("no label"),
            Self::Length(label) => write!(f, "another length than that of {label:?}"),
            Self::Byte(label, at) => write!(f, "{label:?}, and byte {at} is another"),
        }
    }
}

impl core::error::Error for Damage {}

impl Label {
    /// The label's own bytes in front of `len` bytes: writer, place, version, length, CRC-32.
    fn encode(self, len: usize) -> [u8; LABEL] {
        let mut bytes = [0; LABEL];
        let words = [self.writer, self.place, self.version].into_iter().flat_map(u64::to_le_bytes);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let covered = words.chain(len.to_le_bytes());
        bytes.iter_mut().zip(covered).for_each(|(to, byte)| *to = byte);
        let (covered, checksum) = bytes.split_at_mut(COVERED);
        checksum.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
        bytes
    }

    /// The words behind the label.
    fn words(self) -> impl Iterator<Item = u64> {
        let key = mix(mix(mix(self.writer) ^ self.place) ^ self.version);
        (0..=u64::MAX).map(move |i| key.wrapping_add(i.wrapping_mul(STEP)))
    }

    /// Makes `data` labelled data; fewer than [`LABEL`] bytes are left as they are.
    pub fn fill(self, data: &mut [u8]) {
        let label = self.encode(data.len());
        let Some((head, rest)) = data.split_first_chunk_mut() else { return };
        *head = label;
        let (whole, last) = rest.as_chunks_mut();
        let mut words = self.words().map(u64::to_le_bytes);
        whole.iter_mut().zip(&mut words).for_each(|(to, word)| *to = word);
        last.iter_mut().zip(words.flatten()).for_each(|(to, byte)| *to = byte);
    }

    /// The label of `data`.
    ///
    /// # Errors
    ///
    /// There is none, or not all bytes are what it says.
    pub fn read(data: &[u8]) -> Result<Self, Damage> {
        let (head, rest) = data.split_first_chunk::<LABEL>().ok_or(Damage::NoLabel)?;
        let mut words = head.chunks_exact(8).map(|word| {
            let word = word.first_chunk().copied().unwrap_or_default();
            u64::from_le_bytes(word)
        });
        let mut next = || words.next().unwrap_or_default();
        let (label, last) =
            (Self { writer: next(), place: next(), version: next() }, next().to_le_bytes());
        // With its length as it says, else a good label of other data would count as none.
        let len = last.first_chunk().map(|len| u32::from_le_bytes(*len)).unwrap_or_default();
        let len = usize::try_from(len).map_err(|_| Damage::NoLabel)?;
        if label.encode(len) != *head {
            return Err(Damage::NoLabel);
        }
        if len != data.len() {
            return Err(Damage::Length(label));
        }
        let (whole, _) = rest.as_chunks();
        let first = whole.iter().zip(label.words()).position(|(g, w)| u64::from_le_bytes(*g) != w);
        // From there byte by byte; what is left has no word of its own if all are right.
        let from = first.unwrap_or(whole.len());
        let wanted = label.words().skip(from).flat_map(u64::to_le_bytes);
        let rest = rest.get(from.saturating_mul(8)..).unwrap_or_default();
        if let Some(byte) = rest.iter().zip(wanted).position(|(got, wanted)| *got != wanted) {
            // An offset in a slice.
            let at = from.saturating_mul(8).saturating_add(LABEL).saturating_add(byte);
            return Err(Damage::Byte(label, at));
        }
        Ok(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELLED: Label = Label { writer: 1 << 63, place: 77, version: 3 };

    #[test]
    fn any_wrong_bit_is_found_at_any_length() {
        for len in [LABEL, LABEL + 1, LABEL + 8, 100, 512] {
            let mut data = [0xffu8; 512];
            let data = &mut data[..len];
            LABELLED.fill(data);
            assert_eq!(Label::read(data), Ok(LABELLED), "{len}");
            for bit in 0..8 * len {
                data[bit / 8] ^= 1 << (bit % 8);
                let wanted = match bit / 8 {
                    0..LABEL => Damage::NoLabel,
                    byte => Damage::Byte(LABELLED, byte),
                };
                assert_eq!(Label::read(data), Err(wanted), "bit {bit} of {len} bytes");
                data[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn other_data_is_told_apart() {
        let mut data = [0; 128];
        LABELLED.fill(&mut data);
        assert_eq!(Label::read(&data[..64]), Err(Damage::Length(LABELLED)));
        assert_eq!(Label::read(&data[1..]), Err(Damage::NoLabel));
        assert_eq!(Label::read(&[0; 128]), Err(Damage::NoLabel), "zeros are no label");
        assert_eq!(Label::read(&[0xff; 128]), Err(Damage::NoLabel));
        assert_eq!(Label::read(&[]), Err(Damage::NoLabel));
        // The body of one version under the label of another.
        let mut other = [0; 128];
        Label { version: 4, ..LABELLED }.fill(&mut other);
        other[..LABEL].copy_from_slice(&data[..LABEL]);
        assert_eq!(Label::read(&other), Err(Damage::Byte(LABELLED, LABEL)));
    }

    #[test]
    fn what_is_too_short_for_a_label_stays_as_it_is() {
        let mut data = [9; LABEL - 1];
        LABELLED.fill(&mut data);
        assert_eq!(data, [9; LABEL - 1]);
    }
}
