//! Image files, as the hypervisor reads them.

use nodectl::{elf, image};
use ring_proto::{
    PAGE_SIZE,
    bundle::{Header, IMAGE_MAGIC, Image, crc32, crc32_of},
    layout::IMAGE_BASE,
};
use zerocopy::FromBytes;

#[test]
fn an_image_file_says_what_is_in_it() {
    let segments =
        [(IMAGE_BASE, 5, &[0x90; 6000][..], 6000), (IMAGE_BASE + 0x8_0000, 6, &[7; 10][..], 5000)];
    let file = image::of_elf("blk", &elf::sample(&segments, IMAGE_BASE + 2)).unwrap();
    let (header, rest) = Header::read_from_prefix(&file.bytes).unwrap();
    let front = &rest[..header.manifest_len as usize];
    assert_eq!((header.magic, header.manifest_crc), (IMAGE_MAGIC, crc32(front)));
    assert_eq!(header.total_len, file.bytes.len() as u64);
    let image: Image = postcard::from_bytes(front).unwrap();
    assert_eq!((image.name.as_str(), image.entry, image.crc), ("blk", IMAGE_BASE + 2, file.crc));
    let parts: Vec<&[u8]> = image
        .segments
        .iter()
        .map(|s| &file.bytes[s.file_offset as usize..][..s.file_len as usize])
        .collect();
    assert_eq!(parts, [segments[0].2, segments[1].2]);
    assert_eq!(crc32_of(parts), file.crc);
    assert!(image.segments.iter().all(|s| s.file_offset.is_multiple_of(PAGE_SIZE as u64)));
    assert_eq!(file.memory_len, 4 * PAGE_SIZE as u64);
}

#[test]
fn what_is_no_program_is_refused() {
    assert!(image::of_elf("blk", b"no ELF").is_err());
    let both = elf::sample(&[(IMAGE_BASE, 7, &[0x90; 16][..], 16)], IMAGE_BASE);
    let error = image::of_elf("blk", &both).unwrap_err().to_string();
    assert_eq!(error, format!("its segment at {IMAGE_BASE:#x} is writable and executable"));
}
