//! Devices of domains: ownership, DMA, interrupts, configuration space.

mod audit;
mod reset;

use alloc::{format, string::String, vec::Vec};

use hv_core::{
    domain::ByDomain,
    memory::{Kind, Space},
    reset::Ladder,
};
use ring_proto::{
    DomainId, PAGE_SIZE, Port,
    bundle::{self, Select},
    event,
    hypercall::Error,
    layout,
};

use crate::{
    acpi::{Line, Platform},
    cpu,
    ioapic::IoApics,
    iommu::{self, Found, Iommu},
    irq, memmap,
    pci::{Bdf, Function, Pci, msix::Message},
    phys::Identity,
    table::PageTable,
};

const PAGE: u64 = PAGE_SIZE as u64;
/// Legacy interrupt of the second UART.
const UART_IRQ: u8 = 3;

/// Vectors for all devices, beside the UART's.
const VECTORS: usize = (irq::DEVICE_LAST - irq::DEVICE_FIRST) as usize;

/// Where a vector's interrupt comes from and goes to.
#[derive(Clone, Copy, Debug)]
struct Binding {
    vector: u8,
    domain: DomainId,
    port: Port,
    /// The function's entry that sends it, or the UART's line.
    source: Option<(Bdf, u16)>,
    /// What the function was programmed with.
    message: Option<Message>,
    /// The domain asked for it to be unmasked.
    open: bool,
    /// Masked because it came again before the domain looked.
    throttled: bool,
}

impl Binding {
    /// The UART's line is always open: masked, it would lose its edge.
    fn set_mask(&self, pci: &Pci<Identity>, masked: bool) {
        if let Some((bdf, entry)) = self.source
            && let Some(function) = pci.function(bdf)
        {
            // The entry was checked when it was bound.
            let _ = pci.msix_set_mask(function, entry, masked);
        }
    }
}

/// One function that a domain owns.
#[derive(Clone, Copy, Debug)]
struct Owned {
    domain: DomainId,
    bdf: Bdf,
    attached: bool,
}

/// All that has to do with devices.
pub struct Devices {
    io: Identity,
    pci: Pci<Identity>,
    iommu: Option<Iommu>,
    /// Memory of its tables and queues.
    iommu_memory: Vec<(u64, u64)>,
    ioapics: IoApics<Identity>,
    uart: (u32, Line),
    owned: Vec<Owned>,
    tables: ByDomain<Option<PageTable<Identity>>>,
    pub ladders: ByDomain<Ladder>,
    /// One for each vector in use. It never grows.
    bindings: Vec<Binding>,
}

/// The IOMMU's number for a domain; 0 is not allowed.
fn iommu_domain(domain: DomainId) -> u16 {
    domain.saturating_add(1)
}

fn hardware(error: iommu::Error) -> Error {
    log::error!("IOMMU: {error:?}");
    Error::Hardware
}

impl Devices {
    /// Everything that was found at boot.
    pub fn new(
        io: Identity,
        platform: &Platform,
        pci: Pci<Identity>,
        iommu: Option<Found>,
        ioapics: IoApics<Identity>,
    ) -> Self {
        let (iommu, memory) = iommu.unzip();
        Self {
            io,
            uart: platform.isa_irq(UART_IRQ),
            pci,
            iommu,
            iommu_memory: memory.unwrap_or_default(),
            ioapics,
            owned: Vec::new(),
            tables: ByDomain::default(),
            ladders: ByDomain::default(),
            bindings: Vec::with_capacity(256),
        }
    }

    /// Gives the next domain its functions and the IOMMU table that confines
    /// them: its DMA pool, and room for its grant window.
    pub fn add_domain(
        &mut self,
        domain: DomainId,
        space: &Space,
        config: &bundle::Domain,
        devices: &[bundle::Device],
    ) -> Result<(), String> {
        self.ladders.push(Ladder::default());
        if !config.devices.is_empty() && self.iommu.is_none() {
            return Err("there is no IOMMU: no device can be given to a domain".into());
        }
        for &index in &config.devices {
            let device = devices.get(usize::from(index)).ok_or("device missing")?;
            let found = match device.select {
                Select::Bdf(bdf) => self.pci.function(Bdf(bdf)).filter(|f| f.assignable()),
                Select::Class { class, index } => self.pci.by_class(class, index.into()),
            };
            let function = found
                .ok_or_else(|| format!("device {}: there is no such PCI function", device.name))?;
            let bdf = function.bdf;
            // Functions of one device may reach each other without the IOMMU's seeing it.
            let taken = |o: &Owned| o.bdf == bdf || o.domain != domain && o.bdf.is_sibling(bdf);
            if self.owned.iter().any(taken) {
                return Err(format!("device {}: {bdf} or its sibling is taken", device.name));
            }
            self.pci.set_bus_master(function, false);
            self.owned.push(Owned { domain, bdf, attached: false });
        }
        let confined = !config.devices.is_empty() || config.spare_of.is_some();
        let Some(iommu) = self.iommu.as_ref().filter(|_| confined) else {
            self.tables.push(None);
            return Ok(());
        };
        let short = || format!("no memory for the IOMMU tables of {}", config.name);
        let pool = space.find(Kind::DmaPool);
        let window = u64::from(config.grant_window_pages).saturating_mul(PAGE);
        let (format, alloc) = (iommu.format, &mut memmap::alloc_frames);
        let mut table = PageTable::new(self.io, format, alloc).ok_or_else(short)?;
        if let Some(r) = pool {
            table.map(r.gpa, r.hpa, r.len, format.device(true), alloc).ok_or_else(short)?;
        }
        // All tables that the window can ever need: mapping cannot run out later.
        table.reserve(layout::GRANT_WINDOW, window, alloc).ok_or_else(short)?;
        self.tables.push(Some(table));
        Ok(())
    }

    /// The function in a domain's device slot.
    pub fn function(&self, domain: DomainId, slot: usize) -> Option<&Function> {
        let owned = self.owned.iter().filter(|o| o.domain == domain).nth(slot)?;
        self.pci.function(owned.bdf)
    }

    /// The function in a slot that its owner named.
    fn named(&self, domain: DomainId, slot: u64) -> Result<Function, Error> {
        let slot = usize::try_from(slot).map_err(|_| Error::NotFound)?;
        self.function(domain, slot).cloned().ok_or(Error::NotFound)
    }

    /// `pci_config`.
    pub fn config(&self, domain: DomainId, args: [u64; 5]) -> Result<u64, Error> {
        let [slot, offset, width, write, value] = args;
        let function = self.named(domain, slot)?;
        let offset = u16::try_from(offset).ok().filter(|o| *o < 4096).ok_or(Error::BadArgument)?;
        let width = u8::try_from(width).ok().filter(|w| matches!(w, 1 | 2 | 4));
        let width = width.ok_or(Error::BadArgument)?;
        match write {
            0 => Ok(self.pci.domain_config_read(&function, offset, width).into()),
            1 => {
                let value = u32::try_from(value).map_err(|_| Error::BadArgument)?;
                let done = self.pci.domain_config_write(&function, offset, width, value);
                done.map(|()| 0).ok_or(Error::NotPermitted)
            }
            _ => Err(Error::BadArgument),
        }
    }

    /// `irq_bind`: the message arrives on `core` as an event on `port`.
    pub fn bind(
        &mut self,
        domain: DomainId,
        core: u16,
        slot: u64,
        entry: u64,
        port: u64,
    ) -> Result<u64, Error> {
        let function = self.named(domain, slot)?;
        let bdf = function.bdf;
        let port = Port::try_from(port).map_err(|_| Error::BadArgument)?;
        let entry = u16::try_from(entry).map_err(|_| Error::BadArgument)?;
        if !(event::PORT_IRQ..event::PORTS).contains(&port) {
            return Err(Error::BadArgument);
        }
        if function.msix.as_ref().is_none_or(|m| entry >= m.entries) {
            return Err(Error::NotFound);
        }
        let source = Some((bdf, entry));
        let same_port = |b: &&Binding| b.domain == domain && b.port == port;
        match self.bindings.iter().find(|b| b.source == source || same_port(b)) {
            // A driver that resets its device binds anew.
            Some(b) if b.source == source && same_port(&b) => return Ok(0),
            Some(_) => return Err(Error::Busy),
            None => {}
        }
        // No function can take the vectors that others need.
        let from_here = |b: &&Binding| b.source.is_some_and(|(from, _)| from == bdf);
        let taken = self.bindings.iter().filter(from_here).count();
        if VECTORS.checked_div(self.owned.len()).is_none_or(|share| taken >= share) {
            return Err(Error::Exhausted);
        }
        let vector = self.free_vector().ok_or(Error::Exhausted)?;
        self.attach(domain, bdf)?;
        let iommu = self.iommu.as_mut().ok_or(Error::Hardware)?;
        let message =
            iommu.interrupt_map(bdf, entry, vector, cpu_apic_id(core)).map_err(hardware)?;
        self.pci.msix_program(&function, entry, message).ok_or(Error::Hardware)?;
        self.pci.msix_enable(&function).ok_or(Error::Hardware)?;
        let message = Some(message);
        let (open, throttled) = (false, false);
        self.bindings.push(Binding { vector, domain, port, source, message, open, throttled });
        Ok(0)
    }

    /// `irq_unmask`.
    pub fn unmask(&mut self, domain: DomainId, port: u64) -> Result<u64, Error> {
        let mut all = self.bindings.iter_mut();
        let found = all.find(|b| b.domain == domain && u64::from(b.port) == port);
        let binding = found.ok_or(Error::NotFound)?;
        (binding.open, binding.throttled) = (true, false);
        binding.set_mask(&self.pci, false);
        Ok(0)
    }

    /// `device_enable`: bus mastering.
    pub fn enable(&mut self, domain: DomainId, slot: u64, on: u64) -> Result<u64, Error> {
        let function = self.named(domain, slot)?;
        if on > 1 {
            return Err(Error::BadArgument);
        }
        if on == 1 {
            self.attach(domain, function.bdf)?;
        }
        self.pci.set_bus_master(&function, on == 1);
        Ok(0)
    }

    /// Gives a function its domain's IOMMU context, if it has none now.
    fn attach(&mut self, domain: DomainId, bdf: Bdf) -> Result<(), Error> {
        let owned = self.owned.iter_mut().find(|o| o.bdf == bdf).ok_or(Error::NotFound)?;
        if owned.attached {
            return Ok(());
        }
        let table = self.tables[domain].as_ref().ok_or(Error::Hardware)?;
        let iommu = self.iommu.as_mut().ok_or(Error::Hardware)?;
        iommu.attach(bdf, iommu_domain(domain), table.root()).map_err(hardware)?;
        self.ladders[domain].enabled();
        owned.attached = true;
        Ok(())
    }

    /// Takes everything from a dead domain's devices: bus mastering, then the
    /// IOMMU context, then interrupts. When this returns, no DMA and no
    /// interrupt of theirs is on its way any more.
    #[expect(clippy::panic, reason = "the IOMMU is dead: nothing is confined")]
    pub fn quiesce(&mut self, domain: DomainId) {
        for owned in self.owned.iter_mut().filter(|o| o.domain == domain) {
            if let Some(function) = self.pci.function(owned.bdf) {
                self.pci.set_bus_master(function, false);
                // A function without MSI-X has none to mask.
                let _ = self.pci.msix_disable(function);
            }
            if core::mem::take(&mut owned.attached)
                && let Some(Err(error)) = self.iommu.as_mut().map(|i| i.detach(owned.bdf))
            {
                // The device may be loose. Nothing on this node is safe any more.
                panic!("IOMMU cannot block {}: {error:?}", owned.bdf);
            }
        }
        self.bindings.retain(|b| b.domain != domain || b.source.is_none());
    }

    /// Routes the control UART's interrupt to its owner, for good.
    pub fn route_uart(&mut self, domain: DomainId, core: u16) -> Result<(), String> {
        let vector = self.free_vector().ok_or("no interrupt vector for the control UART")?;
        let (gsi, line) = self.uart;
        let iommu = self.iommu.as_mut();
        self.ioapics
            .route(gsi, line, vector, cpu_apic_id(core), iommu)
            .map_err(|e| format!("control UART's interrupt cannot be routed: {e:?}"))?;
        let (port, source, message) = (event::PORT_UART, None, None);
        let (open, throttled) = (true, false);
        self.bindings.push(Binding { vector, domain, port, source, message, open, throttled });
        Ok(())
    }

    fn free_vector(&self) -> Option<u8> {
        (irq::DEVICE_FIRST..=irq::DEVICE_LAST)
            .find(|&vector| self.bindings.iter().all(|b| b.vector != vector))
    }

    /// Who gets the interrupt that arrived as `vector`.
    pub fn fired(&self, vector: u8) -> Option<(DomainId, Port)> {
        self.bindings.iter().find(|b| b.vector == vector).map(|b| (b.domain, b.port))
    }

    /// The interrupt came again before its domain looked: mask it until the
    /// domain's next `wait`, so that a storm costs no more than one interrupt
    /// a turn.
    pub fn throttle(&mut self, vector: u8) {
        let Some(b) = self.bindings.iter_mut().find(|b| b.vector == vector) else { return };
        if b.source.is_some() && !core::mem::replace(&mut b.throttled, true) {
            b.set_mask(&self.pci, true);
        }
    }

    /// Unmasks what [`Self::throttle`] masked.
    pub fn rearm(&mut self, domain: DomainId) {
        for b in self.bindings.iter_mut().filter(|b| b.domain == domain && b.open && b.throttled) {
            b.throttled = false;
            b.set_mask(&self.pci, false);
        }
    }

    /// Exchanges the IOMMU tables of two domains that have no device attached.
    pub fn swap_tables(&mut self, a: DomainId, b: DomainId) {
        if let Some((a, b)) = self.tables.pair(a, b) {
            core::mem::swap(a, b);
        }
    }

    /// What a domain's devices reach, if it has any. [`Self::dma_added`] or
    /// [`Self::flush_dma`] follows a change.
    pub fn dma_table(&mut self, domain: DomainId) -> Option<&mut PageTable<Identity>> {
        self.tables[domain].as_mut()
    }

    /// After additions: returns when the device sees them.
    pub fn dma_added(&mut self, domain: DomainId) -> Result<(), Error> {
        let iommu = self.iommu.as_mut().ok_or(Error::Hardware)?;
        iommu.flush_added(iommu_domain(domain)).map_err(hardware)
    }

    /// After removals: returns when no device uses a removed page any more.
    #[expect(clippy::panic, reason = "the IOMMU is dead: nothing is confined")]
    pub fn flush_dma(&mut self, domain: DomainId) {
        if let Some(Err(error)) = self.iommu.as_mut().map(|i| i.flush_all(iommu_domain(domain))) {
            panic!("IOMMU cannot flush: {error:?}");
        }
    }

    /// Invalidations so far.
    pub fn iotlb_flushes(&self) -> u64 {
        self.iommu.as_ref().map_or(0, |i| i.flushes)
    }

    /// Shows every page that a domain's devices can reach. Returns whether all
    /// entries on the way are as we write them.
    pub fn for_each_dma(&self, domain: DomainId, mut visit: impl FnMut(u64, u64, bool)) -> bool {
        let Some(table) = &self.tables[domain] else { return true };
        let format = table.format();
        let mut ours = true;
        ours &= table.for_each(&mut |iova, bits, hpa, _| {
            let write = bits & format.write != 0;
            ours &= bits == format.device(write);
            visit(iova, hpa, write);
        });
        ours
    }

    /// The next thing that a device was not allowed to do, and whose it is.
    pub fn poll_event(&mut self) -> Option<(iommu::Event, Option<DomainId>)> {
        let event = self.iommu.as_mut()?.poll_event()?;
        let owner = self.owned.iter().find(|o| o.bdf == event.bdf).map(|o| o.domain);
        Some((event, owner))
    }
}

fn cpu_apic_id(core: u16) -> u32 {
    cpu::get(core.into()).map_or(0, cpu::PerCpu::apic_id)
}
