//! Configuration space of an own function, with the BARs where this domain
//! sees them.

use alloc::rc::Rc;
use core::cell::Cell;

use ring_proto::boot::DeviceBoot;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use crate::hypercall;

const BAR0: u8 = 0x10;
const BAR_END: u8 = 0x28;
/// Low bits of a 64-bit memory BAR.
const MEMORY_64: u32 = 0b100;

/// Reads pass through to the hypervisor, each register once: opening a device reads its
/// list of capabilities over and over, and meanwhile it cannot change what it said.
/// BARs are an exception: those are answered
/// from the boot information, all as 64-bit ones, with the guest-physical
/// address of their window. Writes go nowhere but to the sizing of those BARs;
/// the hypervisor would refuse them anyway.
#[derive(Clone)]
pub(super) struct Config {
    pub slot: usize,
    pub device: &'static DeviceBoot,
    /// BAR that is being sized, and whether each of its halves is.
    sizing: Cell<Option<(u8, bool, bool)>>,
    /// What was read, by register.
    read: Rc<[Cell<Option<u32>>; 64]>,
}

impl Config {
    pub(super) fn new(slot: usize, device: &'static DeviceBoot) -> Self {
        Self {
            slot,
            device,
            sizing: Cell::new(None),
            read: Rc::new([const { Cell::new(None) }; 64]),
        }
    }

    pub(super) fn function(&self) -> DeviceFunction {
        let [low, bus] = self.device.bdf.to_le_bytes();
        DeviceFunction { bus, device: low >> 3, function: low & 7 }
    }

    /// The register of a BAR at its place `index`.
    fn bar(&self, index: u8) -> u32 {
        let at = |i: u8| self.device.bars.get(usize::from(i)).filter(|b| b.address != 0);
        if let Some((sized, low, high)) = self.sizing.get()
            && let Some(bar) = at(sized)
        {
            let mask = !bar.len.wrapping_sub(1);
            if index == sized {
                let bits = if low { mask } else { bar.address };
                return low_half(bits);
            }
            if Some(index) == sized.checked_add(1) {
                let bits = if high { mask } else { bar.address };
                return high_half(bits);
            }
        }
        at(index).map_or(0, |bar| low_half(bar.address))
    }
}

/// The register of a 64-bit BAR with the lower half of its address.
fn low_half(address: u64) -> u32 {
    let [a, b, c, d, ..] = address.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) & !0xf | MEMORY_64
}

fn high_half(address: u64) -> u32 {
    let [.., a, b, c, d] = address.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Which BAR's register is at `offset`.
fn bar_at(offset: u8) -> u8 {
    offset.saturating_sub(BAR0) / 4
}

impl ConfigurationAccess for Config {
    fn read_word(&self, _: DeviceFunction, offset: u8) -> u32 {
        if (BAR0..BAR_END).contains(&offset) {
            return self.bar(bar_at(offset));
        }
        let ask =
            || hypercall::pci_config_read(self.slot, u16::from(offset), 4).unwrap_or(u32::MAX);
        let Some(read) = self.read.get(usize::from(offset / 4)) else { return u32::MAX };
        let word = read.get().unwrap_or_else(ask);
        read.set(Some(word));
        word
    }

    fn write_word(&mut self, _: DeviceFunction, offset: u8, data: u32) {
        if !(BAR0..BAR_END).contains(&offset) {
            return;
        }
        let index = bar_at(offset);
        let all = data == u32::MAX;
        self.sizing.set(match self.sizing.get() {
            // The other half of the BAR that is being sized.
            Some((bar, low, _)) if Some(index) == bar.checked_add(1) => Some((bar, low, all)),
            _ => all.then_some((index, true, false)),
        });
    }

    /// # Safety
    /// The trait's; a second one does no harm, because the hypervisor checks each write.
    #[allow(unsafe_code)]
    unsafe fn unsafe_clone(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use ring_proto::boot::BarBoot;
    use virtio_drivers::transport::pci::bus::PciRoot;

    use super::*;

    #[test]
    fn sizing_finds_address_and_length() {
        let mut device = DeviceBoot {
            bdf: 0x108,
            msix_entries: 2,
            reserved: 0,
            bars: [BarBoot { address: 0, len: 0 }; 6],
        };
        let windows = [(1, 0x30_1000_0000, 0x1000), (2, 0x30_2000_0000, 0x8000)];
        for (i, address, len) in windows {
            device.bars[i] = BarBoot { address, len };
        }
        let config = Config::new(0, std::boxed::Box::leak(std::boxed::Box::new(device)));
        let function = config.function();
        assert_eq!((function.bus, function.device, function.function), (1, 1, 0));
        let mut root = PciRoot::new(NoCommand(config));
        for (i, address, len) in windows {
            let info = root.bar_info(function, i as u8).unwrap().unwrap();
            assert_eq!(info.memory_address_size(), Some((address, len)));
        }
        assert_eq!(root.bar_info(function, 0).unwrap(), None);
        assert_eq!(root.bar_info(function, 5).unwrap(), None);
    }

    /// Answers the command register without a hypervisor.
    struct NoCommand(Config);

    impl ConfigurationAccess for NoCommand {
        fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
            if offset < BAR0 { 6 } else { self.0.read_word(function, offset) }
        }

        fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
            self.0.write_word(function, offset, data);
        }

        /// # Safety
        /// There is no device behind it.
        #[allow(unsafe_code)]
        unsafe fn unsafe_clone(&self) -> Self {
            Self(self.0.clone())
        }
    }
}
