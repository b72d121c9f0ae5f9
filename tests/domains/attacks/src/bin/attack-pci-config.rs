//! The configuration space of the own device: every offset is read and written
//! in every width. What counts as an attack: moving BARs, taking the bus before
//! `device_enable`, switching interrupts on, power management, the window
//! through which virtio shows all registers (virtio 1.2, 4.1.4.9).
#![no_std]
#![no_main]

use attacks::{begin, breach, done, hypercall::call};
use domain_rt::{events, hypercall::pci_config_read as read, hypercall::pci_config_write as write};
use driver_blk::{device::VirtioBlk, disk::Disk};
use ring_proto::{boot::BootInfo, hypercall::Nr};

domain_rt::entry!(main);

const NAME: &str = "pci-config";
const COMMAND: u16 = 4;
const BUS_MASTER: u32 = 1 << 2;
const NO_INTX: u32 = 1 << 10;
/// Bytes of configuration space.
const SPACE: u16 = 4096;

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let word = |at: u16| read(0, at, 4).unwrap_or(u32::MAX);
    let before = word(COMMAND);
    window();
    addresses();

    let (mut tried, mut refused) = (0u32, 0u32);
    let mut attempt = |arguments: [u64; 5]| {
        tried += 1;
        events::breathe();
        match call(Nr::PciConfig, arguments) {
            Err(_) => refused += 1,
            Ok(value) => breach!(NAME, "pci_config {arguments:x?} returned {value:#x}"),
        }
    };
    for offset in (0..u64::from(SPACE)).rev() {
        for width in [1, 2, 4] {
            if offset != u64::from(COMMAND) || width == 1 {
                attempt([0, offset, width, 1, 0xffff_ffff]);
            }
        }
        attempt([0, offset, 2, 2, 0]);
    }
    let odd = [3, 5, 8, 0x1_0000_0004, u64::MAX];
    odd.iter().for_each(|&width| attempt([0, 0, width, 0, 0]));
    odd.iter().for_each(|&write| attempt([0, 4, 4, write, 0]));
    for far in [u64::from(SPACE), 0x1_0000, 0x10_0000, 0x1_0000_0004, u64::MAX] {
        attempt([0, far, 4, 0, 0]);
        attempt([0, far, 4, 1, 0]);
        // Other functions would lie there.
        attempt([far, 0, 4, 0, 0]);
        attempt([far, 4, 4, 1, 0xffff]);
    }
    for slot in 1..16 {
        attempt([slot, 0, 4, 0, 0]);
    }
    attempt([0, 4, 4, 1, 0x1_0000_0004]);

    // The command register can be written, to little effect.
    for value in [BUS_MASTER | 0b11, 0xffff, 0xffff_ffff, 0] {
        let _ = (write(0, COMMAND, 4, value), write(0, COMMAND, 2, value));
        let now = word(COMMAND);
        if now & 0xffff != before & 0xffff || now & (BUS_MASTER | NO_INTX) != NO_INTX {
            breach!(NAME, "writing {value:#x} to the command register made it {now:#x}");
        }
    }
    window();
    addresses();
    // Nothing was moved.
    if let Err(error) = VirtioBlk::open(0) {
        breach!(NAME, "the disk no longer works: {error}");
    }
    done!(NAME, "tried={tried} refused={refused}");
}

/// Nothing that is a machine address can be read.
fn addresses() {
    const BARS: core::ops::Range<u16> = 0x10..0x2c;
    const ROM: u16 = 0x30;
    const EXTENDED: core::ops::Range<u16> = 0x100..SPACE;
    for at in BARS.step_by(4).chain([ROM]).chain(EXTENDED.step_by(4)) {
        for (offset, width) in [(0, 4), (0, 2), (2, 2), (0, 1), (1, 1), (2, 1), (3, 1)] {
            match read(0, at + offset, width) {
                Ok(0) => {}
                other => breach!(NAME, "{width} bytes at {:#x}: {other:x?}", at + offset),
            }
        }
        events::breathe();
    }
}

/// Points virtio's window at the MSI-X table and looks through it.
fn window() {
    const VENDOR: u32 = 9;
    const WINDOW: u32 = 5;
    let word = |at: u32| read(0, at as u16, 4).unwrap_or(0);
    let mut at = word(0x34) & 0xfc;
    let mut found = false;
    for _ in 0..48 {
        if at == 0 {
            break;
        }
        let head = word(at);
        if head & 0xff == VENDOR && head >> 24 == WINDOW {
            found = true;
            // BAR 1, offset 0, four bytes: where QEMU has the table.
            for (offset, value) in [(4, 1), (8, 0), (12, 4)] {
                let _ = write(0, (at + offset) as u16, 4, value);
            }
            let through = word(at + 16);
            if through != 0 || write(0, (at + 16) as u16, 4, 0xfee0_0000).is_ok() {
                breach!(NAME, "the window shows {through:#x}, the head of the MSI-X table");
            }
        }
        at = head >> 8 & 0xfc;
    }
    if !found {
        breach!(NAME, "the disk has no window: nothing was tried");
    }
}
