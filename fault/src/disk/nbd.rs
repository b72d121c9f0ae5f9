//! The server's side of the Network Block Device protocol, without its sockets:
//! fixed newstyle negotiation and simple replies, which is what QEMU's client needs
//! (`doc/proto.md` of the NetworkBlockDevice project).
//!
//! The crate `nbd` serves anything that reads, writes and seeks, one request after
//! the other: it shows no requests that could be struck, and none can be held up
//! while others go on.

use std::fmt;

const GREETING: &[u8; 8] = b"NBDMAGIC";
const HAVE_OPTIONS: &[u8; 8] = b"IHAVEOPT";
/// Fixed newstyle; the client may leave zeroes out.
const HANDSHAKE: u16 = 0b11;
const NO_ZEROES: u32 = 0b10;
/// Flags are there; flush, FUA, trim, write zeroes.
const TRANSMISSION: u16 = 0b110_1101;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const ACK: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Most bytes of an option, and of a request: what every server must take.
const MOST_OPTION: u32 = 64 << 10;
const MOST_DATA: u32 = 32 << 20;

/// The medium failed.
pub const EIO: u32 = 5;
/// The request makes no sense.
pub const EINVAL: u32 = 22;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make all stay that was written.
    Flush,
    /// Forget.
    Trim,
    /// Write zeroes, which are not sent.
    WriteZeroes,
    /// Of another number.
    Other(u16),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names it in the reply.
    pub cookie: u64,
    /// What is to be done.
    pub command: Command,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// What is to be written.
    pub data: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Say(Vec<u8>),
    /// Carry this out, and send [`reply`].
    Do(Request),
    /// The client is done.
    End,
}

/// The client does not keep to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(&'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client breaks the protocol: {}", self.0)
    }
}

impl std::error::Error for Broken {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeted,
    Options { zeroes: bool },
    Requests,
    Over,
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    state: State,
    size: u64,
    input: Vec<u8>,
}

/// Big-endian numbers at the front of some bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_be_bytes)
    }
}

impl Session {
    /// A connection to a disk of `size` bytes, and what is sent first.
    #[must_use]
    pub fn new(size: u64) -> (Self, Vec<u8>) {
        let greeting = [&GREETING[..], HAVE_OPTIONS, &HANDSHAKE.to_be_bytes()].concat();
        (Self { state: State::Greeted, size, input: Vec::new() }, greeting)
    }

    /// Takes what was received.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// What comes next; `None`: more must be received first.
    ///
    /// # Errors
    ///
    /// The client breaks the protocol.
    pub fn step(&mut self) -> Result<Option<Step>, Broken> {
        match self.state {
            State::Greeted => {
                let Some(flags) = Fields(&self.input).u32() else { return Ok(None) };
                self.input.drain(..4);
                self.state = State::Options { zeroes: flags & NO_ZEROES == 0 };
                self.step()
            }
            State::Options { zeroes } => self.option(zeroes),
            State::Requests => self.request(),
            State::Over => Ok(Some(Step::End)),
        }
    }

    fn option(&mut self, zeroes: bool) -> Result<Option<Step>, Broken> {
        let mut fields = Fields(&self.input);
        let (Some(magic), Some(option), Some(len)) = (fields.bytes(), fields.u32(), fields.u32())
        else {
            return Ok(None);
        };
        if magic != *HAVE_OPTIONS {
            return Err(Broken("an option without its magic number"));
        }
        if len > MOST_OPTION {
            return Err(Broken("an option that is too long"));
        }
        if fields.0.len() < len as usize {
            return Ok(None);
        }
        self.input.drain(..16 + len as usize);
        let reply = |kind: u32, data: &[u8]| {
            let len = data.len() as u32;
            let front = OPTION_REPLY.to_be_bytes();
            let numbers = [option, kind, len].map(u32::to_be_bytes);
            [&front[..], numbers.as_flattened(), data].concat()
        };
        let export = [&self.size.to_be_bytes()[..], &TRANSMISSION.to_be_bytes()].concat();
        Ok(Some(Step::Say(match option {
            OPTION_EXPORT_NAME => {
                self.state = State::Requests;
                [export, vec![0; if zeroes { 124 } else { 0 }]].concat()
            }
            OPTION_GO | OPTION_INFO => {
                if option == OPTION_GO {
                    self.state = State::Requests;
                }
                let info = [&INFO_EXPORT.to_be_bytes()[..], &export].concat();
                [reply(INFO, &info), reply(ACK, &[])].concat()
            }
            OPTION_ABORT => {
                self.state = State::Over;
                reply(ACK, &[])
            }
            _ => reply(UNSUPPORTED, &[]),
        })))
    }

    fn request(&mut self) -> Result<Option<Step>, Broken> {
        let mut fields = Fields(&self.input);
        let front = (fields.u32(), fields.u16(), fields.u16(), fields.u64());
        let ((Some(magic), Some(_), Some(command), Some(cookie)), Some(offset), Some(len)) =
            (front, fields.u64(), fields.u32())
        else {
            return Ok(None);
        };
        if magic != REQUEST {
            return Err(Broken("a request without its magic number"));
        }
        let command = match command {
            0 => Command::Read,
            1 => Command::Write,
            2 => {
                self.state = State::Over;
                return Ok(Some(Step::End));
            }
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            other => Command::Other(other),
        };
        let carries = matches!(command, Command::Read | Command::Write | Command::WriteZeroes);
        if carries && len > MOST_DATA {
            return Err(Broken("a request that is too long"));
        }
        let follows = if command == Command::Write { len as usize } else { 0 };
        let Some(data) = fields.0.get(..follows) else { return Ok(None) };
        let request = Request { cookie, command, offset, len, data: data.to_vec() };
        self.input.drain(..28 + follows);
        Ok(Some(Step::Do(request)))
    }
}

/// The reply to a request: what was read, or an error number.
#[must_use]
pub fn reply(cookie: u64, result: &Result<Vec<u8>, u32>) -> Vec<u8> {
    let error = result.as_ref().err().copied().unwrap_or(0);
    let data = result.as_deref().unwrap_or_default();
    [&REPLY.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes(), data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let numbers = [number, data.len() as u32].map(u32::to_be_bytes);
        [HAVE_OPTIONS, numbers.as_flattened(), data].concat()
    }

    fn request(command: u16, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(0x1122_3344_5566_7788u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        [bytes, data.to_vec()].concat()
    }

    /// A session that takes requests.
    fn open() -> Session {
        let (mut session, _) = Session::new(1 << 20);
        session.feed(&3u32.to_be_bytes());
        session.feed(&option(OPTION_GO, &[0; 6]));
        assert!(matches!(session.step(), Ok(Some(Step::Say(_)))));
        session
    }

    #[test]
    fn it_is_negotiated_as_qemu_does() {
        let (mut session, greeting) = Session::new(0x0102_0304);
        assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
        session.feed(&3u32.to_be_bytes());
        // Structured replies: not here.
        session.feed(&option(8, &[]));
        let Ok(Some(Step::Say(said))) = session.step() else { panic!() };
        assert_eq!(
            said,
            [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 8, 128, 0, 0, 1, 0, 0, 0, 0]
        );
        session.feed(&option(OPTION_GO, &[0, 0, 0, 0, 0, 1, 0, 3]));
        let Ok(Some(Step::Say(said))) = session.step() else { panic!() };
        let (info, ack) = said.split_at(32);
        assert_eq!(info[12..], [0, 0, 0, 3, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0x6d]);
        assert_eq!(ack[8..], [0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]);
        session.feed(&request(0, 0, 512, &[]));
        assert!(matches!(session.step(), Ok(Some(Step::Do(_)))));
    }

    #[test]
    fn the_old_way_in_has_its_zeroes() {
        for (flags, len) in [(1u32, 134), (3, 10)] {
            let (mut session, _) = Session::new(7);
            session.feed(&flags.to_be_bytes());
            session.feed(&option(OPTION_EXPORT_NAME, b"disk"));
            let Ok(Some(Step::Say(said))) = session.step() else { panic!() };
            assert_eq!(said.len(), len);
        }
    }

    #[test]
    fn requests_come_in_pieces() {
        let mut session = open();
        let bytes = [request(1, 4096, 5, b"hello"), request(3, 0, 0, &[])].concat();
        let mut steps = Vec::new();
        for byte in &bytes {
            session.feed(&[*byte]);
            steps.extend(session.step().unwrap());
        }
        let cookie = 0x1122_3344_5566_7788;
        let data = b"hello".to_vec();
        let write = Request { cookie, command: Command::Write, offset: 4096, len: 5, data };
        let data = Vec::new();
        let flush = Request { cookie, command: Command::Flush, offset: 0, len: 0, data };
        assert_eq!(steps, [Step::Do(write), Step::Do(flush)]);
        session.feed(&request(2, 0, 0, &[]));
        assert_eq!(session.step(), Ok(Some(Step::End)));
        assert_eq!(session.step(), Ok(Some(Step::End)));
    }

    #[test]
    fn a_client_that_breaks_the_protocol_is_refused() {
        let (mut session, _) = Session::new(1);
        session.feed(&[0; 40]);
        assert!(session.step().is_err());
        let mut session = open();
        session.feed(&[0; 28]);
        assert!(session.step().is_err());
        let mut session = open();
        session.feed(&request(1, 0, u32::MAX, &[]));
        assert!(session.step().is_err());
        let mut session = open();
        session.feed(&[option(OPTION_ABORT, &[])].concat());
        assert!(matches!(session.step(), Ok(None) | Err(_)));
    }

    #[test]
    fn replies_name_their_request() {
        assert_eq!(
            reply(0x0102, &Ok(vec![9])),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 9]
        );
        assert_eq!(reply(1, &Err(EIO))[4..8], [0, 0, 0, 5]);
    }
}
