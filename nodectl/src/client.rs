//! The client.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use ring_proto::{
    DomainId, Generation,
    bundle::Name,
    control::{
        Answer, Command, ConnectionStatus, CrashEntry, Decoder, DomainAudit, DomainStatus, Event,
        FailureKind, FrameError, FromNode, How, Info, LogPage, MAX_TIMEOUT_MS, Page, Recovery,
        Request, Times, encode,
    },
};

use crate::{
    Error,
    crashes::Story,
    report::{self, LogEntry},
    symbols::Backtrace,
};

mod update;

/// How long the supervisor may take for a command that it answers at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// A question that changes nothing is asked again after this time, in case it
/// or its answer was lost on the line.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// What a command with a time limit of its own may take beyond it.
const MARGIN: Duration = Duration::from_secs(10);
/// Pause between looks at something that is not there yet.
const PAUSE: Duration = Duration::from_millis(20);
/// Events that are kept for [`Client::take_events`].
const EVENTS_MAX: usize = 1024;

/// A connection to a node's supervisor.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    decoder: Decoder,
    /// Bytes that were read and not yet decoded.
    input: VecDeque<u8>,
    seq: u32,
    generation: Generation,
    events: VecDeque<Event>,
}

impl Client {
    /// Connects to the control socket `path`; true once the supervisor
    /// answered, within `patience`.
    ///
    /// # Errors
    ///
    /// No socket, nobody behind it, or no answer.
    pub fn connect(path: impl AsRef<Path>, patience: Duration) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |why| Error::Connect(path.to_owned(), why);
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
            .map_err(failed)?;
        // For Unix sockets the send timeout bounds `connect` too, which waits
        // while the listener's queue is full.
        socket.set_write_timeout(Some(patience)).map_err(failed)?;
        let address = socket2::SockAddr::unix(path).map_err(failed)?;
        socket.connect(&address).map_err(failed)?;
        Self::greet(std::os::fd::OwnedFd::from(socket).into(), path, patience)
    }

    /// The same over a stream that is connected already.
    ///
    /// # Errors
    ///
    /// The supervisor does not answer.
    pub fn over(stream: UnixStream, patience: Duration) -> Result<Self, Error> {
        Self::greet(stream, Path::new("the control line"), patience)
    }

    fn greet(stream: UnixStream, path: &Path, patience: Duration) -> Result<Self, Error> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut this = Self {
            stream,
            path: path.to_owned(),
            decoder: Decoder::new(),
            input: VecDeque::new(),
            // Answers to a former client's questions must not be taken for ours.
            seq: since_1970.map_or(1, |time| time.as_micros() as u32),
            generation: 0,
            events: VecDeque::new(),
        };
        this.await_supervisor(0, patience)?;
        Ok(this)
    }

    /// Generation of the supervisor that answered last.
    pub fn supervisor_generation(&self) -> Generation {
        self.generation
    }

    /// Events that came since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Waits until a supervisor of a generation above `above` answers.
    fn await_supervisor(&mut self, above: Generation, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        let silent = Error::Silent(self.path.clone(), patience);
        // Whatever stands half on the line ends here.
        let zero = self.stream.write_all(&[0]);
        while Instant::now() < deadline && zero.is_ok() {
            let attempt = (Instant::now() + ASK_AGAIN / 3).min(deadline);
            match self.ask(&Command::Info, attempt) {
                Ok(Answer::Info(info)) if info.generation > above => {
                    self.generation = info.generation;
                    return Ok(());
                }
                Ok(_) => std::thread::sleep(PAUSE),
                Err(Error::NoAnswer(_) | Error::SupervisorRestarted) => {}
                Err(why) => return Err(why),
            }
        }
        match zero {
            Ok(()) => Err(silent),
            Err(why) => Err(closed_or(why)),
        }
    }

    /// Sends one command and waits for its answer until `deadline`.
    fn ask(&mut self, command: &Command, deadline: Instant) -> Result<Answer, Error> {
        let begin = Instant::now();
        let seq = self.send(command, deadline)?;
        loop {
            match self.next_reply(deadline, begin)? {
                (found, result) if found == seq => return result,
                // To a question that was given up.
                _ => {}
            }
        }
    }

    /// Sends one command; returns its number.
    fn send(&mut self, command: &Command, deadline: Instant) -> Result<u32, Error> {
        self.seq = self.seq.wrapping_add(1);
        let request = Request { seq: self.seq, command: command.clone() };
        let frame = encode(&request).map_err(|_| Error::Unexpected("possible"))?;
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        self.stream.set_write_timeout(Some(left)).map_err(Error::Io)?;
        self.stream.write_all(&frame).map_err(closed_or)?;
        Ok(self.seq)
    }

    /// The next reply, whatever it is to; keeps the events before it.
    fn next_reply(
        &mut self,
        deadline: Instant,
        begin: Instant,
    ) -> Result<(u32, Result<Answer, Error>), Error> {
        loop {
            match self.receive(deadline)? {
                None => return Err(Error::NoAnswer(begin.elapsed())),
                Some(FromNode::Reply(reply)) => {
                    let result = reply.result.map_err(|failure| Error::Refused(failure.into()));
                    return Ok((reply.seq, result));
                }
                Some(FromNode::Event(event)) => self.take_note(event)?,
            }
        }
    }

    /// Keeps an event. An error if it says that the supervisor we talked to
    /// is gone, and our questions with it.
    fn take_note(&mut self, event: Event) -> Result<(), Error> {
        let started = match event {
            Event::Started { generation, .. } => Some(generation),
            _ => None,
        };
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
        match started {
            Some(generation) if generation != self.generation => {
                self.generation = generation;
                Err(Error::SupervisorRestarted)
            }
            _ => Ok(()),
        }
    }

    /// The next message; `None` at the deadline.
    fn receive(&mut self, deadline: Instant) -> Result<Option<FromNode>, Error> {
        loop {
            while let Some(byte) = self.input.pop_front() {
                match self.decoder.feed::<FromNode>(&mut &[byte][..]) {
                    Some(Ok(message)) => return Ok(Some(message)),
                    Some(Err(FrameError::Version(version))) => return Err(Error::Version(version)),
                    // Sound by its checksum, so this is no noise.
                    Some(Err(FrameError::Malformed)) => return Err(Error::OtherBuild),
                    // Noise; what was in it is asked for again or times out.
                    Some(Err(_)) | None => {}
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(Error::Io)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Error::Closed),
                Ok(count) => self.input.extend(chunk.iter().take(count)),
                Err(why) if is_timeout(&why) || why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(closed_or(why)),
            }
        }
    }

    /// Asks what changes nothing: again if the line or the supervisor lost it.
    fn query(&mut self, command: &Command) -> Result<Answer, Error> {
        let begin = Instant::now();
        let deadline = begin + PATIENCE;
        loop {
            let attempt = (Instant::now() + ASK_AGAIN).min(deadline);
            match self.ask(command, attempt) {
                Err(Error::NoAnswer(_) | Error::SupervisorRestarted)
                    if Instant::now() < deadline => {}
                Err(Error::NoAnswer(_)) => return Err(Error::NoAnswer(begin.elapsed())),
                result => return result,
            }
        }
    }

    /// Puts bytes on the line that are no frames, for tests of the supervisor.
    /// What then stands half on the line ends here.
    ///
    /// # Errors
    ///
    /// The line is closed, or takes no more.
    pub fn disturb(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.set_write_timeout(Some(PATIENCE)).map_err(Error::Io)?;
        self.stream.write_all(bytes).and_then(|()| self.stream.write_all(&[0])).map_err(closed_or)
    }

    /// The node and its supervisor.
    ///
    /// # Errors
    ///
    /// See [`Error`]; likewise for all other calls.
    pub fn info(&mut self) -> Result<Info, Error> {
        match self.query(&Command::Info)? {
            Answer::Info(info) => Ok(info),
            _ => Err(Error::Unexpected("about the node")),
        }
    }

    /// All domains.
    pub fn domains(&mut self) -> Result<Vec<DomainStatus>, Error> {
        self.pages(
            |first| Command::List { first },
            |answer| match answer {
                Answer::Domains(page) => Some(page),
                _ => None,
            },
        )
    }

    /// The domain of this name, if there is one.
    pub fn domain(&mut self, name: &str) -> Result<Option<DomainStatus>, Error> {
        Ok(self.domains()?.into_iter().find(|domain| domain.name == name))
    }

    /// All connections.
    pub fn connections(&mut self) -> Result<Vec<ConnectionStatus>, Error> {
        self.pages(
            |first| Command::Connections { first },
            |answer| match answer {
                Answer::Connections(page) => Some(page),
                _ => None,
            },
        )
    }

    fn pages<T>(
        &mut self,
        command: impl Fn(u16) -> Command,
        page: impl Fn(Answer) -> Option<Page<T>>,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut first = 0;
        loop {
            let answer = self.query(&command(first))?;
            let page = page(answer).ok_or(Error::Unexpected("a list"))?;
            all.extend(page.entries);
            match page.next {
                Some(next) if next > first => first = next,
                _ => return Ok(all),
            }
        }
    }

    /// Stops a domain if it is alive and starts its next generation; returns
    /// once that serves.
    pub fn restart(&mut self, domain: &str, timeout: Duration) -> Result<Recovery, Error> {
        self.drain(domain, Duration::ZERO, timeout)
    }

    /// The same, and lets it finish its work first, within `drain`.
    pub fn drain(
        &mut self,
        domain: &str,
        drain: Duration,
        timeout: Duration,
    ) -> Result<Recovery, Error> {
        let (timeout_ms, drain_ms) = (millis(timeout), millis(drain));
        let command = Command::Restart { domain: name(domain)?, timeout_ms, drain_ms };
        self.recover(command, domain, timeout)
    }

    /// Has a domain misbehave; returns once its next generation serves.
    pub fn crash(&mut self, domain: &str, how: How, timeout: Duration) -> Result<Recovery, Error> {
        let timeout_ms = millis(timeout);
        self.recover(Command::Crash { domain: name(domain)?, how, timeout_ms }, domain, timeout)
    }

    /// Undoes a hold and starts the domain; returns once it serves.
    pub fn release(&mut self, domain: &str, timeout: Duration) -> Result<Recovery, Error> {
        let timeout_ms = millis(timeout);
        self.recover(Command::Release { domain: name(domain)?, timeout_ms }, domain, timeout)
    }

    /// Has several drivers misbehave at the same time; returns once the next
    /// generation of each serves.
    pub fn crash_all(
        &mut self,
        domains: &[&str],
        how: How,
        timeout: Duration,
    ) -> Result<Vec<Recovery>, Error> {
        let begin = Instant::now();
        let deadline = begin + timeout + MARGIN;
        let mut pending = Vec::new();
        for domain in domains {
            let timeout_ms = millis(timeout);
            let command = Command::Crash { domain: name(domain)?, how, timeout_ms };
            pending.push(self.send(&command, deadline)?);
        }
        let (mut recoveries, mut failed) = (Vec::new(), None);
        while !pending.is_empty() {
            let (seq, result) = self.next_reply(deadline, begin)?;
            if let Some(at) = pending.iter().position(|&wanted| wanted == seq) {
                pending.swap_remove(at);
                match result {
                    Ok(Answer::Serving(recovery)) => recoveries.push(recovery),
                    Ok(_) => return Err(Error::Unexpected("about a recovery")),
                    // The others are under way all the same.
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        failed.map_or(Ok(recoveries), Err)
    }

    /// Has a domain misbehave, and once it is on its way back, again: its next
    /// generation dies before it serves, if the order comes in time. Returns
    /// once one serves.
    pub fn crash_twice(
        &mut self,
        domain: &str,
        ways: [How; 2],
        timeout: Duration,
    ) -> Result<Recovery, Error> {
        let begin = Instant::now();
        let deadline = begin + timeout + MARGIN;
        let timeout_ms = millis(timeout);
        let command = |domain, how| Command::Crash { domain, how, timeout_ms };
        let [first, second] = ways;
        let first = self.send(&command(name(domain)?, first), deadline)?;
        let again = command(name(domain)?, second);
        let mut ask = self.send(&again, deadline)?;
        let mut recovered = None;
        loop {
            let (seq, result) = self.next_reply(deadline, begin)?;
            match result {
                Ok(Answer::Serving(recovery)) if seq == first => recovered = Some(recovery),
                Ok(Answer::Serving(recovery)) if seq == ask => return Ok(recovery),
                // The first death is still to come, or nothing runs yet that could die.
                Err(Error::Refused(failure))
                    if seq == ask
                        && matches!(failure.kind, FailureKind::Busy | FailureKind::BadState) =>
                {
                    match recovered {
                        Some(recovery) => return Ok(recovery),
                        None => ask = self.send(&again, deadline)?,
                    }
                }
                Err(why) => return Err(why),
                Ok(_) => return Err(Error::Unexpected("about a recovery")),
            }
        }
    }

    /// Has a domain misbehave and does not wait for anything: what becomes of
    /// it shows in the list of domains.
    pub fn order_crash(&mut self, domain: &str, how: How) -> Result<(), Error> {
        let command = Command::Crash { domain: name(domain)?, how, timeout_ms: MAX_TIMEOUT_MS };
        self.send(&command, Instant::now() + PATIENCE).map(drop)
    }

    fn recover(
        &mut self,
        command: Command,
        domain: &str,
        timeout: Duration,
    ) -> Result<Recovery, Error> {
        match self.ask(&command, Instant::now() + timeout + MARGIN)? {
            Answer::Serving(recovery) => Ok(recovery),
            Answer::Leaving { generation, sequence } => {
                self.follow_supervisor(domain, generation, sequence, timeout)
            }
            _ => Err(Error::Unexpected("about a recovery")),
        }
    }

    /// Waits for the supervisor's next generation and reads in the crash
    /// record how it went.
    fn follow_supervisor(
        &mut self,
        domain: &str,
        ended: Generation,
        sequence: u64,
        timeout: Duration,
    ) -> Result<Recovery, Error> {
        let deadline = Instant::now() + timeout;
        self.await_supervisor(ended, timeout)?;
        loop {
            let record = self.death_of(domain, ended, sequence)?;
            let is_complete = record.as_ref().is_some_and(|record| record.times.ready != 0);
            if is_complete || Instant::now() >= deadline {
                let times = record.as_ref().map_or(Times::default(), |record| Times {
                    ordered: record.times.detected,
                    detected: record.times.detected,
                    quiesced: record.times.quiesced,
                    restarted: record.times.entered,
                    ready: record.times.ready,
                    connected: record.times.ready,
                });
                return Ok(Recovery {
                    domain: name(domain)?,
                    generation: self.generation,
                    ended,
                    reason: record.map_or(0, |record| record.reason),
                    drained: false,
                    times,
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn death_of(
        &mut self,
        domain: &str,
        generation: Generation,
        from: u64,
    ) -> Result<Option<CrashEntry>, Error> {
        let mut records = self.crashes(from)?.into_iter();
        Ok(records.find(|record| record.name == domain && record.generation == generation))
    }

    /// Ends a domain; it is not started again until released.
    pub fn hold(&mut self, domain: &str) -> Result<(), Error> {
        let command = Command::Hold { domain: name(domain)? };
        match self.ask(&command, Instant::now() + PATIENCE)? {
            Answer::Done => Ok(()),
            _ => Err(Error::Unexpected("about a hold")),
        }
    }

    /// One page of console text from `cursor` on; 0 = the oldest kept.
    pub fn log_page(&mut self, cursor: u64) -> Result<LogPage, Error> {
        self.log_page_of(cursor, None)
    }

    /// The same of one domain's generation only; 0 = any.
    pub fn log_page_of(
        &mut self,
        cursor: u64,
        of: Option<(DomainId, Generation)>,
    ) -> Result<LogPage, Error> {
        match self.query(&Command::Log { cursor, of })? {
            Answer::Log(page) => Ok(page),
            _ => Err(Error::Unexpected("a log")),
        }
    }

    /// Checks all tables of the node.
    pub fn audit(&mut self) -> Result<Vec<DomainAudit>, Error> {
        match self.query(&Command::Audit)? {
            Answer::Audit(all) => Ok(all.into_iter().collect()),
            _ => Err(Error::Unexpected("an audit")),
        }
    }

    /// All kept crash records from sequence number `from` on. What dies
    /// meanwhile is left out: a domain may die faster than the line tells of it.
    pub fn crashes(&mut self, from: u64) -> Result<Vec<CrashEntry>, Error> {
        let end = self.info()?.next_crash;
        let mut all = Vec::new();
        let mut from = from;
        while from < end {
            match self.query(&Command::Crashes { from })? {
                Answer::Crash(Some(entry)) if (from..end).contains(&entry.sequence) => {
                    from = entry.sequence.saturating_add(1);
                    all.push(entry);
                }
                Answer::Crash(_) => break,
                _ => return Err(Error::Unexpected("a crash record")),
            }
        }
        Ok(all)
    }

    /// The crash record with this sequence number.
    pub fn crash_record(&mut self, sequence: u64) -> Result<CrashEntry, Error> {
        let next = match self.query(&Command::Crashes { from: sequence })? {
            Answer::Crash(Some(entry)) if entry.sequence == sequence => return Ok(entry),
            Answer::Crash(next) => next,
            _ => return Err(Error::Unexpected("a crash record")),
        };
        Err(Error::NoRecord { sequence, oldest: next.map(|entry| entry.sequence) })
    }

    /// A death with the last `lines` that the generation wrote, and its
    /// backtrace by the symbols in `images`.
    pub fn story(&mut self, sequence: u64, images: &Path, lines: usize) -> Result<Story, Error> {
        let entry = self.crash_record(sequence)?;
        let names = [(entry.domain, entry.name.to_string())];
        let of = Some((entry.domain, entry.generation));
        let (mut log, mut cursor) = (VecDeque::new(), 0);
        loop {
            let page = self.log_page_of(cursor, of)?;
            for line in report::log_entries(&page, &names).iter().flat_map(LogEntry::lines) {
                log.push_back(line);
                if log.len() > lines {
                    log.pop_front();
                }
            }
            // The node passes over what others write, so an empty page is the end.
            if page.next == cursor || page.bytes.is_empty() {
                break;
            }
            cursor = page.next;
        }
        Ok(Story { backtrace: Backtrace::of(&entry, images), entry, log: log.into() })
    }

    /// Powers the node off.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        match self.ask(&Command::Shutdown, Instant::now() + PATIENCE) {
            Ok(Answer::Done) => Ok(()),
            Ok(_) => Err(Error::Unexpected("about a shutdown")),
            Err(why) => Err(why),
        }
    }

    /// Names of all domains by number.
    pub fn names(&mut self) -> Result<Vec<(DomainId, String)>, Error> {
        let domains = self.domains()?.into_iter();
        Ok(domains.map(|domain| (domain.id, domain.name.to_string())).collect())
    }
}

fn name(text: &str) -> Result<Name, Error> {
    Name::try_from(text).map_err(|_| Error::BadName(text.to_owned()))
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).min(MAX_TIMEOUT_MS)
}

fn is_timeout(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A line that the other end closed, or another trouble.
fn closed_or(why: io::Error) -> Error {
    match why.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Closed,
        _ if is_timeout(&why) => Error::NoAnswer(PATIENCE),
        _ => Error::Io(why),
    }
}
