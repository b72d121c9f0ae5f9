//! A firmware table, read byte by byte and never past its end.

use core::fmt;

use zerocopy::{FromBytes, IntoBytes};

use crate::phys::PhysIo;

/// Longest table that we read.
const MAX_LEN: u64 = 1 << 20;
/// Firmware tables lie below this address.
const LIMIT: u64 = 1 << 32;

/// Why the firmware's tables cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Signature of the table at fault.
    pub table: [u8; 4],
    /// What is wrong with it.
    pub problem: &'static str,
}

pub const BAD_PLACE: &str = "address or length out of range";
pub const BAD_CHECKSUM: &str = "wrong checksum";
pub const MISSING: &str = "not found";
pub const MALFORMED: &str = "malformed";
pub const OTHER_SEGMENT: &str = "more than one PCI segment";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ACPI table {}: {}", self.table.escape_ascii(), self.problem)
    }
}

/// A piece of physical memory with an end.
pub struct Table<'io, IO> {
    io: &'io IO,
    signature: [u8; 4],
    base: u64,
    len: u64,
}

impl<'io, IO: PhysIo> Table<'io, IO> {
    /// Bytes of the header that all system tables begin with.
    pub const HEADER: u64 = 36;

    /// `len` bytes at `base` without any check of their content.
    pub fn raw(io: &'io IO, signature: [u8; 4], base: u64, len: u64) -> Result<Self, Error> {
        let table = Self { io, signature, base, len };
        let end = base.checked_add(len).is_some_and(|end| end <= LIMIT);
        if base != 0 && end && len <= MAX_LEN { Ok(table) } else { Err(table.error(BAD_PLACE)) }
    }

    /// The signature of the table at `base`.
    pub fn signature_at(io: &'io IO, base: u64) -> Result<[u8; 4], Error> {
        Self::raw(io, *b"????", base, Self::HEADER)?.get(0)
    }

    /// The system table at `base`, its length and checksum verified.
    pub fn open(io: &'io IO, base: u64) -> Result<Self, Error> {
        let signature = Self::signature_at(io, base)?;
        let header = Self::raw(io, signature, base, Self::HEADER)?;
        let len = header.get::<u32>(4)?.into();
        if len < Self::HEADER {
            Err(header.error(BAD_PLACE))
        } else {
            Self::raw(io, signature, base, len)?.sound()
        }
    }

    /// The table itself if the sum of all its bytes is zero, as ACPI demands.
    pub fn sound(self) -> Result<Self, Error> {
        let bytes = (self.base..).zip(0..self.len).map(|(at, _)| self.io.read::<u8>(at));
        if bytes.fold(0, u8::wrapping_add) == 0 { Ok(self) } else { Err(self.error(BAD_CHECKSUM)) }
    }

    /// The error that the table has this `problem`.
    pub fn error(&self, problem: &'static str) -> Error {
        Error { table: self.signature, problem }
    }

    /// `len` bytes at `at` as a table of their own.
    pub fn part(&self, at: u64, len: u64) -> Result<Self, Error> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        let part = Self { base: self.base.saturating_add(at), len, ..*self };
        if inside { Ok(part) } else { Err(self.error(MALFORMED)) }
    }

    /// The parts that follow each other from `at` to the end. `len` reads how
    /// long the one at an offset is: at least `least` bytes, so that this ends.
    pub fn parts(
        &self,
        mut at: u64,
        least: u64,
        len: impl Fn(u64) -> Result<u64, Error>,
    ) -> impl Iterator<Item = Result<Self, Error>> {
        core::iter::from_fn(move || {
            let here = core::mem::replace(&mut at, self.len);
            (here < self.len).then(|| {
                let len = len(here)?;
                at = here.saturating_add(len.max(1));
                if len < least { Err(self.error(MALFORMED)) } else { self.part(here, len) }
            })
        })
    }

    /// The whole rows of `len` bytes from `at` on.
    pub fn rows(&self, at: u64, len: u16) -> impl Iterator<Item = Self> {
        (at..).step_by(len.into()).map_while(move |at| self.part(at, len.into()).ok())
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The value at `at`, which need not be aligned.
    pub fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        let from = self.part(at, size_of::<T>() as u64)?.base;
        for (byte, address) in value.as_mut_bytes().iter_mut().zip(from..) {
            *byte = self.io.read::<u8>(address);
        }
        Ok(value)
    }
}
