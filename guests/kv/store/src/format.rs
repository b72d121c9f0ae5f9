//! Bytes on the volume: superblock, area header, index entries, journal batches.
//! All numbers are little-endian. FORMAT.md describes the same for people.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crc32fast::Hasher;

use crate::layout::Layout;
use crate::space::Extent;
use crate::state::{Change, Object, Op};
use crate::{BLOCK, MAX_KEY, MAX_VALUE, MountError, check_key};

/// What a device writes as a whole or not at all. The superblock and an area's
/// header each live in one sector, so there is no torn one.
pub(crate) const SECTOR: usize = 512;

/// Blocks of the largest batch.
pub(crate) const MAX_BATCH_BLOCKS: u64 = 16;
/// Most extents of one value: each of its blocks alone.
const MAX_EXTENTS: usize = (MAX_VALUE as usize).div_ceil(BLOCK);
/// Bytes of the largest index entry.
pub(crate) const MAX_ENTRY_BYTES: usize = entry_bytes(MAX_KEY, MAX_EXTENTS);

const SUPERBLOCK_MAGIC: &[u8; 8] = b"BulkhdKV";
const HEADER_MAGIC: &[u8; 8] = b"KVheader";
const BATCH_MAGIC: &[u8; 4] = b"KVbt";
const VERSION: u32 = 1;
const BATCH_HEADER: usize = 36;
const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;
/// Epochs and sequence numbers count up from one; a number beyond this was not
/// written by counting.
const MAX_COUNT: u64 = 1 << 62;

const _: () = assert!(BATCH_HEADER + 1 + MAX_ENTRY_BYTES <= MAX_BATCH_BLOCKS as usize * BLOCK);

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Reads fields off the front of foreign bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn key(&mut self) -> Option<&'a str> {
        let len = self.u8()?;
        let key = core::str::from_utf8(self.take(len.into())?).ok()?;
        check_key(key).ok()?;
        Some(key)
    }
}

/// A zeroed block with `fields` and their checksum at its start.
fn sealed(seed: u32, mut fields: Vec<u8>) -> Vec<u8> {
    fields.extend_from_slice(&crc(seed, &fields).to_le_bytes());
    fields.resize(BLOCK, 0);
    fields
}

/// The superblock for `layout`, as a block.
pub(crate) fn encode_superblock(layout: &Layout) -> Vec<u8> {
    let mut b = Vec::with_capacity(BLOCK);
    b.extend_from_slice(SUPERBLOCK_MAGIC);
    b.extend_from_slice(&VERSION.to_le_bytes());
    b.extend_from_slice(&(BLOCK as u32).to_le_bytes());
    b.extend_from_slice(&layout.blocks.to_le_bytes());
    b.extend_from_slice(&layout.area.to_le_bytes());
    sealed(0, b)
}

/// Reads a superblock that is not all zero.
pub(crate) fn decode_superblock(block: &[u8]) -> Result<Layout, MountError> {
    let short = MountError::Corrupt("superblock is cut off");
    let mut r = Reader(block);
    if r.array() != Some(*SUPERBLOCK_MAGIC) {
        return Err(MountError::NotAStore);
    }
    let (Some(version), Some(block_size), Some(blocks), Some(area), Some(sum)) =
        (r.u32(), r.u32(), r.u64(), r.u64(), r.u32())
    else {
        return Err(short);
    };
    if sum != crc(0, block.get(..32).ok_or(short)?) {
        return Err(MountError::Corrupt("superblock checksum"));
    }
    if version != VERSION {
        return Err(MountError::Version(version));
    }
    let layout = Layout::new(blocks)?;
    if block_size != BLOCK as u32 || layout != (Layout { blocks, area }) {
        return Err(MountError::Corrupt("superblock geometry"));
    }
    Ok(layout)
}

/// Head of a metadata area: says which snapshot lies behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Counts snapshots; the area with the higher one is in force.
    pub epoch: u64,
    /// Sequence number of the first batch of the journal.
    pub seq: u64,
    pub entries: u64,
    pub bytes: u64,
    /// Checksum of the snapshot.
    pub crc: u32,
}

impl Header {
    /// The header as a block, and its checksum, which the first batch names.
    pub fn encode(&self, layout: &Layout) -> (Vec<u8>, u32) {
        let mut b = Vec::with_capacity(BLOCK);
        b.extend_from_slice(HEADER_MAGIC);
        for field in [self.epoch, self.seq, self.entries, self.bytes] {
            b.extend_from_slice(&field.to_le_bytes());
        }
        b.extend_from_slice(&self.crc.to_le_bytes());
        let seed = Self::seed(layout);
        let sum = crc(seed, &b);
        (sealed(seed, b), sum)
    }

    /// Reads a header and its checksum. `Ok(None)` if there is none.
    pub fn decode(layout: &Layout, block: &[u8]) -> Result<Option<(Self, u32)>, MountError> {
        let damaged = MountError::Corrupt("header of a metadata area");
        let sector = block.get(..SECTOR).ok_or(damaged.clone())?;
        if is_zero(sector) {
            return Ok(None);
        }
        Self::parse(layout, sector).map(Some).ok_or(damaged)
    }

    fn parse(layout: &Layout, sector: &[u8]) -> Option<(Self, u32)> {
        let mut r = Reader(sector);
        if r.array() != Some(*HEADER_MAGIC) {
            return None;
        }
        let header = Self {
            epoch: r.u64()?,
            seq: r.u64()?,
            entries: r.u64()?,
            bytes: r.u64()?,
            crc: r.u32()?,
        };
        let sum = r.u32()?;
        let good = sum == crc(Self::seed(layout), sector.get(..44)?)
            && header.epoch < MAX_COUNT
            && header.seq < MAX_COUNT
            && header.bytes <= layout.snapshot_capacity();
        good.then_some((header, sum))
    }

    /// Ties headers, and through them the journal, to this geometry.
    fn seed(layout: &Layout) -> u32 {
        crc(0, &layout.blocks.to_le_bytes())
    }

    /// Blocks of the snapshot.
    pub fn snapshot_blocks(&self) -> u64 {
        self.bytes.div_ceil(BLOCK as u64)
    }
}

/// Bytes of an index entry.
pub(crate) const fn entry_bytes(key: usize, extents: usize) -> usize {
    1 + key + 4 + 4 + 2 + 8 * extents
}

pub(crate) fn encode_entry(out: &mut Vec<u8>, key: &str, object: &Object) {
    encode_key(out, key);
    out.extend_from_slice(&object.len.to_le_bytes());
    out.extend_from_slice(&object.crc.to_le_bytes());
    out.extend_from_slice(&(object.extents.len() as u16).to_le_bytes());
    for extent in &object.extents {
        out.extend_from_slice(&extent.bits().to_le_bytes());
    }
}

fn encode_key(out: &mut Vec<u8>, key: &str) {
    out.push(key.len() as u8);
    out.extend_from_slice(key.as_bytes());
}

/// Reads one entry off `bytes`; `None` if it is malformed or cut off. Where
/// the extents lie is for the caller to check.
pub(crate) fn decode_entry<'a>(bytes: &mut &'a [u8]) -> Option<(&'a str, Object)> {
    let mut r = Reader(bytes);
    let entry = read_entry(&mut r)?;
    *bytes = r.0;
    Some(entry)
}

fn read_entry<'a>(r: &mut Reader<'a>) -> Option<(&'a str, Object)> {
    let key = r.key()?;
    let (len, crc, count) = (r.u32()?, r.u32()?, r.u16()?);
    let list = r.take(usize::from(count) * 8)?;
    let extents: Box<[Extent]> = list
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bits| Extent::from_bits(u64::from_le_bytes(*bits)))
        .collect();
    let blocks: u64 = extents.iter().map(|e| e.len()).sum();
    let good = u64::from(len) <= MAX_VALUE
        && blocks == u64::from(len).div_ceil(BLOCK as u64)
        && extents.iter().all(|e| e.len() > 0);
    good.then_some((key, Object { len, crc, extents }))
}

/// Bytes of an operation within a batch.
pub(crate) fn op_bytes(op: &Op) -> usize {
    match &op.change {
        Change::Put(object) => 1 + entry_bytes(op.key.len(), object.extents.len()),
        Change::Delete => 2 + op.key.len(),
    }
}

/// Bytes that a batch has for its operations.
pub(crate) const BATCH_ROOM: usize = MAX_BATCH_BLOCKS as usize * BLOCK - BATCH_HEADER;

/// Place of a batch in its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub epoch: u64,
    pub seq: u64,
    /// Checksum of the batch before, or of the area's header.
    pub prev: u32,
}

/// The batch of `ops` in whole blocks, and its checksum.
pub(crate) fn encode_batch(link: Link, ops: &[Op]) -> (Vec<u8>, u32) {
    let payload: usize = ops.iter().map(op_bytes).sum();
    let mut b = Vec::with_capacity((BATCH_HEADER + payload).next_multiple_of(BLOCK));
    b.extend_from_slice(BATCH_MAGIC);
    b.extend_from_slice(&[0; 4]);
    b.extend_from_slice(&link.prev.to_le_bytes());
    b.extend_from_slice(&(ops.len() as u32).to_le_bytes());
    b.extend_from_slice(&link.epoch.to_le_bytes());
    b.extend_from_slice(&link.seq.to_le_bytes());
    b.extend_from_slice(&(payload as u32).to_le_bytes());
    for op in ops {
        match &op.change {
            Change::Put(object) => {
                b.push(TAG_PUT);
                encode_entry(&mut b, &op.key, object);
            }
            Change::Delete => {
                b.push(TAG_DELETE);
                encode_key(&mut b, &op.key);
            }
        }
    }
    debug_assert_eq!(b.len(), BATCH_HEADER + payload);
    let sum = crc(0, b.get(8..).unwrap_or_default());
    if let Some(field) = b.get_mut(4..8) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
    b.resize(b.len().next_multiple_of(BLOCK), 0);
    (b, sum)
}

/// A batch whose checksum is right.
pub(crate) struct Batch<'a> {
    pub link: Link,
    pub crc: u32,
    pub blocks: u64,
    count: u32,
    payload: &'a [u8],
}

/// What a batch does to one key.
pub(crate) enum Replayed<'a> {
    Put(&'a str, Object),
    Delete(&'a str),
}

impl<'a> Batch<'a> {
    /// Reads the batch at the start of `bytes`, if there is a whole one.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        if r.array() != Some(*BATCH_MAGIC) {
            return None;
        }
        let sum = r.u32()?;
        let (prev, count) = (r.u32()?, r.u32()?);
        let (epoch, seq) = (r.u64()?, r.u64()?);
        let len = usize::try_from(r.u32()?).ok()?;
        let payload = r.take(len)?;
        let whole = BATCH_HEADER.checked_add(len)?;
        if sum != crc(0, bytes.get(8..whole)?) || seq >= MAX_COUNT {
            return None;
        }
        let blocks = whole.div_ceil(BLOCK) as u64;
        Some(Self { link: Link { epoch, seq, prev }, crc: sum, blocks, count, payload })
    }

    /// The operations in order; an item is `None` where one is malformed.
    pub fn ops(&self) -> impl Iterator<Item = Option<Replayed<'a>>> {
        let mut r = Reader(self.payload);
        let mut left = self.count;
        core::iter::from_fn(move || {
            if left == 0 {
                // Bytes behind the last operation are malformed too.
                return (!core::mem::take(&mut r.0).is_empty()).then_some(None);
            }
            left -= 1;
            let op = read_op(&mut r);
            if op.is_none() {
                left = 0;
                r.0 = &[];
            }
            Some(op)
        })
    }
}

fn read_op<'a>(r: &mut Reader<'a>) -> Option<Replayed<'a>> {
    match r.u8()? {
        TAG_PUT => read_entry(r).map(|(key, object)| Replayed::Put(key, object)),
        TAG_DELETE => r.key().map(Replayed::Delete),
        _ => None,
    }
}
