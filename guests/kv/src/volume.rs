//! The volume under the store.

use domain_rt::ring_proto::blk::SECTOR;
use embassy_futures::select::{Either, select};
use guest_io::blk::{BlkClient, BlkError};
use kv_store::{BLOCK, BlockDevice, MountError, Store};

use crate::serve::sleep_ms;

/// How often a guest that waits for its disk says so.
const REMIND_MS: u64 = 5_000;

/// Sectors of a block of the store.
const SECTORS_PER_BLOCK: u64 = BLOCK as u64 / SECTOR;

/// A volume, in blocks.
pub(crate) struct Volume {
    client: BlkClient,
    blocks: u64,
}

impl Volume {
    /// Waits until the disk is there.
    pub(crate) async fn wait(client: BlkClient) -> Self {
        let geometry = loop {
            match select(client.geometry(), sleep_ms(REMIND_MS)).await {
                Either::First(geometry) => break geometry,
                Either::Second(()) => match client.state() {
                    (_, Some(why)) => log::warn!("disk: refused by the driver: {why}"),
                    _ => log::warn!("disk: still waiting for the driver"),
                },
            }
        };
        if geometry.read_only {
            log::warn!("disk: the volume is read-only");
        }
        Self { client, blocks: geometry.sectors / SECTORS_PER_BLOCK }
    }
}

/// Mounts the store. A device error may be gone the next moment, and nothing
/// else can be done with this guest, so that is tried again a few times.
pub(crate) async fn mount(volume: Volume) -> Result<Store<Volume>, MountError> {
    let mut tries = 0;
    loop {
        let again = Volume { client: volume.client.clone(), blocks: volume.blocks };
        match Store::mount(again).await {
            Err(MountError::Device(error)) if tries < 3 => {
                tries += 1;
                log::warn!("store: mounting failed, trying again: {error}");
                sleep_ms(1_000).await;
            }
            outcome => return outcome,
        }
    }
}

impl BlockDevice for Volume {
    type Error = BlkError;

    fn blocks(&self) -> u64 {
        self.blocks
    }

    async fn read(&self, block: u64, buf: &mut [u8]) -> Result<(), BlkError> {
        self.client.read(sector(block), buf).await
    }

    async fn write(&self, block: u64, buf: &[u8]) -> Result<(), BlkError> {
        self.client.write(sector(block), buf).await
    }

    async fn flush(&self) -> Result<(), BlkError> {
        self.client.flush().await
    }
}

fn sector(block: u64) -> u64 {
    block.saturating_mul(SECTORS_PER_BLOCK)
}
