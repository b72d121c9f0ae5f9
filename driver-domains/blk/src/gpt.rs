//! Which volumes a disk holds: its GUID partition table.
//!
//! The table comes from a disk that guests and strangers may have written, so
//! all of it is checked (UEFI specification 2.10, section 5.3): signature,
//! checksums, sizes, ranges, and that no two partitions overlap, for two
//! guests must never share a sector. If the first table is damaged, the second
//! one at the end of the disk is taken.

use alloc::{string::String, vec, vec::Vec};
use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc, Table};
use gpt_disk_types::{GptHeader, GptHeaderRevision, GptPartitionEntry};

/// With 16 tables: the entries are 16 KiB, and guests wait.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);
/// Bytes of a header that this module reads.
const HEADER: usize = size_of::<GptHeader>();
/// Most bytes of an entry array that are believed.
const MAX_ARRAY: u64 = 1 << 18;

/// A partition, in blocks of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub label: String,
    /// First block.
    pub first: u64,
    /// Number of blocks, not 0.
    pub blocks: u64,
}

/// Why a disk has no usable partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// Reading failed.
    Read(E),
    /// The disk is too small for a partition table.
    TooSmall,
    /// Neither header begins with the signature: not a GPT disk.
    NoSignature,
    /// A header's checksum or a field of it is wrong.
    BadHeader(&'static str),
    /// The array's checksum is wrong.
    BadArray,
    /// An entry (its number) has a range that is not on the disk.
    BadRange(u32),
    /// Two entries (their numbers) overlap.
    Overlap(u32, u32),
}

impl<E: fmt::Debug> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "the partition table cannot be read ({error:?})"),
            Self::TooSmall => f.write_str("the disk is too small for a partition table"),
            Self::NoSignature => f.write_str("the disk has no GPT"),
            Self::BadHeader(what) => write!(f, "the GPT header is damaged ({what})"),
            Self::BadArray => f.write_str("the GPT's entries do not match their checksum"),
            Self::BadRange(i) => write!(f, "GPT entry {i} lies out of the disk"),
            Self::Overlap(i, j) => write!(f, "GPT entries {i} and {j} overlap"),
        }
    }
}

/// Fills a buffer of whole blocks from a block on.
pub type ReadBlocks<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// The volumes of a disk of `blocks` blocks of `block_size` bytes.
pub fn volumes<E>(
    blocks: u64,
    block_size: usize,
    read: &mut ReadBlocks<'_, E>,
) -> Result<Vec<Volume>, Error<E>> {
    if blocks < 6 || block_size < HEADER {
        return Err(Error::TooSmall);
    }
    let last = blocks.saturating_sub(1);
    let mut at = |lba| table(blocks, block_size, lba, read);
    match at(1) {
        Ok(volumes) => Ok(volumes),
        // Overlaps are in the data, not damage: the copy says the same.
        Err(error @ (Error::Overlap(..) | Error::BadRange(_) | Error::Read(_))) => Err(error),
        Err(first) => at(last).map_err(|_| first),
    }
}

fn table<E>(
    blocks: u64,
    block_size: usize,
    lba: u64,
    read: &mut ReadBlocks<'_, E>,
) -> Result<Vec<Volume>, Error<E>> {
    let mut block = vec![0; block_size];
    read(lba, &mut block).map_err(Error::Read)?;
    let header = header(&block, lba, blocks)?;
    let entry_size = header.size_of_partition_entry.to_u32();
    let count = header.number_of_partition_entries.to_u32();
    let array_len = u64::from(count).saturating_mul(entry_size.into());
    let valid_size = entry_size >= 128 && entry_size.is_power_of_two();
    if !valid_size || array_len == 0 || array_len > MAX_ARRAY {
        return Err(Error::BadHeader("entries"));
    }
    let bad = Error::BadHeader("entries");
    let (Ok(array_len), Ok(entry_size)) = (usize::try_from(array_len), entry_size.try_into())
    else {
        return Err(bad);
    };
    let array_blocks = array_len.div_ceil(block_size);
    let array_lba = header.partition_entry_lba.to_u64();
    let fits = array_lba.checked_add(array_blocks as u64).is_some_and(|end| end <= blocks);
    if !fits {
        return Err(Error::BadHeader("entry array"));
    }
    let mut array = vec![0; array_blocks.saturating_mul(block_size)];
    read(array_lba, &mut array).map_err(Error::Read)?;
    array.truncate(array_len);
    if CRC.checksum(&array) != header.partition_entry_array_crc32.0.to_u32() {
        return Err(Error::BadArray);
    }
    let usable = header.first_usable_lba.to_u64()..=header.last_usable_lba.to_u64();
    let mut found: Vec<(u32, Volume)> = Vec::new();
    for (i, bytes) in (0..count).zip(array.chunks_exact(entry_size)) {
        let Some(bytes) = bytes.get(..size_of::<GptPartitionEntry>()) else {
            continue;
        };
        let entry: GptPartitionEntry = bytemuck::pod_read_unaligned(bytes);
        if !entry.is_used() {
            continue;
        }
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        if first > last || !usable.contains(&first) || !usable.contains(&last) {
            return Err(Error::BadRange(i));
        }
        // Both lie on the disk, whose size is a number, so none of this wraps.
        let overlaps = |v: &Volume| first < v.first.saturating_add(v.blocks) && v.first <= last;
        if let Some((j, _)) = found.iter().find(|(_, v)| overlaps(v)) {
            return Err(Error::Overlap(*j, i));
        }
        let blocks = last.saturating_sub(first).saturating_add(1);
        let volume = Volume { label: { entry.name }.chars().collect(), first, blocks };
        found.push((i, volume));
    }
    Ok(found.into_iter().map(|(_, volume)| volume).collect())
}

/// Reads and checks the header that stands at `lba`.
fn header<E>(block: &[u8], lba: u64, blocks: u64) -> Result<GptHeader, Error<E>> {
    let bytes = block.get(..HEADER).ok_or(Error::TooSmall)?;
    let header: GptHeader = bytemuck::pod_read_unaligned(bytes);
    if !header.is_signature_valid() {
        return Err(Error::NoSignature);
    }
    if header.revision != GptHeaderRevision::VERSION_1_0 {
        return Err(Error::BadHeader("revision"));
    }
    let parts = || {
        let size = usize::try_from(header.header_size.to_u32()).ok()?;
        let whole = block.get(..size).filter(|whole| whole.len() >= HEADER)?;
        Some((whole.get(..16)?, whole.get(20..)?))
    };
    let (before, after) = parts().ok_or(Error::BadHeader("size"))?;
    // The checksum counts its own field as zeroes.
    let mut digest = CRC.digest();
    digest.update(before);
    digest.update(&[0; 4]);
    digest.update(after);
    if digest.finalize() != header.header_crc32.0.to_u32() {
        return Err(Error::BadHeader("checksum"));
    }
    if header.my_lba.to_u64() != lba {
        return Err(Error::BadHeader("own place"));
    }
    let (first, last) = (header.first_usable_lba.to_u64(), header.last_usable_lba.to_u64());
    if first < 2 || first > last || last >= blocks.saturating_sub(1) {
        return Err(Error::BadHeader("usable range"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use gpt_disk_types::{Crc32, GptPartitionType, Guid, LbaLe, U32Le};
    use std::prelude::v1::*;

    use super::*;

    const BLOCKS: u64 = 2048;

    struct Disk(Vec<u8>);

    impl Disk {
        fn new(partitions: &[(&str, u64, u64)]) -> Self {
            let mut array = vec![0; 128 * 128];
            for (i, &(name, first, last)) in partitions.iter().enumerate() {
                let mut entry = GptPartitionEntry {
                    partition_type_guid: GptPartitionType::BASIC_DATA,
                    unique_partition_guid: Guid::ZERO,
                    starting_lba: LbaLe::from_u64(first),
                    ending_lba: LbaLe::from_u64(last),
                    ..Default::default()
                };
                for (at, unit) in name.encode_utf16().enumerate() {
                    entry.name.0[at * 2..at * 2 + 2].copy_from_slice(&unit.to_le_bytes());
                }
                array[i * 128..(i + 1) * 128].copy_from_slice(bytemuck::bytes_of(&entry));
            }
            let mut disk = Self(vec![0; BLOCKS as usize * 512]);
            disk.put(2, &array);
            disk.put(BLOCKS - 33, &array);
            let crc = Crc32(U32Le::from_u32(CRC.checksum(&array)));
            for (own, other, entries) in [(1, BLOCKS - 1, 2), (BLOCKS - 1, 1, BLOCKS - 33)] {
                let mut header = GptHeader {
                    my_lba: LbaLe::from_u64(own),
                    alternate_lba: LbaLe::from_u64(other),
                    first_usable_lba: LbaLe::from_u64(34),
                    last_usable_lba: LbaLe::from_u64(BLOCKS - 34),
                    partition_entry_lba: LbaLe::from_u64(entries),
                    number_of_partition_entries: U32Le::from_u32(128),
                    partition_entry_array_crc32: crc,
                    ..Default::default()
                };
                header.update_header_crc32();
                disk.put(own, bytemuck::bytes_of(&header));
            }
            disk
        }

        fn put(&mut self, lba: u64, bytes: &[u8]) {
            let at = lba as usize * 512;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn volumes(&self) -> Result<Vec<Volume>, Error<()>> {
            volumes(BLOCKS, 512, &mut |lba, to| {
                let at = usize::try_from(lba).map_err(|_| ())?.checked_mul(512).ok_or(())?;
                let end = at.checked_add(to.len()).ok_or(())?;
                to.copy_from_slice(self.0.get(at..end).ok_or(())?);
                Ok(())
            })
        }
    }

    fn good() -> Disk {
        Disk::new(&[("kv-data", 40, 99), ("größe", 100, 100)])
    }

    #[test]
    fn volumes_are_found_by_label() {
        let volumes = good().volumes().unwrap();
        assert_eq!(volumes.len(), 2);
        assert_eq!(volumes[0].label, "kv-data");
        assert_eq!((volumes[0].first, volumes[0].blocks), (40, 60));
        assert_eq!(volumes[1].label, "größe");
        assert_eq!((volumes[1].first, volumes[1].blocks), (100, 1));
    }

    #[test]
    fn the_copy_is_taken_when_the_first_table_is_damaged() {
        for byte in [512 + 40, 2 * 512 + 56, 512] {
            let mut disk = good();
            disk.0[byte] ^= 1;
            assert_eq!(disk.volumes().unwrap().len(), 2, "{byte}");
        }
    }

    #[test]
    fn without_a_table_there_is_a_clear_error() {
        let blank = Disk(vec![0; BLOCKS as usize * 512]);
        assert_eq!(blank.volumes(), Err(Error::NoSignature));
        assert_eq!(volumes::<()>(3, 512, &mut |_, _| Ok(())), Err(Error::TooSmall));
        let failing = volumes(BLOCKS, 512, &mut |_, _| Err("broken"));
        assert_eq!(failing, Err(Error::Read("broken")));
    }

    #[test]
    fn partitions_that_overlap_or_leave_the_disk_are_refused() {
        let overlap = Disk::new(&[("a", 40, 50), ("b", 50, 60)]);
        assert_eq!(overlap.volumes(), Err(Error::Overlap(0, 1)));
        for (first, last) in [(39, 38), (2, 50), (40, BLOCKS), (u64::MAX, u64::MAX), (0, u64::MAX)]
        {
            let disk = Disk::new(&[("a", first, last)]);
            assert_eq!(disk.volumes(), Err(Error::BadRange(0)));
        }
    }

    #[test]
    fn random_damage_is_never_believed_nor_fatal() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let want = good().volumes().unwrap();
        for _ in 0..3000 {
            let mut disk = good();
            let headers = [512, (BLOCKS as usize - 1) * 512];
            for start in headers {
                for _ in 0..next() % 4 + 1 {
                    disk.0[start + next() as usize % 92] ^= 1 << (next() % 8);
                }
                // Half of the time with a checksum that fits the damage.
                if next() % 2 == 0 {
                    let mut header: GptHeader =
                        bytemuck::pod_read_unaligned(&disk.0[start..start + 92]);
                    header.update_header_crc32();
                    disk.put(start as u64 / 512, bytemuck::bytes_of(&header));
                }
            }
            if let Ok(found) = disk.volumes() {
                assert!(found == want || found.is_empty(), "{found:?}");
            }
        }
    }
}
