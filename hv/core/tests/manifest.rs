//! One good manifest and many bad ones, each with its exact complaint; and the
//! memory layout that follows from the good one.

mod common;

use hv_core::{
    audit::{self, Leaf},
    bundle::{Item, MEMORY_TOO_SMALL, ManifestError, validate},
    grants::{Mapping, Source, Window},
    memory::{Kind, Space, least_memory},
};
use ring_proto::{
    bundle::{Connection, Device, Domain, Image, Node, Segment, Select},
    conn::Protocol,
    layout,
};

const TOTAL: u64 = 1 << 20;
/// The highest page aligned number.
const LAST_PAGE: u64 = u64::MAX - 0xfff;

fn segment(address: u64, write: bool, execute: bool) -> Segment {
    Segment { address, memory_len: 0x4000, file_offset: 0x1000, file_len: 0x3000, write, execute }
}

fn domain(name: &str, devices: &[u16]) -> Domain {
    Domain {
        devices: heapless::Vec::from_slice(devices).unwrap(),
        grant_entries: 1024,
        grant_window_pages: 1024,
        ..common::domain(name)
    }
}

fn connection(protocol: Protocol, volume: &str, mac: u8) -> Connection {
    Connection {
        protocol: protocol as u16,
        frontend: 1,
        backend: 0,
        volume: volume.try_into().unwrap(),
        mac: [2, 0, 0, 0, 0, mac],
        weight: 1,
        stall_ms: 2000,
        limits: Default::default(),
        addresses: Default::default(),
    }
}

fn good() -> Node {
    let image = Image {
        name: "blk".try_into().unwrap(),
        crc: 0,
        entry: layout::IMAGE_BASE + 0x10,
        segments: heapless::Vec::from_slice(&[
            segment(layout::IMAGE_BASE, false, true),
            segment(layout::IMAGE_BASE + 0x4000, false, false),
            segment(layout::IMAGE_BASE + 0x9000, true, false),
        ])
        .unwrap(),
    };
    let device = |name: &str, index| Device {
        name: name.try_into().unwrap(),
        select: Select::Class { class: 1, index },
    };
    Node {
        cores: 2,
        images: heapless::Vec::from_slice(&[image]).unwrap(),
        devices: heapless::Vec::from_slice(&[device("disk0", 0), device("disk1", 1)]).unwrap(),
        domains: heapless::Vec::from_slice(&[domain("blk", &[0]), domain("kv", &[])]).unwrap(),
        connections: heapless::Vec::from_slice(&[
            connection(Protocol::Blk, "data", 1),
            connection(Protocol::Net, "", 2),
        ])
        .unwrap(),
    }
}

#[test]
fn a_good_manifest_passes() {
    assert_eq!(validate(&good(), TOTAL), Ok(()));
}

/// Changes the good manifest and expects one complaint.
fn bad(item: Item, index: usize, problem: &'static str, change: impl FnOnce(&mut Node)) {
    let mut node = good();
    change(&mut node);
    assert_eq!(validate(&node, TOTAL), Err(ManifestError { item, index, problem }), "{problem}");
}

#[test]
fn bad_images() {
    use Item::Image;
    bad(Image, 0, "the image has no segments", |n| n.images[0].segments.clear());
    bad(Image, 0, "a segment is misaligned, empty or overlaps", |n| {
        n.images[0].segments[1].address += 1
    });
    bad(Image, 0, "a segment is misaligned, empty or overlaps", |n| {
        n.images[0].segments[1].address -= 0x1000
    });
    bad(Image, 0, "a segment is misaligned, empty or overlaps", |n| {
        n.images[0].segments[0].memory_len = 0
    });
    bad(Image, 0, "a segment is misaligned, empty or overlaps", |n| {
        n.images[0].segments[0].file_len = 0x4001
    });
    bad(Image, 0, "a segment lies outside the space for images", |n| {
        n.images[0].segments[0].address = 0x1000
    });
    bad(Image, 0, "a segment lies outside the space for images", |n| {
        n.images[0].segments[2].memory_len = layout::IMAGE_END
    });
    bad(Image, 0, "a segment lies outside the space for images", |n| {
        n.images[0].segments[2].memory_len = LAST_PAGE
    });
    bad(Image, 0, "a segment's bytes lie outside the bundle", |n| {
        n.images[0].segments[2].file_offset = TOTAL
    });
    bad(Image, 0, "a segment's bytes lie outside the bundle", |n| {
        n.images[0].segments[2].file_offset = LAST_PAGE
    });
    bad(Image, 0, "a segment is writable and executable", |n| n.images[0].segments[0].write = true);
    bad(Image, 0, "the entry point is not in executable memory", |n| {
        n.images[0].entry = layout::IMAGE_BASE + 0x4000
    });
}

#[test]
fn bad_domains() {
    use Item::Domain;
    bad(Item::Node, 0, "there are no domains", |n| n.domains.clear());
    bad(Domain, 1, "the name is used twice", |n| n.domains[1].name = "blk".try_into().unwrap());
    bad(Domain, 1, "the name must be letters, digits, '-' or '_'", |n| {
        n.domains[1].name = "k v".try_into().unwrap()
    });
    bad(Domain, 1, "it refers to something that is not defined", |n| n.domains[1].image = 9);
    bad(Domain, 0, "it refers to something that is not defined", |n| n.domains[0].devices[0] = 2);
    bad(Domain, 1, "a device has one owner only", |n| n.domains[1].devices.push(0).unwrap());
    bad(Domain, 0, "a device has one owner only", |n| n.domains[0].devices.push(0).unwrap());
    bad(Domain, 0, "memory must be a multiple of 4 KiB, at most 4 GiB", |n| {
        n.domains[0].memory += 1
    });
    bad(Domain, 0, "memory must be a multiple of 4 KiB, at most 4 GiB", |n| {
        n.domains[0].memory = 1 << 40
    });
    bad(Domain, 0, "memory must be a multiple of 4 KiB, at most 4 GiB", |n| {
        n.domains[0].dma_pool = LAST_PAGE
    });
    bad(Domain, 0, "grant table and window are multiples of 512 up to 16384", |n| {
        n.domains[0].grant_entries = 0
    });
    bad(Domain, 0, "grant table and window are multiples of 512 up to 16384", |n| {
        n.domains[0].grant_window_pages = 513
    });
    bad(Domain, 0, "the core does not exist on this node", |n| n.domains[0].core = Some(2));
    bad(Domain, 0, "weight must be at least 1 and cap 1 to 100", |n| n.domains[0].weight = 0);
    bad(Domain, 0, "weight must be at least 1 and cap 1 to 100", |n| n.domains[0].cap = 101);
    bad(Domain, 0, "the watchdog bound must be at least 1 ms", |n| n.domains[0].watchdog_ms = 0);
    bad(Domain, 0, "the capability is unknown", |n| n.domains[0].capabilities = 4);
    bad(Domain, 1, "the supervisor capabilities belong to one domain only", |n| {
        n.domains[0].capabilities = 1;
        n.domains[1].capabilities = 3;
    });
    let space =
        "the space for updates must be a multiple of 4 KiB, at most 2 MiB, without capabilities";
    bad(Domain, 0, space, |n| n.domains[0].update_space = 0x8_0001);
    bad(Domain, 0, space, |n| n.domains[0].update_space = (2 << 20) + 0x1000);
    bad(Domain, 0, space, |n| {
        (n.domains[0].update_space, n.domains[0].capabilities) = (0x8_0000, 1);
    });
    bad(Domain, 0, "the image takes more than the space for updates", |n| {
        n.domains[0].update_space = 0xb000;
    });
    let need = least_memory(&good().domains[0], &good().images[0]).unwrap();
    bad(Domain, 0, MEMORY_TOO_SMALL, |n| n.domains[0].memory = need - 0x1000);
}

#[test]
fn g6_a_spare_is_like_its_principal_and_has_nothing() {
    let spared = |change: fn(&mut Node)| {
        let mut node = good();
        let name = "spare".try_into().unwrap();
        let spare = Domain {
            name,
            devices: Default::default(),
            spare_of: Some(0),
            ..node.domains[0].clone()
        };
        node.domains.push(spare).unwrap();
        change(&mut node);
        validate(&node, TOTAL)
    };
    assert_eq!(spared(|_| ()), Ok(()));
    let problem = "a spare is one of one other domain, like it, without anything";
    let changes: [fn(&mut Node); 9] = [
        |n| {
            n.domains[1].weight = 1;
            n.domains[2].spare_of = Some(1)
        },
        |n| n.domains[2].spare_of = Some(2),
        |n| n.domains[2].spare_of = Some(u16::MAX),
        |n| n.domains[2].memory += 4096,
        |n| n.domains[2].dma_pool = 0,
        |n| n.domains[2].core = Some(0),
        |n| n.domains[2].grant_window_pages += 512,
        |n| n.domains[2].watchdog_ms += 1,
        |n| n.connections[0].frontend = 2,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let error = ManifestError { item: Item::Domain, index: 2, problem };
        assert_eq!(spared(change), Err(error), "change {number}");
    }
    let error = spared(|n| {
        let second = Domain { name: "second".try_into().unwrap(), ..n.domains[2].clone() };
        n.domains.push(second).unwrap();
    });
    assert_eq!(error, Err(ManifestError { item: Item::Domain, index: 3, problem }));
    let error = spared(|n| {
        let of_spare = Some(2);
        let name = "second".try_into().unwrap();
        n.domains.push(Domain { name, spare_of: of_spare, ..n.domains[2].clone() }).unwrap();
    });
    assert_eq!(error, Err(ManifestError { item: Item::Domain, index: 3, problem }));
}

#[test]
fn bad_connections() {
    use Item::Connection;
    bad(Connection, 0, "the protocol is unknown", |n| n.connections[0].protocol = 7);
    bad(Connection, 0, "it refers to something that is not defined", |n| {
        n.connections[0].backend = 2
    });
    bad(Connection, 0, "frontend and backend are the same domain", |n| {
        n.connections[0].backend = 1
    });
    bad(Connection, 0, "a blk connection names a volume, others do not", |n| {
        n.connections[0].volume.clear()
    });
    bad(Connection, 1, "a blk connection names a volume, others do not", |n| {
        n.connections[1].volume = "x".try_into().unwrap()
    });
    bad(Connection, 1, "a volume belongs to one connection only", |n| {
        n.connections[1] = n.connections[0].clone()
    });
    bad(Connection, 1, "the MAC address must be unicast, locally administered and unique", |n| {
        n.connections[1].mac[0] = 3
    });
    bad(Connection, 1, "the MAC address must be unicast, locally administered and unique", |n| {
        n.connections[1].mac[5] = 1
    });
    bad(Connection, 1, "the vif's IP addresses are out of their bounds", |n| {
        n.connections[1].addresses.count = 5
    });
    bad(Connection, 1, "the vif's IP addresses are out of their bounds", |n| {
        n.connections[1].addresses.prefixes[3] = 129
    });
    bad(Connection, 0, "weight must be at least 1 and cap 1 to 100", |n| {
        n.connections[0].weight = 0
    });
    bad(Item::Domain, 0, "the domain has too many connections", |n| {
        for mac in 3..20 {
            n.connections.push(connection(Protocol::Net, "", mac)).unwrap();
        }
    });
}

#[test]
fn the_layout_covers_the_memory_exactly_once() {
    let node = good();
    let base = 0x4000_0000;
    let space = Space::new(&node.domains[0], &node.images[0], base).unwrap();
    let mut frames: Vec<u64> = space
        .regions()
        .iter()
        .flat_map(|r| (r.hpa..r.hpa + r.len).step_by(4096))
        .chain([space.scratch])
        .collect();
    frames.sort_unstable();
    let all: Vec<u64> = (base..base + space.len).step_by(4096).collect();
    assert_eq!(frames, all, "every frame has one place, and only one");
    assert_eq!(space.find(Kind::Heap).unwrap().hpa % (2 << 20), 0);
    assert!(space.regions().iter().all(|r| !(r.write && r.execute)));
}

#[test]
fn translation_stays_in_one_region_and_respects_rights() {
    let node = good();
    let space = Space::new(&node.domains[0], &node.images[0], 0).unwrap();
    let text = layout::IMAGE_BASE;
    assert!(space.translate(text, 0x4000, false).is_some());
    assert!(space.translate(text, 1, true).is_none(), "text is not writable");
    assert!(space.translate(text + 0x3fff, 2, false).is_none(), "crosses a region");
    assert!(space.translate(text + 0x8000, 1, false).is_none(), "a gap");
    assert!(space.translate(0, 1, false).is_none(), "null");
    assert!(space.translate(u64::MAX, 1, false).is_none());
    assert!(space.translate(layout::HEAP, u64::MAX, false).is_none());
    assert!(space.translate(layout::HEAP, space.heap_len, true).is_some());
    assert!(space.translate(layout::HEAP, space.heap_len + 1, true).is_none());
    assert!(space.grantable_page(layout::HEAP).is_some());
    assert!(space.grantable_page(layout::HEAP + 8).is_none(), "not a page");
    assert!(space.grantable_page(text).is_none(), "read-only memory is not granted");
    assert!(space.grantable_page(layout::PAGE_TABLES).is_none());
}

#[test]
fn grant_3_a_device_finds_the_scratch_page_after_a_revocation() {
    let node = good();
    let space = Space::new(&node.domains[0], &node.images[0], 0x4000_0000).unwrap();
    let mut window = Window::new(8);
    let (frame, scratch) = (0x8000_0000, 0x9000_0000);
    let source = Some(Source { granter: 1, gref: 5 });
    window.insert(2, [Ok(Mapping { source, frame, write: false, dma: true })]).unwrap();
    let leaf =
        |hpa, write| Leaf { gpa: layout::GRANT_WINDOW + 2 * 4096, hpa, write, execute: false };
    let right = |window: &Window, hpa, write| audit::iommu_leaf(&space, window, leaf(hpa, write));
    assert!(right(&window, frame, false));
    assert!(!right(&window, frame, true), "writable");
    assert!(!right(&window, scratch, true), "not revoked");
    assert!(window.revoke(2, scratch).is_some_and(|was| was.dma));
    assert!(!right(&window, frame, false), "revoked");
    assert!(right(&window, scratch, true));
    assert!(window.remove(2).is_some_and(|was| was.dma), "the device's page goes, too");
    assert!(!right(&window, scratch, true), "unmapped");
}
