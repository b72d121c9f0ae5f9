//! A machine with memory, PCI configuration space and an AMD IOMMU that
//! caches as much as it may and forgets only what it is told to.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use crate::acpi::EcamInfo;
use crate::pci::msix::Message;
use crate::phys::{PhysIo, Word};
use crate::sim_vtd;

pub const ECAM: EcamInfo = EcamInfo { base: 0xb000_0000, first_bus: 0, last_bus: 3 };
pub const IOMMU: u64 = 0xfed8_0000;
pub const IOAPIC: u64 = 0xfec0_0000;
/// BDF of the device behind the root port.
pub const DISK: u16 = 0x0100;
pub const PORT: u16 = 0x0010;
pub const NIC: u16 = 0x0018;
/// Requester id of the I/O APIC.
pub const IOAPIC_ID: u16 = 0x00a0;

const PAGE: u64 = 4096;

/// Device table entry as cached.
type Dte = [u64; 4];

#[derive(Default)]
pub struct State {
    pages: HashMap<u64, Box<[u8; 4096]>>,
    next_frame: u64,
    pub registers: HashMap<u64, u64>,
    dtes: HashMap<u16, Dte>,
    pub iotlb: HashMap<(u16, u64), (u16, u64, bool)>,
    irtes: HashMap<(u16, u32), u32>,
    /// The IOMMU is VT-d.
    pub intel: bool,
    pub contexts: HashMap<u16, [u64; 2]>,
    pub vtd_irtes: HashMap<u16, [u64; 2]>,
    /// Cache lines that were written and not written back.
    pub dirty: HashSet<u64>,
    /// Commands carried out.
    pub commands: Vec<[u64; 2]>,
    /// The IOMMU does not look at its command buffer.
    pub stuck: bool,
    ioapic_select: u32,
    ioapic: HashMap<u32, u32>,
    functions: HashMap<u16, Function>,
}

/// A simulated PCI function.
#[derive(Clone, Default)]
struct Function {
    config: Vec<u8>,
    bar_masks: [u32; 6],
}

#[derive(Clone, Default)]
pub struct Machine(pub Arc<RwLock<State>>);

impl Machine {
    pub fn new() -> Self {
        let machine = Self::default();
        machine.0.write().unwrap().next_frame = 0x100_0000;
        machine.0.write().unwrap().registers.insert(0x30, 1 << 6);
        machine.add_function(0x0000, 0x8086, [6, 0], None);
        machine.add_function(PORT, 0x1b36, [6, 4], Some(1));
        machine.add_function(NIC, 0x1af4, [2, 0], None);
        machine.add_function(DISK, 0x1af4, [1, 0], None);
        machine
    }

    pub fn alloc(&self, count: usize) -> Option<u64> {
        let mut state = self.0.write().unwrap();
        let at = state.next_frame;
        state.next_frame += count as u64 * PAGE;
        Some(at)
    }

    fn add_function(&self, bdf: u16, vendor: u16, class: [u8; 2], secondary: Option<u8>) {
        let mut config = vec![0_u8; 4096];
        config[0..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&0x1042_u16.to_le_bytes());
        // Firmware left decoding and bus mastering on.
        config[4] = 0b111;
        config[6] = 1 << 4;
        config[0xb] = class[0];
        config[0xa] = class[1];
        config[0x34] = 0x40;
        // PCI Express, then MSI-X with 4 entries in BAR 1.
        config[0x40..0x44].copy_from_slice(&[0x10, 0x80, 2, 0]);
        config[0x80..0x84].copy_from_slice(&[0x11, 0, 3, 0x80]);
        config[0x84..0x88].copy_from_slice(&1_u32.to_le_bytes());
        config[0x88..0x8c].copy_from_slice(&0x801_u32.to_le_bytes());
        let mut bar_masks = [0; 6];
        if let Some(bus) = secondary {
            config[0xe] = 1;
            config[0x18..0x1b].copy_from_slice(&[0, bus, bus]);
            config[0x42] = 0x42;
        } else if class[0] != 6 {
            bar_masks = [0, 0xffff_f000, 0, 0, 0xffff_c000, 0xffff_ffff];
            let base = 0xe000_0000_u32 + (u32::from(bdf) << 16);
            config[0x14..0x18].copy_from_slice(&base.to_le_bytes());
            config[0x20..0x24].copy_from_slice(&((base + 0x8000) | 0b1100).to_le_bytes());
            config[0x24..0x28].copy_from_slice(&8_u32.to_le_bytes());
        }
        self.0.write().unwrap().functions.insert(bdf, Function { config, bar_masks });
    }

    /// A DMA access: where it ends up, if it is let through.
    pub fn dma(&self, bdf: u16, iova: u64, write: bool) -> Option<u64> {
        let page = iova & !(PAGE - 1);
        let cached = self.0.read().unwrap().iotlb.get(&(bdf, page)).copied();
        let (_, phys, may_write) = match cached {
            Some(hit) => hit,
            None => {
                let found = if self.0.read().unwrap().intel {
                    self.vtd_walk(bdf, page, write)?
                } else {
                    let dte = self.dte(bdf);
                    let (phys, may_write) = self.walk(&dte, page)?;
                    (dte[1] as u16, phys, may_write)
                };
                self.0.write().unwrap().iotlb.insert((bdf, page), found);
                found
            }
        };
        if write && !may_write && self.0.read().unwrap().intel {
            self.report_fault(bdf, 5, page, true);
        }
        (!write || may_write).then_some(phys | iova & (PAGE - 1))
    }

    fn dte(&self, bdf: u16) -> Dte {
        if let Some(dte) = self.0.read().unwrap().dtes.get(&bdf) {
            return *dte;
        }
        let base = self.register(0) & 0x000f_ffff_ffff_f000;
        let dte = [0, 8, 16, 24].map(|o| self.read64(base + u64::from(bdf) * 32 + o));
        self.0.write().unwrap().dtes.insert(bdf, dte);
        dte
    }

    fn walk(&self, dte: &Dte, iova: u64) -> Option<(u64, bool)> {
        if self.register(0x18) & 1 == 0 || dte[0] & 1 == 0 {
            return Some((iova, true));
        }
        let mut entry = dte[0];
        let mut write = true;
        loop {
            let level = entry >> 9 & 7;
            if entry & 1 == 0 || entry & 1 << 61 == 0 {
                return None;
            }
            write &= entry & 1 << 62 != 0;
            let address = entry & 0x000f_ffff_ffff_f000;
            if level == 0 {
                return (entry != dte[0]).then_some((address, write));
            }
            entry = self.read64(address + (iova >> (3 + 9 * level) & 0x1ff) * 8);
        }
    }

    /// An interrupt message: vector and APIC id, if it is let through.
    pub fn interrupt(&self, bdf: u16, message: Message) -> Option<(u8, u8)> {
        let data = message.data;
        if self.0.read().unwrap().intel {
            return self.vtd_interrupt(bdf, message.address, data);
        }
        let dte = self.dte(bdf);
        if dte[2] & 1 == 0 {
            return Some((data as u8, 0));
        }
        if dte[2] >> 60 & 3 != 2 || data >> 8 & 7 > 1 {
            return None;
        }
        let key = (bdf, data & 0x7ff);
        let cached = self.0.read().unwrap().irtes.get(&key).copied();
        let irte = cached.unwrap_or_else(|| {
            let irte = self.read32((dte[2] & 0x000f_ffff_ffff_ffc0) + u64::from(key.1) * 4);
            self.0.write().unwrap().irtes.insert(key, irte);
            irte
        });
        (irte & 1 != 0).then_some(((irte >> 16) as u8, (irte >> 8) as u8))
    }

    /// What an I/O APIC's pin sends.
    pub fn ioapic_message(&self, pin: u32) -> Message {
        let state = self.0.read().unwrap();
        let half = |at| state.ioapic.get(&(0x10 + 2 * pin + at)).copied().unwrap_or(0);
        let address = 0xfee0_0000 | u64::from(half(1) >> 16) << 4;
        Message { address, data: half(0) & 0xff }
    }

    /// Reports an event as the IOMMU would.
    pub fn report(&self, words: [u64; 2]) {
        let base = self.register(0x10) & 0x000f_ffff_ffff_f000;
        let tail = self.register(0x2018);
        self.write64(base + tail, words[0]);
        self.write64(base + tail + 8, words[1]);
        self.0.write().unwrap().registers.insert(0x2018, (tail + 16) % 4096);
    }

    pub fn register(&self, at: u64) -> u64 {
        self.0.read().unwrap().registers.get(&at).copied().unwrap_or(0)
    }

    /// A byte of a function's configuration space.
    pub fn config(&self, bdf: u16, at: usize) -> u8 {
        self.0.read().unwrap().functions[&bdf].config[at]
    }

    pub fn set_config(&self, bdf: u16, at: usize, value: u8) {
        self.0.write().unwrap().functions.get_mut(&bdf).unwrap().config[at] = value;
    }

    pub fn set_bar_mask(&self, bdf: u16, bar: usize, mask: u32) {
        self.0.write().unwrap().functions.get_mut(&bdf).unwrap().bar_masks[bar] = mask;
    }

    fn run_commands(&self) {
        let control = self.register(0x18);
        if control & 1 == 0 || control & 1 << 12 == 0 || self.0.read().unwrap().stuck {
            return;
        }
        let base = self.register(8) & 0x000f_ffff_ffff_f000;
        while self.register(0x2000) != self.register(0x2008) {
            let head = self.register(0x2000);
            let command = [self.read64(base + head), self.read64(base + head + 8)];
            self.run_command(command);
            self.0.write().unwrap().registers.insert(0x2000, (head + 16) % 4096);
        }
    }

    fn run_command(&self, [low, high]: [u64; 2]) {
        let id = low as u16;
        let domain = (low >> 32) as u16;
        let mut state = self.0.write().unwrap();
        state.commands.push([low, high]);
        match low >> 60 {
            1 => {
                assert_eq!(low & 1, 1);
                drop(state);
                self.write64(low & 0x000f_ffff_ffff_fff8, high);
            }
            2 => {
                state.dtes.remove(&id);
            }
            3 => {
                let start = high & !0xfff;
                let size = if high & 1 == 0 { 1 } else { 2 << (high >> 12).trailing_ones() };
                let first = (start >> 12) & !(size - 1);
                state.iotlb.retain(|&(_, page), entry| {
                    let hit = (first..first.saturating_add(size)).contains(&(page >> 12));
                    entry.0 != domain || !hit
                });
            }
            5 => state.irtes.retain(|key, _| key.0 != id),
            8 => {
                state.dtes.clear();
                state.iotlb.clear();
                state.irtes.clear();
            }
            other => panic!("illegal command {other}"),
        }
    }

    fn in_iommu(&self, address: u64) -> Option<u64> {
        let base = if self.0.read().unwrap().intel { sim_vtd::IOMMU } else { IOMMU };
        address.checked_sub(base).filter(|offset| *offset < 0x4000)
    }

    fn write_register(&self, at: u64, value: u64) {
        if self.0.read().unwrap().intel {
            return self.vtd_write(at, value);
        }
        self.0.write().unwrap().registers.insert(at, value);
        self.run_commands();
    }

    fn in_ecam(address: u64) -> Option<(u16, usize)> {
        let offset = address.checked_sub(ECAM.base)?;
        (offset < 4 << 20).then_some(((offset >> 12) as u16, (offset & 0xfff) as usize))
    }

    fn config_write(&self, bdf: u16, at: usize, value: u8) {
        let mut state = self.0.write().unwrap();
        let Some(function) = state.functions.get_mut(&bdf) else { return };
        let masks = function.bar_masks;
        match at {
            0x10..0x28 if function.config[0xe] & 0x7f == 0 => {
                let mask = masks[(at - 0x10) / 4].to_le_bytes()[at % 4];
                let fixed = function.config[at] & !mask;
                function.config[at] = value & mask | fixed & 0xf;
            }
            4 | 5 | 0x3e | 0x3f | 0x48.. => function.config[at] = value,
            _ => {}
        }
    }

    pub fn write_bytes(&self, address: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            self.write8(address + i as u64, byte);
        }
    }
}

impl Machine {
    pub fn read8(&self, address: u64) -> u8 {
        if let Some((bdf, at)) = Self::in_ecam(address) {
            let state = self.0.read().unwrap();
            return state.functions.get(&bdf).map_or(0xff, |f| f.config[at]);
        }
        let state = self.0.read().unwrap();
        state.pages.get(&(address / PAGE)).map_or(0, |p| p[(address % PAGE) as usize])
    }
    pub fn read16(&self, address: u64) -> u16 {
        u16::from_le_bytes([0, 1].map(|i| self.read8(address + i)))
    }
    pub fn read32(&self, address: u64) -> u32 {
        if let Some(register) = self.in_iommu(address) {
            return self.register(register) as u32;
        }
        if address == IOAPIC + 0x10 {
            let state = self.0.read().unwrap();
            return match state.ioapic_select {
                1 => 23 << 16,
                other => state.ioapic.get(&other).copied().unwrap_or(0),
            };
        }
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.read8(address + i)))
    }
    pub fn read64(&self, address: u64) -> u64 {
        if let Some(register) = self.in_iommu(address) {
            return self.register(register);
        }
        assert_eq!(address % 8, 0);
        let state = self.0.read().unwrap();
        let at = (address % PAGE) as usize;
        state
            .pages
            .get(&(address / PAGE))
            .map_or(0, |page| u64::from_le_bytes(page[at..at + 8].try_into().unwrap()))
    }
    pub fn write8(&self, address: u64, value: u8) {
        if let Some((bdf, at)) = Self::in_ecam(address) {
            return self.config_write(bdf, at, value);
        }
        let mut state = self.0.write().unwrap();
        let page = state.pages.entry(address / PAGE).or_insert_with(|| Box::new([0; 4096]));
        page[(address % PAGE) as usize] = value;
    }
    pub fn write16(&self, address: u64, value: u16) {
        self.write_bytes(address, &value.to_le_bytes());
    }
    pub fn write32(&self, address: u64, value: u32) {
        if let Some(register) = self.in_iommu(address) {
            return self.write_register(register, value.into());
        }
        let mut state = self.0.write().unwrap();
        match address.wrapping_sub(IOAPIC) {
            0x00 => state.ioapic_select = value,
            0x10 => {
                let select = state.ioapic_select;
                state.ioapic.insert(select, value);
            }
            _ => {
                drop(state);
                self.write_bytes(address, &value.to_le_bytes());
            }
        }
    }
    pub fn write64(&self, address: u64, value: u64) {
        if let Some(register) = self.in_iommu(address) {
            return self.write_register(register, value);
        }
        assert_eq!(address % 8, 0);
        let mut state = self.0.write().unwrap();
        if state.intel {
            state.dirty.insert(address / 64);
        }
        let page = state.pages.entry(address / PAGE).or_insert_with(|| Box::new([0; 4096]));
        let at = (address % PAGE) as usize;
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

impl PhysIo for Machine {
    fn read<W: Word>(&self, address: u64) -> W {
        let value = match size_of::<W>() {
            1 => self.read8(address).into(),
            2 => self.read16(address).into(),
            4 => self.read32(address).into(),
            _ => self.read64(address),
        };
        W::read_from_prefix(&value.to_le_bytes()).unwrap().0
    }
    fn write<W: Word>(&self, address: u64, value: W) {
        let mut bytes = [0; 8];
        value.write_to_prefix(&mut bytes).unwrap();
        let value = u64::from_le_bytes(bytes);
        match size_of::<W>() {
            1 => self.write8(address, value as u8),
            2 => self.write16(address, value as u16),
            4 => self.write32(address, value as u32),
            _ => self.write64(address, value),
        }
    }
    fn write_back(&self, address: u64) {
        self.0.write().unwrap().dirty.remove(&(address / 64));
    }
}
