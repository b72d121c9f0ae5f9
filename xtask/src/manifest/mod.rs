//! The node manifest: TOML for people, checked with errors that point at the line.
//!
//! [`Manifest::load`] reads and checks what can be checked without the images;
//! [`Manifest::to_node`] makes the hypervisor's form of it.

mod addresses;
mod connect;
mod parse;
mod reader;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use ring_proto::bundle;

pub use reader::{ManifestError, Source, Span};

/// Size of a volume that the manifest does not give one.
pub const DEFAULT_VOLUME: u64 = 256 * crate::size::MIB;

/// A checked manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Text and path.
    pub source: Source,
    /// Cores to use; 0 = all there are.
    pub cores: u16,
    /// PCI functions.
    pub devices: Vec<bundle::Device>,
    /// What QEMU is to have in their places.
    pub plugged: Plugged,
    /// Domains, in the order of the text; the index is the domain number.
    pub domains: Vec<Domain>,
    /// Connections, in the order of the text.
    pub connections: Vec<bundle::Connection>,
    /// Volumes that the disk must have.
    pub volumes: Vec<Volume>,
    /// What is accepted but deserves a word; one line each.
    pub warnings: Vec<String>,
}

/// QEMU's devices, as `-device` takes them, for a node whose drivers want others than virtio.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugged {
    /// In the place of the disk.
    pub disk: Option<String>,
    /// In the place of the NIC.
    pub nic: Option<String>,
}

/// A domain of the manifest.
#[derive(Clone, Debug)]
pub struct Domain {
    /// What the hypervisor gets, except for `image`, which is filled in by [`Manifest::to_node`].
    pub spec: bundle::Domain,
    /// Name of its image.
    pub image: String,
    /// Where `image` is.
    pub image_at: Span,
    /// Where `memory` is.
    pub memory_at: Span,
    /// A warm spare is wanted.
    pub spare: bool,
}

/// A GPT partition that the node needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// GPT label.
    pub label: String,
    /// Bytes.
    pub size: u64,
}

impl Manifest {
    /// Reads and checks the manifest in `path`.
    ///
    /// # Errors
    ///
    /// The file can't be read, or a [`ManifestError`].
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the manifest {}", path.display()))?;
        Ok(Self::parse(path, text)?)
    }

    /// Checks a manifest's text.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn parse(path: &Path, text: String) -> Result<Self, ManifestError> {
        parse::parse(Source { path: path.to_owned(), text })
    }

    /// Its file name without extension.
    #[must_use]
    pub fn stem(&self) -> String {
        let stem = self.path().file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// Names of the images that its domains run, each once.
    #[must_use]
    pub fn image_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for domain in &self.domains {
            if !names.contains(&domain.image.as_str()) {
                names.push(&domain.image);
            }
        }
        names
    }

    /// Memory of all domains together, bytes.
    #[must_use]
    pub fn domain_memory(&self) -> u64 {
        let all = self.domains.iter().map(|domain| domain.spec.memory);
        all.fold(0, u64::saturating_add)
    }

    /// An error at the place of `span`.
    pub fn error(&self, span: &Span, message: impl Into<String>) -> ManifestError {
        self.source.error(span, message)
    }

    /// The hypervisor's form, with `images` in the order of [`Manifest::image_names`].
    ///
    /// # Errors
    ///
    /// Too many images, or an image that a domain names is not among them.
    pub fn to_node(&self, images: &[bundle::Image]) -> Result<bundle::Node> {
        let mut node = bundle::Node {
            cores: self.cores,
            images: images.iter().cloned().collect_checked("images")?,
            devices: self.devices.iter().cloned().collect_checked("devices")?,
            domains: heapless::Vec::new(),
            connections: self.connections.iter().cloned().collect_checked("connections")?,
        };
        for domain in &self.domains {
            let index = images.iter().position(|image| image.name == *domain.image);
            let index = index
                .and_then(|index| u16::try_from(index).ok())
                .ok_or_else(|| self.error(&domain.image_at, "this image was not built"))?;
            let mut spec = domain.spec.clone();
            spec.image = index;
            node.domains
                .push(spec)
                .map_err(|_| anyhow!("{}: too many domains", self.path().display()))?;
        }
        Ok(node)
    }
}

/// The manifest that commands use if they are not given one.
#[must_use]
pub fn default_path() -> PathBuf {
    crate::workspace::relative(&crate::workspace::root().join("nodes/demo.toml"))
}

/// Collecting into a bounded vector, where too many is an error.
trait CollectChecked: Iterator + Sized {
    fn collect_checked<const N: usize>(self, what: &str) -> Result<heapless::Vec<Self::Item, N>> {
        let mut all = heapless::Vec::new();
        for item in self {
            all.push(item).map_err(|_| anyhow!("too many {what}: a node holds at most {N}"))?;
        }
        Ok(all)
    }
}

impl<I: Iterator> CollectChecked for I {}
