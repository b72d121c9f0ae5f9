//! The driver of a virtio disk (virtio 1.2, section 5.2).
//!
//! It knows nothing of rings and guests, so it also works linked straight into
//! a program.

use alloc::{boxed::Box, vec::Vec};

use domain_rt::{
    dma,
    virtio::{Device, DeviceQueue, DeviceType, Error, queue::Buffer},
};
use ring_proto::{
    Port,
    blk::{MAX_SEGMENTS, Op, SECTOR, Status},
    shm::SharedMem,
};
use zerocopy::{Immutable, IntoBytes};

use crate::disk::{Disk, Done, Io, Misbehaved, Refused};

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

// Offsets in the device's configuration.
const CAPACITY: usize = 0;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const MAX_DISCARD: usize = 36;
const MAX_WRITE_ZEROES: usize = 48;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IO_ERROR: u8 = 1;
const S_UNSUPPORTED: u8 = 2;
/// No status that a device writes: shows that it wrote none.
const S_NONE: u8 = 0xff;

/// Bytes of a sector.
const SECTOR_LEN: u32 = 512;
/// Segments that the disk must take for one request.
const SEGMENTS: u32 = 6;
const _: () = assert!(SECTOR_LEN as u64 == SECTOR && SEGMENTS as usize == MAX_SEGMENTS);
const HEADER_LEN: u32 = 16;
const RANGE_LEN: u32 = 16;
const _: () = assert!(size_of::<Header>() == HEADER_LEN as usize);
const _: () = assert!(size_of::<Range>() == RANGE_LEN as usize);

/// Most requests at a time.
const DEPTH: u16 = 128;
/// Bytes of the DMA pool that belong to one request.
const SLOT: usize = 64;
const SLOT_RANGE: usize = 16;
const SLOT_STATUS: usize = 32;
/// Buffers of a request beside its data: header and status.
const EXTRA: usize = 2;
/// MSI-X entry that is used.
const VECTOR: u16 = 0;

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// A place in a request's part of the DMA pool.
fn place(slot: u16, offset: usize) -> usize {
    usize::from(slot).saturating_mul(SLOT).saturating_add(offset)
}

/// A virtio disk.
pub struct VirtioBlk {
    device: Device,
    queue: DeviceQueue,
    port: Port,
    slots: SharedMem,
    free_slots: Vec<u16>,
    /// For each token: slot and cookie of its request.
    requests: Box<[Option<(u16, u32)>]>,
    features: u64,
    sectors: u64,
    block_size: u32,
    max_discard: u32,
    max_write_zeroes: u32,
}

impl VirtioBlk {
    fn check(&self, io: &Io<'_>) -> Result<(), Refused> {
        let pieces = io.pieces.iter();
        let sectors = match io.op {
            Op::Read | Op::Write => {
                let aligned =
                    pieces.clone().all(|p| p.len != 0 && u64::from(p.len).is_multiple_of(SECTOR));
                if !aligned || io.pieces.is_empty() || io.pieces.len() > MAX_SEGMENTS {
                    return Err(Refused::Invalid);
                }
                pieces.map(|p| u64::from(p.len)).sum::<u64>() / SECTOR
            }
            Op::Flush if self.has_cache() => return Ok(()),
            Op::Flush => return Err(Refused::Unsupported),
            Op::Discard | Op::WriteZeroes if self.max_range(io.op) == 0 => {
                return Err(Refused::Unsupported);
            }
            Op::Discard | Op::WriteZeroes => {
                if io.sectors == 0 || io.sectors > self.max_range(io.op) || !io.pieces.is_empty() {
                    return Err(Refused::Invalid);
                }
                u64::from(io.sectors)
            }
        };
        match io.sector.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(()),
            _ => Err(Refused::Invalid),
        }
    }
}

impl Disk for VirtioBlk {
    type Error = Error;

    fn open(slot: usize) -> Result<Self, Error> {
        let mut device = Device::open(slot, DeviceType::Block)?;
        let features = device.negotiate(
            F_SIZE_MAX | F_SEG_MAX | F_RO | F_BLK_SIZE | F_FLUSH | F_DISCARD | F_WRITE_ZEROES,
        )?;
        let has = |feature| features & feature != 0;
        let number = |feature, offset, otherwise| {
            if has(feature) { device.config::<u32>(offset) } else { Ok(otherwise) }
        };
        let sectors = u64::from(device.config::<u32>(CAPACITY)?)
            | u64::from(device.config::<u32>(CAPACITY + 4)?) << 32;
        let block_size = number(F_BLK_SIZE, BLK_SIZE, SECTOR_LEN)?;
        let segments = number(F_SEG_MAX, SEG_MAX, SEGMENTS)?;
        let segment_len = number(F_SIZE_MAX, SIZE_MAX, u32::MAX)?;
        let max_discard = number(F_DISCARD, MAX_DISCARD, 0)?;
        let max_write_zeroes = number(F_WRITE_ZEROES, MAX_WRITE_ZEROES, 0)?;
        let valid = block_size.is_power_of_two()
            && (SECTOR_LEN..=65536).contains(&block_size)
            && segments >= SEGMENTS
            && segment_len >= ring_proto::blk::MAX_REQUEST_BYTES;
        if !valid {
            return Err(Error::Features);
        }
        let port = device.bind(VECTOR)?;
        let queue = device.queue(0, DEPTH, VECTOR)?;
        let size = queue.queue.size();
        let slots = dma::alloc(place(size, 0)).ok_or(Error::NoMemory)?;
        device.start();
        domain_rt::hypercall::irq_unmask(port)?;
        Ok(Self {
            device,
            queue,
            port,
            slots,
            free_slots: (0..size).collect(),
            requests: (0..size).map(|_| None).collect(),
            features,
            sectors,
            block_size,
            max_discard,
            max_write_zeroes,
        })
    }

    fn port(&self) -> Port {
        self.port
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_only(&self) -> bool {
        self.features & F_RO != 0
    }

    fn max_range(&self, op: Op) -> u32 {
        match op {
            Op::Discard => self.max_discard,
            Op::WriteZeroes => self.max_write_zeroes,
            _ => 0,
        }
    }

    fn has_cache(&self) -> bool {
        self.features & F_FLUSH != 0
    }

    fn in_flight(&self) -> u16 {
        self.queue.queue.in_flight()
    }

    fn has_room(&self) -> bool {
        !self.free_slots.is_empty() && self.queue.queue.fits(MAX_SEGMENTS + EXTRA)
    }

    fn submit(&mut self, io: &Io<'_>) -> Result<(), Refused> {
        let (kind, to_memory) = match io.op {
            Op::Read => (T_IN, true),
            Op::Write => (T_OUT, false),
            Op::Flush => (T_FLUSH, false),
            Op::Discard => (T_DISCARD, false),
            Op::WriteZeroes => (T_WRITE_ZEROES, false),
        };
        self.check(io)?;
        if !self.has_room() {
            return Err(Refused::Full);
        }
        let slot = self.free_slots.pop().ok_or(Refused::Full)?;
        let address = |offset| self.slots.address().saturating_add(place(slot, offset) as u64);
        let header = Header { kind, reserved: 0, sector: io.sector };
        let range = Range { sector: io.sector, sectors: io.sectors, flags: 0 };
        let mut buffers = heapless::Vec::<Buffer, { MAX_SEGMENTS + EXTRA }>::new();
        let mut put = |address, len, device_writes| {
            // There is room for all pieces that `check` lets through.
            let _ = buffers.push(Buffer { address, len, device_writes });
        };
        match io.op {
            Op::Discard | Op::WriteZeroes => {
                put(address(0), HEADER_LEN, false);
                put(address(SLOT_RANGE), RANGE_LEN, false);
            }
            _ => put(address(0), HEADER_LEN, false),
        }
        for piece in io.pieces {
            put(piece.address, piece.len, to_memory);
        }
        put(address(SLOT_STATUS), 1, true);
        // The ranges lie in the slot, so the writes do not fail.
        let header = match io.op {
            Op::Read | Op::Write => header,
            _ => Header { sector: 0, ..header },
        };
        let _ = self.slots.write(place(slot, 0), &header);
        let _ = self.slots.write(place(slot, SLOT_RANGE), &range);
        let _ = self.slots.write(place(slot, SLOT_STATUS), &S_NONE);
        match self.queue.queue.add(&buffers) {
            Ok(token) => {
                if let Some(request) = self.requests.get_mut(usize::from(token)) {
                    *request = Some((slot, io.cookie));
                }
                Ok(())
            }
            Err(_) => {
                self.free_slots.push(slot);
                Err(Refused::Full)
            }
        }
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn next_done(&mut self) -> Result<Option<Done>, Misbehaved> {
        let Some(used) = self.queue.queue.pop().map_err(|_| Misbehaved)? else {
            return Ok(None);
        };
        let request = self.requests.get_mut(usize::from(used.token));
        let (slot, cookie) = request.and_then(Option::take).ok_or(Misbehaved)?;
        self.free_slots.push(slot);
        let at = place(slot, SLOT_STATUS);
        let status = match self.slots.read::<u8>(at) {
            Ok(S_OK) => Status::Ok,
            Ok(S_IO_ERROR) => Status::IoError,
            Ok(S_UNSUPPORTED) => Status::Unsupported,
            // It finished the request without a word on how it ended.
            _ => return Err(Misbehaved),
        };
        Ok(Some(Done { cookie, status }))
    }

    fn set_interrupts(&mut self, on: bool) -> bool {
        self.queue.queue.set_interrupts(on)
    }

    fn needs_reset(&self) -> bool {
        self.device.needs_reset()
    }
}
