//! The driver of a virtio NIC (virtio 1.2, section 5.1).
//!
//! It knows nothing of rings and guests, so it also works linked straight into
//! a program. Received frames lie in the driver's own DMA memory and are copied
//! out. A frame to be sent is a head, which is copied into DMA memory, and
//! pieces that the device fetches from where they are.

use alloc::{boxed::Box, vec::Vec};

use domain_rt::{
    dma, hypercall,
    virtio::{
        Device, DeviceQueue, DeviceType, Error, prepare,
        queue::{Buffer, Full, Misbehaved, Queue},
    },
};
use ring_proto::{
    Port,
    net::{MAX_FRAME, MAX_SEGMENTS, MIN_FRAME},
    shm::SharedMem,
};

const F_CSUM: u64 = 1 << 0;
const F_MAC: u64 = 1 << 5;

/// Offset of the MAC address in the device's configuration.
const CONFIG_MAC: usize = 0;

/// `virtio_net_hdr` with `num_buffers`.
const HEADER: usize = 12;
const FLAG_NEEDS_CSUM: u8 = 1;

const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
/// Most slots of each queue.
const DEPTH: u16 = 128;
/// Bytes of DMA memory for a received frame.
const RX_SLOT: u32 = 2048;
/// Bytes of DMA memory for the head of a frame to be sent.
const TX_SLOT: usize = 256;
/// Longest head that [`VirtioNet::send`] takes.
pub const MAX_HEAD: usize = TX_SLOT - HEADER;
/// MSI-X entry that both queues use: one loop serves them.
const VECTOR: u16 = 0;

/// A piece of memory with a part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Device address.
    pub address: u64,
    /// Bytes, not 0.
    pub len: u32,
}

/// A checksum that the NIC is to fill in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where it begins.
    pub start: u16,
    /// Where, after `start`, it is stored.
    pub offset: u16,
}

/// Where a slot begins.
fn place(slot: u16, size: usize) -> usize {
    usize::from(slot).saturating_mul(size)
}

/// What of this domain's memory a NIC works on. All of it can be there, buffers
/// for received frames posted, before the NIC is.
pub struct Buffers {
    rx: Queue,
    rx_memory: SharedMem,
    rx_slots: Box<[Option<u16>]>,
    tx: Queue,
    tx_memory: SharedMem,
}

impl Buffers {
    /// For a NIC with queues as long as this driver uses them, as all have that
    /// are known.
    pub fn new() -> Result<Self, Error> {
        Self::with(DEPTH, DEPTH)
    }

    fn with(rx_size: u16, tx_size: u16) -> Result<Self, Error> {
        let (mut rx, tx) = (prepare(rx_size)?, prepare(tx_size)?);
        let rx_memory = dma::alloc(place(rx_size, RX_SLOT as usize)).ok_or(Error::NoMemory)?;
        let tx_memory = dma::alloc(place(tx_size, TX_SLOT)).ok_or(Error::NoMemory)?;
        let mut rx_slots: Box<[_]> = (0..rx_size).map(|_| None).collect();
        for slot in 0..rx_size {
            post(&mut rx, rx_memory, &mut rx_slots, slot).map_err(|_| Error::NoMemory)?;
        }
        Ok(Self { rx, rx_memory, rx_slots, tx, tx_memory })
    }
}

/// Gives a slot of `memory` to the NIC for a received frame.
fn post(
    queue: &mut Queue,
    memory: SharedMem,
    slots: &mut [Option<u16>],
    slot: u16,
) -> Result<(), Full> {
    let address = memory.address().saturating_add(place(slot, RX_SLOT as usize) as u64);
    let token = queue.add(&[Buffer { address, len: RX_SLOT, device_writes: true }])?;
    if let Some(posted) = slots.get_mut(usize::from(token)) {
        *posted = Some(slot);
    }
    Ok(())
}

/// A virtio NIC.
pub struct VirtioNet {
    device: Device,
    rx: DeviceQueue,
    tx: DeviceQueue,
    port: Port,
    features: u64,
    rx_memory: SharedMem,
    /// For each token of the rx queue: the slot that was posted.
    rx_slots: Box<[Option<u16>]>,
    tx_memory: SharedMem,
    tx_free: Vec<u16>,
    /// For each token of the tx queue: slot and cookie.
    tx_sent: Box<[Option<(u16, u32)>]>,
}

impl VirtioNet {
    /// Opens the NIC at a device slot of this domain.
    pub fn open(slot: usize, mut buffers: Buffers) -> Result<Self, Error> {
        let mut device = Device::open(slot, DeviceType::Network)?;
        // No receive offloads: guests get frames whose checksums are there.
        let features = device.negotiate(F_MAC | F_CSUM)?;
        let port = device.bind(VECTOR)?;
        let sizes = (device.slots(RX_QUEUE, DEPTH)?, device.slots(TX_QUEUE, DEPTH)?);
        if sizes != (buffers.rx.size(), buffers.tx.size()) {
            // Those that are too long for it stay where they are, unused.
            buffers = Buffers::with(sizes.0, sizes.1)?;
        }
        let mut this = Self {
            rx: device.attach(RX_QUEUE, buffers.rx, VECTOR)?,
            tx: device.attach(TX_QUEUE, buffers.tx, VECTOR)?,
            device,
            port,
            features,
            rx_memory: buffers.rx_memory,
            rx_slots: buffers.rx_slots,
            tx_memory: buffers.tx_memory,
            tx_free: (0..sizes.1).collect(),
            tx_sent: (0..sizes.1).map(|_| None).collect(),
        };
        this.device.start();
        this.rx.kick();
        hypercall::irq_unmask(port)?;
        Ok(this)
    }

    /// Port of the NIC's interrupt.
    pub fn port(&self) -> Port {
        self.port
    }

    /// The NIC's own address, if it has one.
    pub fn mac(&self) -> Option<[u8; 6]> {
        if self.features & F_MAC == 0 {
            return None;
        }
        self.device.config(CONFIG_MAC).ok()
    }

    /// Whether the NIC fills in checksums of frames that are sent.
    pub fn fills_checksums(&self) -> bool {
        self.features & F_CSUM != 0
    }

    /// Copies the next received frame out and returns its length. Frames that
    /// are too long or too short are left out. [`Self::kick`] gives the memory
    /// back to the NIC.
    pub fn receive(&mut self, to: &mut [u8]) -> Result<Option<usize>, Misbehaved> {
        while let Some(used) = self.rx.queue.pop()? {
            let posted = self.rx_slots.get_mut(usize::from(used.token));
            let slot = posted.and_then(Option::take).ok_or(Misbehaved)?;
            let len = (used.len as usize).saturating_sub(HEADER);
            let valid = (MIN_FRAME as usize..=MAX_FRAME as usize).contains(&len);
            let at = place(slot, RX_SLOT as usize).saturating_add(HEADER);
            let copied = match to.get_mut(..len) {
                Some(to) if valid => self.rx_memory.copy_from(at, to).is_ok(),
                _ => false,
            };
            // There is room: the slot just came out.
            post(&mut self.rx.queue, self.rx_memory, &mut self.rx_slots, slot)
                .map_err(|_| Misbehaved)?;
            if copied {
                return Ok(Some(len));
            }
        }
        Ok(None)
    }

    /// Whether a frame can be sent now.
    pub fn has_room(&self) -> bool {
        !self.tx_free.is_empty() && self.tx.queue.fits(MAX_SEGMENTS + 1)
    }

    /// Frames that are being sent.
    pub fn in_flight(&self) -> u16 {
        self.tx.queue.in_flight()
    }

    /// Sends a frame: `head` (at most [`MAX_HEAD`] bytes, not empty), then
    /// `rest` (at most [`MAX_SEGMENTS`] pieces). [`Self::kick`] starts it, and
    /// `cookie` comes back when the NIC no longer needs the pieces.
    pub fn send(
        &mut self,
        head: &[u8],
        rest: &[Piece],
        checksum: Option<Checksum>,
        cookie: u32,
    ) -> Result<(), Full> {
        if head.is_empty() || head.len() > MAX_HEAD || rest.len() > MAX_SEGMENTS {
            return Err(Full);
        }
        if !self.has_room() {
            return Err(Full);
        }
        let mut whole = [0; TX_SLOT];
        if let Some(checksum) = checksum {
            whole[0] = FLAG_NEEDS_CSUM;
            whole[6..8].copy_from_slice(&checksum.start.to_le_bytes());
            whole[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
        }
        let len = HEADER.saturating_add(head.len());
        whole.get_mut(HEADER..len).ok_or(Full)?.copy_from_slice(head);
        // In whole words, which is far faster; none lies beyond the slot.
        let words = whole.get(..len.next_multiple_of(8)).ok_or(Full)?;
        let slot = self.tx_free.pop().ok_or(Full)?;
        let at = place(slot, TX_SLOT);
        let _ = self.tx_memory.copy_to(at, words);
        let mut buffers = heapless::Vec::<Buffer, { MAX_SEGMENTS + 1 }>::new();
        let own = Buffer {
            address: self.tx_memory.address().saturating_add(at as u64),
            // No head is longer than its slot.
            len: u32::try_from(len).map_err(|_| Full)?,
            device_writes: false,
        };
        let pieces =
            rest.iter().map(|p| Buffer { address: p.address, len: p.len, device_writes: false });
        buffers.extend(core::iter::once(own).chain(pieces));
        match self.tx.queue.add(&buffers) {
            Ok(token) => {
                if let Some(sent) = self.tx_sent.get_mut(usize::from(token)) {
                    *sent = Some((slot, cookie));
                }
                Ok(())
            }
            Err(Full) => {
                self.tx_free.push(slot);
                Err(Full)
            }
        }
    }

    /// The next frame that the NIC is done with.
    pub fn next_sent(&mut self) -> Result<Option<u32>, Misbehaved> {
        let Some(used) = self.tx.queue.pop()? else { return Ok(None) };
        let sent = self.tx_sent.get_mut(usize::from(used.token));
        let (slot, cookie) = sent.and_then(Option::take).ok_or(Misbehaved)?;
        self.tx_free.push(slot);
        Ok(Some(cookie))
    }

    /// Shows the NIC what was sent and the memory for further frames.
    pub fn kick(&mut self) {
        self.tx.kick();
        self.rx.kick();
    }

    /// Switches interrupts off while the queues are looked at anyway.
    pub fn interrupts_off(&mut self) {
        self.rx.queue.set_interrupts(false);
        self.tx.queue.set_interrupts(false);
    }

    /// Switches interrupts on before a sleep: for the next received frame, and
    /// for the time when `sent` more frames have been sent (0 = for none).
    /// Returns whether there is something already: then do not sleep.
    pub fn interrupts_on(&mut self, sent: u16) -> bool {
        let received = self.rx.queue.set_interrupts(true);
        let sent = if sent == 0 {
            self.tx.queue.set_interrupts(false);
            false
        } else {
            self.tx.queue.interrupt_after(sent)
        };
        received || sent
    }

    /// Whether the NIC gave up. Slow.
    pub fn needs_reset(&self) -> bool {
        self.device.needs_reset()
    }
}
