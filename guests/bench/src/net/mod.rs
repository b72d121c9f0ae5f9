//! TCP: bulk each way, and round trips of a few bytes, against the [`peer`] at
//! the other end of the wire. One stack with one set of settings serves both
//! modes and the peer; only what is below it differs.

mod fused;
mod mirror;
pub(crate) mod peer;
mod recovery;
mod ring;
mod stack;

use alloc::{vec, vec::Vec};

use domain_rt::time::{MS, now_ns};
use smoltcp::{socket::tcp, wire::Ipv4Address};

use self::stack::{Nic, Stack};
use crate::{
    args::Args,
    record::{self, Snapshot, Work},
};

pub(crate) use fused::run as fused;
pub(crate) use recovery::run as recovery;
pub(crate) use ring::run as ring;

/// Addresses of the two ends, both /24.
const OWN: Ipv4Address = Ipv4Address::new(10, 9, 0, 1);
const PEER: Ipv4Address = Ipv4Address::new(10, 9, 0, 2);
/// Ports of the peer's services.
const SINK: u16 = 9001;
const SOURCE: u16 = 9002;
const ECHO: u16 = 9003;
/// UDP port of the peer at which each datagram comes back.
const DATAGRAMS: u16 = 9004;

/// Bytes of a bulk transfer, and of the one before it that opens windows.
const BULK: u64 = 16 << 20;
const BULK_WARM_UP: u64 = 1 << 20;
/// Payload of a full frame: what counts as a request in bulk.
const SEGMENT: u64 = 1460;
/// Round trips, and bytes of each.
const TRIPS: usize = 2000;
const TRIP_BYTES: usize = 64;
/// A connection that makes no progress for so long is given up.
const STUCK: u64 = 10_000 * MS;

/// Runs the cases that are wanted; `open` is called if there are any.
fn run_all<N: Nic>(
    args: &Args,
    open: impl FnOnce() -> Result<N, &'static str>,
) -> Result<(), &'static str> {
    let [out, inward, trip] =
        ["net.tcp.out", "net.tcp.in", "net.tcp.rtt"].map(|n| args.wants(n).then_some(n));
    if out.or(inward).or(trip).is_none() {
        return Ok(());
    }
    let mut stack = Stack::new(open()?, OWN, 1);
    if let Some(name) = out {
        bulk(&mut stack, name, SINK, send)?;
    }
    if let Some(name) = inward {
        bulk(&mut stack, name, SOURCE, receive)?;
    }
    if let Some(name) = trip {
        round_trips(&mut stack, name)?;
    }
    Ok(())
}

fn bulk<N: Nic>(
    stack: &mut Stack<N>,
    name: &str,
    port: u16,
    transfer: fn(&mut Stack<N>, u64) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    stack.connect(PEER, port, now_ns().saturating_add(STUCK))?;
    transfer(stack, BULK_WARM_UP)?;
    let before = Snapshot::take();
    transfer(stack, BULK)?;
    let after = Snapshot::take();
    let work = Work { requests: BULK / SEGMENT, bytes: BULK, p50_ns: 0 };
    record::case(name, &work, &before, &after);
    stack.abort()
}

/// Sends so many bytes and waits until the peer has acknowledged them.
fn send<N: Nic>(stack: &mut Stack<N>, bytes: u64) -> Result<(), &'static str> {
    let data = vec![0x5a; 16 << 10];
    let mut left = bytes as usize;
    stack.drive(STUCK, |socket| {
        while left > 0 && socket.can_send() {
            let part = data.get(..left.min(data.len())).unwrap_or_default();
            match socket.send_slice(part) {
                Ok(0) => break,
                Ok(sent) => left -= sent,
                Err(_) => return Err("the connection broke while sending"),
            }
        }
        Ok(left == 0 && socket.send_queue() == 0)
    })
}

/// Receives at least so many bytes.
fn receive<N: Nic>(stack: &mut Stack<N>, bytes: u64) -> Result<(), &'static str> {
    let mut data = vec![0; 16 << 10];
    let mut left = bytes as usize;
    stack.drive(STUCK, |socket| {
        while left > 0 && socket.can_recv() {
            // No more than is due: the rest belongs to the next transfer.
            let most = left.min(data.len());
            let Some(part) = data.get_mut(..most) else { break };
            match socket.recv_slice(part) {
                Ok(0) => break,
                Ok(received) => left -= received,
                Err(_) => return Err("the connection broke while receiving"),
            }
        }
        Ok(left == 0)
    })
}

fn round_trips<N: Nic>(stack: &mut Stack<N>, name: &str) -> Result<(), &'static str> {
    stack.connect(PEER, ECHO, now_ns().saturating_add(STUCK))?;
    for _ in 0..TRIPS / 10 {
        trip(stack)?;
    }
    let mut times = Vec::with_capacity(TRIPS);
    let before = Snapshot::take();
    for _ in 0..TRIPS {
        let from = now_ns();
        trip(stack)?;
        times.push(now_ns() - from);
    }
    let after = Snapshot::take();
    times.sort_unstable();
    let p50_ns = times.get(TRIPS / 2).copied().unwrap_or(0);
    let bytes = (TRIPS * TRIP_BYTES) as u64;
    record::case(name, &Work { requests: TRIPS as u64, bytes, p50_ns }, &before, &after);
    stack.abort()
}

fn trip<N: Nic>(stack: &mut Stack<N>) -> Result<(), &'static str> {
    let mut sent = false;
    let mut back = 0;
    stack.drive(STUCK, |socket: &mut tcp::Socket<'_>| {
        let mut data = [0x5a; TRIP_BYTES];
        if !sent {
            sent = true;
            if socket.send_slice(&data) != Ok(TRIP_BYTES) {
                return Err("a ping was not taken");
            }
        }
        while socket.can_recv() {
            back += socket.recv_slice(&mut data).map_err(|_| "the echo broke")?;
        }
        Ok(back >= TRIP_BYTES)
    })
}
