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

use alloc::{format, string::String, vec};

use domain_rt::{boot, exec, hypercall, set_ready, start::text};
use embassy_executor::Spawner;
use embassy_net::{Ipv4Address, tcp::TcpSocket};
use embassy_time::Duration;
use guest_io::{args::NetArgs, stack};
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
    exec::run(start)
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
    let stack = stack::start::<1>(spawner, &args).map_err(|error| format!("{error}"))?;
    stack.wait_config_up().await;

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
