//! The simulated machine with VT-d: it caches as much as it may, absence
//! included, forgets only what it is told to, looks past the CPUs' caches, and
//! has four fault records.

use crate::sim::Machine;

pub const IOMMU: u64 = 0xfed9_0000;
/// Domains 2^16, write-back needed no, caching mode, 39 and 48 bits, fault
/// records at 0x220.
pub const CAPABILITY: u64 = (FAULTS - 1) << 40 | 0x22 << 24 | 0b110 << 8 | 1 << 7 | 6;
/// Snoop control, interrupt remapping, queued invalidation, incoherent walks.
pub const EXTENDED: u64 = 1 << 7 | 1 << 3 | 1 << 1;
const FAULTS: u64 = 4;
const FAULT: u64 = 1 << 63;
const ROOT_LATCH: u64 = 0x1000;
const INTERRUPT_LATCH: u64 = 0x1008;

impl Machine {
    pub fn intel() -> Self {
        let machine = Self::new();
        let mut state = machine.0.write().unwrap();
        state.intel = true;
        state.registers = [(0x08, CAPABILITY), (0x10, EXTENDED)].into();
        drop(state);
        machine
    }

    pub fn set_register(&self, at: u64, value: u64) {
        self.0.write().unwrap().registers.insert(at, value);
    }

    fn status(&self, bit: u32) -> bool {
        self.register(0x1c) >> bit & 1 != 0
    }

    pub fn vtd_write(&self, at: u64, value: u64) {
        const PERSISTENT: u64 = 0x9680_0000;
        let status = self.register(0x1c);
        match at {
            0x18 => {
                self.set_register(0x1c, status & !PERSISTENT | value & PERSISTENT);
                if value & 1 << 30 != 0 {
                    self.set_register(ROOT_LATCH, self.register(0x20));
                    self.set_register(0x1c, self.register(0x1c) | 1 << 30);
                }
                if value & 1 << 24 != 0 {
                    self.set_register(INTERRUPT_LATCH, self.register(0xb8));
                    self.set_register(0x1c, self.register(0x1c) | 1 << 24);
                }
                if value & 1 << 26 != 0 && status & 1 << 26 == 0 {
                    self.set_register(0x80, 0);
                }
            }
            0x34 => self.set_register(0x34, self.register(0x34) & !(value & 1)),
            0x228.. if at % 16 == 8 && at < 0x220 + FAULTS * 16 => {
                assert_eq!(value, FAULT);
                self.set_register(at, self.register(at) & !FAULT);
                let any = (0..FAULTS).any(|i| self.register(0x228 + i * 16) & FAULT != 0);
                self.set_register(0x34, self.register(0x34) & !2 | u64::from(any) << 1);
            }
            _ => self.set_register(at, value),
        }
        if self.status(26) && !self.0.read().unwrap().stuck {
            let ring = self.register(0x90);
            assert_eq!(ring & 0xfff, 0, "256 slots");
            while self.register(0x80) != self.register(0x88) {
                let head = self.register(0x80);
                self.descriptor([self.read64(ring + head), self.read64(ring + head + 8)]);
                self.set_register(0x80, (head + 16) % 4096);
            }
        }
    }

    fn descriptor(&self, [low, high]: [u64; 2]) {
        let mut state = self.0.write().unwrap();
        state.commands.push([low, high]);
        let (kind, granularity, domain) = (low & 0xf, low >> 4 & 3, (low >> 16) as u16);
        match (kind, granularity) {
            (1, 1) => state.contexts.clear(),
            (2, 1) => state.iotlb.clear(),
            // What is absent is filed under domain 0 too, but goes with any.
            (2, 2) => state.iotlb.retain(|_, entry| entry.0 != domain),
            (4, 0) => state.vtd_irtes.clear(),
            (5, _) => {
                assert_eq!(low >> 5 & 1, 1, "a status write");
                drop(state);
                self.write32(high, (low >> 32) as u32);
            }
            other => panic!("unexpected descriptor {other:?}"),
        }
    }

    /// A table's entry as the IOMMU sees it: not what lingers in a CPU's cache.
    fn table_read(&self, at: u64) -> [u64; 2] {
        let dirty = self.0.read().unwrap().dirty.contains(&(at / 64));
        assert!(!dirty, "the entry at {at:#x} was not written back");
        [self.read64(at), if at.is_multiple_of(16) { self.read64(at + 8) } else { 0 }]
    }

    pub fn report_fault(&self, bdf: u16, reason: u64, address: u64, write: bool) {
        let at = (0..FAULTS)
            .map(|i| 0x220 + i * 16)
            .find(|at| self.register(at + 8) & FAULT == 0)
            .filter(|_| self.register(0x34) & 1 == 0);
        let Some(at) = at else { return self.set_register(0x34, self.register(0x34) | 1) };
        self.set_register(at, address & !0xfff);
        let read = u64::from(!write) << 62;
        self.set_register(at + 8, FAULT | read | reason << 32 | u64::from(bdf));
        self.set_register(0x34, self.register(0x34) | 2);
    }

    /// Where a page leads and whether it may be written; the domain it is filed under.
    pub fn vtd_walk(&self, bdf: u16, page: u64, write: bool) -> Option<(u16, u64, bool)> {
        if !self.status(31) {
            return Some((0, page, true));
        }
        let fault = |reason| {
            self.report_fault(bdf, reason, page, write);
            None
        };
        let cached = self.0.read().unwrap().contexts.get(&bdf).copied();
        let context = match cached {
            Some(context) => context,
            None => {
                let root = self.table_read(self.register(ROOT_LATCH) + u64::from(bdf >> 8) * 16);
                if root[0] & 1 == 0 {
                    return fault(1);
                }
                let context = self.table_read((root[0] & !0xfff) + u64::from(bdf & 0xff) * 16);
                self.0.write().unwrap().contexts.insert(bdf, context);
                context
            }
        };
        if context[0] & 1 == 0 {
            return fault(2);
        }
        assert_eq!(context[0] & 0xffe, 0, "second-level translation only");
        let domain = (context[1] >> 8) as u16;
        let mut table = context[0] & !0xfff;
        let mut may_write = true;
        for level in (1..=(context[1] & 7) + 2).rev() {
            let entry = self.table_read(table + (page >> (3 + 9 * level) & 0x1ff) * 8)[0];
            if entry & 1 == 0 {
                return fault(6);
            }
            may_write &= entry & 2 != 0;
            table = entry & 0x000f_ffff_ffff_f000;
        }
        Some((domain, table, may_write))
    }

    /// An interrupt message: vector and APIC id, if it is let through.
    pub fn vtd_interrupt(&self, bdf: u16, address: u64, data: u32) -> Option<(u8, u8)> {
        if !self.status(25) {
            return Some((data as u8, (address >> 12) as u8));
        }
        if address >> 4 & 1 == 0 {
            // The format without remapping.
            return self.status(23).then_some((data as u8, (address >> 12) as u8));
        }
        let mut index = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u16;
        if address >> 3 & 1 != 0 {
            index = index.wrapping_add(data as u16);
        }
        let latch = self.register(INTERRUPT_LATCH);
        if u64::from(index) >= 2 << (latch & 0xf) {
            return None;
        }
        let cached = self.0.read().unwrap().vtd_irtes.get(&index).copied();
        let [low, high] = cached.unwrap_or_else(|| {
            let entry = self.table_read((latch & !0xfff) + u64::from(index) * 16);
            self.0.write().unwrap().vtd_irtes.insert(index, entry);
            entry
        });
        let verified = high >> 18 & 3 == 0 || high as u16 == bdf;
        (low & 1 != 0 && verified).then_some(((low >> 16) as u8, (low >> 40) as u8))
    }
}
