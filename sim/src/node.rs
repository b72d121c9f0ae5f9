//! The manifest of the simulated node, and where things are in its domains.

use ring_proto::bundle::{Connection, Device, Domain, Image, Name, Node, Restart, Segment, Select};
use ring_proto::conn::Protocol;
use ring_proto::{DomainId, boot, layout};

use crate::hv::PAGE;

pub(crate) const SUPERVISOR: DomainId = 0;
pub(crate) const BLK: DomainId = 1;
pub(crate) const NET: DomainId = 2;
/// The first guest.
pub(crate) const GUESTS: DomainId = 3;
/// Most guests.
pub(crate) const MOST_GUESTS: usize = 2;

/// Sectors of a volume: few, so that requests overlap.
pub(crate) const SECTORS: usize = 8;
/// Slots of the blk ring.
pub(crate) const BLK_SLOTS: u32 = 8;
/// Slots of the net rings.
pub(crate) const NET_SLOTS: u32 = 4;
/// Where a guest has what in its heap: first page and pages.
pub(crate) const BLK_RING: (u32, u32) = (0, 1);
pub(crate) const TX_RING: (u32, u32) = (1, 1);
pub(crate) const RX_RING: (u32, u32) = (2, 1);
pub(crate) const BLK_POOL: (u32, u32) = (3, 4);
pub(crate) const NET_POOL: (u32, u32) = (7, 4);
/// Buffers for frames that come in.
pub(crate) const RX_BUFFERS: u64 = 4;
/// Window pages of a connection in a driver domain, and where its pool begins.
pub(crate) const WINDOW: u32 = 8;
pub(crate) const WINDOW_POOL: u32 = 2;
/// Window pages that are mapped while a connection is up.
pub(crate) const BLK_MAPPED: u32 = BLK_RING.1 + BLK_POOL.1;
pub(crate) const NET_MAPPED: u32 = TX_RING.1 + RX_RING.1 + NET_POOL.1;

/// Pages of a domain's memory.
const MEMORY: u64 = 26;
/// ms of CPU time without a `wait` after which a domain counts as hung.
pub(crate) const WATCHDOG_MS: u32 = 5;

fn name(text: &str) -> Name {
    text.chars().take(20).collect()
}

/// The domain of a guest.
pub(crate) fn guest(number: usize) -> DomainId {
    GUESTS + number as DomainId
}

/// The number of a guest: beyond the last guest's, it is a spare's.
pub(crate) fn number(domain: DomainId) -> Option<usize> {
    domain.checked_sub(GUESTS).map(usize::from)
}

/// A node with so many guests and cores, and spares of these drivers.
pub(crate) fn manifest(guests: usize, cores: u16, spares: &[DomainId]) -> Node {
    let segment = |page: u64, write| Segment {
        address: layout::IMAGE_BASE + page * PAGE,
        memory_len: PAGE,
        file_offset: 0,
        file_len: 0,
        write,
        execute: !write,
    };
    let image = Image {
        name: name("any"),
        crc: 0,
        entry: layout::IMAGE_BASE,
        segments: [segment(0, false), segment(1, true)].into_iter().collect(),
    };
    let domain = |text: &str, id: u16, device: Option<u16>, capabilities| Domain {
        name: name(text),
        image: 0,
        memory: MEMORY * PAGE,
        dma_pool: if device.is_some() { PAGE } else { 0 },
        capabilities,
        devices: device.into_iter().collect(),
        core: Some(id % cores),
        weight: 256,
        cap: 100,
        watchdog_ms: WATCHDOG_MS,
        grant_entries: 512,
        grant_window_pages: 512,
        restart: Restart::default(),
        args: heapless::String::new(),
        autostart: true,
        spare_of: None,
        update_space: 0,
    };
    let mut node = Node {
        cores,
        images: [image].into_iter().collect(),
        devices: heapless::Vec::new(),
        domains: heapless::Vec::new(),
        connections: heapless::Vec::new(),
    };
    for (text, class) in [("disk", 1), ("nic", 2)] {
        let select = Select::Class { class, index: 0 };
        let _ = node.devices.push(Device { name: name(text), select });
    }
    let capabilities = boot::CAP_SUPERVISOR | boot::CAP_CONTROL_UART;
    let _ = node.domains.push(domain("supervisor", SUPERVISOR, None, capabilities));
    let _ = node.domains.push(domain("blk", BLK, Some(0), 0));
    let _ = node.domains.push(domain("net", NET, Some(1), 0));
    for number in 0..guests {
        let id = guest(number);
        let _ = node.domains.push(domain(["a", "b"][number], id, None, 0));
        for (protocol, backend) in [(Protocol::Blk, BLK), (Protocol::Net, NET)] {
            let volume = if protocol == Protocol::Blk { ["va", "vb"][number] } else { "" };
            let _ = node.connections.push(Connection {
                protocol: protocol as u16,
                frontend: id,
                backend,
                volume: volume.chars().collect(),
                mac: if volume.is_empty() { [2, 0, 0, 0, 0, number as u8] } else { [0; 6] },
                weight: 256,
                limits: boot::Limits::default(),
                stall_ms: 2000,
                addresses: boot::Addresses::default(),
            });
        }
    }
    // The last: whoever counts guests need not look past them.
    for &principal in spares {
        let like = node.domains[usize::from(principal)].clone();
        let _ = node.domains.push(Domain {
            name: name(if principal == BLK { "blk-spare" } else { "net-spare" }),
            devices: heapless::Vec::new(),
            spare_of: Some(principal),
            ..like
        });
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisor_would_take_the_manifest() {
        for (guests, cores) in (1..=MOST_GUESTS).flat_map(|g| [(g, 1), (g, 2)]) {
            for spares in [&[][..], &[BLK], &[NET], &[BLK, NET]] {
                let node = manifest(guests, cores, spares);
                assert_eq!(hv_core::bundle::validate(&node, 1 << 20), Ok(()));
                assert_eq!(node.domains.len(), usize::from(GUESTS) + guests + spares.len());
            }
        }
    }
}
