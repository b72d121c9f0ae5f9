//! Flattens ELF programs into segments, so that the hypervisor parses no ELF.

use anyhow::{Result, anyhow, bail, ensure};
use object::Endianness;
use object::elf::{
    EM_X86_64, ET_EXEC, FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, ProgramHeader64,
};
use object::read::elf::{FileHeader, ProgramHeader};
use ring_proto::bundle::{MAX_SEGMENTS, crc32_of};
use ring_proto::{PAGE_SIZE, layout};

const PAGE: u64 = PAGE_SIZE as u64;

/// A program as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat {
    /// Address of the first instruction.
    pub entry: u64,
    /// Ascending by address.
    pub segments: Vec<FlatSegment>,
}

/// A piece of memory with the same access everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatSegment {
    /// Page aligned.
    pub address: u64,
    /// Whole pages.
    pub memory_len: u64,
    /// The first bytes; the rest is zero.
    pub data: Vec<u8>,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

impl Flat {
    /// Bytes that travel in the bundle.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.data.len() as u64).sum()
    }

    /// What tells builds apart: [`ring_proto::bundle::Image::crc`].
    #[must_use]
    pub fn crc(&self) -> u32 {
        crc32_of(self.segments.iter().map(|segment| segment.data.as_slice()))
    }

    /// Bytes in memory.
    #[must_use]
    pub fn memory_len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.memory_len).sum()
    }
}

type Header = FileHeader64<Endianness>;

/// The header and its byte order, if this is a program that can run on the bare machine.
fn header(file: &[u8]) -> Result<(&Header, Endianness)> {
    let header = Header::parse(file).map_err(|_| anyhow!("it is no 64-bit ELF file"))?;
    let endian = header.endian()?;
    ensure!(
        endian == Endianness::Little && header.e_machine(endian) == EM_X86_64,
        "it is not for x86-64"
    );
    ensure!(
        header.e_type(endian) == ET_EXEC,
        "it is not linked to a fixed address; is the link script in use?"
    );
    Ok((header, endian))
}

/// Flattens a domain's program.
///
/// # Errors
///
/// It breaks a rule of [`ring_proto::layout`], such as a segment that is
/// writable and executable. Says which; the caller says which image.
pub fn flatten(file: &[u8]) -> Result<Flat> {
    let (header, endian) = header(file)?;
    let mut segments: Vec<FlatSegment> = Vec::new();
    for program in header.program_headers(endian, file)? {
        match program.p_type(endian) {
            PT_LOAD if program.p_memsz(endian) > 0 => {
                segments.push(segment(file, endian, program)?);
            }
            PT_INTERP | PT_DYNAMIC => bail!("it is not linked statically"),
            _ => {}
        }
    }
    segments.sort_by_key(|segment| segment.address);
    check(&segments)?;
    let entry = header.e_entry(endian);
    let within = |s: &FlatSegment| (s.address..s.address + s.memory_len).contains(&entry);
    ensure!(
        segments.iter().any(|segment| segment.execute && within(segment)),
        "its entry point {entry:#x} is not in executable memory"
    );
    Ok(Flat { entry, segments })
}

fn segment(
    file: &[u8],
    endian: Endianness,
    program: &ProgramHeader64<Endianness>,
) -> Result<FlatSegment> {
    let address = program.p_vaddr(endian);
    let flags = program.p_flags(endian);
    let Ok(data) = program.data(endian, file) else {
        bail!("its segment at {address:#x} reaches beyond the end of the file");
    };
    let bytes = program.p_memsz(endian);
    ensure!(data.len() as u64 <= bytes, "its segment at {address:#x} is larger in the file");
    let Some(memory_len) = bytes.checked_next_multiple_of(PAGE) else {
        bail!("its segment at {address:#x} is too large");
    };
    Ok(FlatSegment {
        address,
        memory_len,
        data: data.to_vec(),
        write: (flags & PF_W).0 != 0,
        execute: (flags & PF_X).0 != 0,
    })
}

/// Checks segments in ascending order against the layout of a domain.
fn check(segments: &[FlatSegment]) -> Result<()> {
    ensure!(!segments.is_empty(), "it has nothing to load");
    ensure!(
        segments.len() <= MAX_SEGMENTS,
        "it has {} segments, and {MAX_SEGMENTS} are the most",
        segments.len()
    );
    let mut free = layout::IMAGE_BASE;
    for FlatSegment { address, memory_len, write, execute, .. } in segments {
        ensure!(address.is_multiple_of(PAGE), "its segment at {address:#x} is not page aligned");
        ensure!(!(*write && *execute), "its segment at {address:#x} is writable and executable");
        let end = address.checked_add(*memory_len).filter(|end| *end <= layout::IMAGE_END);
        let (true, Some(end)) = (*address >= layout::IMAGE_BASE, end) else {
            bail!(
                "its segment at {address:#x} is outside the space for images, {:#x} to {:#x}",
                layout::IMAGE_BASE,
                layout::IMAGE_END
            );
        };
        ensure!(*address >= free, "its segment at {address:#x} overlaps the one before it");
        free = end;
    }
    Ok(())
}

/// Bytes of a program's loadable segments in the file and in memory, without
/// looking at where they lie: for the hypervisor.
///
/// # Errors
///
/// It is not an x86-64 program.
pub fn loadable(file: &[u8]) -> Result<(u64, u64)> {
    let (header, endian) = header(file)?;
    let mut total = (0u64, 0u64);
    for program in header.program_headers(endian, file)? {
        if program.p_type(endian) == PT_LOAD {
            total.0 = total.0.saturating_add(program.p_filesz(endian));
            total.1 = total.1.saturating_add(program.p_memsz(endian));
        }
    }
    Ok(total)
}

/// A program for tests: segments as (address, flags, bytes, length in memory).
#[doc(hidden)]
#[must_use]
pub fn sample(segments: &[(u64, u32, &[u8], u64)], entry: u64) -> Vec<u8> {
    use object::endian::{LittleEndian, U16, U32, U64};
    let le = LittleEndian;
    let mut offset = 64 + 56 * segments.len() as u64;
    let ident = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut file = ident.to_vec();
    let half = |file: &mut Vec<u8>, v: u16| file.extend(object::bytes_of(&U16::new(le, v)));
    let word = |file: &mut Vec<u8>, v: u32| file.extend(object::bytes_of(&U32::new(le, v)));
    let long = |file: &mut Vec<u8>, v: u64| file.extend(object::bytes_of(&U64::new(le, v)));
    half(&mut file, ET_EXEC.0);
    half(&mut file, EM_X86_64.0);
    word(&mut file, 1);
    long(&mut file, entry);
    long(&mut file, 64);
    long(&mut file, 0);
    word(&mut file, 0);
    for value in [64, 56, segments.len() as u16, 64, 0, 0] {
        half(&mut file, value);
    }
    for (address, flags, data, memory) in segments {
        word(&mut file, PT_LOAD.0);
        word(&mut file, *flags);
        for value in [offset, *address, *address, data.len() as u64, *memory, PAGE] {
            long(&mut file, value);
        }
        offset += data.len() as u64;
    }
    for (_, _, data, _) in segments {
        file.extend(*data);
    }
    file
}
