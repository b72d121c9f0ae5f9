//! The server of a stream that a guest (`tests/domains/download`) downloads.
//!
//! It takes one connection, ever, and sends until it is told to end. The guest
//! says over the same connection how far it got; the server never is far ahead
//! of that, so what it sends now the guest has within moments, or does not get
//! at all.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use test_content::{
    Crc32,
    stream::{Note, fill},
};

use crate::runner::wait_for;

/// Bytes that are sent at a time.
const CHUNK: usize = 8 << 10;
/// Bytes that may be under way.
const AHEAD: u64 = 256 << 10;
/// Time from one chunk to the next: a bound on the rate, 2 MiB/s, that leaves
/// the guest's neighbours something of the machine.
const PACE: Duration = Duration::from_millis(4);
/// Pause between looks at something that is not there yet.
const PAUSE: Duration = Duration::from_millis(5);

/// A stream and how far it got.
#[derive(Debug)]
pub struct Download {
    listener: TcpListener,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The stream is to end.
    end: bool,
    /// Bytes that were sent, or are being sent.
    sent: u64,
    /// Of these, what the guest found right.
    right: u64,
    /// All that was sent, once the stream has ended.
    whole: Option<Note>,
    /// What the guest says of it.
    told: Option<Note>,
    /// The guest closed the connection after that.
    closed: bool,
    failure: Option<String>,
}

impl Download {
    /// Takes a port of the host's loopback for the stream that `seed` names.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub fn new(seed: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, seed, state: Mutex::default() })
    }

    /// Its port.
    ///
    /// # Errors
    ///
    /// The host does not say.
    pub fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Names its stream.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Serves until the stream has ended or failed. To be run in a thread of
    /// its own; `limit` is for the client to come, and for each thing that it
    /// says after that.
    pub fn serve(&self, limit: Duration) {
        self.note(self.try_serve(limit));
    }

    /// Fails if the stream has.
    ///
    /// # Errors
    ///
    /// That.
    pub fn no_failure(&self) -> Result<()> {
        let state = self.state();
        state.failure.as_ref().map_or(Ok(()), |why| bail!("the download: {why}"))
    }

    /// Waits until the guest has got what is sent from now on.
    ///
    /// # Errors
    ///
    /// It does not, or the stream has failed.
    pub fn wait_progress(&self, limit: Duration) -> Result<()> {
        let sent = self.state().sent;
        wait_for(&format!("byte {sent} of the download"), limit, || {
            self.no_failure()?;
            Ok((self.state().right > sent).then_some(()))
        })
    }

    /// Ends the stream and waits for the guest to have got all of it, and to
    /// have closed its end; gives the stream's length.
    ///
    /// # Errors
    ///
    /// It has not, or got something else.
    pub fn end(&self, limit: Duration) -> Result<u64> {
        self.state().end = true;
        wait_for("the end of the download", limit, || {
            self.no_failure()?;
            Ok(self.state().closed.then_some(()))
        })?;
        let state = self.state();
        ensure!(state.whole == state.told, "the guest got {:?} of {:?}", state.told, state.whole);
        Ok(state.sent)
    }

    /// Has [`Download::serve`] return, whatever state the stream is in.
    pub fn give_up(&self) {
        self.note(Err(anyhow::anyhow!("it was given up")));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, outcome: Result<()>) {
        if let Err(why) = outcome {
            self.state().failure.get_or_insert(format!("{why:#}"));
        }
    }

    fn is_over(&self) -> bool {
        let state = self.state();
        state.closed || state.failure.is_some()
    }

    fn try_serve(&self, limit: Duration) -> Result<()> {
        let client = wait_for("the client", limit, || {
            self.no_failure()?;
            self.accept()
        })?;
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        client.set_write_timeout(Some(limit))?;
        client.set_read_timeout(Some(PAUSE))?;
        std::thread::scope(|scope| {
            scope.spawn(|| self.note(self.send(&client)));
            scope.spawn(|| self.note(self.receive(&client, limit)));
            // It ends: `receive` notes a failure when the guest says nothing for `limit`.
            while !self.is_over() {
                match self.accept() {
                    Ok(Some(_)) => self.note(Err(anyhow::anyhow!("the guest connected again"))),
                    other => self.note(other.map(drop)),
                }
                sleep(PAUSE);
            }
        });
        Ok(())
    }

    fn accept(&self) -> Result<Option<TcpStream>> {
        match self.listener.accept() {
            Ok((client, _)) => Ok(Some(client)),
            Err(why) if why.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(why) => Err(why).context("accept"),
        }
    }

    fn send(&self, mut client: &TcpStream) -> Result<()> {
        let mut crc = Crc32::new();
        let mut chunk = [0; CHUNK];
        while !self.is_over() {
            let (end, sent, right) = {
                let state = self.state();
                (state.end, state.sent, state.right)
            };
            if end {
                // Before the guest can hear of it.
                self.state().whole = Some(Note::End { bytes: sent, crc: crc.finalize() });
                return client.shutdown(Shutdown::Write).context("ending");
            }
            if sent - right > AHEAD {
                sleep(PAUSE);
                continue;
            }
            fill(self.seed, sent, &mut chunk);
            crc.update(&chunk);
            self.state().sent += CHUNK as u64;
            client.write_all(&chunk).with_context(|| format!("sending byte {sent} and on"))?;
            sleep(PACE);
        }
        Ok(())
    }

    fn receive(&self, mut client: &TcpStream, limit: Duration) -> Result<()> {
        let (mut note, mut have) = ([0; Note::LEN], 0);
        let mut heard = Instant::now();
        while !self.is_over() {
            match client.read(&mut note[have..]) {
                Ok(0) => {
                    let mut state = self.state();
                    let State { told, right, .. } = *state;
                    ensure!(told.is_some(), "the guest hung up after {right} bytes");
                    state.closed = true;
                }
                Ok(count) => (have, heard) = (have + count, Instant::now()),
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let seconds = limit.as_secs();
                    ensure!(heard.elapsed() < limit, "the guest said nothing for {seconds} s");
                }
                Err(why) => return Err(why).context("receiving"),
            }
            if have == note.len() {
                have = 0;
                self.hear(note)?;
            }
        }
        Ok(())
    }

    fn hear(&self, bytes: [u8; Note::LEN]) -> Result<()> {
        let mut state = self.state();
        ensure!(state.told.is_none(), "the guest said {bytes:?} after the end");
        match Note::decode(bytes) {
            Some(Note::Right(right)) => {
                let possible = (state.right..=state.sent).contains(&right);
                ensure!(possible, "the guest got {right} bytes of {}", state.sent);
                state.right = right;
            }
            Some(Note::Wrong(offset)) => bail!("byte {offset} is wrong"),
            Some(end @ Note::End { .. }) => state.told = Some(end),
            None => bail!("the guest said {bytes:?}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use test_content::stream::first_wrong;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Runs a server against a client of the host; gives what `judge` makes of the server.
    fn with<T>(
        client: impl FnOnce(&Download, TcpStream) + Send,
        judge: impl FnOnce(&Download) -> T,
    ) -> T {
        let download = Download::new(5).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| download.serve(LIMIT));
            let address = (Ipv4Addr::LOCALHOST, download.port().unwrap());
            let stream = TcpStream::connect(address).unwrap();
            scope.spawn(|| client(&download, stream));
            let result = judge(&download);
            download.give_up();
            result
        })
    }

    /// What the guest does, up to the end of the stream.
    fn read(mut stream: &TcpStream) -> Note {
        let (mut bytes, mut crc, mut buffer) = (0, Crc32::new(), [0; 5000]);
        loop {
            let count = stream.read(&mut buffer).unwrap();
            assert_eq!(first_wrong(5, bytes, &buffer[..count]), None);
            crc.update(&buffer[..count]);
            bytes += count as u64;
            if count == 0 {
                return Note::End { bytes, crc: crc.finalize() };
            }
            stream.write_all(&Note::Right(bytes).encode()).unwrap();
        }
    }

    fn until_failure(download: &Download) {
        let failed = || Ok(download.no_failure().is_err().then_some(()));
        wait_for("the failure", LIMIT, failed).unwrap();
    }

    fn failure(client: impl FnOnce(&Download, TcpStream) + Send) -> String {
        let judge = |download: &Download| match download.wait_progress(LIMIT) {
            Ok(()) => download.end(LIMIT).unwrap_err().to_string(),
            Err(why) => why.to_string(),
        };
        with(client, judge)
    }

    #[test]
    fn a_stream_is_served_and_its_end_confirmed() {
        let client = |_: &Download, mut stream: TcpStream| {
            let end = read(&stream);
            stream.write_all(&end.encode()).unwrap();
        };
        let judge = |download: &Download| {
            download.wait_progress(LIMIT)?;
            download.wait_progress(LIMIT)?;
            download.end(LIMIT)
        };
        assert!(with(client, judge).unwrap() >= 2 * CHUNK as u64);
    }

    #[test]
    fn whatever_breaks_it_is_told() {
        let hung_up = failure(|_, mut stream| {
            stream.read_exact(&mut [0; 100]).unwrap();
        });
        assert!(
            hung_up.contains("hung up after 0 bytes") || hung_up.contains("reset"),
            "{hung_up}"
        );
        let again = failure(|download, stream| {
            let address = (Ipv4Addr::LOCALHOST, download.port().unwrap());
            let _other = TcpStream::connect(address).unwrap();
            until_failure(download);
            drop(stream);
        });
        assert_eq!(again, "the download: the guest connected again");
        let say = |note: Note| {
            failure(move |download, mut stream| {
                stream.write_all(&note.encode()).unwrap();
                until_failure(download);
            })
        };
        assert_eq!(say(Note::Wrong(17)), "the download: byte 17 is wrong");
        assert!(say(Note::Right(1 << 40)).contains("the guest got 1099511627776 bytes of"));
        let other_end = failure(|_, mut stream| {
            let Note::End { bytes, crc } = read(&stream) else { unreachable!() };
            stream.write_all(&Note::End { bytes, crc: !crc }.encode()).unwrap();
        });
        assert!(other_end.starts_with("the guest got Some(End"), "{other_end}");
    }
}
