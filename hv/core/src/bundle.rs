//! Validation of a node manifest.
//!
//! `cargo xtask` calls [`validate`] before it writes a bundle and the
//! hypervisor calls it before it believes one.

use ring_proto::{
    MAX_DOMAIN_CONNECTIONS, PAGE_SIZE, boot,
    bundle::{Connection, Domain, Header, Image, Node, Select, VERSION, crc32},
    conn::Protocol,
    layout,
};
use serde::Deserialize;
use zerocopy::FromBytes;

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

/// A sentence for people about what is wrong.
pub type Problem = &'static str;

/// Of this one [`memory::least_memory`] says how much it takes.
pub const MEMORY_TOO_SMALL: Problem = "memory is too small";
const BAD_NAME: Problem = "the name must be letters, digits, '-' or '_'";
const DUPLICATE_NAME: Problem = "the name is used twice";
const BAD_REFERENCE: Problem = "it refers to something that is not defined";
const BAD_SEGMENT: Problem = "a segment is misaligned, empty or overlaps";
const SEGMENT_RANGE: Problem = "a segment lies outside the space for images";
const SEGMENT_FILE: Problem = "a segment's bytes lie outside the bundle";
const BAD_MEMORY: Problem = "memory must be a multiple of 4 KiB, at most 4 GiB";
const BAD_SHARE: Problem = "weight must be at least 1 and cap 1 to 100";

const BAD_UPDATE_SPACE: Problem =
    "the space for updates must be a multiple of 4 KiB, at most 2 MiB, without capabilities";

const PAGE: u64 = PAGE_SIZE as u64;
/// Bounds the step that lays an image out anew.
const MAX_UPDATE_SPACE: u64 = 2 << 20;
/// Largest grant table (entries) and window (pages).
const MAX_GRANTS: u32 = 16384;
/// Largest memory of a domain.
const MAX_MEMORY: u64 = 4 << 30;

/// What stands in front of a bundle or of an image's file, of less than `limit`
/// bytes.
///
/// # Errors
/// What is wrong with the file.
pub fn front<'a, T: Deserialize<'a>>(
    file: &'a [u8],
    magic: [u8; 8],
    limit: usize,
) -> Result<T, Problem> {
    let (header, rest) = Header::read_from_prefix(file).map_err(|_| "the file is too short")?;
    demand(header.magic == magic, "the file is of another kind")?;
    demand(header.version == VERSION, "the file has another version: build it anew")?;
    demand(header.total_len == file.len() as u64, "the file is cut off")?;
    let len = usize::try_from(header.manifest_len).ok().filter(|&len| len < limit);
    let front = len.and_then(|len| rest.get(..len)).ok_or("the file's front is too long")?;
    demand(crc32(front) == header.manifest_crc, "the file's front is damaged (CRC)")?;
    postcard::from_bytes(front).map_err(|_| "the file's front cannot be read")
}

/// Checks a manifest against a bundle of `total_len` bytes.
///
/// # Errors
/// The first problem found, with the item that has it.
pub fn validate(node: &Node, total_len: u64) -> Result<(), ManifestError> {
    let each = |item, count, check: &dyn Fn(usize) -> Result<(), Problem>| {
        (0..count).try_for_each(|index| {
            check(index).map_err(|problem| ManifestError { item, index, problem })
        })
    };
    each(Item::Node, 1, &|_| demand(!node.domains.is_empty(), "there are no domains"))?;
    each(Item::Image, node.images.len(), &|i| {
        check_image(node.images.get(i).ok_or(BAD_REFERENCE)?, total_len)
    })?;
    each(Item::Device, node.devices.len(), &|i| check_device(node, i))?;
    each(Item::Domain, node.domains.len(), &|i| check_domain(node, i))?;
    each(Item::Connection, node.connections.len(), &|i| check_connection(node, i))
}

pub(crate) fn demand(good: bool, problem: Problem) -> Result<(), Problem> {
    if good { Ok(()) } else { Err(problem) }
}

fn check_name(name: &str) -> Result<(), Problem> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    demand(!name.is_empty() && name.bytes().all(good), BAD_NAME)
}

/// Checks an image whose bytes lie in a file of `total_len`.
pub(crate) fn check_image(image: &Image, total_len: u64) -> Result<(), Problem> {
    check_name(&image.name)?;
    demand(!image.segments.is_empty(), "the image has no segments")?;
    let mut free_from = layout::IMAGE_BASE;
    let mut entry_ok = false;
    for s in &image.segments {
        let aligned = [s.address, s.memory_len, s.file_offset].iter().all(|n| n % PAGE == 0);
        demand(aligned && s.memory_len != 0 && s.file_len <= s.memory_len, BAD_SEGMENT)?;
        let end = s.address.checked_add(s.memory_len).ok_or(SEGMENT_RANGE)?;
        demand(s.address >= layout::IMAGE_BASE && end <= layout::IMAGE_END, SEGMENT_RANGE)?;
        demand(s.address >= free_from, BAD_SEGMENT)?;
        free_from = end;
        let file_end = s.file_offset.checked_add(s.file_len).ok_or(SEGMENT_FILE)?;
        demand(file_end <= total_len, SEGMENT_FILE)?;
        demand(!(s.write && s.execute), "a segment is writable and executable")?;
        entry_ok |= s.execute && (s.address..end).contains(&image.entry);
    }
    demand(entry_ok, "the entry point is not in executable memory")
}

fn check_device(node: &Node, index: usize) -> Result<(), Problem> {
    let device = node.devices.get(index).ok_or(BAD_REFERENCE)?;
    check_name(&device.name)?;
    let known = node.devices.iter().take(index).any(|o| o.name == device.name);
    demand(!known, DUPLICATE_NAME)?;
    demand(!matches!(device.select, Select::Bdf(0)), BAD_REFERENCE)
}

fn check_domain(node: &Node, index: usize) -> Result<(), Problem> {
    let domain = node.domains.get(index).ok_or(BAD_REFERENCE)?;
    let before = || node.domains.iter().take(index);
    check_name(&domain.name)?;
    demand(before().all(|o| o.name != domain.name), DUPLICATE_NAME)?;
    let image = node.images.get(usize::from(domain.image)).ok_or(BAD_REFERENCE)?;
    let whole = domain.memory % PAGE == 0 && domain.dma_pool % PAGE == 0;
    demand(whole && domain.memory <= MAX_MEMORY, BAD_MEMORY)?;
    let fits = |n: u32| n != 0 && n.is_multiple_of(512) && n <= MAX_GRANTS;
    let grants = fits(domain.grant_entries) && fits(domain.grant_window_pages);
    demand(grants, "grant table and window are multiples of 512 up to 16384")?;
    let space = domain.update_space;
    let plain = space == 0 || domain.capabilities == 0 && space <= MAX_UPDATE_SPACE;
    demand(plain && space % PAGE == 0, BAD_UPDATE_SPACE)?;
    memory::check_room(domain, image)?;
    let need = memory::least_memory(domain, image).ok_or(BAD_MEMORY)?;
    demand(domain.memory >= need, MEMORY_TOO_SMALL)?;
    let there = |core| core < 64 && (node.cores == 0 || core < node.cores);
    demand(domain.core.is_none_or(there), "the core does not exist on this node")?;
    demand(domain.weight != 0 && (1..=100).contains(&domain.cap), BAD_SHARE)?;
    demand(domain.watchdog_ms != 0, "the watchdog bound must be at least 1 ms")?;
    let unknown = domain.capabilities & !(boot::CAP_SUPERVISOR | boot::CAP_CONTROL_UART);
    demand(unknown == 0, "the capability is unknown")?;
    let sole = before().all(|o| o.capabilities & domain.capabilities == 0);
    demand(sole, "the supervisor capabilities belong to one domain only")?;
    for (i, device) in domain.devices.iter().enumerate() {
        demand(usize::from(*device) < node.devices.len(), BAD_REFERENCE)?;
        let mut owned = before().flat_map(|o| &o.devices).chain(domain.devices.iter().take(i));
        demand(!owned.any(|o| o == device), "a device has one owner only")?;
    }
    let is_end = |c: &&Connection| [c.frontend, c.backend].map(usize::from).contains(&index);
    let ends = node.connections.iter().filter(is_end).count();
    demand(ends <= MAX_DOMAIN_CONNECTIONS, "the domain has too many connections")?;
    let Some(principal) = domain.spare_of else { return Ok(()) };
    // Its body takes the place of the other's, which must fit in every way.
    let like = before().nth(principal.into()).is_some_and(|p| {
        let (name, devices) = (p.name.clone(), p.devices.clone());
        *p == Domain { name, devices, spare_of: None, ..domain.clone() }
    });
    let own = domain.devices.is_empty() && domain.capabilities == 0 && ends == 0;
    let only = before().all(|o| o.spare_of != domain.spare_of);
    demand(like && own && only, "a spare is one of one other domain, like it, without anything")
}

fn check_connection(node: &Node, index: usize) -> Result<(), Problem> {
    let c = node.connections.get(index).ok_or(BAD_REFERENCE)?;
    let before = || node.connections.iter().take(index);
    let protocol = Protocol::from_raw(c.protocol).ok_or("the protocol is unknown")?;
    let there = |end| usize::from(end) < node.domains.len();
    demand(there(c.frontend) && there(c.backend), BAD_REFERENCE)?;
    demand(c.frontend != c.backend, "frontend and backend are the same domain")?;
    let named = !c.volume.is_empty();
    demand((protocol == Protocol::Blk) == named, "a blk connection names a volume, others do not")?;
    let shared = named && before().any(|o| o.backend == c.backend && o.volume == c.volume);
    demand(!shared, "a volume belongs to one connection only")?;
    let mac = c.mac[0] & 3 == 2 && before().all(|o| o.mac != c.mac);
    demand(
        protocol != Protocol::Net || mac,
        "the MAC address must be unicast, locally administered and unique",
    )?;
    demand(c.addresses.is_valid(), "the vif's IP addresses are out of their bounds")?;
    demand(c.weight != 0, BAD_SHARE)?;
    demand(c.stall_ms != 0, "the bound on silence must be at least 1 ms")
}
