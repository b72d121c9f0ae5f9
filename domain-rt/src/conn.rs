#![allow(unsafe_code)]
//! The connections of this domain.

use ring_proto::{
    PAGE_SIZE, Port,
    boot::ConnectionBoot,
    conn::{Pages, Protocol, Role},
    event::PORT_CONNECTIONS,
    layout,
    shm::SharedMem,
};

use crate::{
    panic::give_up,
    start::{boot, text},
};

/// Bytes from one connection's pages to the next's.
const STRIDE: u64 = 2 * PAGE_SIZE as u64;

/// A connection that the manifest gives this domain.
#[derive(Clone, Copy)]
pub struct Connection {
    /// Its slot.
    pub slot: usize,
    /// What the hypervisor told of it.
    pub boot: &'static ConnectionBoot,
}

impl Connection {
    /// The port that the peer's notifications arrive at.
    pub fn port(&self) -> Port {
        port(self.slot)
    }

    /// Its two pages.
    pub fn pages(&self) -> Pages {
        pages(self.slot)
    }

    /// Name of the domain at the other end.
    pub fn peer_name(&self) -> &'static str {
        text(&self.boot.peer_name)
    }

    /// blk: label of the volume.
    pub fn volume(&self) -> &'static str {
        text(&self.boot.volume)
    }
}

/// The connections of `protocol` in which this domain has `role`.
pub fn all(protocol: Protocol, role: Role) -> impl Iterator<Item = Connection> {
    let boot = boot();
    let count = boot.connection_count as usize;
    boot.connections
        .iter()
        .take(count)
        .enumerate()
        .filter(move |(_, c)| c.protocol == protocol as u16 && c.role == role as u16)
        .map(|(slot, boot)| Connection { slot, boot })
}

/// The port of connection slot `slot`.
pub fn port(slot: usize) -> Port {
    // There are few slots; a port that is not there has no events.
    PORT_CONNECTIONS.saturating_add(Port::try_from(slot).unwrap_or(Port::MAX))
}

/// The pages of connection slot `slot`.
///
/// # Panics
///
/// If this domain has no such connection: the number is the program's own.
pub fn pages(slot: usize) -> Pages {
    let count = boot().connection_count as usize;
    assert!(slot < count, "no connection {slot}");
    let offset = (slot as u64).saturating_mul(STRIDE);
    let own = layout::CONNECTIONS.saturating_add(offset);
    let view = |address: u64| {
        // SAFETY: the hypervisor maps both pages for the domain's whole life
        // and nothing makes a reference to them; the peer's is only read.
        unsafe { SharedMem::new(address as *mut u8, PAGE_SIZE) }
    };
    match Pages::new(view(own), view(own.saturating_add(PAGE_SIZE as u64))) {
        Some(pages) => pages,
        None => give_up(format_args!("a page is smaller than an EndPage")),
    }
}
