//! Virtio devices over PCI.
//!
//! `virtio-drivers` gives the transport (capabilities, registers, features).
//! Its queue is not used, for three reasons: it wants Rust slices of buffers,
//! and ours lie in memory that a guest changes; its check whether to notify
//! under EVENT_IDX compares free-running indices with `>=` and so misses
//! notifications where they wrap; and its indirect tables come from the heap,
//! where the device cannot reach them. [`queue`] is a split virtqueue that
//! takes device addresses and believes nothing that the device says.

mod device;
mod pci;
pub mod queue;

pub use device::{Device, DeviceQueue, Error, prepare};
pub use virtio_drivers::transport::DeviceType;
