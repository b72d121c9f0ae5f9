//! From addresses in a dead domain to functions and source lines.
//!
//! The node carries no symbols. They are in the ELF files that the images were
//! made of; the right one is found by the checksum of what was loaded, never
//! by its name, for an address in another build of a program means nothing.

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use addr2line::{
    Context, demangle_auto,
    gimli::{self, Dwarf, EndianSlice, RunTimeEndian},
};
use object::{
    Object, ObjectSection, ObjectSegment, SegmentFlags, SymbolMap, SymbolMapName, elf::PF_X,
};
use ring_proto::{bundle::crc32_of, control::CrashEntry};

/// The program that an image was made of.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    file: Vec<u8>,
}

/// Its symbols.
pub struct Symbols<'a> {
    /// Addresses of code. Functions that the linker threw away have entries in
    /// the line tables still, from address 0 on.
    code: Vec<Range<u64>>,
    /// Functions with their whole names, which line tables lack.
    functions: SymbolMap<SymbolMapName<'a>>,
    context: Context<EndianSlice<'a, RunTimeEndian>>,
}

/// Why there are no symbols.
#[derive(Debug)]
pub enum Missing {
    /// The folder cannot be read.
    Folder(PathBuf, io::Error),
    /// No image in this folder is the one that ran; it has so many others.
    NoMatch(PathBuf, u32, usize),
    /// This file is not the one that ran.
    OtherFile(PathBuf, u32),
    /// The image is there, but its symbols cannot be read.
    Unreadable(PathBuf, String),
    /// The image is there, and has no line tables.
    Stripped(PathBuf),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path, why) => {
                write!(f, "no symbols: can't read {}: {why}; see --images", path.display())
            }
            Self::NoMatch(path, crc, others) => write!(
                f,
                "no symbols: none of the {others} images in {} is the one that ran, whose checksum is \
                 {crc:08x}; it may have been built anew since, see --images",
                path.display()
            ),
            Self::OtherFile(path, crc) => write!(
                f,
                "no symbols: {} is not the image that ran, whose checksum is {crc:08x}; see --images",
                path.display()
            ),
            Self::Unreadable(path, why) => {
                write!(f, "no symbols: {} can't be read: {why}", path.display())
            }
            Self::Stripped(path) => {
                write!(f, "no symbols: {} ran, and is without line tables", path.display())
            }
        }
    }
}

impl std::error::Error for Missing {}

/// A function that an address lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its name.
    pub function: String,
    /// File and line of the instruction, or of the call where something was inlined.
    pub place: Option<(String, u32)>,
    /// It was inlined into the next one.
    pub inlined: bool,
}

/// A backtrace, with symbols where there are some.
#[derive(Debug)]
pub struct Backtrace {
    /// The program that the symbols are from, or why there are none.
    pub program: Result<PathBuf, Missing>,
    /// Addresses and the functions that they lie in, innermost first.
    pub frames: Vec<(u64, Vec<Frame>)>,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Of an instruction.
    Instruction(u64),
    /// Of the instruction after a call, which may be another function's already.
    Return(u64),
}

impl Address {
    fn value(self) -> u64 {
        match self {
            Self::Instruction(at) | Self::Return(at) => at,
        }
    }
}

impl Program {
    /// Finds, among the `.elf` files in `folder`, or in the one file that it is,
    /// the one of which the image with checksum `crc` was made ([`ring_proto::bundle::Image::crc`]).
    ///
    /// # Errors
    ///
    /// See [`Missing`].
    pub fn find(folder: &Path, crc: u32) -> Result<Self, Missing> {
        let failed = |why| Missing::Folder(folder.to_owned(), why);
        let mut others = 0;
        let mut paths = Vec::new();
        if folder.is_file() {
            paths.push(folder.to_owned());
        } else {
            for entry in std::fs::read_dir(folder).map_err(failed)? {
                paths.push(entry.map_err(failed)?.path());
            }
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "elf"));
        }
        for path in paths {
            // Whatever cannot be read or parsed is not the one that ran.
            match std::fs::read(&path).ok().filter(|file| checksum(file) == Some(crc)) {
                Some(file) => return Ok(Self { path, file }),
                None => others += 1,
            }
        }
        Err(match folder.is_file() {
            true => Missing::OtherFile(folder.to_owned(), crc),
            false => Missing::NoMatch(folder.to_owned(), crc, others),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads its line tables.
    ///
    /// # Errors
    ///
    /// See [`Missing`].
    pub fn symbols(&self) -> Result<Symbols<'_>, Missing> {
        let bad = |why: &dyn fmt::Display| Missing::Unreadable(self.path.clone(), why.to_string());
        let object = object::File::parse(&*self.file).map_err(|why| bad(&why))?;
        if object.section_by_name(".debug_line").is_none() {
            return Err(Missing::Stripped(self.path.clone()));
        }
        let section = |id: gimli::SectionId| {
            let data = object.section_by_name(id.name()).map_or(Ok(&[][..]), |s| s.data())?;
            Ok(EndianSlice::new(data, RunTimeEndian::Little))
        };
        let dwarf = Dwarf::load(section).map_err(|why: object::Error| bad(&why))?;
        let executable =
            |flags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if (p_flags & PF_X).0 != 0);
        let code = object.segments().filter(|segment| executable(segment.flags()));
        let code = code.map(|s| s.address()..s.address().saturating_add(s.size())).collect();
        let functions = object.symbol_map();
        Ok(Symbols {
            code,
            functions,
            context: Context::from_dwarf(dwarf).map_err(|why| bad(&why))?,
        })
    }
}

impl Symbols<'_> {
    /// The functions that `address` lies in, the innermost inlined one first.
    /// Empty where the line tables know nothing of it.
    pub fn at(&self, address: Address) -> Vec<Frame> {
        let probe = match address {
            Address::Instruction(at) => at,
            Address::Return(at) => at.saturating_sub(1),
        };
        let mut frames = Vec::new();
        if !self.code.iter().any(|code| code.contains(&probe)) {
            return frames;
        }
        let Ok(mut found) = self.context.find_frames(probe).skip_all_loads() else {
            return frames;
        };
        while let Ok(Some(frame)) = found.next() {
            let name = frame.function.and_then(|name| name.demangle().ok().map(|n| n.into_owned()));
            let place = frame.location.and_then(|at| Some((at.file?.to_owned(), at.line?)));
            frames.push(Frame {
                function: name.unwrap_or_else(|| "?".to_owned()),
                place,
                inlined: true,
            });
        }
        if let Some(outermost) = frames.last_mut() {
            outermost.inlined = false;
            if let Some(symbol) = self.functions.containing(probe) {
                outermost.function = demangle_auto(symbol.name().into(), None).into_owned();
            }
        }
        frames
    }
}

impl Backtrace {
    /// Names the addresses of a record with the symbols in `folder`.
    pub fn of(entry: &CrashEntry, folder: &Path) -> Self {
        let mut addresses: Vec<Address> =
            entry.backtrace.iter().copied().map(Address::Return).collect();
        // Of a panic the record's instruction is the innermost return address.
        if entry.rip != 0 && entry.backtrace.first() != Some(&entry.rip) {
            addresses.insert(0, Address::Instruction(entry.rip));
        }
        let named = Program::find(folder, entry.image_crc).and_then(|program| {
            let symbols = program.symbols()?;
            let frames: Vec<_> = addresses.iter().map(|address| symbols.at(*address)).collect();
            Ok((program.path.clone(), frames))
        });
        let (program, mut frames) = match named {
            Ok((path, frames)) => (Ok(path), frames),
            Err(why) => (Err(why), Vec::new()),
        };
        frames.resize(addresses.len(), Vec::new());
        Self { program, frames: addresses.iter().map(|a| a.value()).zip(frames).collect() }
    }
}

/// The checksum of the image that an ELF file becomes, if it is one.
pub fn checksum(file: &[u8]) -> Option<u32> {
    let object = object::File::parse(file).ok()?;
    let mut segments: Vec<(u64, &[u8])> = Vec::new();
    for segment in object.segments() {
        segments.push((segment.address(), segment.data().ok()?));
    }
    segments.sort_by_key(|(address, _)| *address);
    Some(crc32_of(segments.into_iter().map(|(_, data)| data)))
}
