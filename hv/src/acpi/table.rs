//! A firmware table, read byte by byte and never past its end.

use super::Error;
use crate::phys::PhysIo;

/// Longest table that we read.
const MAX_LEN: usize = 1 << 20;
/// Firmware tables lie below this address.
const LIMIT: u64 = 1 << 32;

/// A piece of physical memory with an end.
pub struct Table<'io, IO> {
    io: &'io IO,
    base: u64,
    len: usize,
}

impl<'io, IO: PhysIo> Table<'io, IO> {
    /// Bytes of the header that all system tables begin with.
    pub const HEADER: usize = 36;

    /// `len` bytes at `base` without any check of their content.
    pub fn raw(io: &'io IO, base: u64, len: usize) -> Option<Self> {
        let end = base.checked_add(u64::try_from(len).ok()?)?;
        (base != 0 && end <= LIMIT && len <= MAX_LEN).then_some(Self { io, base, len })
    }

    /// The signature of the table at `base`.
    pub fn signature_at(io: &'io IO, base: u64) -> Result<[u8; 4], Error> {
        Ok(Self::raw(io, base, Self::HEADER).ok_or(Error::BadTable(*b"????"))?.signature())
    }

    /// The system table at `base`, its length and checksum verified.
    pub fn open(io: &'io IO, base: u64) -> Result<Self, Error> {
        let header = Self::raw(io, base, Self::HEADER).ok_or(Error::BadTable(*b"????"))?;
        let bad = Error::BadTable(header.signature());
        let len = header.u32(4).and_then(|len| usize::try_from(len).ok()).ok_or(bad)?;
        if len < Self::HEADER {
            return Err(bad);
        }
        let table = Self::raw(io, base, len).ok_or(bad)?;
        if table.sums_to_zero() { Ok(table) } else { Err(Error::BadChecksum(table.signature())) }
    }

    /// `len` bytes at `offset` as a table of their own.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        Self::raw(self.io, self.base.checked_add(u64::try_from(offset).ok()?)?, len)
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// The first four bytes.
    pub fn signature(&self) -> [u8; 4] {
        self.bytes(0).unwrap_or(*b"????")
    }

    /// The bytes begin with `text`.
    pub fn starts_with(&self, text: &[u8]) -> bool {
        text.iter().enumerate().all(|(i, &byte)| self.u8(i) == Some(byte))
    }

    /// The sum of all bytes is zero, as ACPI demands.
    pub fn sums_to_zero(&self) -> bool {
        (0..self.len).filter_map(|i| self.u8(i)).fold(0, u8::wrapping_add) == 0
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: usize) -> Option<u8> {
        if offset >= self.len {
            return None;
        }
        Some(self.io.read8(self.base.checked_add(u64::try_from(offset).ok()?)?))
    }

    /// 16 bits at `offset`, which need not be aligned.
    pub fn u16(&self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    /// 32 bits at `offset`, which need not be aligned.
    pub fn u32(&self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    /// 64 bits at `offset`, which need not be aligned.
    pub fn u64(&self, offset: usize) -> Option<u64> {
        self.bytes(offset).map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.u8(offset.checked_add(i)?)?;
        }
        Some(bytes)
    }
}
