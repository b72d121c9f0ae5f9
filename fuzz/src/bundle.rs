//! A bundle's manifest: decoded and validated as the hypervisor does, and then
//! laid out. What is validated must not trip what comes after.

use std::path::Path;

use arbitrary::{Arbitrary, Result, Unstructured};
use hv_core::bundle::validate;
use hv_core::memory::{Space, least_memory};
use ring_proto::bundle::{Image, Node, Segment, Select};
use ring_proto::{PAGE_SIZE, layout};
use xtask::manifest::Manifest;

/// The first byte chooses between a `postcard` body as it comes and a node
/// that is made of the bytes, mostly a sensible one.
pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let node = if kind & 1 == 0 {
        match postcard::take_from_bytes::<Node>(rest) {
            Ok((node, _)) => node,
            Err(_) => return,
        }
    } else {
        match make(&mut Unstructured::new(rest)) {
            Ok(node) => node,
            Err(_) => return,
        }
    };
    let total_len = if kind & 2 == 0 { 1 << 20 } else { u64::MAX };
    if validate(&node, total_len).is_err() {
        return;
    }
    for segment in node.images.iter().flat_map(|image| &image.segments) {
        let end = segment.file_offset.checked_add(segment.file_len);
        assert!(end.is_some_and(|end| end <= total_len), "data outside of the bundle");
        assert!(segment.file_len <= segment.memory_len);
        assert!(!(segment.write && segment.execute), "W^X");
        assert!(segment.address >= layout::IMAGE_BASE);
    }
    for domain in &node.domains {
        let image = node.images.get(usize::from(domain.image)).expect("the image is there");
        let least = least_memory(domain, image).expect("its memory can be counted");
        assert!(least <= domain.memory);
        if domain.memory > 1 << 30 {
            continue;
        }
        let space = Space::new(domain, image, 0x4000_0000).expect("it can be laid out");
        assert!(space.regions().iter().all(|r| !(r.write && r.execute)));
        assert!(space.regions().is_sorted_by(|a, b| a.gpa + a.len <= b.gpa), "regions overlap");
        let sum: u64 = space.regions().iter().map(|r| r.len).sum();
        assert!(sum + PAGE_SIZE as u64 <= space.len);
    }
    for connection in &node.connections {
        assert!(usize::from(connection.frontend) < node.domains.len());
        assert!(usize::from(connection.backend) < node.domains.len());
    }
    // A validated node is said and understood alike.
    let mut buffer = vec![0; 64 << 10];
    let said = postcard::to_slice(&node, &mut buffer).expect("it came in fewer bytes");
    assert_eq!(postcard::take_from_bytes::<Node>(said).map(|(n, _)| n), Ok(node));
}

/// The manifest of `nodes/demo.toml`, with made-up images.
fn demo() -> Node {
    let text = include_str!("../../nodes/demo.toml");
    let manifest = Manifest::parse(Path::new("demo.toml"), text.to_owned()).expect("it is good");
    let segment = |n: u64| Segment {
        address: layout::IMAGE_BASE + n * 0x8000,
        memory_len: 0x4000,
        file_offset: 0x1000 + n * 0x3000,
        file_len: 0x3000,
        write: n == 2,
        execute: n == 0,
    };
    let image = |name: &str| Image {
        name: name.try_into().expect("names are short"),
        crc: 0,
        entry: layout::IMAGE_BASE,
        segments: (0..3).map(segment).collect(),
    };
    let images: Vec<Image> = manifest.image_names().into_iter().map(image).collect();
    manifest.to_node(&images).expect("it is good")
}

thread_local! {
    static DEMO: Node = demo();
}

/// A number that is likely to be on an edge of something.
fn number(input: &mut Unstructured<'_>, old: u64) -> Result<u64> {
    Ok(match u8::arbitrary(input)? {
        by @ 0..16 => old.wrapping_add(u64::from(by)).wrapping_sub(8),
        by @ 16..48 => old.wrapping_add(u64::from(by - 16) << 12),
        by @ 48..80 => old.wrapping_sub(u64::from(by - 48) << 12),
        by @ 80..90 => u64::MAX - u64::from(by - 80) * 0xfff,
        shift @ 90..154 => 1 << (shift - 90),
        by @ 154..200 => u64::from(by - 154),
        _ => u64::arbitrary(input)?,
    })
}

fn any<T>(list: &mut [T], which: u8) -> Option<&mut T> {
    let len = list.len().max(1);
    list.get_mut(usize::from(which) % len)
}

/// The demo node with some fields changed.
fn make(input: &mut Unstructured<'_>) -> Result<Node> {
    let mut node = DEMO.with(Node::clone);
    while !input.is_empty() {
        change(&mut node, input)?;
    }
    Ok(node)
}

fn change(node: &mut Node, input: &mut Unstructured<'_>) -> Result<()> {
    let (what, which) = (u8::arbitrary(input)?, u8::arbitrary(input)?);
    match what % 32 {
        0 => node.cores = number(input, node.cores.into())? as u16,
        1 => drop(node.images.pop()),
        2 => drop(node.domains.pop()),
        3 => drop(node.connections.pop()),
        4 => drop(node.devices.pop()),
        5..12 => {
            let Some(image) = any(&mut node.images, which / 8) else { return Ok(()) };
            if what % 32 == 5 {
                image.entry = number(input, image.entry)?;
                return Ok(());
            }
            let copy = image.segments.last().cloned();
            let Some(segment) = any(&mut image.segments, which % 8) else { return Ok(()) };
            match what % 32 {
                6 => segment.address = number(input, segment.address)?,
                7 => segment.memory_len = number(input, segment.memory_len)?,
                8 => segment.file_offset = number(input, segment.file_offset)?,
                9 => segment.file_len = number(input, segment.file_len)?,
                10 => (segment.write, segment.execute) = (which & 64 != 0, which & 128 != 0),
                _ => drop(copy.map(|segment| image.segments.push(segment))),
            }
        }
        12 => {
            if let Some(device) = any(&mut node.devices, which) {
                device.select = if which & 128 != 0 {
                    Select::Bdf(u16::arbitrary(input)?)
                } else {
                    Select::Class { class: u8::arbitrary(input)? % 4, index: which / 16 }
                };
            }
        }
        13..24 => {
            let Some(domain) = any(&mut node.domains, which) else { return Ok(()) };
            match what % 32 {
                13 => domain.image = number(input, domain.image.into())? as u16,
                14 => domain.memory = number(input, domain.memory)?,
                15 => domain.dma_pool = number(input, domain.dma_pool)?,
                16 => domain.capabilities = number(input, domain.capabilities.into())? as u32,
                17 => drop(domain.devices.push(u8::arbitrary(input)?.into())),
                18 => domain.devices.clear(),
                19 => domain.core = Some(u8::arbitrary(input)?.into()),
                20 => domain.grant_entries = number(input, domain.grant_entries.into())? as u32,
                21 => {
                    let old = domain.grant_window_pages.into();
                    domain.grant_window_pages = number(input, old)? as u32;
                }
                22 => (domain.weight, domain.cap) = <(u16, u16)>::arbitrary(input)?,
                _ => domain.name = input.arbitrary::<&str>()?.try_into().unwrap_or_default(),
            }
        }
        24 => {
            let copy = node.domains.get(usize::from(which)).cloned();
            node.domains.extend(copy.filter(|_| !node.domains.is_full()));
        }
        _ => {
            let (copy, full) = (node.connections.first().cloned(), node.connections.is_full());
            let Some(connection) = any(&mut node.connections, which) else { return Ok(()) };
            match what % 32 {
                25 => connection.protocol = number(input, connection.protocol.into())? as u16,
                26 => connection.frontend = u8::arbitrary(input)?.into(),
                27 => connection.backend = u8::arbitrary(input)?.into(),
                28 => connection.volume = "x".try_into().unwrap_or_default(),
                29 => connection.mac = <[u8; 6]>::arbitrary(input)?,
                30 => connection.weight = number(input, connection.weight.into())? as u32,
                _ => node.connections.extend(copy.filter(|_| !full)),
            }
        }
    }
    Ok(())
}
