//! Image files: what updates a domain. See [`ring_proto::bundle::IMAGE_MAGIC`].

use anyhow::{Context, Result, anyhow, ensure};
use ring_proto::{
    PAGE_SIZE,
    bundle::{Header, IMAGE_MAGIC, Image, Segment, VERSION, crc32},
};
use zerocopy::IntoBytes;

use crate::elf::{Flat, flatten};

/// An image file and what it is of.
#[derive(Clone, Debug)]
pub struct ImageFile {
    /// [`Image::crc`].
    pub crc: u32,
    /// Bytes that the program takes in memory.
    pub memory_len: u64,
    /// The file.
    pub bytes: Vec<u8>,
}

/// The image file of the program in the ELF file `elf`.
///
/// # Errors
///
/// It cannot run in a domain; says why.
pub fn of_elf(name: &str, elf: &[u8]) -> Result<ImageFile> {
    of(name, &flatten(elf)?)
}

/// The image file of a flattened program.
///
/// # Errors
///
/// It has too long a name or too many segments.
pub fn of(name: &str, flat: &Flat) -> Result<ImageFile> {
    let mut total_len = PAGE_SIZE;
    let image = place(name, flat, &mut total_len)?;
    let front = postcard::to_allocvec(&image).context("can't encode the image")?;
    let header = Header {
        magic: IMAGE_MAGIC,
        version: VERSION,
        manifest_len: front.len().try_into()?,
        total_len: total_len as u64,
        manifest_crc: crc32(&front),
        reserved: 0,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(front);
    ensure!(bytes.len() <= PAGE_SIZE, "its description does not fit a page");
    bytes.resize(PAGE_SIZE, 0);
    append(&mut bytes, flat);
    ensure!(bytes.len() == total_len, "the file came out at another size than planned");
    Ok(ImageFile { crc: image.crc, memory_len: flat.memory_len(), bytes })
}

/// The description of a program whose segments begin `offset` bytes into a file,
/// each on a page of its own; moves `offset` behind them.
///
/// # Errors
///
/// It has too long a name or too many segments.
pub fn place(name: &str, flat: &Flat, offset: &mut usize) -> Result<Image> {
    let mut segments = heapless::Vec::new();
    for segment in &flat.segments {
        let placed = Segment {
            address: segment.address,
            memory_len: segment.memory_len,
            file_offset: *offset as u64,
            file_len: segment.data.len() as u64,
            write: segment.write,
            execute: segment.execute,
        };
        segments.push(placed).map_err(|_| anyhow!("image `{name}` has too many segments"))?;
        *offset += segment.data.len().next_multiple_of(PAGE_SIZE);
    }
    let crc = flat.crc();
    let name = name.try_into().map_err(|_| anyhow!("the image name `{name}` is too long"))?;
    Ok(Image { name, crc, entry: flat.entry, segments })
}

/// Writes what [`place`] describes to the end of a file of whole pages.
pub fn append(file: &mut Vec<u8>, flat: &Flat) {
    for segment in &flat.segments {
        file.extend(&segment.data);
        file.resize(file.len().next_multiple_of(PAGE_SIZE), 0);
    }
}
