#![allow(unsafe_code)]
//! A virtio function that this domain owns.

use core::{fmt, ptr::NonNull, sync::atomic::Ordering};

use ring_proto::Port;
use virtio_drivers::transport::{
    DeviceStatus, DeviceType, Transport,
    pci::{PciTransport, VirtioPciError, bus::ConfigurationAccess, bus::PciRoot},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    pci::Config,
    queue::{Layout, Queue},
};
use crate::{
    device::{Bar, Function},
    dma::{self, DmaHal},
    hypercall,
    time::{MS, now_ns},
};

/// Feature bits that concern every device.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;

/// How long a reset may take.
const RESET_NS: u64 = 500 * MS;

/// Registers of `virtio_pci_common_cfg` that the transport leaves alone.
const MSIX_CONFIG: usize = 0x10;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_NOTIFY_OFF: usize = 0x1e;

const CAP_VENDOR: u8 = 9;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;

/// Why a device cannot be used.
#[derive(Debug)]
pub enum Error {
    /// The domain has no device at this slot.
    NoDevice,
    /// It is not what the driver drives.
    WrongType(DeviceType),
    /// It lacks something of virtio over PCI.
    Pci(VirtioPciError),
    /// A capability points out of its BAR.
    BadCapability,
    /// It did not come out of reset.
    ResetTimeout,
    /// It does not answer a request.
    Timeout,
    /// It lacks VERSION_1 or refused the features that it offered.
    Features,
    /// It bypasses the IOMMU (no ACCESS_PLATFORM): nothing would confine it.
    Unconfined,
    /// It has no such queue, or one too small.
    NoQueue(u16),
    /// It refused an interrupt vector.
    NoVector,
    /// The DMA pool is used up.
    NoMemory,
    /// The hypervisor refused something.
    Hypervisor(hypercall::Error),
    /// It broke the rules while it was served.
    Misbehaved,
    /// Its configuration cannot be read.
    Config,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("this domain owns no such device"),
            Self::WrongType(kind) => write!(f, "the device is a {kind:?}"),
            Self::Pci(error) => write!(f, "{error}"),
            Self::BadCapability => f.write_str("a capability points out of its BAR"),
            Self::ResetTimeout => f.write_str("the device does not come out of reset"),
            Self::Timeout => f.write_str("the device does not answer"),
            Self::Features => f.write_str("the device refuses the features that it offers"),
            Self::Unconfined => {
                f.write_str("the device bypasses the IOMMU (with QEMU: iommu_platform=on)")
            }
            Self::NoQueue(queue) => write!(f, "the device lacks queue {queue}"),
            Self::NoVector => f.write_str("the device refuses an interrupt vector"),
            Self::NoMemory => f.write_str("the DMA pool is too small"),
            Self::Hypervisor(error) => write!(f, "the hypervisor says {error:?}"),
            Self::Misbehaved => f.write_str("the device broke the rules of its queue"),
            Self::Config => f.write_str("the device's configuration cannot be read"),
        }
    }
}

impl From<hypercall::Error> for Error {
    fn from(error: hypercall::Error) -> Self {
        Self::Hypervisor(error)
    }
}

impl From<VirtioPciError> for Error {
    fn from(error: VirtioPciError) -> Self {
        Self::Pci(error)
    }
}

/// A virtio function. The order of use: [`Device::open`], [`Device::negotiate`],
/// [`Device::queue`] for each queue, [`Device::start`].
pub struct Device {
    transport: PciTransport,
    function: Function,
    common: Bar,
    notify: Bar,
    notify_multiplier: usize,
    features: u64,
}

/// A queue of a device and the place to notify it.
pub struct DeviceQueue {
    /// The queue.
    pub queue: Queue,
    index: u16,
    bell: NonNull<u16>,
}

impl DeviceQueue {
    /// Shows the device what was added and notifies it if it wants that.
    /// Returns whether it was notified.
    pub fn kick(&mut self) -> bool {
        let wanted = self.queue.publish();
        if wanted {
            // SAFETY: the queue's notification register; checked when made.
            unsafe { self.bell.write_volatile(self.index) };
        }
        wanted
    }
}

impl Device {
    /// Finds the device of `slot`, resets it, and has the hypervisor let it
    /// reach memory.
    ///
    /// The reset comes first: before it the device may still hold the rings of
    /// an earlier generation, and must not get at memory with them.
    pub fn open(slot: usize, kind: DeviceType) -> Result<Self, Error> {
        let mut this = Self::find(slot, kind)?;
        this.reset()?;
        hypercall::device_enable(slot, true)?;
        Ok(this)
    }

    /// Finds the device of `slot` as it is.
    pub fn find(slot: usize, kind: DeviceType) -> Result<Self, Error> {
        let function = Function::at(slot).ok_or(Error::NoDevice)?;
        let config = Config::new(slot, function.boot);
        let (common, _) = find(&function, &config, CAP_COMMON)?;
        let (notify, multiplier) = find(&function, &config, CAP_NOTIFY)?;
        let address = config.function();
        let transport = PciTransport::new::<DmaHal, _>(&mut PciRoot::new(config), address)?;
        if transport.device_type() != kind {
            return Err(Error::WrongType(transport.device_type()));
        }
        Ok(Self {
            transport,
            function,
            common,
            notify,
            notify_multiplier: multiplier as usize,
            features: 0,
        })
    }

    /// Nobody has used it since its last reset.
    pub fn is_reset(&self) -> bool {
        self.transport.get_status().is_empty()
    }

    /// Resets the device: afterwards it touches no memory.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.transport.set_status(DeviceStatus::empty());
        let deadline = now_ns().saturating_add(RESET_NS);
        while self.transport.get_status() != DeviceStatus::empty() {
            if now_ns() > deadline {
                return Err(Error::ResetTimeout);
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// Agrees on features: those of `wanted` that the device offers, beside
    /// what this module needs. Returns them.
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64, Error> {
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.transport.set_status(status);
        let offered = self.transport.read_device_features();
        let features = offered & (wanted | VERSION_1 | ACCESS_PLATFORM | INDIRECT_DESC | EVENT_IDX);
        if features & VERSION_1 == 0 {
            return Err(Error::Features);
        }
        self.transport.write_driver_features(features);
        status |= DeviceStatus::FEATURES_OK;
        self.transport.set_status(status);
        if !self.transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(Error::Features);
        }
        if features & ACCESS_PLATFORM == 0 {
            return Err(Error::Unconfined);
        }
        self.features = features;
        Ok(features)
    }

    /// Reads a field of the device's configuration.
    pub fn config<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        self.transport.read_config_space(offset).map_err(|_| Error::Config)
    }

    /// How many slots queue `index` can have, a power of two up to `max`.
    pub fn slots(&mut self, index: u16, max: u16) -> Result<u16, Error> {
        let offered = self.transport.max_queue_size(index);
        let offered = u16::try_from(offered).unwrap_or(u16::MAX).min(max);
        // The largest power of two that fits.
        if offered < 2 { Err(Error::NoQueue(index)) } else { Ok(1 << offered.ilog2()) }
    }

    /// Sets up queue `index` with up to `max` slots and binds its interrupt to
    /// the port of `vector`.
    pub fn queue(&mut self, index: u16, max: u16, vector: u16) -> Result<DeviceQueue, Error> {
        let size = self.slots(index, max)?;
        self.attach(index, prepare(size)?, vector)
    }

    /// The same with a queue that was prepared and may have chains in it; not
    /// with more slots than [`Self::slots`] says.
    pub fn attach(
        &mut self,
        index: u16,
        mut queue: Queue,
        vector: u16,
    ) -> Result<DeviceQueue, Error> {
        let size = queue.size();
        if self.slots(index, size)? != size {
            return Err(Error::NoQueue(index));
        }
        queue.agree(self.features & EVENT_IDX != 0, self.features & INDIRECT_DESC != 0);
        self.common.write16(QUEUE_SELECT, index);
        self.common.write16(QUEUE_MSIX_VECTOR, vector);
        if self.common.read16(QUEUE_MSIX_VECTOR) != vector {
            return Err(Error::NoVector);
        }
        let at = usize::from(self.common.read16(QUEUE_NOTIFY_OFF))
            .checked_mul(self.notify_multiplier)
            .ok_or(Error::BadCapability)?;
        let bell = self.notify.register(at).ok_or(Error::BadCapability)?;
        let [descriptors, avail, used] = queue.areas();
        // The tables must be in memory before the device learns of them.
        core::sync::atomic::fence(Ordering::SeqCst);
        self.transport.queue_set(index, size.into(), descriptors, avail, used);
        Ok(DeviceQueue { queue, index, bell })
    }

    /// Routes MSI-X entry `vector` to a port of this domain, still masked.
    pub fn bind(&mut self, vector: u16) -> Result<Port, Error> {
        self.function.bind(vector).map_err(|error| match error {
            hypercall::Error::BadArgument => Error::NoVector,
            error => Error::Hypervisor(error),
        })
    }

    /// Has changes of the configuration signalled by `vector`.
    pub fn set_config_vector(&mut self, vector: u16) -> Result<(), Error> {
        self.common.write16(MSIX_CONFIG, vector);
        if self.common.read16(MSIX_CONFIG) != vector {
            return Err(Error::NoVector);
        }
        Ok(())
    }

    /// Lets the device work.
    pub fn start(&mut self) {
        self.transport.set_status(
            DeviceStatus::ACKNOWLEDGE
                | DeviceStatus::DRIVER
                | DeviceStatus::FEATURES_OK
                | DeviceStatus::DRIVER_OK,
        );
    }

    /// Whether the device that was started gave up and wants a reset, was reset,
    /// or is gone: then it reads as all ones, or as nothing.
    pub fn needs_reset(&self) -> bool {
        let status = self.transport.get_status();
        status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
            || !status.contains(DeviceStatus::DRIVER_OK)
    }
}

/// A queue of `size` slots (a power of two) in DMA memory, which no device knows
/// of yet: it needs none, so a spare makes it before it has one.
pub fn prepare(size: u16) -> Result<Queue, Error> {
    let layout = Layout::new(size);
    let memory = dma::alloc(layout.len()).ok_or(Error::NoMemory)?;
    Queue::new(memory, layout).ok_or(Error::NoMemory)
}

/// The registers that the first capability of a kind names, and the word after
/// the usual fields (the notify capability's multiplier).
fn find(owned: &Function, config: &Config, kind: u8) -> Result<(Bar, u32), Error> {
    let function = config.function();
    let root = PciRoot::new(config.clone());
    for capability in root.capabilities(function).take(48) {
        let cfg_type = (capability.private_header >> 8) as u8;
        if capability.id != CAP_VENDOR || cfg_type != kind {
            continue;
        }
        let word = |at: u8| {
            capability.offset.checked_add(at).map_or(0, |at| config.read_word(function, at))
        };
        let [bar, ..] = word(4).to_le_bytes();
        let (offset, len) = (u64::from(word(8)), u64::from(word(12)));
        let multiplier = if kind == CAP_NOTIFY { word(16) } else { 0 };
        let registers = owned.bar(usize::from(bar)).and_then(|bar| bar.part(offset, len));
        let registers = registers.filter(|_| offset.is_multiple_of(4));
        return Ok((registers.ok_or(Error::BadCapability)?, multiplier));
    }
    Err(Error::BadCapability)
}
