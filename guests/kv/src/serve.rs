//! The TCP side: a fixed number of sockets, each served by a task of its own.
//!
//! smoltcp has no backlog: a connection needs a socket that listens at that
//! moment. So there are more sockets than connections to be served at a time,
//! and a socket is back to listening as soon as its client is done.

use alloc::{boxed::Box, vec};
use core::cell::Cell;

use domain_rt::{exec, time};
use embassy_executor::Spawner;
use embassy_futures::{select::select, yield_now};
use embassy_net::{Stack, tcp::TcpSocket};
use embassy_time::Duration;
use kv_http::{Buffers, Clock, End, Service, serve};

use crate::volume::Volume;

/// Sockets: 16 connections at a time, and as many again that are just being
/// opened or closed.
pub(crate) const SOCKETS: usize = 32;
/// Bytes of each socket's receive and of its send buffer.
const SOCKET_BUFFER: usize = 48 << 10;
/// A silent peer is asked after this long whether it is still there. A driver
/// that does no work is found by what it does not send, so a guest that only
/// waits for its clients must send something now and then; well before
/// [`kv_http::CLIENT_IDLE_MS`], when the clients would be given up …
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// … and given up after this long without an answer: far longer than a driver
/// domain, or a network, may be away.
const PEER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a client may take to close its side after the last answer.
const CLOSE_MS: u64 = 5_000;
/// How long a reset may take to go out.
const RESET_MS: u64 = 1_000;

/// The node's clock, for kv-http.
struct NodeClock;

impl Clock for NodeClock {
    fn now_ms(&self) -> u64 {
        time::now_ns() / time::MS
    }

    async fn sleep_ms(&self, ms: u64) {
        sleep_ms(ms).await;
    }
}

/// Sleeps for `ms` milliseconds.
pub(crate) async fn sleep_ms(ms: u64) {
    exec::sleep_until(time::now_ns().saturating_add(ms.saturating_mul(time::MS))).await;
}

/// What all server tasks share.
pub(crate) struct Server {
    stack: Stack<'static>,
    service: Service<'static, Volume>,
    port: u16,
    /// Tasks that reached their first `accept`.
    listening: Cell<usize>,
}

impl Server {
    pub(crate) fn new(stack: Stack<'static>, service: Service<'static, Volume>, port: u16) -> Self {
        Self { stack, service, port, listening: Cell::new(0) }
    }

    /// Starts all tasks and returns when they listen.
    pub(crate) async fn start(&'static self, spawner: Spawner) {
        for _ in 0..SOCKETS {
            match run(self) {
                Ok(token) => spawner.spawn(token),
                // The pool has just this many places.
                Err(_) => break,
            }
        }
        while self.listening.get() < SOCKETS {
            yield_now().await;
        }
    }
}

#[embassy_executor::task(pool_size = SOCKETS)]
async fn run(server: &'static Server) {
    let rx = Box::leak(vec![0; SOCKET_BUFFER].into_boxed_slice());
    let tx = Box::leak(vec![0; SOCKET_BUFFER].into_boxed_slice());
    let mut socket = TcpSocket::new(server.stack, rx, tx);
    let mut buffers = Buffers::new();
    // The server writes whole answers, so waiting to fill a segment only delays.
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(PEER_TIMEOUT));
    server.listening.set(server.listening.get() + 1);
    loop {
        if let Err(error) = socket.accept(server.port).await {
            log::warn!("accept failed: {error:?}");
            sleep_ms(1_000).await;
            continue;
        }
        let end = serve(&mut socket, &NodeClock, &mut buffers, server.service).await;
        hang_up(&mut socket, end).await;
    }
}

/// Ends a connection so that the socket can listen again.
async fn hang_up(socket: &mut TcpSocket<'_>, end: End) {
    match end {
        End::Close => {
            socket.close();
            // A reset while the client still reads could cost it the end of
            // the last answer, so its own end is awaited, for a while.
            let client_ends = async {
                let mut rest = [0; 512];
                while let Ok(1..) = socket.read(&mut rest).await {}
                let _ = socket.flush().await;
            };
            select(client_ends, sleep_ms(CLOSE_MS)).await;
            socket.abort();
        }
        End::Abort => {
            socket.abort();
            select(socket.flush(), sleep_ms(RESET_MS)).await;
        }
    }
}
