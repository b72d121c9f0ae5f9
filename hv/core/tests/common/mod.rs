//! What several tests begin with.

use ring_proto::bundle::{Domain, Restart};

/// A driver's part of a manifest, without a device.
pub fn domain(name: &str) -> Domain {
    Domain {
        name: name.try_into().unwrap(),
        image: 0,
        memory: 4 << 20,
        dma_pool: 1 << 20,
        capabilities: 0,
        devices: heapless::Vec::new(),
        core: None,
        weight: 256,
        cap: 100,
        watchdog_ms: 100,
        grant_entries: 512,
        grant_window_pages: 512,
        restart: Restart::default(),
        args: Default::default(),
        autostart: true,
        spare_of: None,
        update_space: 0,
    }
}
