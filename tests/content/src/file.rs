//! Files made of records, each with a checksum, its place and a version: from
//! the bytes alone one can tell whether they are damaged, belong elsewhere, or
//! are older than they must be.

use core::fmt;

use heapless::String;

use crate::random;

/// Bytes of a record. No power of two, so that records lie across sectors and
/// clusters.
pub const RECORD: usize = 400;
/// Bytes of the CRC-32 at a record's front. At its end, it would make the CRC-32
/// of a whole file the same whatever the records hold.
const CHECKSUM: usize = 4;
/// Bytes of the head behind that: file, index, version.
const HEAD: usize = 12;
/// Files that there may be, numbered from 0.
pub const FILES: u16 = 24;
/// Directories that they are spread over.
pub const DIRECTORIES: u16 = 4;

/// Name of a file or a directory, "8.3".
pub type Name = String<12>;

/// Name of a file's directory, which is in the root.
pub fn directory(number: u16) -> Name {
    name(format_args!("DIR{number}"))
}

/// Number of the directory that a file is in.
pub fn directory_of(file: u16) -> u16 {
    file % DIRECTORIES
}

/// Name of a file within its directory.
pub fn file_name(file: u16) -> Name {
    name(format_args!("FILE{file:02}.DAT"))
}

/// The file with this path, if it is one of ours.
pub fn file_at(directory: &str, name: &str) -> Option<u16> {
    (0..FILES)
        .find(|&file| self::directory(directory_of(file)) == directory && file_name(file) == name)
}

fn name(text: fmt::Arguments<'_>) -> Name {
    let mut name = Name::new();
    // No number is long enough to make it overflow.
    let _ = fmt::Write::write_fmt(&mut name, text);
    name
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its file.
    pub file: u16,
    /// Its place there.
    pub index: u16,
    /// Grows with each operation that writes.
    pub version: u64,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// So many bytes instead of [`RECORD`].
    Length(usize),
    /// The checksum is wrong.
    Checksum,
    /// The checksum is right, and what it is about is no record.
    Content,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(bytes) => write!(f, "{bytes} bytes instead of {RECORD}"),
            Self::Checksum => f.write_str("a wrong checksum"),
            Self::Content => f.write_str("other bytes under a right checksum"),
        }
    }
}

impl core::error::Error for Damage {}

impl Record {
    /// Its bytes: checksum, head, bytes that follow from the head.
    pub fn encode(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let place = u64::from(self.file) << 16 | u64::from(self.index);
        let head = self.file.to_le_bytes().into_iter().chain(self.index.to_le_bytes());
        let head = head.chain(self.version.to_le_bytes());
        let body = random::bytes(random::mix(self.version) ^ place, 0);
        let (checksum, rest) = bytes.split_at_mut(CHECKSUM);
        rest.iter_mut().zip(head.chain(body)).for_each(|(to, byte)| *to = byte);
        checksum.copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
        bytes
    }

    /// Reads one, and looks at all of it.
    ///
    /// # Errors
    ///
    /// The bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let whole: &[u8; RECORD] = bytes.try_into().map_err(|_| Damage::Length(bytes.len()))?;
        let (checksum, rest) = whole.split_at(CHECKSUM);
        if crc32fast::hash(rest).to_le_bytes() != checksum {
            return Err(Damage::Checksum);
        }
        let Some(&[f0, f1, i0, i1, ref version @ ..]) = rest.first_chunk::<HEAD>() else {
            return Err(Damage::Content);
        };
        let record = Self {
            file: u16::from_le_bytes([f0, f1]),
            index: u16::from_le_bytes([i0, i1]),
            version: u64::from_le_bytes(*version),
        };
        if record.encode() == *whole { Ok(record) } else { Err(Damage::Content) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_any_wrong_bit_is_seen() {
        let record = Record { file: 23, index: 119, version: 1 << 40 };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Ok(record));
        let other = Record { version: 1, ..record }.encode();
        assert_ne!(other[CHECKSUM + HEAD..], bytes[CHECKSUM + HEAD..]);
        assert_ne!(crc32fast::hash(&other), crc32fast::hash(&bytes));
        for bit in 0..8 * RECORD {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&damaged), Err(Damage::Checksum));
        }
        assert_eq!(Record::decode(&bytes[1..]), Err(Damage::Length(RECORD - 1)));
        assert_eq!(Record::decode(&[]), Err(Damage::Length(0)));
    }

    #[test]
    fn a_right_checksum_is_not_enough() {
        let mut bytes = Record { file: 1, index: 2, version: 3 }.encode();
        bytes[100] ^= 1;
        let crc = crc32fast::hash(&bytes[CHECKSUM..]);
        bytes[..CHECKSUM].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Record::decode(&bytes), Err(Damage::Content));
        // Neither are zeros, whose checksum is not zero.
        assert_eq!(Record::decode(&[0; RECORD]), Err(Damage::Checksum));
    }

    #[test]
    fn each_file_has_a_path_of_its_own() {
        for file in 0..FILES {
            let (directory, name) = (directory(directory_of(file)), file_name(file));
            assert_eq!(file_at(&directory, &name), Some(file));
        }
        assert_eq!((&*directory(3), &*file_name(7)), ("DIR3", "FILE07.DAT"));
        assert_eq!(file_at("DIR0", "FILE01.DAT"), None, "that one is in DIR1");
    }
}
