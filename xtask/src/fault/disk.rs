//! The disk of the node under test: a thread that serves its image to QEMU over a
//! Unix socket, and does with one request what a trial wants.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fault::disk::nbd::{Session, Step, reply};
use fault::disk::{Armed, Disk};

/// Bytes that are received at a time: several requests.
const BUFFER: usize = 64 << 10;

/// A disk that is served while this lives.
#[derive(Debug)]
pub struct Server {
    disk: Arc<Mutex<Disk<File>>>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `image` at `socket`. Requests within `volume` can be struck.
    ///
    /// # Errors
    ///
    /// The image can't be opened, or nobody can listen there.
    pub fn start(image: &Path, volume: Range<u64>, socket: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image);
        let file = file.with_context(|| format!("the disk image {}", image.display()))?;
        let size = file.metadata()?.len();
        let disk = Arc::new(Mutex::new(Disk::new(file, size, volume)));
        let listener = UnixListener::bind(socket);
        let listener = listener.with_context(|| format!("the socket {}", socket.display()))?;
        let shared = disk.clone();
        let serve = move || {
            // QEMU connects once, and the disk ends with it.
            let served = listener.accept().map_err(anyhow::Error::from);
            let served = served.and_then(|(stream, _)| serve(stream, size, &shared));
            if let Err(why) = served {
                eprintln!("the disk under test: {why:#}");
            }
        };
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(serve)?;
        Ok(Self { disk, socket: socket.to_owned(), thread: Some(thread) })
    }

    /// Has a fault wait for its request, or none.
    pub fn arm(&self, armed: Option<Armed>) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).arm(armed);
    }

    /// Whether the fault that was armed last met its request.
    pub fn has_struck(&self) -> bool {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).has_struck()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If nobody ever came, it still waits for somebody.
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one client until it leaves.
fn serve(mut stream: UnixStream, size: u64, disk: &Mutex<Disk<File>>) -> Result<()> {
    let (mut session, greeting) = Session::new(size);
    let mut late: Vec<(Instant, Vec<u8>)> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut output = greeting;
    loop {
        if write(&mut stream, &mut output)? == Client::Left {
            return Ok(());
        }
        let wait = late.iter().map(|(due, _)| due.saturating_duration_since(Instant::now())).min();
        // Zero would mean none.
        stream.set_read_timeout(wait.map(|wait| wait.max(Duration::from_micros(1))))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => session.feed(buffer.get(..len).unwrap_or_default()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                // QEMU was killed.
                ErrorKind::ConnectionReset => return Ok(()),
                _ => return Err(error).context("can't receive"),
            },
        }
        while let Some(step) = session.step()? {
            match step {
                Step::Say(bytes) => output.extend(bytes),
                Step::Do(request) => {
                    let answer = {
                        let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
                        disk.carry_out(&request)
                    };
                    let bytes = reply(request.cookie, &answer.result);
                    match answer.late_ms {
                        0 => output.extend(bytes),
                        ms => {
                            let wait = Duration::from_millis(ms.into());
                            late.push((Instant::now() + wait, bytes));
                        }
                    }
                }
                Step::End => return Ok(()),
            }
        }
        let now = Instant::now();
        for (_, bytes) in late.extract_if(.., |(due, _)| *due <= now) {
            output.extend(bytes);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Client {
    There,
    Left,
}

fn write(stream: &mut UnixStream, output: &mut Vec<u8>) -> Result<Client> {
    match stream.write_all(output) {
        Ok(()) => {}
        Err(error)
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
        {
            return Ok(Client::Left);
        }
        Err(error) => return Err(error).context("can't send"),
    }
    output.clear();
    Ok(Client::There)
}

#[cfg(test)]
mod tests {
    use fault::disk::{Kind, Misdeed};

    use super::*;

    /// A client that has come to the point of sending requests.
    fn connect(socket: &Path) -> UnixStream {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").unwrap();
        stream.read_exact(&mut [0; 32 + 20]).unwrap();
        stream
    }

    /// Sends a read of 512 bytes at 0.
    fn ask(stream: &mut UnixStream, cookie: u8) {
        let mut bytes = b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend([cookie, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        stream.write_all(&bytes).unwrap();
    }

    /// Cookie of the next answer.
    fn answer(stream: &mut UnixStream) -> u8 {
        let mut bytes = [0; 16 + 512];
        stream.read_exact(&mut bytes).unwrap();
        bytes[15]
    }

    #[test]
    fn a_late_answer_lets_others_pass() {
        let dir = tempfile::tempdir().unwrap();
        let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
        std::fs::write(&image, [7; 4096]).unwrap();
        let server = Server::start(&image, 0..4096, &socket).unwrap();
        let mut stream = connect(&socket);
        ask(&mut stream, 1);
        assert_eq!(answer(&mut stream), 1);
        // Two orders of magnitude more than what passes it takes.
        let misdeed = Misdeed::Late { ms: 500 };
        server.arm(Some(Armed { kind: Kind::Read, after: 1, misdeed }));
        for cookie in 2..=5 {
            ask(&mut stream, cookie);
        }
        let order: Vec<u8> = (0..4).map(|_| answer(&mut stream)).collect();
        assert_eq!(order, [2, 4, 5, 3]);
        assert!(server.has_struck());
        drop(stream);
        drop(server);
    }

    #[test]
    fn it_ends_though_nobody_came() {
        let dir = tempfile::tempdir().unwrap();
        let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
        std::fs::write(&image, [7; 4096]).unwrap();
        drop(Server::start(&image, 0..4096, &socket).unwrap());
    }
}
