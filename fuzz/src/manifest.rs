//! A node manifest's text through xtask's reader.

use std::path::Path;

use ring_proto::bundle::{Image, Segment};
use ring_proto::layout;
use xtask::manifest::Manifest;

/// The smallest image that a domain can run.
fn image(name: &str) -> Option<Image> {
    let segment = Segment {
        address: layout::IMAGE_BASE,
        memory_len: 0x1000,
        file_offset: 0x1000,
        file_len: 0x1000,
        write: false,
        execute: true,
    };
    let segments = [segment].into_iter().collect();
    Some(Image { name: name.try_into().ok()?, crc: 0, entry: layout::IMAGE_BASE, segments })
}

/// Reads the text. An error points into it; what is accepted, the hypervisor
/// accepts too.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let manifest = match Manifest::parse(Path::new("fuzz.toml"), text.to_owned()) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let _ = error.snippet();
            return;
        }
    };
    let _ = (manifest.domain_memory(), manifest.stem(), &manifest.warnings);
    let names = manifest.image_names();
    let Some(images) = names.into_iter().map(image).collect::<Option<Vec<_>>>() else { return };
    if let Ok(node) = manifest.to_node(&images) {
        let valid = hv_core::bundle::validate(&node, 1 << 20);
        assert!(valid.is_ok(), "accepted here and refused by the hypervisor: {valid:?}");
    }
}
