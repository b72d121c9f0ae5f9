//! Restoring a domain's memory to the pristine image, in bounded steps that
//! take the place of its running: they are CPU time of its own.
//!
//! Only pages that were written to are restored. The processor marks them in
//! the nested table (APM vol. 2, 5.4.2 and 15.25); the hypervisor marks those
//! that it writes for the domain ([`Node::writable`]) and those that it lets
//! others write ([`Node::grant_map`]). A first life finds every page marked.
//!
//! Nobody else reaches the memory meanwhile: a domain's grants are withdrawn
//! and its device is blocked before its generation counts as ended.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "regions of a validated manifest; no domain has a say"
)]

use hv_core::{
    domain::{ByDomain, Domain, Life},
    image::Images,
    memory::{Kind, Region},
    reset::Act,
};
use ring_proto::{
    DomainId,
    boot::{self, BarBoot, BootInfo, ConnectionBoot, DeviceBoot},
    conn,
    crash::{Rebuild, Reset},
    hypercall::Error,
    layout,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{Connection, End, Node, PAGE};
use crate::{time, vt::Vcpu};

/// Pages that one step looks at, at most: bounds how long the core's other
/// domains wait.
const STEP: u64 = 256;
/// How many of those a page counts for that has to be restored.
const DIRTY_COST: u64 = 16;
/// Bytes of a page that are compared with what they should be.
const LINE: u64 = 64;

impl Node {
    /// Begins a domain's next generation: its spare takes over, or from here on
    /// its share of CPU time goes into [`Node::restore_step`]. Called on its own
    /// core.
    pub(super) fn begin(&mut self, domain: DomainId) -> Result<(), Error> {
        self.stamp(domain, |t| &mut t.decided);
        if self.domains[domain].may_begin()
            && self.devices.at_rest(domain)
            && let Some(spare) = self.spare_of(domain)
        {
            self.take_over(domain, spare);
            return Ok(());
        }
        self.domains[domain].begin_build()?;
        self.lay_out(domain);
        self.sched.start(domain, time::now_ns());
        Ok(())
    }

    /// Restores what of a domain's memory was written to, from guest-physical
    /// address `from` on, and looks at all of it; or begins the next life if
    /// there is no more.
    ///
    /// A page's dirty bit goes only after the page was restored, and the domain
    /// does not run before all of them were: so a build that is given up, at
    /// whichever step, is done right when it begins anew.
    pub(super) fn restore_step(&mut self, domain: DomainId, from: u64) {
        let Some(region) = self.domains[domain].space.own_from(from).copied() else {
            // The extent was registered when the node was built. Grantees of an
            // earlier life may still write here, and nobody reads it.
            let _ = self.ram.zero(self.domains[domain].space.scratch, PAGE);
            return self.reset_devices(domain);
        };
        let pristine = pristine(&self.images, &self.domains[domain], &region);
        // Devices and the hypervisor write here without a mark in the table.
        let always = !region.is_marked();
        let (mut at, mut work, mut restored) = (from.max(region.gpa), 0, 0);
        let salt = u64::from(self.domains[domain].info.generation) * 17;
        let guest = &mut self.guests[domain];
        while at < region.gpa + region.len && work < STEP {
            let offset = (at - region.gpa) as usize;
            let page = region.hpa + offset as u64;
            let bytes = pristine.get(offset..).unwrap_or(&[]);
            let dirty = guest.nested.is_dirty(at);
            if dirty || always {
                let bytes = bytes.get(..PAGE as usize).unwrap_or(bytes);
                let _ = self.ram.write(page, bytes);
                let _ = self.ram.zero(page + bytes.len() as u64, PAGE - bytes.len() as u64);
                (work, restored) = (work + DIRTY_COST, restored + 1);
            }
            // Of each page one line, the next one each time.
            let line = (salt + at / PAGE) % (PAGE / LINE) * LINE;
            let bytes = bytes.get(line as usize..).unwrap_or(&[]);
            guest.leftovers += u64::from(!self.ram.holds::<{ LINE as usize }>(page + line, bytes));
            at += PAGE;
            work += 1;
            if dirty {
                guest.nested.clean(at - PAGE);
            }
        }
        self.domains[domain].life = Life::Building(at);
        let generation = self.domains[domain].info.generation;
        if let Some(record) = self.deaths.before(domain, generation) {
            record.pages_restored += restored;
        }
    }

    /// The memory is pristine; the life begins when the devices are reset.
    /// Meanwhile the domain sleeps.
    fn reset_devices(&mut self, domain: DomainId) {
        let act = self.devices.reset(domain, time::now_ns());
        let rung = self.devices.ladders[domain].rung();
        let d = &mut self.domains[domain];
        d.info.reset = rung as u16;
        match act {
            Act::Begin(_) | Act::Release => {}
            Act::Wait(until) => self.sched.sleep(domain, until),
            Act::Done => {
                if rung != Reset::Driver {
                    d.info.resets = d.info.resets.saturating_add(1);
                    let name = d.config.name.clone();
                    self.say(format_args!("{name}: devices were reset: {rung:?}"));
                }
                self.birth(domain);
            }
            Act::Gone => {
                (d.life, d.held) = (Life::Dead, true);
                let (name, generation) = (d.config.name.clone(), d.info.generation);
                self.sched.stop(domain);
                if let Some(record) = self.deaths.before(domain, generation) {
                    record.reset = rung as u16;
                }
                let bdf = self.devices.gone(domain).map(|f| f.bdf);
                let device = bdf.as_ref().map_or(&"" as &dyn core::fmt::Display, |bdf| bdf);
                self.say(format_args!("{name}: held: its device {device} does not answer"));
                self.tell_supervisor();
            }
        }
    }

    /// The memory is pristine: tables, boot information, then the first
    /// instruction.
    fn birth(&mut self, domain: DomainId) {
        self.write_page_tables(domain);
        let info = self.boot_info(domain);
        let (d, guest) = (&mut self.domains[domain], &mut self.guests[domain]);
        if let Some(page) = d.space.find(Kind::BootInfo).map(|r| r.hpa) {
            let _ = self.ram.write(page, info.as_bytes());
        }
        if let Some(vcpu) = &mut guest.vcpu {
            vcpu.reset(self.images[d.principal()].of(d.body).0.entry);
        }
        let now = time::now_ns();
        d.born(now);
        guest.asleep = false;
        self.sched.start(domain, now);
        if let Some(record) = self.deaths.before(domain, d.info.generation) {
            record.rebuild = Rebuild::Cold as u16;
        }
        self.stamp(domain, |t| &mut t.restored);
        self.stamp(domain, |t| &mut t.entered);
        self.tell_supervisor();
    }

    /// An identity map with 1 GiB pages. Protection is in the nested tables.
    fn write_page_tables(&mut self, domain: DomainId) {
        const PRESENT_WRITE: u64 = 3;
        const ACCESSED_DIRTY_LARGE: u64 = 0xe0;
        let Some(pml4) = self.domains[domain].space.find(Kind::PageTables).map(|r| r.hpa) else {
            return;
        };
        let below = (layout::PAGE_TABLES + PAGE) | PRESENT_WRITE | 0x20;
        let _ = self.ram.write(pml4, &below.to_le_bytes());
        for i in 0..layout::ADDRESS_SPACE >> 30 {
            let entry = i << 30 | PRESENT_WRITE | ACCESSED_DIRTY_LARGE;
            let _ = self.ram.write(pml4 + PAGE + i * 8, &entry.to_le_bytes());
        }
    }

    fn boot_info(&self, domain: DomainId) -> BootInfo {
        let mut info = BootInfo::new_zeroed();
        info.magic = boot::MAGIC;
        info.abi = boot::ABI;
        info.generation = self.domains[domain].info.generation;
        // A spare is told all that its principal would be: this page never changes.
        let spare_of = self.domains[domain].config.spare_of;
        info.flags = if spare_of.is_some() { boot::STANDBY } else { 0 };
        let domain = spare_of.unwrap_or(domain);
        let d = &self.domains[domain];
        info.domain = domain;
        info.cores = self.info.cores as u16;
        info.capabilities = d.config.capabilities;
        info.tsc_base = time::tsc_base();
        info.tsc_mult = time::tsc_mult();
        info.heap_len = d.space.heap_len;
        info.dma_len = d.config.dma_pool;
        info.grant_entries = d.config.grant_entries;
        info.grant_window_pages = d.config.grant_window_pages;
        copy_text(&mut info.name, &d.config.name);
        copy_text(&mut info.args, &d.config.args);
        let ends = self.connections.iter().filter_map(|c| Some((c, c.ends(domain)?)));
        for (to, (c, (own, peer))) in info.connections.iter_mut().zip(ends) {
            *to = self.connection_boot(c, own, peer);
            info.connection_count += 1;
        }
        for (slot, to) in info.devices.iter_mut().enumerate() {
            let Some(function) = self.devices.function(domain, slot) else { break };
            *to = DeviceBoot {
                bdf: function.bdf.0,
                msix_entries: function.msix.as_ref().map_or(0, |m| m.entries),
                reserved: 0,
                bars: core::array::from_fn(|bar| {
                    let len = function.bars.get(bar).map_or(0, |b| b.as_ref().map_or(0, |b| b.len));
                    BarBoot {
                        address: if len == 0 { 0 } else { layout::bar(slot, bar) },
                        len: len.min(layout::BAR_STRIDE),
                    }
                }),
            };
            info.device_count += 1;
        }
        info
    }

    fn connection_boot(&self, c: &Connection, own: End, peer: End) -> ConnectionBoot {
        let front = c.frontend.domain == own.domain;
        let role = if front { conn::Role::Frontend } else { conn::Role::Backend };
        let mut boot = ConnectionBoot {
            id: c.number,
            protocol: c.config.protocol,
            role: role as u16,
            peer: peer.domain,
            weight: c.config.weight,
            mac: c.config.mac,
            reserved: [0; 2],
            stall_ms: c.config.stall_ms,
            limits: c.config.limits,
            addresses: c.config.addresses,
            volume: [0; 40],
            peer_name: [0; 24],
        };
        copy_text(&mut boot.volume, &c.config.volume);
        copy_text(&mut boot.peer_name, &self.domains[peer.domain].config.name);
        boot
    }
}

/// What a region holds at the beginning; beyond that it is zero.
fn pristine<'a>(images: &'a ByDomain<Images>, d: &Domain, region: &Region) -> &'a [u8] {
    let Kind::Image(i) = region.kind else { return &[] };
    let (image, file) = images[d.principal()].of(d.body);
    // The image was validated against the file's length.
    let bytes = image
        .segments
        .get(i)
        .and_then(|s| file.get(s.file_offset as usize..(s.file_offset + s.file_len) as usize));
    bytes.unwrap_or(&[])
}

/// Copies text, leaving at least one NUL after it.
pub(super) fn copy_text(to: &mut [u8], text: &str) {
    let room = to.len().saturating_sub(1);
    for (to, from) in to.iter_mut().take(room).zip(text.bytes()) {
        *to = from;
    }
}
