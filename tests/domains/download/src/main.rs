//! A guest that downloads one TCP stream for as long as its server sends, and
//! compares every byte with what must be at its offset.
//!
//! It connects once. What it has to say goes back over the same connection as
//! [`Note`]s; whatever breaks the connection, or is wrong in it, ends this
//! guest, with a record `{"failed":"…"}` on its console.
//!
//! Words of `args`, beside those of [`NetArgs`]: `server=ADDRESS`, `seed=N`
//! names the stream. `port=` is the server's.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{boxed::Box, format, string::String, vec};

use domain_rt::{boot, exec, hypercall, random, set_ready, start::text};
use embassy_executor::Spawner;
use embassy_net::{
    Config, Ipv4Address, Ipv4Cidr, Runner, Stack, StackResources, StaticConfigV4, tcp::TcpSocket,
};
use embassy_time::Duration;
use guest_io::{
    args::{Address, NetArgs},
    net::NetDevice,
};
use test_content::{
    Crc32,
    stream::{Note, first_wrong},
};

domain_rt::entry!(main);

/// Bytes of the socket's receive buffer.
const RECEIVE: usize = 64 << 10;
/// Bytes of its send buffer; notes are short.
const SEND: usize = 4 << 10;
/// Bytes between two notes.
const NOTE_EVERY: u64 = 8 << 10;
/// A silent server is asked after this long whether it is still there. A frame
/// that waits to be sent is also what shows that a driver does no work.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// … and given up after this long without an answer: far longer than a driver
/// domain may be away.
const PEER_TIMEOUT: Duration = Duration::from_secs(300);

/// What is wrong is told in words, and ends this guest.
type Outcome<T> = Result<T, String>;

fn main(_boot: &'static domain_rt::ring_proto::boot::BootInfo) -> ! {
    exec::run(|spawner| match start(spawner) {
        Ok(token) => spawner.spawn(token),
        Err(_) => log::error!("no room for the first task"),
    })
}

#[embassy_executor::task]
async fn start(spawner: Spawner) {
    if let Err(why) = download(spawner).await {
        let why = why.escape_default();
        hypercall::console_write(format!("record {{\"failed\":\"{why}\"}}\n").as_bytes());
        hypercall::exit(1);
    }
}

async fn download(spawner: Spawner) -> Outcome<()> {
    let words = text(&boot().args);
    let args = NetArgs::parse(words, |name| matches!(name, "server" | "seed"));
    let args = args.map_err(|error| format!("{error}"))?;
    let server: Ipv4Address = word(words, "server")?;
    let port = args.port.ok_or("port= is missing")?;
    let seed = word(words, "seed")?;
    let stack = start_network(spawner, &args)?;

    let mut socket = TcpSocket::new(stack, vec![0; RECEIVE].leak(), vec![0; SEND].leak());
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(PEER_TIMEOUT));
    let connected = socket.connect((server, port)).await;
    connected.map_err(|error| format!("connecting: {error:?}"))?;
    set_ready();
    let end = receive(&mut socket, seed).await?;
    send(&mut socket, end).await?;
    socket.close();
    socket.flush().await.map_err(|error| format!("closing: {error:?}"))
}

/// Receives until the server ends the stream.
async fn receive(socket: &mut TcpSocket<'_>, seed: u64) -> Outcome<Note> {
    let (mut bytes, mut noted) = (0u64, 0);
    let mut crc = Crc32::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = socket.read(&mut buffer).await;
        let count = count.map_err(|error| format!("receiving after {bytes} bytes: {error:?}"))?;
        if count == 0 {
            return Ok(Note::End { bytes, crc: crc.finalize() });
        }
        let got = buffer.get(..count).unwrap_or_default();
        if let Some(offset) = first_wrong(seed, bytes, got) {
            // It is told on the console, too, should this not arrive.
            let _ = send(socket, Note::Wrong(offset)).await;
            return Err(format!("byte {offset} of the stream is wrong"));
        }
        crc.update(got);
        bytes += count as u64;
        if bytes - noted >= NOTE_EVERY {
            noted = bytes;
            send(socket, Note::Right(bytes)).await?;
        }
    }
}

async fn send(socket: &mut TcpSocket<'_>, note: Note) -> Outcome<()> {
    let encoded = note.encode();
    let mut left = encoded.as_slice();
    while !left.is_empty() {
        let sent = socket.write(left).await;
        let sent = sent.map_err(|error| format!("sending {note:?}: {error:?}"))?;
        left = left.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// The value of `name=` among the words.
fn word<T: core::str::FromStr>(words: &str, name: &str) -> Outcome<T> {
    let mut pairs = words.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let value = pairs.find(|(found, _)| *found == name).map(|(_, value)| value);
    let value = value.and_then(|value| value.parse().ok());
    value.ok_or_else(|| format!("{name}= is missing or wrong"))
}

fn start_network(spawner: Spawner, args: &NetArgs) -> Outcome<Stack<'static>> {
    let Address::Fixed { ip, prefix, gateway } = args.address else {
        return Err("ip= is missing".into());
    };
    let config = Config::ipv4_static(StaticConfigV4 {
        address: Ipv4Cidr::new(ip, prefix),
        gateway,
        dns_servers: Default::default(),
    });
    let device = NetDevice::new().map_err(|error| format!("{error}"))?;
    let resources = Box::leak(Box::new(StackResources::<1>::new()));
    let (stack, runner) = embassy_net::new(device, config, resources, random::seed());
    spawner.spawn(run_network(runner).map_err(|_| "no room for the network task")?);
    Ok(stack)
}

#[embassy_executor::task]
async fn run_network(mut runner: Runner<'static, NetDevice>) {
    runner.run().await
}
