//! A NIC in the hands of the attacker: frames made of others' memory go out,
//! where the test's capture sees them; buffers for received frames lie in
//! others' memory, and the answers to address requests are to overwrite it.
#![no_std]
#![no_main]

use attacks::{begin, done, targets};
use domain_rt::{
    dma, events,
    time::now_ns,
    virtio::{Device, DeviceQueue, DeviceType, queue::Buffer},
};
use ring_proto::{boot::BootInfo, shm::SharedMem};

domain_rt::entry!(main);

const NAME: &str = "dma-nic";

const HEADER: usize = 12;
const RX: u16 = 0;
const TX: u16 = 1;
/// Bytes that each frame takes from a target.
const TAKE: u32 = 256;
/// Ethertype for local experiments: marks our frames in the capture.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Longest wait for the device to finish something, ns.
const PATIENCE: u64 = 200_000_000;

struct Nic {
    rx: DeviceQueue,
    tx: DeviceQueue,
    _device: Device,
}

fn open() -> Nic {
    let mut device = Device::open(0, DeviceType::Network).expect("the NIC opens");
    device.negotiate(0).expect("features agree");
    let port = device.bind(0).expect("the interrupt binds");
    let rx = device.queue(RX, 64, 0).expect("there is a receive queue");
    let tx = device.queue(TX, 64, 0).expect("there is a send queue");
    device.start();
    domain_rt::hypercall::irq_unmask(port).expect("the interrupt unmasks");
    Nic { rx, tx, _device: device }
}

/// Waits until the queue has finished something or patience ends.
fn finish(queue: &mut DeviceQueue) -> bool {
    let end = now_ns() + PATIENCE;
    while now_ns() < end {
        match queue.queue.pop() {
            Ok(Some(_)) => return true,
            Ok(None) => events::wait(now_ns() + PATIENCE / 20),
            Err(_) => return false,
        }
        events::take_all();
    }
    false
}

fn main(_: &'static BootInfo) -> ! {
    begin(NAME);
    let mut nic = open();
    let head = dma::alloc(64).expect("there is DMA memory");
    let mut tries = 0;
    for address in targets::all() {
        send(&mut nic, head, address);
        tries += 1;
    }
    // Receive buffers at the targets, a few at a time, and frames to fill them.
    let places = targets::PLACES.into_iter();
    for address in places.chain(targets::all().step_by(16)) {
        let buffer = Buffer { address, len: 2048, device_writes: true };
        if nic.rx.queue.add(&[buffer]).is_err() {
            break;
        }
        nic.rx.kick();
        ask_for_address(&mut nic, head);
        // Where the device drops the answer it keeps the buffer for the next.
        finish(&mut nic.rx);
        tries += 1;
    }
    done!(NAME, "tried={tries}");
}

/// A frame whose payload the NIC is to fetch from `address`.
fn send(nic: &mut Nic, head: SharedMem, address: u64) {
    let mut bytes = [0; HEADER + 14];
    bytes[HEADER..HEADER + 6].fill(0xff);
    bytes[HEADER + 6..HEADER + 12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[HEADER + 12..].copy_from_slice(&ETHERTYPE);
    head.copy_to(0, &bytes).expect("within the buffer");
    let buffers = [
        Buffer { address: head.address(), len: bytes.len() as u32, device_writes: false },
        Buffer { address, len: TAKE, device_writes: false },
    ];
    if nic.tx.queue.add(&buffers).is_ok() {
        nic.tx.kick();
        finish(&mut nic.tx);
    }
}

/// A broadcast ARP request for the gateway, which is answered at once.
fn ask_for_address(nic: &mut Nic, head: SharedMem) {
    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let mut bytes = [0; HEADER + 42];
    let frame = &mut bytes[HEADER..];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&MAC);
    frame[28..32].copy_from_slice(&[10, 0, 2, 15]);
    frame[38..42].copy_from_slice(&[10, 0, 2, 2]);
    head.copy_to(0, &bytes).expect("within the buffer");
    let buffer = Buffer { address: head.address(), len: bytes.len() as u32, device_writes: false };
    if nic.tx.queue.add(&[buffer]).is_ok() {
        nic.tx.kick();
        finish(&mut nic.tx);
    }
}
