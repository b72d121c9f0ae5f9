//! Signals a driver domain as often as it can, tries all other ports, and
//! writes to the console between.
//!
//! It has a connection to the driver domain, and never says hello on it.
#![no_std]
#![no_main]

use attacks::{begin, breach, done, number};
use domain_rt::hypercall as rt;
use ring_proto::{
    boot::BootInfo,
    event::{PORT_CONNECTIONS, PORTS},
};

domain_rt::entry!(main);

const NAME: &str = "event-flood";
/// Signals between two lines on the console.
const LINE: u64 = 200;
/// Text for the console.
const FLOOD: &str = "flood flood flood flood flood flood flood flood flood flood flood flood flood";

fn main(_: &'static BootInfo) -> ! {
    let boot = begin(NAME);
    let signals = number(boot, "signals", 100_000);
    let (mut sent, mut refused) = (0u64, 0u64);
    for signal in 0..signals {
        match rt::notify(PORT_CONNECTIONS) {
            Ok(()) => sent += 1,
            Err(why) => breach!(NAME, "the driver domain is gone: {why:?}"),
        }
        let port = (signal % 256) as u16;
        if port != PORT_CONNECTIONS {
            match rt::notify(port) {
                Err(_) => refused += 1,
                Ok(()) if port < PORTS => breach!(NAME, "port {port} leads somewhere"),
                Ok(()) => breach!(NAME, "port {port} does not exist"),
            }
        }
        if signal % LINE == 0 {
            log::info!("attack: {NAME}: flood {signal} {}", FLOOD);
            rt::wait(0);
        }
    }
    done!(NAME, "signals={signals} sent={sent} refused={refused}");
}
