//! Mounting and formatting.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::RefCell;
use core::fmt::Debug;

use crate::background::Background;
use crate::format::{Header, decode_superblock, encode_superblock, is_zero};
use crate::layout::{Layout, RESERVED};
use crate::replay;
use crate::state::{Inner, Journal, State};
use crate::{BLOCK, BlockDevice, MountError};

pub(crate) fn device<E: Debug>(error: E) -> MountError {
    MountError::Device(format!("{error:?}"))
}

pub(crate) async fn mount<D: BlockDevice>(
    dev: D,
    index_memory: usize,
) -> Result<Inner<D>, MountError> {
    // Whatever is read below must not go away with the next power cut.
    dev.flush().await.map_err(device)?;
    let layout = match read_superblock(&dev).await? {
        Some(layout) => layout,
        None => format(&dev).await?,
    };
    let headers = [read_header(&dev, &layout, 0).await?, read_header(&dev, &layout, 1).await?];
    let in_force = match headers {
        [Some(a), Some(b)] if a.0.epoch == b.0.epoch => {
            return Err(MountError::Corrupt("both metadata areas have the same epoch"));
        }
        [Some(a), Some(b)] if b.0.epoch > a.0.epoch => (1, b),
        [Some(a), _] => (0, a),
        [None, Some(b)] => (1, b),
        [None, None] => return Err(MountError::Corrupt("no metadata area has a header")),
    };
    let (area, (header, crc)) = in_force;
    let journal = Journal {
        area,
        epoch: header.epoch,
        seq: header.seq,
        last: crc,
        next: 1 + header.snapshot_blocks(),
        broken: false,
    };
    let mut state = State::new(&layout, index_memory, journal);
    replay::load_snapshot(&dev, &layout, &header, &mut state).await?;
    replay::replay_journal(&dev, &layout, &mut state).await?;
    Ok(Inner {
        dev: Rc::new(dev),
        layout,
        state: RefCell::new(state),
        background: Background::default(),
    })
}

/// `None` if the volume is empty.
async fn read_superblock<D: BlockDevice>(dev: &D) -> Result<Option<Layout>, MountError> {
    let blocks = dev.blocks();
    Layout::new(blocks)?;
    let mut block = vec![0; BLOCK];
    dev.read(0, &mut block).await.map_err(device)?;
    if !is_zero(&block) {
        let layout = decode_superblock(&block)?;
        if layout.blocks > blocks {
            return Err(MountError::Shrunk { blocks, formatted: layout.blocks });
        }
        return Ok(Some(layout));
    }
    let mut reserved = vec![0; RESERVED as usize * BLOCK];
    dev.read(0, &mut reserved).await.map_err(device)?;
    if !is_zero(&reserved) {
        return Err(MountError::NotAStore);
    }
    Ok(None)
}

async fn read_header<D: BlockDevice>(
    dev: &D,
    layout: &Layout,
    area: u8,
) -> Result<Option<(Header, u32)>, MountError> {
    let mut block = vec![0; BLOCK];
    dev.read(layout.area_start(area), &mut block).await.map_err(device)?;
    Header::decode(layout, &block)
}

/// Writes an empty store. The superblock comes last: without it the volume
/// still counts as empty.
async fn format<D: BlockDevice>(dev: &D) -> Result<Layout, MountError> {
    let layout = Layout::new(dev.blocks())?;
    // If a store was here whose superblock somebody wiped, its journal must
    // not be taken for ours.
    let mut data = vec![0; RESERVED as usize * BLOCK];
    let (mut block, end) = (layout.area_start(0), layout.data_start());
    while block < end {
        let blocks = RESERVED.min(end - block);
        data.truncate(blocks as usize * BLOCK);
        dev.read(block, &mut data).await.map_err(device)?;
        if !is_zero(&data) {
            data.fill(0);
            dev.write(block, &data).await.map_err(device)?;
        }
        block += blocks;
    }
    let (header, _) = Header { epoch: 1, seq: 1, entries: 0, bytes: 0, crc: 0 }.encode(&layout);
    dev.write(layout.area_start(0), &header).await.map_err(device)?;
    dev.flush().await.map_err(device)?;
    dev.write(0, &encode_superblock(&layout)).await.map_err(device)?;
    dev.flush().await.map_err(device)?;
    log::info!("kv-store: formatted an empty volume of {} blocks", layout.blocks);
    Ok(layout)
}
