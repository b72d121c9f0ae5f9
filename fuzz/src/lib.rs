//! Fuzz targets: one for each parser of foreign bytes.
//!
//! A target is a function that takes any bytes and panics over a finding. The
//! program `fuzz` drives one by libFuzzer's coverage (`cargo xtask fuzz`); the
//! tests of this package run each over its corpus and some random bytes.
//!
//! The bytes are either what a stranger would send, or a script of what a
//! hostile peer does ([`arbitrary`] reads it), so that the fuzzer need not
//! find checksums and handshakes by chance. Each target judges more than
//! "no panic": what is let through is valid, work and memory are bounded, and
//! an honest peer that follows is served.

extern crate alloc;

mod bundle;
mod control;
mod frames;
mod hello;
mod http;
mod manifest;
mod planted;
mod rings;
mod store;

/// The partition table's reader belongs to a driver domain's program.
#[path = "../../driver-domains/blk/src/gpt.rs"]
mod gpt;
mod partitions;

/// The simulated machine of the frontends' and backends' tests.
#[path = "../../ring-ends/tests/sim/mod.rs"]
mod sim;

/// The simulated disk of the store's tests.
#[path = "../../guests/kv/store/tests/sim/mod.rs"]
mod store_sim;

/// The simulated client of the HTTP server's tests.
#[allow(dead_code)]
#[path = "../../guests/kv/http/tests/server/harness.rs"]
mod harness;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus`.
    pub name: &'static str,
    /// Whose bytes go where.
    pub about: &'static str,
    /// Longest input that makes sense, in bytes.
    pub max_len: usize,
    /// Takes an input; panics over a finding.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "ring_blk_backend",
        about: "a hostile frontend against the block backend",
        max_len: 2048,
        run: rings::blk_backend,
    },
    Target {
        name: "ring_blk_frontend",
        about: "a hostile backend against the block frontend",
        max_len: 2048,
        run: rings::blk_frontend,
    },
    Target {
        name: "ring_net_backend",
        about: "a hostile frontend against the network backend",
        max_len: 2048,
        run: rings::net_backend,
    },
    Target {
        name: "ring_net_frontend",
        about: "a hostile backend against the network frontend",
        max_len: 2048,
        run: rings::net_frontend,
    },
    Target {
        name: "hello",
        about: "a connection page's bytes, read by the other end",
        max_len: 1200,
        run: hello::run,
    },
    Target {
        name: "control_node",
        about: "the control line's bytes, read by the supervisor",
        max_len: 4096,
        run: control::node,
    },
    Target {
        name: "control_host",
        about: "the control line's bytes, read by nodectl",
        max_len: 4096,
        run: control::host,
    },
    Target {
        name: "bundle",
        about: "a bundle's manifest, validated by the hypervisor",
        max_len: 4096,
        run: bundle::run,
    },
    Target {
        name: "manifest",
        about: "a node manifest's text, read by xtask",
        max_len: 4096,
        run: manifest::run,
    },
    Target {
        name: "gpt",
        about: "a disk's partition table, read by the block driver",
        max_len: 4096,
        run: partitions::run,
    },
    Target {
        name: "frames",
        about: "frames of guests and of the wire, judged by the network driver's switch",
        max_len: 4096,
        run: frames::run,
    },
    Target {
        name: "http",
        about: "a stranger's HTTP requests to the key-value guest",
        max_len: 8192,
        run: http::run,
    },
    Target {
        name: "store",
        about: "a damaged or forged volume, mounted by the key-value store",
        max_len: 1024,
        run: store::run,
    },
];

/// A target that must fail: it holds a value that nobody finds by chance, and
/// so tells whether coverage guides the search.
pub const PLANTED: Target = Target {
    name: "planted",
    about: "a planted value behind nested comparisons; must be found",
    max_len: 64,
    run: planted::run,
};

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().chain([&PLANTED]).find(|target| target.name == name)
}
