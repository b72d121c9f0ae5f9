//! Wrong arguments of the calls for a device's interrupts and its bus: ports
//! that are for other events, entries that the device lacks, slots of others,
//! more vectors than the device's share.
#![no_std]
#![no_main]

use attacks::{begin, breach, done, hypercall::call};
use domain_rt::events;
use ring_proto::{
    boot::BootInfo,
    event::{PORT_IRQ, PORTS},
    hypercall::{Error, Nr},
};

domain_rt::entry!(main);

const NAME: &str = "irq";
const NUMBERS: [u64; 9] = [
    0,
    1,
    2,
    0x7f,
    0x800,
    0xffff,
    0x1_0000,
    // As a smaller type this would be 0.
    1 << 32,
    u64::MAX,
];

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    let entries = u64::from(boot.devices[0].msix_entries);
    let (mut tried, mut refused) = (0u32, 0u32);
    let mut attempt = |nr: Nr, arguments: [u64; 5]| {
        tried += 1;
        events::breathe();
        match call(nr, arguments) {
            Err(_) => refused += 1,
            Ok(value) => breach!(NAME, "{nr:?} {arguments:x?} returned {value:#x}"),
        }
    };
    let ports = PORT_IRQ.into()..PORTS.into();
    for slot in NUMBERS {
        for entry in NUMBERS.into_iter().chain([entries]) {
            for port in NUMBERS.into_iter().chain([15, 16, 63, 64, 128]) {
                let allowed = slot == 0 && entry < entries && ports.contains(&port);
                if !allowed {
                    attempt(Nr::IrqBind, [slot, entry, port, 0, 0]);
                }
            }
        }
        for on in NUMBERS {
            if slot != 0 || on > 1 {
                attempt(Nr::DeviceEnable, [slot, on, 0, 0, 0]);
            }
        }
    }
    // Nothing was bound, so there is nothing to unmask.
    (0..200).chain(NUMBERS).for_each(|port| attempt(Nr::IrqUnmask, [port, 0, 0, 0, 0]));

    let mut bound = 0;
    for (entry, port) in (0..entries).zip(ports.clone()) {
        match call(Nr::IrqBind, [0, entry, port, 0, 0]) {
            Ok(_) => bound += 1,
            Err(Error::Exhausted) => break,
            Err(error) => breach!(NAME, "the call is right and returned {error:?}"),
        }
    }
    // One entry to two ports, two entries to one.
    attempt(Nr::IrqBind, [0, 0, ports.start + 1, 0, 0]);
    attempt(Nr::IrqBind, [0, 1, ports.start, 0, 0]);
    done!(NAME, "tried={tried} refused={refused} entries={entries} bound={bound}");
}
