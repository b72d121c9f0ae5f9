//! The supervisor: hears of deaths, restarts driver domains, and serves the
//! control line. What it decides is in the crate `supervisor-policy`; here is
//! only what needs a domain to run in: hypercalls, the UART, the event loop.
#![no_std]
#![no_main]

extern crate alloc;

mod hypervisor;
mod line;

use alloc::boxed::Box;

use domain_rt::{events, ring_proto::boot::BootInfo, set_ready, time};
use supervisor_policy::Supervisor;

use crate::{hypervisor::Hypervisor, line::Line};

domain_rt::entry!(main);

/// How often the line is tried again while it does not take all bytes.
const SEND_POLL_NS: u64 = time::MS;

fn main(boot: &'static BootInfo) -> ! {
    let mut node = Hypervisor;
    let mut line = Line::open();
    let mut supervisor = Box::new(Supervisor::new(boot.domain, boot.generation, &mut node));
    log::info!("supervisor serves, generation {}", boot.generation);
    set_ready();
    loop {
        // Events only say "look again", and everything is looked at each turn.
        events::take_all();
        let draining = line.set_up();
        let more = line.receive(&mut supervisor, &mut node);
        let mut deadline = supervisor.poll(&mut node);
        line.send(&mut supervisor);
        if draining || !supervisor.to_send().is_empty() {
            deadline = deadline.min(time::now_ns().saturating_add(SEND_POLL_NS));
        } else if supervisor.is_leaving() || more {
            deadline = 0;
        }
        events::wait(deadline);
    }
}
