//! What every frontend of a guest needs at its beginning.

use core::fmt;

use domain_rt::{conn::Connection, env, time};
use ring_ends::{ConfigError, Region, blk, net};
use ring_proto::{
    PAGE_SIZE,
    blk::SLOTS as BLK_SLOTS,
    conn::{Pages, Protocol, Role},
    net::SLOTS as NET_SLOTS,
    shm::SharedMem,
};

/// Pages of a net pool: a tx and an rx buffer for each slot.
const NET_POOL_PAGES: u32 = 128;
const _: () = assert!(NET_POOL_PAGES as usize * PAGE_SIZE == NET_SLOTS as usize * 2 * net::BUFFER);

/// Why a guest cannot use a connection. None of these goes away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The manifest gives this domain no such connection.
    NoConnection(Protocol),
    /// The heap has no room for the rings or the buffer pool.
    NoMemory,
    /// The grant table has no room for them.
    NoGrants,
    /// Something of this domain uses it already.
    Taken,
    /// The frontend refused its configuration.
    Config(ConfigError),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConnection(protocol) => {
                write!(f, "the manifest has no {protocol:?} connection for this domain")
            }
            Self::NoMemory => f.write_str("not enough memory for rings and buffers"),
            Self::NoGrants => f.write_str("the grant table is too small for rings and buffers"),
            Self::Taken => f.write_str("the connection is in use"),
            Self::Config(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for SetupError {}

impl From<ConfigError> for SetupError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// The first connection of `protocol` in which this domain is the frontend.
pub fn find(protocol: Protocol) -> Result<(Connection, Pages), SetupError> {
    let none = SetupError::NoConnection(protocol);
    let connection = domain_rt::conn::all(protocol, Role::Frontend).next().ok_or(none)?;
    Ok((connection, connection.pages()))
}

/// How long a backend may complete nothing before it is complained about, ns.
pub fn patience(connection: &Connection) -> u64 {
    u64::from(connection.boot.stall_ms).saturating_mul(time::MS)
}

/// Memory of at least `pages` pages, with grant references for all of it.
pub fn region(pages: u32) -> Result<Region, SetupError> {
    let mem = env::alloc_shared(pages as usize).ok_or(SetupError::NoMemory)?;
    debug_assert_eq!(mem.len() / PAGE_SIZE, pages as usize);
    let first = env::alloc_grefs(pages).ok_or(SetupError::NoGrants)?;
    Ok(Region { mem, first })
}

/// A frontend of this domain's first blk connection, which complains about nothing
/// yet, and the memory of its buffer pool.
pub fn blk(pool_pages: u32) -> Result<(Connection, blk::Frontend, SharedMem), SetupError> {
    let (connection, pages) = find(Protocol::Blk)?;
    let config = blk::FrontendConfig {
        pages,
        port: connection.port(),
        peer: connection.boot.peer,
        ring: region(blk::ring_pages(BLK_SLOTS).ok_or(ConfigError::Slots)?)?,
        pool: region(pool_pages)?,
        slots: BLK_SLOTS,
    };
    Ok((connection, blk::Frontend::new(config)?, config.pool.mem))
}

/// The same for net, which has a buffer for each slot of its two rings.
pub fn net() -> Result<(Connection, net::Frontend), SetupError> {
    let (connection, pages) = find(Protocol::Net)?;
    let config = net::FrontendConfig {
        pages,
        port: connection.port(),
        peer: connection.boot.peer,
        tx_ring: region(net::tx_ring_pages(NET_SLOTS).ok_or(ConfigError::Slots)?)?,
        rx_ring: region(net::rx_ring_pages(NET_SLOTS).ok_or(ConfigError::Slots)?)?,
        pool: region(NET_POOL_PAGES)?,
        slots: NET_SLOTS,
    };
    Ok((connection, net::Frontend::new(config)?))
}
