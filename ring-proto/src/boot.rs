//! Boot information: what the hypervisor tells a domain about itself.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{MAX_DOMAIN_CONNECTIONS, MAX_DOMAIN_DEVICES};

/// Value of [`BootInfo::magic`]: "BULKHEAD" in ASCII, little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"BULKHEAD");
/// Value of [`BootInfo::abi`]: version of the hypercall ABI.
pub const ABI: u32 = 5;

/// Bit of [`BootInfo::flags`]: this is a warm spare. All else in here is as its
/// principal's, and none of the devices and connections is mapped before
/// [`crate::event::PORT_TAKEOVER`] has an event.
pub const STANDBY: u32 = 1 << 0;

/// Capability: the supervisor's hypercalls.
pub const CAP_SUPERVISOR: u32 = 1 << 0;
/// Capability: I/O ports 0x2f8–0x2ff (second UART) and its interrupt.
pub const CAP_CONTROL_UART: u32 = 1 << 1;

/// The page at [`crate::layout::BOOT_INFO`]; its address is in RDI at entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`ABI`].
    pub abi: u32,
    /// This life's number; of a spare, in its own count, also after it took
    /// over: this page is written once in a life.
    pub generation: u32,
    /// Own domain number; of a spare, that of its principal.
    pub domain: u16,
    /// Cores of the node.
    pub cores: u16,
    /// `CAP_*` bits.
    pub capabilities: u32,
    /// TSC value at time 0 of the node's clock.
    pub tsc_base: u64,
    /// ns = ((tsc − tsc_base) × tsc_mult) >> 32.
    pub tsc_mult: u64,
    /// Bytes at [`crate::layout::HEAP`].
    pub heap_len: u64,
    /// Bytes at [`crate::layout::DMA_POOL`].
    pub dma_len: u64,
    /// Entries of the grant table at [`crate::layout::GRANT_TABLE`].
    pub grant_entries: u32,
    /// Pages of the window at [`crate::layout::GRANT_WINDOW`].
    pub grant_window_pages: u32,
    /// Connections that follow.
    pub connection_count: u32,
    /// Devices that follow.
    pub device_count: u32,
    /// [`STANDBY`].
    pub flags: u32,
    /// Padding.
    pub reserved: u32,
    /// Name, NUL-padded.
    pub name: [u8; 24],
    /// `args` of the manifest, NUL-padded UTF-8.
    pub args: [u8; 256],
    /// Connections of this domain; slot `i` uses the pages at
    /// `layout::CONNECTIONS + i * 0x2000` and port `event::PORT_CONNECTIONS + i`.
    pub connections: [ConnectionBoot; MAX_DOMAIN_CONNECTIONS],
    /// Devices of this domain.
    pub devices: [DeviceBoot; MAX_DOMAIN_DEVICES],
}

/// One connection, as one end sees it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConnectionBoot {
    /// Connection number on the node.
    pub id: u16,
    /// [`crate::conn::Protocol`].
    pub protocol: u16,
    /// [`crate::conn::Role`] of this domain.
    pub role: u16,
    /// The other end's domain.
    pub peer: u16,
    /// Scheduling weight among the connections of a backend.
    pub weight: u32,
    /// net: MAC address of the vif.
    pub mac: [u8; 6],
    /// Padding.
    pub reserved: [u8; 2],
    /// ms without a completion of a pending request after which the frontend
    /// complains.
    pub stall_ms: u32,
    /// The most that the frontend may take of the backend.
    pub limits: Limits,
    /// net: the IP addresses that the vif may send from.
    pub addresses: Addresses,
    /// blk: GPT label of the volume, NUL-padded UTF-8.
    pub volume: [u8; 40],
    /// Name of the other end's domain, NUL-padded.
    pub peer_name: [u8; 24],
}

/// The most that a connection may take: two token buckets, one for operations
/// and one for bytes. A bucket holds what comes in within `refill_ms`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Serialize,
    Deserialize,
)]
#[repr(C)]
pub struct Limits {
    /// Bytes per second; 0 = no limit. net: in each direction.
    pub bandwidth: u64,
    /// Bytes that a generation of the backend grants once, beside the bucket.
    pub bandwidth_burst: u64,
    /// Operations per second; 0 = no limit. net: frames, in each direction.
    pub ops: u32,
    /// Operations that a generation of the backend grants once, beside the bucket.
    pub ops_burst: u32,
    /// Milliseconds in which an empty bucket fills; 0 counts as 1.
    pub refill_ms: u32,
    /// Padding.
    pub reserved: u32,
}

/// Most entries of [`Addresses`].
pub const MAX_ADDRESSES: usize = 4;

/// IP addresses that a vif may send from.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Serialize,
    Deserialize,
)]
#[repr(C)]
pub struct Addresses {
    /// 0 = IP addresses are not checked, else only those of the list are let through.
    pub checked: u8,
    /// Entries in use.
    pub count: u8,
    /// Bits of each entry that are compared, 0 to 128.
    pub prefixes: [u8; MAX_ADDRESSES],
    /// Padding.
    pub reserved: [u8; 2],
    /// IPv6 addresses, and IPv4 addresses in their mapped form (RFC 4291, 2.5.5.2).
    pub list: [[u8; 16]; MAX_ADDRESSES],
}

impl Addresses {
    /// Whether all fields are within their bounds.
    pub fn is_valid(&self) -> bool {
        self.checked <= 1
            && usize::from(self.count) <= MAX_ADDRESSES
            && self.prefixes.iter().all(|&bits| bits <= 128)
    }

    /// The entries, as address and prefix length.
    pub fn entries(&self) -> impl Iterator<Item = ([u8; 16], u8)> {
        let both = self.list.iter().copied().zip(self.prefixes.iter().copied());
        both.take(usize::from(self.count))
    }
}

/// One PCI function.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceBoot {
    /// Bus, device, function as `bus << 8 | device << 3 | function`.
    pub bdf: u16,
    /// Entries of its MSI-X table; 0 = none.
    pub msix_entries: u16,
    /// Padding.
    pub reserved: u32,
    /// Guest-physical address and length of each memory BAR; (0, 0) = none.
    pub bars: [BarBoot; 6],
}

/// One memory BAR.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BarBoot {
    /// Guest-physical address, 0 = none.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

const _: () = assert!(size_of::<BootInfo>() <= crate::PAGE_SIZE);
