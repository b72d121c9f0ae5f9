//! A client and the server on two ends of a pipe, over a disk in RAM, with a
//! clock that jumps ahead whenever nobody can go on.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use kv_http::{Buffers, Clock, End, Service, serve};
use kv_store::{BLOCK, BlockDevice, Store};

/// Time, and whether anything happens at all.
#[derive(Default)]
pub struct World {
    now: Cell<u64>,
    moved: Cell<bool>,
    next_timer: Cell<Option<u64>>,
}

impl World {
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Runs to the end; panics if nobody can ever go on.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            self.moved.set(false);
            self.next_timer.set(None);
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return value;
            }
            if !self.moved.get() {
                self.now.set(self.next_timer.get().expect("nobody can go on"));
            }
        }
    }
}

impl Clock for World {
    fn now_ms(&self) -> u64 {
        self.now.get()
    }

    async fn sleep_ms(&self, ms: u64) {
        let until = self.now.get() + ms;
        poll_fn(|_| {
            if self.now.get() >= until {
                return Poll::Ready(());
            }
            self.next_timer.set(Some(self.next_timer.get().map_or(until, |t| t.min(until))));
            Poll::Pending
        })
        .await;
    }
}

struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    room: usize,
}

/// One end of a connection.
pub struct Stream {
    world: Rc<World>,
    rx: Rc<RefCell<Pipe>>,
    tx: Rc<RefCell<Pipe>>,
    /// Most bytes that one read returns, in turn; the last one stays.
    pub reads: VecDeque<usize>,
    /// Likewise for writes.
    pub writes: usize,
}

/// Two ends of a connection that holds `room` bytes each way.
pub fn pipe(world: &Rc<World>, room: usize) -> (Stream, Stream) {
    let new = || Rc::new(RefCell::new(Pipe { bytes: VecDeque::new(), ended: false, room }));
    let (a, b) = (new(), new());
    let stream = |rx: &Rc<_>, tx: &Rc<_>| Stream {
        world: world.clone(),
        rx: Rc::clone(rx),
        tx: Rc::clone(tx),
        reads: VecDeque::from([usize::MAX]),
        writes: usize::MAX,
    };
    (stream(&a, &b), stream(&b, &a))
}

impl Stream {
    /// Nothing more will be sent; what was sent can be read.
    pub fn end(&self) {
        self.tx.borrow_mut().ended = true;
        self.world.moved.set(true);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
        self.rx.borrow_mut().ended = true;
    }
}

impl ErrorType for Stream {
    type Error = ErrorKind;
}

impl Read for Stream {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        let most =
            if self.reads.len() > 1 { self.reads.pop_front() } else { self.reads.front().copied() };
        let most = most.unwrap_or(usize::MAX).min(buf.len());
        poll_fn(|_| {
            let mut pipe = self.rx.borrow_mut();
            let n = pipe.bytes.len().min(most);
            if n == 0 && !pipe.ended {
                return Poll::Pending;
            }
            self.world.moved.set(true);
            for (to, from) in buf.iter_mut().zip(pipe.bytes.drain(..n)) {
                *to = from;
            }
            Poll::Ready(Ok(n))
        })
        .await
    }
}

impl Write for Stream {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, ErrorKind> {
        poll_fn(|_| {
            let mut pipe = self.tx.borrow_mut();
            if pipe.ended {
                return Poll::Ready(Err(ErrorKind::BrokenPipe));
            }
            let n = (pipe.room - pipe.bytes.len()).min(buf.len()).min(self.writes);
            if n == 0 {
                return Poll::Pending;
            }
            self.world.moved.set(true);
            pipe.bytes.extend(&buf[..n]);
            Poll::Ready(Ok(n))
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

/// A disk in RAM that can pause and fail.
pub struct Disk {
    world: Rc<World>,
    bytes: RefCell<Vec<u8>>,
    pub faults: Rc<Faults>,
}

/// What is wrong with the disk.
#[derive(Default)]
pub struct Faults {
    /// Nothing completes before this time.
    pub paused_until: Cell<u64>,
    pub reads_fail: Cell<bool>,
    pub writes_fail: Cell<bool>,
}

impl Disk {
    async fn access(&self, fails: bool) -> Result<(), &'static str> {
        let wait = self.faults.paused_until.get().saturating_sub(self.world.now());
        if wait > 0 {
            self.world.sleep_ms(wait).await;
        }
        if fails { Err("broken disk") } else { Ok(()) }
    }
}

impl BlockDevice for Disk {
    type Error = &'static str;

    fn blocks(&self) -> u64 {
        (self.bytes.borrow().len() / BLOCK) as u64
    }

    async fn read(&self, block: u64, buf: &mut [u8]) -> Result<(), Self::Error> {
        self.access(self.faults.reads_fail.get()).await?;
        let at = block as usize * BLOCK;
        buf.copy_from_slice(&self.bytes.borrow()[at..at + buf.len()]);
        Ok(())
    }

    async fn write(&self, block: u64, buf: &[u8]) -> Result<(), Self::Error> {
        self.access(self.faults.writes_fail.get()).await?;
        let at = block as usize * BLOCK;
        self.bytes.borrow_mut()[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Self::Error> {
        self.access(self.faults.writes_fail.get()).await
    }
}

/// A server's surroundings.
pub struct Fixture {
    pub world: Rc<World>,
    pub store: Store<Disk>,
    pub faults: Rc<Faults>,
    buffers: RefCell<Option<Buffers>>,
}

impl Fixture {
    /// A fresh store on `mib` MiB.
    pub fn new(mib: usize) -> Self {
        let world = Rc::new(World::default());
        let faults = Rc::new(Faults::default());
        let disk = Disk {
            world: world.clone(),
            bytes: RefCell::new(vec![0; mib << 20]),
            faults: faults.clone(),
        };
        let store = world.run(Store::mount(disk)).expect("mount");
        Self { world, store, faults, buffers: RefCell::new(Some(Buffers::new())) }
    }

    /// Runs a client against the server. Ends when the client is done and the
    /// server has ended too.
    pub fn talk<F: AsyncFnOnce(Stream) -> R, R>(&self, client: F) -> (R, End) {
        let (ours, theirs) = pipe(&self.world, 1 << 16);
        self.talk_over(ours, theirs, client)
    }

    pub fn talk_over<F: AsyncFnOnce(Stream) -> R, R>(
        &self,
        mut ours: Stream,
        theirs: Stream,
        client: F,
    ) -> (R, End) {
        let mut buffers = self.buffers.take().unwrap_or_default();
        let server = async {
            let end =
                serve(&mut ours, &*self.world, &mut buffers, Service::Ready(&self.store)).await;
            drop(ours);
            end
        };
        let result = self.world.run(embassy_futures::join::join(client(theirs), server));
        self.buffers.replace(Some(buffers));
        result
    }

    /// Sends `bytes` and the end of the stream; returns all that comes back.
    pub fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        self.talk(async |mut s| {
            let _ = s.write_all(bytes).await;
            s.end();
            read_all(&mut s).await
        })
        .0
    }
}

pub async fn read_all(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        all.extend_from_slice(&buf[..n]);
    }
    all
}

/// An answer as a client sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8 body")
    }
}

/// Takes the first answer off `bytes`. `None`: it is not complete.
pub fn take_answer(bytes: &mut Vec<u8>, to_head: bool) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("ASCII head");
    let status = head[9..12].parse().expect("status");
    let mut answer = Answer { status, head, body: Vec::new() };
    let mut at = end;
    if to_head || status == 204 || status < 200 {
    } else if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16)
                .expect("chunk size");
            at += line + 2;
            answer.body.extend_from_slice(bytes.get(at..at + size)?);
            at += size;
            assert_eq!(bytes.get(at..at + 2)?, b"\r\n");
            at += 2;
            if size == 0 {
                break;
            }
        }
    } else if let Some(len) = answer.header("content-length") {
        let len: usize = len.parse().expect("Content-Length");
        answer.body = bytes.get(at..at + len)?.to_vec();
        at += len;
    } else {
        answer.body = bytes[at..].to_vec();
        at = bytes.len();
    }
    bytes.drain(..at);
    Some(answer)
}

/// A client that keeps its connection.
pub struct Client {
    pub stream: Stream,
    pub received: Vec<u8>,
}

impl Client {
    pub fn new(stream: Stream) -> Self {
        Self { stream, received: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("send");
    }

    /// The next answer; `None` at the end of the stream.
    pub async fn answer(&mut self) -> Option<Answer> {
        self.answer_to(false).await
    }

    pub async fn answer_to(&mut self, to_head: bool) -> Option<Answer> {
        let mut buf = vec![0; 1 << 16];
        loop {
            if let Some(answer) = take_answer(&mut self.received, to_head) {
                return Some(answer);
            }
            match self.stream.read(&mut buf).await {
                Ok(n @ 1..) => self.received.extend_from_slice(&buf[..n]),
                _ => return None,
            }
        }
    }

    /// Sends a request without a body and returns its answer.
    pub async fn request(&mut self, method: &str, target: &str) -> Answer {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: kv\r\n\r\n")).await;
        self.answer_to(method == "HEAD").await.expect("an answer")
    }

    pub async fn put(&mut self, target: &str, value: &[u8]) -> Answer {
        self.send(format!(
            "PUT {target} HTTP/1.1\r\nHost: kv\r\nContent-Length: {}\r\n\r\n",
            value.len()
        ))
        .await;
        self.send(value).await;
        self.answer().await.expect("an answer")
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        let mut x = self.0 | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
