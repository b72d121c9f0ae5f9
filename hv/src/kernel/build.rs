//! Building the node from its bundle, once, before any domain runs.

use alloc::{string::String, vec, vec::Vec};

use hv_core::{
    bundle::validate,
    domain::{Domain, Life},
    memory::{Kind, Region, Space},
    records::{Console, Deaths},
    sched::Scheduler,
};
use ring_proto::{
    PAGE_SIZE, boot,
    bundle::{self, Header},
    hypercall::NodeInfo,
    layout,
};
use zerocopy::{FromBytes, FromZeros};

use super::{Connection, End, Node, Orders, device::Devices, ram::Ram};
use crate::{
    memmap,
    vt::{
        npt::{NestedTable, Rights},
        svm::{Maps, SvmVcpu},
    },
};

const PAGE: u64 = PAGE_SIZE as u64;
const HUGE: u64 = 2 << 20;
/// Death records kept.
const DEATHS: usize = 64;
/// Bytes of console log kept.
const CONSOLE: usize = 256 << 10;

/// Reads the manifest out of a bundle.
///
/// # Errors
/// A sentence for people.
pub fn parse(bundle: &[u8]) -> Result<bundle::Node, String> {
    use alloc::format;
    let (header, rest) =
        Header::read_from_prefix(bundle).map_err(|_| String::from("the bundle is too short"))?;
    if header.magic != bundle::MAGIC {
        return Err("the boot module is not a Bulkhead bundle".into());
    }
    if header.version != bundle::VERSION {
        return Err(format!(
            "the bundle has version {}, this hypervisor reads {}",
            header.version,
            bundle::VERSION
        ));
    }
    if header.total_len != bundle.len() as u64 {
        return Err(format!(
            "the bundle says it has {} bytes, {} arrived",
            header.total_len,
            bundle.len()
        ));
    }
    let manifest =
        rest.get(..header.manifest_len as usize).ok_or("the bundle's manifest is cut off")?;
    if bundle::crc32(manifest) != header.manifest_crc {
        return Err("the bundle's manifest is damaged (CRC)".into());
    }
    let node: bundle::Node = postcard::from_bytes(manifest)
        .map_err(|e| format!("the bundle's manifest cannot be read: {e}"))?;
    validate(&node, bundle.len() as u64)
        .map_err(|e| format!("{:?} {} of the manifest: {}", e.item, e.index, e.problem))?;
    Ok(node)
}

/// Builds all domains; they start as soon as the cores run.
///
/// # Errors
/// A sentence for people.
pub fn build(bundle: &'static [u8], cores: u16, devices: Devices) -> Result<Node, String> {
    use alloc::format;
    let manifest = parse(bundle)?;
    let maps = Maps::new().ok_or("no memory for permission maps")?;
    let mut node = Node {
        cores,
        bundle,
        images: manifest.images.iter().cloned().collect(),
        domains: Vec::with_capacity(manifest.domains.len()),
        vcpus: Vec::new(),
        nested: Vec::new(),
        flush: vec![false; manifest.domains.len()],
        asleep: vec![false; manifest.domains.len()],
        orders: vec![Orders::default(); manifest.domains.len()],
        connections: Vec::new(),
        slots: vec![Vec::new(); manifest.domains.len()],
        devices,
        sched: Scheduler::new(),
        deaths: Deaths::new(DEATHS),
        console: Console::new(CONSOLE),
        ram: Ram::default(),
        info: NodeInfo::new_zeroed(),
        next_event_poll: 0,
    };
    node.info.memory = memmap::boot().usable;
    node.devices.resolve(&manifest)?;
    for (i, config) in manifest.domains.iter().enumerate() {
        node.add_domain(i, config, maps)?;
    }
    for config in &manifest.connections {
        node.add_connection(config).ok_or("no memory for connection pages")?;
    }
    for d in 0..node.domains.len() {
        node.add_bars(d);
        node.map_domain(d).ok_or_else(|| {
            format!("no memory for the tables of {}", node.domains[d].config.name)
        })?;
        if node.domains[d].config.autostart {
            node.domains[d].life = Life::Building(0);
        }
        node.show_closed(d as u16);
        if Devices::wants_uart(&node.domains[d].config) {
            let core = node.domains[d].core;
            node.devices.route_uart(d as u16, core)?;
        }
    }
    node.info.free = memmap::free_bytes();
    Ok(node)
}

impl Node {
    fn add_domain(&mut self, i: usize, config: &bundle::Domain, maps: Maps) -> Result<(), String> {
        use alloc::format;
        let short = || {
            format!(
                "not enough memory for domain {}: it needs {} KiB, {} KiB are free",
                config.name,
                config.memory / 1024,
                memmap::free_bytes() / 1024
            )
        };
        let pages = (config.memory / PAGE) as usize;
        // Restoring the image zeroes what the image does not fill.
        let base = memmap::alloc_frames_dirty(pages, HUGE).ok_or_else(short)?;
        self.ram.add(base, config.memory);
        let image = self.images.get(usize::from(config.image)).ok_or("image missing")?;
        let space = Space::new(config, image, base).ok_or("memory layout does not fit")?;
        let core = config.core.unwrap_or(i as u16) % self.cores;
        let nested = NestedTable::new().ok_or_else(short)?;
        let uart = config.capabilities & boot::CAP_CONTROL_UART != 0;
        // ASID 0 is the host's own.
        let vcpu = SvmVcpu::new(nested.root(), i as u32 + 1, maps, uart).ok_or_else(short)?;
        self.sched.add(core, config.weight, config.cap, config.watchdog_ms);
        self.nested.push(nested);
        self.vcpus.push(Some(vcpu));
        self.devices.add_domain(i as u16, &space, config)?;
        self.domains.push(Domain::new(i as u16, config.clone(), space, core));
        Ok(())
    }

    fn add_connection(&mut self, config: &bundle::Connection) -> Option<()> {
        let number = self.connections.len() as u16;
        let frames = memmap::alloc_frames(2, 4096)?;
        self.ram.add(frames, 2 * PAGE);
        let mut end = |domain: u16, page: u64, peer_page: u64| {
            let slots = self.slots.get_mut(usize::from(domain))?;
            let slot = slots.len() as u16;
            slots.push(number);
            let gpa = layout::CONNECTIONS + u64::from(slot) * 2 * PAGE;
            let space = &mut self.domains.get_mut(usize::from(domain))?.space;
            let region = |gpa, hpa, write| Region {
                gpa,
                hpa,
                len: PAGE,
                write,
                execute: false,
                kind: Kind::Connection,
            };
            space.add_foreign(region(gpa, page, true));
            space.add_foreign(region(gpa + PAGE, peer_page, false));
            Some(End { domain, slot, page })
        };
        let frontend = end(config.frontend, frames, frames + PAGE)?;
        let backend = end(config.backend, frames + PAGE, frames)?;
        self.connections.push(Connection { config: config.clone(), frontend, backend });
        Some(())
    }

    /// Adds the BARs of a domain's devices, without the pages that hold MSI-X
    /// tables.
    fn add_bars(&mut self, d: usize) {
        for slot in 0..ring_proto::MAX_DOMAIN_DEVICES {
            let Some(function) = self.devices.function(d as u16, slot) else { break };
            for (bar, found) in function.bars.iter().enumerate() {
                let Some(found) = found.as_ref().filter(|b| b.is_memory()) else { continue };
                let window = layout::BARS
                    + slot as u64 * layout::BAR_SLOT_STRIDE
                    + bar as u64 * layout::BAR_STRIDE;
                let len = found.len.min(layout::BAR_STRIDE) & !(PAGE - 1);
                let mut run: Option<(u64, u64)> = None;
                for offset in (0..=len).step_by(PAGE_SIZE) {
                    let open = offset < len && !function.is_withheld(bar, offset);
                    run = match (run, open) {
                        (None, true) => Some((offset, PAGE)),
                        (Some((start, n)), true) => Some((start, n + PAGE)),
                        (Some((start, n)), false) => {
                            self.domains[d].space.add_foreign(Region {
                                gpa: window + start,
                                hpa: found.address + start,
                                len: n,
                                write: true,
                                execute: false,
                                kind: Kind::Bar,
                            });
                            None
                        }
                        (None, false) => None,
                    };
                }
            }
        }
    }

    fn map_domain(&mut self, d: usize) -> Option<()> {
        let nested = &mut self.nested[d];
        for r in self.domains[d].space.regions() {
            let rights = Rights { write: r.write, execute: r.execute, device: r.kind == Kind::Bar };
            nested.map_range(r.gpa, r.hpa, r.len, rights)?;
        }
        nested.reserve(
            layout::GRANT_WINDOW,
            u64::from(self.domains[d].config.grant_window_pages) * PAGE,
        )
    }
}
