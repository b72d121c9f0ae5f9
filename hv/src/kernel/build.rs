//! Building the node from its bundle, once, before any domain runs.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "boot only: numbers of a manifest that was validated"
)]

use alloc::{format, string::String, vec::Vec};

use hv_core::{
    bundle::{front, validate},
    domain::{ByDomain, Domain, Life},
    image::Images,
    memory::{Kind, Space},
    records::{Console, Deaths, LineQuota},
    sched::Scheduler,
};
use ring_proto::{DomainId, PAGE_SIZE, Port, boot, bundle, event, hypercall::NodeInfo, layout};
use zerocopy::FromZeros;

use super::{Connection, End, Guest, Node, Orders, PAGE, device::Devices, ram::Ram};
use crate::{
    cpu, memmap, paging,
    vt::svm::{Maps, SvmVcpu},
};

const HUGE: u64 = 2 << 20;
/// A domain of so many bytes is mapped page by page, so that few are restored
/// after its death: drivers write to a fraction of theirs.
const SMALL: u64 = 16 << 20;
/// Death records kept.
const DEATHS: usize = 64;
/// Bytes of console log kept.
const CONSOLE: usize = 256 << 10;

/// Reads the manifest out of a bundle.
///
/// # Errors
/// A sentence for people.
fn parse(bundle: &[u8]) -> Result<bundle::Node, String> {
    let node: bundle::Node =
        front(bundle, bundle::MAGIC, usize::MAX).map_err(|e| format!("the boot module: {e}"))?;
    validate(&node, bundle.len() as u64)
        .map_err(|e| format!("{:?} {} of the manifest: {}", e.item, e.index, e.problem))?;
    Ok(node)
}

/// Builds all domains; they start as soon as the cores run.
///
/// # Errors
/// A sentence for people.
pub fn build(bundle: &'static [u8], cores: u16, devices: Devices) -> Result<Node, String> {
    let manifest = parse(bundle)?;
    let maps = Maps::new().ok_or("no memory for permission maps")?;
    let mut node = Node {
        images: ByDomain::default(),
        domains: ByDomain::default(),
        guests: ByDomain::default(),
        connections: Vec::new(),
        devices,
        sched: Scheduler::new(),
        deaths: Deaths::new(DEATHS),
        console: Console::new(CONSOLE),
        ram: Ram::default(),
        info: NodeInfo::new_zeroed(),
        next_event_poll: 0,
    };
    node.info.cores = cores.into();
    node.info.domains = manifest.domains.len() as u32;
    node.info.memory = memmap::boot().usable;
    for (id, config) in (0..).zip(&manifest.domains) {
        // Their foreign pages change tables one by one.
        let spared =
            config.spare_of.is_some() || manifest.domains.iter().any(|d| d.spare_of == Some(id));
        let image = manifest.images.get(usize::from(config.image)).ok_or("image missing")?;
        node.images.push(Images::new(bundle, image, config));
        node.add_domain(id, config, image, maps, spared)?;
        node.devices.add_domain(id, &node.domains[id].space, config, &manifest.devices)?;
    }
    for (number, config) in (0..).zip(&manifest.connections) {
        node.add_connection(number, config).ok_or("no memory for connection pages")?;
    }
    for id in node.domains.ids() {
        node.add_bars(id);
        node.map_domain(id).ok_or_else(|| {
            format!("no memory for the tables of {}", node.domains[id].config.name)
        })?;
        node.show_closed(id);
        let d = &mut node.domains[id];
        if d.config.autostart {
            d.life = Life::Building(0);
            node.sched.start(id, 0);
        }
        if d.config.capabilities & boot::CAP_CONTROL_UART != 0 {
            node.devices.route_uart(id, d.info.core)?;
        }
    }
    node.info.free = memmap::free_bytes();
    Ok(node)
}

impl Node {
    fn add_domain(
        &mut self,
        id: DomainId,
        config: &bundle::Domain,
        image: &bundle::Image,
        maps: Maps,
        spared: bool,
    ) -> Result<(), String> {
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
        let base = self.ram.alloc(pages, HUGE).ok_or_else(short)?;
        let space = Space::new(config, image, base).ok_or("memory layout does not fit")?;
        // A spare takes over on its principal's core, where neither runs meanwhile.
        let home = config.spare_of.unwrap_or(id);
        let core = config.core.unwrap_or(home) % self.info.cores.max(1) as u16;
        let by_page = config.memory <= SMALL || spared || config.update_space > 0;
        let nested = paging::new_table(!by_page).ok_or_else(short)?;
        let uart = config.capabilities & boot::CAP_CONTROL_UART != 0;
        // ASID 0 is the host's own.
        if u32::from(id) + 1 >= cpu::features::get().asids {
            return Err(format!("this CPU has no address space identifier for {}", config.name));
        }
        let vcpu = SvmVcpu::new(nested.root(), u32::from(id) + 1, maps, uart).ok_or_else(short)?;
        self.sched.add(core, config.weight, config.cap, config.watchdog_ms);
        self.guests.push(Guest {
            vcpu: Some(vcpu),
            nested,
            flush: false,
            asleep: false,
            orders: Orders::default(),
            injected: false,
            stale: None,
            line: LineQuota::new(0),
            leftovers: 0,
        });
        let mut domain = Domain::new(id, config.clone(), space, core);
        domain.body.crc = image.crc;
        self.domains.push(domain);
        Ok(())
    }

    fn add_connection(&mut self, number: u16, config: &bundle::Connection) -> Option<()> {
        let frames = self.ram.alloc(2, PAGE)?;
        self.ram.zero(frames, 2 * PAGE).ok()?;
        let mut end = |domain: DomainId, page: u64, peer_page: u64| {
            let slot = self.connections.iter().filter(|c| c.ends(domain).is_some()).count();
            let gpa = layout::CONNECTIONS + slot as u64 * 2 * PAGE;
            let space = &mut self.domains[domain].space;
            space.add_foreign(gpa, page, PAGE, true, Kind::Connection);
            space.add_foreign(gpa + PAGE, peer_page, PAGE, false, Kind::Connection);
            End { domain, port: event::PORT_CONNECTIONS + slot as Port, page }
        };
        let frontend = end(config.frontend, frames, frames + PAGE);
        let backend = end(config.backend, frames + PAGE, frames);
        self.domains[config.backend].serves = true;
        self.connections.push(Connection {
            number,
            config: config.clone(),
            frontend,
            backend,
            no_complaint_before: 0,
        });
        Some(())
    }

    /// Adds the BARs of a domain's devices, without the pages that hold MSI-X
    /// tables.
    fn add_bars(&mut self, domain: DomainId) {
        for slot in 0..ring_proto::MAX_DOMAIN_DEVICES {
            let Some(function) = self.devices.function(domain, slot) else { break };
            for (bar, found) in function.bars.iter().enumerate() {
                let Some(found) = found else { continue };
                let space = &mut self.domains[domain].space;
                let len = found.len.min(layout::BAR_STRIDE) & !(PAGE - 1);
                let pages = (0..len).step_by(PAGE_SIZE);
                for offset in pages.filter(|&offset| !function.is_withheld(bar, offset)) {
                    let (gpa, hpa) = (layout::bar(slot, bar) + offset, found.address + offset);
                    space.add_foreign(gpa, hpa, PAGE, true, Kind::Bar);
                }
            }
        }
    }

    fn map_domain(&mut self, domain: DomainId) -> Option<()> {
        let alloc = &mut memmap::alloc_frames;
        let (d, nested) = (&self.domains[domain], &mut self.guests[domain].nested);
        for r in d.space.regions() {
            nested.map(r.gpa, r.hpa, r.len, super::rights(r).bits(), alloc)?;
        }
        if d.config.update_space > 0 {
            let len = layout::IMAGE_END - layout::IMAGE_BASE;
            nested.reserve(layout::IMAGE_BASE, len, alloc)?;
        }
        // A spare gets the tables for what it will take over.
        let principal = d.config.spare_of.and_then(|id| self.domains.named(id));
        for r in principal.iter().flat_map(|p| p.space.regions()).filter(|r| !r.is_own_memory()) {
            nested.reserve(r.gpa, r.len, alloc)?;
        }
        let window = u64::from(d.config.grant_window_pages) * PAGE;
        nested.reserve(layout::GRANT_WINDOW, window, alloc)
    }
}
