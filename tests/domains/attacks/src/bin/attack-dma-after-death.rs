//! A NIC that holds its dead owner's receive buffers. The first generation
//! posts them, sees that frames arrive, and dies. The second leaves the NIC
//! alone and watches: no frame may find its way into the memory that is now
//! its own, and no interrupt may come of one.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use attacks::{begin, breach, done};
use domain_rt::{
    dma, events,
    time::{MS, now_ns},
    virtio::{Device, DeviceQueue, DeviceType, queue::Buffer},
};
use ring_proto::{boot::BootInfo, event::PORT_IRQ, layout, shm::SharedMem};

domain_rt::entry!(main);

const NAME: &str = "dma-after-death";
const FRAME: u32 = 2048;
const BUFFERS: usize = 64;
/// How long the second generation watches.
const WATCH: u64 = 3000 * MS;
/// Longest wait for a frame.
const PATIENCE: u64 = 60_000 * MS;

fn main(boot: &'static BootInfo) -> ! {
    begin(NAME);
    if boot.generation == 1 {
        let (_device, mut queue) = open();
        assert!(receive(&mut queue), "no frame came: nothing is tried");
        panic!("dies with buffers posted");
    }
    let mut looks = 0u32;
    let end = now_ns() + WATCH;
    while now_ns() < end {
        looks += 1;
        if let Some((at, byte)) = stray(boot) {
            breach!(NAME, "{byte:#x} was written {at:#x} bytes into the pool");
            break;
        }
        if events::take_all().ports().any(|port| port >= PORT_IRQ) {
            breach!(NAME, "an interrupt came without a binding");
            break;
        }
        events::wait(now_ns() + MS);
    }
    // There was something to keep out.
    let (_device, mut queue) = open();
    let again = u32::from(receive(&mut queue));
    done!(NAME, "looks={looks} again={again}");
}

/// The first byte of the pool that is not zero.
fn stray(boot: &BootInfo) -> Option<(usize, u8)> {
    // SAFETY: the pool is mapped for the domain's whole life; nothing has a reference to it.
    let pool = unsafe { SharedMem::new(layout::DMA_POOL as *mut u8, boot.dma_len as usize) };
    let mut page = [0; 4096];
    (0..pool.len()).step_by(page.len()).find_map(|at| {
        pool.copy_from(at, &mut page).ok()?;
        let found = page.iter().position(|&byte| byte != 0)?;
        Some((at + found, page[found]))
    })
}

/// The NIC with all buffers posted.
fn open() -> (Device, DeviceQueue) {
    let mut device =
        Device::open(0, DeviceType::Network).unwrap_or_else(|error| panic!("the NIC: {error}"));
    let mut set_up = || {
        device.negotiate(0)?;
        let port = device.bind(0)?;
        let rx = device.queue(0, BUFFERS as u16, 0)?;
        domain_rt::hypercall::irq_unmask(port)?;
        Ok::<_, domain_rt::virtio::Error>(rx)
    };
    let mut rx = set_up().unwrap_or_else(|error| panic!("the NIC: {error}"));
    device.start();
    let memory = dma::alloc(BUFFERS * FRAME as usize).unwrap_or_else(|| panic!("no DMA memory"));
    for i in 0..u64::from(rx.queue.size()) {
        let address = memory.address() + i * u64::from(FRAME);
        let _ = rx.queue.add(&[Buffer { address, len: FRAME, device_writes: true }]);
    }
    rx.kick();
    (device, rx)
}

/// Waits for a frame.
fn receive(rx: &mut DeviceQueue) -> bool {
    let end = now_ns() + PATIENCE;
    while now_ns() < end {
        if matches!(rx.queue.pop(), Ok(Some(_))) {
            return true;
        }
        events::wait(now_ns() + MS);
        events::take_all();
    }
    false
}
