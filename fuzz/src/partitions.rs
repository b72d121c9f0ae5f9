//! A disk's partition table, as a stranger left it.

use arbitrary::{Arbitrary, Result, Unstructured};
use bytemuck::Zeroable as _;
use crc::{CRC_32_ISO_HDLC, Crc};
use gpt_disk_types::{Crc32, GptHeader, GptPartitionEntry, GptPartitionType, LbaLe, U32Le};

use crate::gpt::{Error, volumes};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const BLOCKS: u64 = 256;
const BLOCK: usize = 512;

/// A table out of the bytes, with right checksums unless the bytes say
/// otherwise; then changes to any bytes of the disk.
pub fn run(data: &[u8]) {
    let mut disk = vec![0; BLOCKS as usize * BLOCK];
    let mut input = Unstructured::new(data);
    // An end of the input ends the disk, too.
    let _ = write(&mut disk, &mut input);
    let mut reads = 0;
    let found = volumes(BLOCKS, BLOCK, &mut |lba, to: &mut [u8]| {
        reads += 1;
        let at = usize::try_from(lba).map_err(|_| ())?.checked_mul(BLOCK).ok_or(())?;
        let end = at.checked_add(to.len()).ok_or(())?;
        to.copy_from_slice(disk.get(at..end).ok_or(())?);
        Ok(())
    });
    assert!(reads <= 4);
    assert!(!matches!(found, Err(Error::Read(()))), "it read past the end of the disk");
    let Ok(found) = found else { return };
    for (i, volume) in found.iter().enumerate() {
        let end = volume.first.checked_add(volume.blocks).expect("no overflow");
        assert!(volume.blocks > 0 && volume.first >= 2 && end < BLOCKS);
        for other in &found[..i] {
            let apart = other.first + other.blocks <= volume.first || end <= other.first;
            assert!(apart, "two guests would share a sector");
        }
    }
}

fn number(input: &mut Unstructured<'_>, usual: u64) -> Result<u64> {
    Ok(match u8::arbitrary(input)? {
        0..160 => usual,
        by @ 160..224 => usual.wrapping_add(u64::from(by - 160)).wrapping_sub(32),
        by @ 224..240 => u64::from(by - 224),
        shift @ 240..248 => u64::MAX << (shift - 240),
        _ => u64::arbitrary(input)?,
    })
}

fn write(disk: &mut [u8], input: &mut Unstructured<'_>) -> Result<()> {
    let flags = u8::arbitrary(input)?;
    for (own, other, entries) in [(1, BLOCKS - 1, 2), (BLOCKS - 1, 1, BLOCKS - 33)] {
        // Half of the disks have no second table.
        if own != 1 && flags & 1 != 0 {
            continue;
        }
        let count = number(input, 8)? as u32;
        let size = if flags & 2 == 0 { 128 } else { number(input, 128)? as u32 };
        let array_len = (u64::from(count) * u64::from(size)).min(16 << 10) as usize;
        let mut array = vec![0; array_len];
        for bytes in array.chunks_exact_mut(size.clamp(128, 4096) as usize).take(16) {
            if u8::arbitrary(input)? & 1 == 0 {
                continue;
            }
            let mut entry = GptPartitionEntry::zeroed();
            entry.partition_type_guid = GptPartitionType::BASIC_DATA;
            entry.starting_lba = LbaLe::from_u64(number(input, 64)?);
            entry.ending_lba = LbaLe::from_u64(number(input, 80)?);
            let len = usize::from(u8::arbitrary(input)? % 73).min(input.len());
            let name = input.bytes(len)?;
            entry.name.0[..name.len()].copy_from_slice(name);
            bytes[..128].copy_from_slice(bytemuck::bytes_of(&entry));
        }
        let at = number(input, entries)?;
        put(disk, at, &array);
        let mut header = GptHeader {
            my_lba: LbaLe::from_u64(number(input, own)?),
            alternate_lba: LbaLe::from_u64(number(input, other)?),
            first_usable_lba: LbaLe::from_u64(number(input, 34)?),
            last_usable_lba: LbaLe::from_u64(number(input, BLOCKS - 34)?),
            partition_entry_lba: LbaLe::from_u64(at),
            number_of_partition_entries: U32Le::from_u32(count),
            size_of_partition_entry: U32Le::from_u32(size),
            partition_entry_array_crc32: Crc32(U32Le::from_u32(CRC.checksum(&array))),
            ..Default::default()
        };
        if flags & 4 != 0 {
            header.header_size = U32Le::from_u32(number(input, 92)? as u32);
        }
        // The checksum over the size that the header claims.
        let size = (header.header_size.to_u32() as usize).clamp(20, BLOCK);
        let mut block = [0; BLOCK];
        block[..size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        block[16..20].fill(0);
        let sum = CRC.checksum(&block[..size]);
        block[16..20].copy_from_slice(&sum.to_le_bytes());
        put(disk, own, &block);
    }
    while !input.is_empty() {
        let at = usize::from(u16::arbitrary(input)?) % disk.len();
        disk[at] = u8::arbitrary(input)?;
    }
    Ok(())
}

fn put(disk: &mut [u8], lba: u64, bytes: &[u8]) {
    let at = usize::try_from(lba).ok().and_then(|lba| lba.checked_mul(BLOCK));
    if let Some(to) = at.and_then(|at| disk.get_mut(at..at.checked_add(bytes.len())?)) {
        to.copy_from_slice(bytes);
    }
}
