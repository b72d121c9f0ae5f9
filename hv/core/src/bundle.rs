//! Validation of a node manifest.
//!
//! `cargo xtask` calls [`validate`] before it writes a bundle and the
//! hypervisor calls it before it believes one.

use core::fmt;

use ring_proto::{
    MAX_DOMAIN_CONNECTIONS, PAGE_SIZE, boot,
    bundle::{Image, Node, Select},
    conn::Protocol,
    layout,
};

use crate::memory;

/// What is wrong with a manifest, and with which item of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Kind of the item at fault.
    pub item: Item,
    /// Its index.
    pub index: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// Kinds of items in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// [`Node::images`].
    Image,
    /// [`Node::devices`].
    Device,
    /// [`Node::domains`].
    Domain,
    /// [`Node::connections`].
    Connection,
    /// The node itself.
    Node,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There are no domains.
    NoDomains,
    /// More than one domain is supervisor, or has the control UART.
    TwoSupervisors,
    /// The name is empty or has characters other than letters, digits, `-`, `_`.
    BadName,
    /// Another item of its kind has the same name.
    DuplicateName,
    /// It refers to something that is not there.
    BadReference,
    /// A device is owned by two domains, or twice by one.
    DeviceShared,
    /// The image has no segments.
    NoSegments,
    /// A segment is not page aligned, empty, or overlaps its neighbour.
    BadSegment,
    /// A segment lies outside the space for images.
    SegmentRange,
    /// A segment's bytes lie outside the bundle.
    SegmentFile,
    /// A segment is both writable and executable.
    WriteExecute,
    /// The entry point is not in an executable segment.
    BadEntry,
    /// The memory is not a multiple of the page size or above 4 GiB.
    BadMemory,
    /// The memory is too small for image, tables, DMA pool and a heap;
    /// the bytes needed.
    MemoryTooSmall(u64),
    /// Grant table or window size is not a multiple of 512, zero, or above 16384.
    BadGrantSize,
    /// The core does not exist on this node.
    BadCore,
    /// Weight is 0 or the cap not 1 to 100.
    BadShare,
    /// The watchdog bound is 0.
    BadWatchdog,
    /// Unknown protocol.
    BadProtocol,
    /// Both ends are the same domain.
    SelfConnection,
    /// A blk connection without a volume, or another with one.
    BadVolume,
    /// Two connections name the same volume.
    VolumeShared,
    /// The MAC address is not a locally administered unicast address, or used twice.
    BadMac,
    /// An IP address has a prefix that is too long, or there are too many.
    BadAddress,
    /// A domain is an end of too many connections.
    TooManyConnections,
    /// An unknown capability.
    BadCapability,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NoDomains => "there are no domains",
            Self::TwoSupervisors => "the supervisor capabilities belong to one domain only",
            Self::BadName => "the name must be letters, digits, '-' or '_'",
            Self::DuplicateName => "the name is used twice",
            Self::BadReference => "it refers to something that is not defined",
            Self::DeviceShared => "a device has one owner only",
            Self::NoSegments => "the image has no segments",
            Self::BadSegment => "a segment is misaligned, empty or overlaps",
            Self::SegmentRange => "a segment lies outside the space for images",
            Self::SegmentFile => "a segment's bytes lie outside the bundle",
            Self::WriteExecute => "a segment is writable and executable",
            Self::BadEntry => "the entry point is not in executable memory",
            Self::BadMemory => "memory must be a multiple of 4 KiB, at most 4 GiB",
            Self::MemoryTooSmall(need) => {
                return write!(
                    f,
                    "memory is too small: at least {} KiB are needed",
                    need.div_ceil(1024)
                );
            }
            Self::BadGrantSize => "grant table and window are multiples of 512 up to 16384",
            Self::BadCore => "the core does not exist on this node",
            Self::BadShare => "weight must be at least 1 and cap 1 to 100",
            Self::BadWatchdog => "the watchdog bound must be at least 1 ms",
            Self::BadProtocol => "the protocol is unknown",
            Self::SelfConnection => "frontend and backend are the same domain",
            Self::BadVolume => "a blk connection names a volume, others do not",
            Self::VolumeShared => "a volume belongs to one connection only",
            Self::BadMac => "the MAC address must be unicast, locally administered and unique",
            Self::BadAddress => "the vif's IP addresses are out of their bounds",
            Self::TooManyConnections => "the domain has too many connections",
            Self::BadCapability => "the capability is unknown",
        };
        f.write_str(text)
    }
}

/// Largest grant table (entries) and window (pages).
const MAX_GRANTS: u32 = 16384;
/// Largest memory of a domain.
const MAX_MEMORY: u64 = 4 << 30;

/// Checks a manifest against a bundle of `total_len` bytes.
///
/// # Errors
/// The first problem found, with the item that has it.
pub fn validate(node: &Node, total_len: u64) -> Result<(), ManifestError> {
    let fail = |item, index, problem| Err(ManifestError { item, index, problem });
    if node.domains.is_empty() {
        return fail(Item::Node, 0, Problem::NoDomains);
    }
    for (i, image) in node.images.iter().enumerate() {
        if let Err(p) = check_image(image, total_len) {
            return fail(Item::Image, i, p);
        }
    }
    for (i, device) in node.devices.iter().enumerate() {
        if !good_name(&device.name) {
            return fail(Item::Device, i, Problem::BadName);
        }
        if node.devices.iter().take(i).any(|o| o.name == device.name) {
            return fail(Item::Device, i, Problem::DuplicateName);
        }
        if let Select::Bdf(0) = device.select {
            return fail(Item::Device, i, Problem::BadReference);
        }
    }
    for (i, _) in node.domains.iter().enumerate() {
        if let Err(p) = check_domain(node, i) {
            return fail(Item::Domain, i, p);
        }
    }
    for (i, _) in node.connections.iter().enumerate() {
        if let Err(p) = check_connection(node, i) {
            return fail(Item::Connection, i, p);
        }
    }
    Ok(())
}

fn good_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn check_image(image: &Image, total_len: u64) -> Result<(), Problem> {
    const PAGE: u64 = PAGE_SIZE as u64;
    if !good_name(&image.name) {
        return Err(Problem::BadName);
    }
    if image.segments.is_empty() {
        return Err(Problem::NoSegments);
    }
    let mut free_from = layout::IMAGE_BASE;
    let mut entry_ok = false;
    for s in &image.segments {
        let aligned =
            s.address % PAGE == 0 && s.memory_len % PAGE == 0 && s.file_offset % PAGE == 0;
        if !aligned || s.memory_len == 0 || s.file_len > s.memory_len {
            return Err(Problem::BadSegment);
        }
        let end = s.address.checked_add(s.memory_len).ok_or(Problem::SegmentRange)?;
        if s.address < layout::IMAGE_BASE || end > layout::IMAGE_END {
            return Err(Problem::SegmentRange);
        }
        if s.address < free_from {
            return Err(Problem::BadSegment);
        }
        free_from = end;
        let file_end = s.file_offset.checked_add(s.file_len).ok_or(Problem::SegmentFile)?;
        if file_end > total_len {
            return Err(Problem::SegmentFile);
        }
        if s.write && s.execute {
            return Err(Problem::WriteExecute);
        }
        entry_ok |= s.execute && (s.address..end).contains(&image.entry);
    }
    if entry_ok { Ok(()) } else { Err(Problem::BadEntry) }
}

fn check_domain(node: &Node, index: usize) -> Result<(), Problem> {
    let Some(domain) = node.domains.get(index) else { return Err(Problem::BadReference) };
    let before = || node.domains.iter().take(index);
    if !good_name(&domain.name) {
        return Err(Problem::BadName);
    }
    if before().any(|o| o.name == domain.name) {
        return Err(Problem::DuplicateName);
    }
    let image = node.images.get(usize::from(domain.image)).ok_or(Problem::BadReference)?;
    if !domain.memory.is_multiple_of(PAGE_SIZE as u64)
        || domain.memory > MAX_MEMORY
        || !domain.dma_pool.is_multiple_of(PAGE_SIZE as u64)
    {
        return Err(Problem::BadMemory);
    }
    for n in [domain.grant_entries, domain.grant_window_pages] {
        if n == 0 || n % 512 != 0 || n > MAX_GRANTS {
            return Err(Problem::BadGrantSize);
        }
    }
    let need = memory::least_memory(domain, image).ok_or(Problem::BadMemory)?;
    if domain.memory < need {
        return Err(Problem::MemoryTooSmall(need));
    }
    if domain.core.is_some_and(|c| c >= 64 || (node.cores != 0 && c >= node.cores)) {
        return Err(Problem::BadCore);
    }
    if domain.weight == 0 || domain.cap == 0 || domain.cap > 100 {
        return Err(Problem::BadShare);
    }
    if domain.watchdog_ms == 0 {
        return Err(Problem::BadWatchdog);
    }
    if domain.capabilities & !(boot::CAP_SUPERVISOR | boot::CAP_CONTROL_UART) != 0 {
        return Err(Problem::BadCapability);
    }
    if domain.capabilities != 0 && before().any(|o| o.capabilities & domain.capabilities != 0) {
        return Err(Problem::TwoSupervisors);
    }
    for (i, &device) in domain.devices.iter().enumerate() {
        if usize::from(device) >= node.devices.len() {
            return Err(Problem::BadReference);
        }
        if domain.devices.iter().take(i).any(|&d| d == device)
            || before().any(|o| o.devices.contains(&device))
        {
            return Err(Problem::DeviceShared);
        }
    }
    let ends = node
        .connections
        .iter()
        .filter(|c| usize::from(c.frontend) == index || usize::from(c.backend) == index)
        .count();
    if ends > MAX_DOMAIN_CONNECTIONS {
        return Err(Problem::TooManyConnections);
    }
    Ok(())
}

fn check_connection(node: &Node, index: usize) -> Result<(), Problem> {
    let Some(c) = node.connections.get(index) else { return Err(Problem::BadReference) };
    let before = || node.connections.iter().take(index);
    let protocol = Protocol::from_raw(c.protocol).ok_or(Problem::BadProtocol)?;
    if usize::from(c.frontend) >= node.domains.len() || usize::from(c.backend) >= node.domains.len()
    {
        return Err(Problem::BadReference);
    }
    if c.frontend == c.backend {
        return Err(Problem::SelfConnection);
    }
    if (protocol == Protocol::Blk) == c.volume.is_empty() {
        return Err(Problem::BadVolume);
    }
    if !c.volume.is_empty() && before().any(|o| o.backend == c.backend && o.volume == c.volume) {
        return Err(Problem::VolumeShared);
    }
    if protocol == Protocol::Net && (c.mac[0] & 3 != 2 || before().any(|o| o.mac == c.mac)) {
        return Err(Problem::BadMac);
    }
    if !c.addresses.is_valid() {
        return Err(Problem::BadAddress);
    }
    if c.weight == 0 {
        return Err(Problem::BadShare);
    }
    Ok(())
}
