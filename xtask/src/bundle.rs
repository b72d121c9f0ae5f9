//! Writes bundles: header, manifest, segments. See [`ring_proto::bundle`].

use anyhow::{Context, Result, anyhow, bail, ensure};
use hv_core::bundle::{Item, MEMORY_TOO_SMALL};
use hv_core::memory::least_memory;
use nodectl::image::{append, place};
use ring_proto::PAGE_SIZE;
use ring_proto::bundle::{Header, MAGIC, Node, VERSION};
use zerocopy::{FromBytes, IntoBytes};

use crate::elf::Flat;
use crate::manifest::Manifest;

/// Makes a bundle of a manifest and its images, which come in the order of
/// [`Manifest::image_names`].
///
/// # Errors
///
/// The hypervisor would refuse it; the error points into the manifest where it can.
pub fn make(manifest: &Manifest, images: &[Flat]) -> Result<Vec<u8>> {
    // Offsets are part of the manifest, and its encoded length decides the
    // offsets. More pages in front never make it shorter, so this ends.
    let mut front = PAGE_SIZE;
    loop {
        let (node, total_len) = node_at(manifest, images, front)?;
        let encoded = postcard::to_allocvec(&node).context("can't encode the manifest")?;
        let needed = (size_of::<Header>() + encoded.len()).next_multiple_of(PAGE_SIZE);
        if needed > front {
            front = needed;
            continue;
        }
        let total = u64::try_from(total_len)?;
        if let Err(error) = hv_core::bundle::validate(&node, total) {
            return Err(refused(manifest, &node, error));
        }
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            manifest_len: encoded.len().try_into().context("the manifest is too large")?,
            total_len: total,
            manifest_crc: crc32fast::hash(&encoded),
            reserved: 0,
        };
        let mut bundle = Vec::with_capacity(total_len);
        bundle.extend(header.as_bytes());
        bundle.extend(encoded);
        bundle.resize(front, 0);
        images.iter().for_each(|flat| append(&mut bundle, flat));
        ensure!(bundle.len() == total_len, "the bundle came out at another size than planned");
        return Ok(bundle);
    }
}

/// The manifest for segments that begin `front` bytes into the bundle, and the bundle's size.
fn node_at(manifest: &Manifest, images: &[Flat], front: usize) -> Result<(Node, usize)> {
    let names = manifest.image_names();
    ensure!(names.len() == images.len(), "{} images for {} names", images.len(), names.len());
    let mut offset = front;
    let mut placed = Vec::new();
    for (name, flat) in names.iter().zip(images) {
        placed.push(place(name, flat, &mut offset)?);
    }
    Ok((manifest.to_node(&placed)?, offset))
}

/// What the hypervisor would say, at the place in the manifest that it is about.
fn refused(
    manifest: &Manifest,
    node: &Node,
    error: hv_core::bundle::ManifestError,
) -> anyhow::Error {
    let problem = error.problem;
    let least = node
        .domains
        .get(error.index)
        .and_then(|domain| least_memory(domain, node.images.get(usize::from(domain.image))?));
    let subject = match error.item {
        Item::Domain => {
            if let Some(domain) = manifest.domains.get(error.index) {
                let mut why = format!("[domain.{}]: {problem}", domain.spec.name);
                if let Some(least) = least.filter(|_| problem == MEMORY_TOO_SMALL) {
                    why += &format!(": at least {} KiB are needed", least.div_ceil(1024));
                }
                return manifest.error(&domain.memory_at, why).into();
            }
            format!("domain {}", error.index)
        }
        Item::Image => match node.images.get(error.index) {
            Some(image) => format!("image `{}`", image.name),
            None => format!("image {}", error.index),
        },
        Item::Device => format!("device {}", error.index),
        Item::Connection => format!("connection {}", error.index),
        Item::Node => "the node".to_owned(),
    };
    anyhow!("{}: {subject}: {problem}", manifest.path().display())
}

/// Reads the manifest out of a bundle, for tools and tests.
///
/// # Errors
///
/// It is not a bundle of this version or is damaged.
pub fn read(bundle: &[u8]) -> Result<Node> {
    let (header, rest) =
        Header::read_from_prefix(bundle).map_err(|_| anyhow!("too short for a bundle"))?;
    ensure!(header.magic == MAGIC, "not a bundle");
    ensure!(header.version == VERSION, "a bundle of version {}", header.version);
    ensure!(header.total_len == bundle.len() as u64, "the bundle is cut off");
    let Some(encoded) = rest.get(..header.manifest_len as usize) else {
        bail!("the bundle is cut off");
    };
    ensure!(crc32fast::hash(encoded) == header.manifest_crc, "the manifest is damaged");
    postcard::from_bytes(encoded).context("can't decode the manifest")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ring_proto::{bundle::Segment, layout::IMAGE_BASE};

    use super::*;
    use crate::elf::{flatten, sample};

    const R: u32 = 4;
    const W: u32 = 2;
    const X: u32 = 1;

    fn manifest(memory: &str) -> Manifest {
        let text = format!(
            "[domain.one]\nimage = \"a\"\nmemory = \"{memory}\"\n\
             [domain.two]\nimage = \"a\"\nmemory = \"4MiB\"\n"
        );
        Manifest::parse(Path::new("node.toml"), text).unwrap()
    }

    fn image(text: &[u8]) -> Flat {
        let data = [7u8; 10];
        let segments = [
            (IMAGE_BASE, R | X, text, text.len() as u64),
            (IMAGE_BASE + 0x8_0000, R | W, &data[..], 5000),
        ];
        flatten(&sample(&segments, IMAGE_BASE + 2)).unwrap()
    }

    #[test]
    fn a_bundle_reads_back() {
        let text = [0x90u8; 6000];
        let bundle = make(&manifest("2MiB"), &[image(&text)]).unwrap();
        let node = read(&bundle).unwrap();
        assert_eq!(node.domains.len(), 2);
        let [image] = node.images.as_slice() else { panic!("{:?}", node.images) };
        assert_eq!(image.entry, IMAGE_BASE + 2);
        let [code, data] = image.segments.as_slice() else { panic!("{image:?}") };
        assert!(code.execute && !code.write && data.write && !data.execute);
        assert_eq!((code.file_len, code.memory_len), (6000, 8192));
        assert_eq!((data.file_len, data.memory_len), (10, 8192));
        let at = |segment: &Segment| {
            let start = segment.file_offset as usize;
            &bundle[start..start + segment.file_len as usize]
        };
        assert_eq!(at(code), text);
        assert_eq!(at(data), [7; 10]);
        assert_eq!(code.file_offset % 4096, 0);
    }

    #[test]
    fn damage_is_noticed() {
        let bundle = make(&manifest("2MiB"), &[image(&[0x90; 64])]).unwrap();
        let mut flipped = bundle.clone();
        flipped[size_of::<Header>() + 3] ^= 1;
        assert_eq!(read(&flipped).unwrap_err().to_string(), "the manifest is damaged");
        assert_eq!(
            read(&bundle[..bundle.len() - 1]).unwrap_err().to_string(),
            "the bundle is cut off"
        );
        assert_eq!(read(&[0; 64]).unwrap_err().to_string(), "not a bundle");
    }

    #[test]
    fn an_image_too_large_for_its_memory_points_at_the_memory() {
        let error = make(&manifest("64KiB"), &[image(&[0x90; 200_000])]).unwrap_err().to_string();
        let start = "node.toml:3:10: [domain.one]: memory is too small: at least ";
        assert!(error.starts_with(start) && !error.contains('\n'), "{error}");
    }
}
