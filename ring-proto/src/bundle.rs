//! The bundle: one file with the node's manifest and all images.
//!
//! `cargo xtask` writes it, the boot loader hands it over as one module, and
//! the hypervisor reads it: a [`Header`], then the `postcard` form of [`Node`],
//! then the segments' bytes, each page aligned. `hv-core` has the one function
//! that validates a [`Node`]; both sides call it.

use crc::{CRC_32_ISO_HDLC, Crc};
use heapless::{String, Vec};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::boot::{Addresses, Limits};
use crate::{MAX_CONNECTIONS, MAX_DOMAIN_DEVICES, MAX_DOMAINS};

/// Value of [`Header::magic`].
pub const MAGIC: [u8; 8] = *b"BHBUNDLE";
/// Value of [`Header::version`].
pub const VERSION: u32 = 6;
/// Value of [`Header::magic`] in an image file, which updates one domain: the
/// header is followed by the `postcard` form of one [`Image`], padded to a page,
/// and its segments, each page aligned.
pub const IMAGE_MAGIC: [u8; 8] = *b"BHIMAGE\0";
/// Most segments of an image.
pub const MAX_SEGMENTS: usize = 8;
/// Most PCI functions that a manifest names.
pub const MAX_DEVICES: usize = 8;

/// First bytes of a bundle.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of the `postcard` manifest right after this header.
    pub manifest_len: u32,
    /// Bytes of the whole bundle.
    pub total_len: u64,
    /// CRC-32 (IEEE) of the manifest bytes.
    pub manifest_crc: u32,
    /// Zero.
    pub reserved: u32,
}

/// A name: letters, digits, `-` and `_`.
pub type Name = String<23>;

/// The node manifest as the hypervisor sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Cores to use; 0 = all there are.
    pub cores: u16,
    /// Images, in any order; domains refer to them by index.
    pub images: Vec<Image, MAX_DOMAINS>,
    /// PCI functions that domains may own.
    pub devices: Vec<Device, MAX_DEVICES>,
    /// Domains; the index is the domain number.
    pub domains: Vec<Domain, MAX_DOMAINS>,
    /// Connections; the index is the connection number.
    pub connections: Vec<Connection, MAX_CONNECTIONS>,
}

/// A flattened program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Name of the program.
    pub name: Name,
    /// [`crc32_of`] the segments' bytes in the file, in their order: tells builds of a program
    /// apart, for people and their symbols. The hypervisor checks that of an update.
    pub crc: u32,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// What to load where; ascending, page aligned, not overlapping.
    pub segments: Vec<Segment, MAX_SEGMENTS>,
}

/// One loadable piece of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Guest-physical address, page aligned.
    pub address: u64,
    /// Bytes in memory; what the file does not cover is zero.
    pub memory_len: u64,
    /// Where its bytes begin, from the start of the bundle; page aligned.
    pub file_offset: u64,
    /// Bytes in the bundle.
    pub file_len: u64,
    /// The domain may write it (never together with `execute`).
    pub write: bool,
    /// The domain may execute it.
    pub execute: bool,
}

/// Which PCI function is meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Name in the manifest.
    pub name: Name,
    /// How to find it.
    pub select: Select,
}

/// How to find a PCI function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Select {
    /// `bus << 8 | device << 3 | function`.
    Bdf(u16),
    /// The `index`-th function (in BDF order) of a PCI base class.
    Class {
        /// Base class code: 1 = storage, 2 = network.
        class: u8,
        /// From 0.
        index: u8,
    },
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Name, unique.
    pub name: Name,
    /// Index of its image.
    pub image: u16,
    /// All memory, bytes, a multiple of the page size: image, heap, tables, DMA pool.
    pub memory: u64,
    /// Of that, the DMA pool, bytes.
    pub dma_pool: u64,
    /// `boot::CAP_*`.
    pub capabilities: u32,
    /// Indices of its devices.
    pub devices: Vec<u16, MAX_DOMAIN_DEVICES>,
    /// Core to run on; `None` = chosen by the hypervisor.
    pub core: Option<u16>,
    /// Share of CPU time against others on its core; 256 is usual.
    pub weight: u16,
    /// Most CPU time, percent of a core; 100 = no cap.
    pub cap: u16,
    /// ms of CPU time without a `wait` after which it counts as hung.
    pub watchdog_ms: u32,
    /// Grant table entries, a multiple of 512.
    pub grant_entries: u32,
    /// Pages of the grant window, a multiple of 512.
    pub grant_window_pages: u32,
    /// Restart policy, for the supervisor.
    pub restart: Restart,
    /// Free text for the program.
    pub args: String<255>,
    /// Started at boot by the hypervisor.
    pub autostart: bool,
    /// It is the warm spare of the domain with this index, which stands before
    /// it and differs in name, devices and `spare_of` only.
    pub spare_of: Option<u16>,
    /// Bytes set aside for its image, so that it can be updated: in its memory, and twice beside
    /// it. A multiple of the page size; 0 = it cannot be updated.
    pub update_space: u64,
}

/// Restart policy of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Least ms between two starts.
    pub floor_ms: u32,
    /// Factor on the floor for each further death within the window, in percent (200 = double).
    pub backoff_percent: u32,
    /// Deaths within the window after which the domain is held; 0 = never.
    pub budget: u32,
    /// Seconds of the window.
    pub window_s: u32,
    /// Restarted after a death at all.
    pub automatic: bool,
    /// How long it may take to answer the supervisor's check after a complaint, ms.
    pub check_ms: u16,
    /// The word alone of one frontend restarts it once within this time, s; 0 = always.
    pub word_s: u16,
}

impl Default for Restart {
    /// What holds for a domain whose manifest says nothing else.
    fn default() -> Self {
        Self {
            floor_ms: 5,
            backoff_percent: 200,
            budget: 5,
            window_s: 10,
            automatic: true,
            check_ms: 500,
            word_s: 60,
        }
    }
}

/// A connection between two domains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// `conn::Protocol` as a number.
    pub protocol: u16,
    /// Index of the frontend's domain.
    pub frontend: u16,
    /// Index of the backend's domain.
    pub backend: u16,
    /// blk: GPT label of the volume; net: empty.
    pub volume: String<36>,
    /// net: MAC address of the vif.
    pub mac: [u8; 6],
    /// Weight among the backend's connections.
    pub weight: u32,
    /// ms without a completion of a pending request after which the frontend
    /// complains, from 1.
    pub stall_ms: u32,
    /// The most that the frontend may take.
    pub limits: Limits,
    /// net: the IP addresses that the vif may send from.
    pub addresses: Addresses,
}

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// CRC-32 (IEEE 802.3, reflected) as in [`Header::manifest_crc`].
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32_of([bytes])
}

/// [`crc32`] of several pieces, one after the other.
pub fn crc32_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    pieces.into_iter().fold(0, crc32_more)
}

/// The [`crc32`] of bytes of which the first have the CRC `crc` and `bytes` follow; none have 0.
pub fn crc32_more(crc: u32, bytes: &[u8]) -> u32 {
    // A digest begins with the bits the other way round, and ends with their complement.
    let mut digest = CRC.digest_with_initial((!crc).reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    /// The check value of the CRC-32 catalogue.
    #[test]
    fn crc32_has_the_standard_check_value() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(super::crc32_of([&b"1234"[..], b"", b"56789"]), 0xcbf4_3926);
    }
}
