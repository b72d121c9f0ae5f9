//! Why the node's answer is not what was hoped for.

use std::{fmt, io, path::PathBuf, time::Duration};

use ring_proto::control::{Failure, VERSION};

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// There is no such socket, or nobody listens.
    Connect(PathBuf, io::Error),
    /// Connected, but the supervisor did not answer the first question.
    Silent(PathBuf, Duration),
    /// The supervisor did not answer this question in time.
    NoAnswer(Duration),
    /// The node closed the line: it ended.
    Closed,
    /// Reading or writing the socket failed.
    Io(io::Error),
    /// The node speaks another version of the protocol.
    Version(u8),
    /// The node sends messages that this build does not know.
    OtherBuild,
    /// The supervisor restarted while it was busy with the command.
    SupervisorRestarted,
    /// The answer is of the wrong kind.
    Unexpected(&'static str),
    /// There is no such crash record.
    NoRecord {
        /// Its number.
        sequence: u64,
        /// The oldest one that is kept beyond it, if there is one.
        oldest: Option<u64>,
    },
    /// The image takes more memory than the manifest's `update_space`, bytes.
    ImageTooLarge {
        /// What it takes.
        takes: u64,
        /// What there is.
        room: u64,
    },
    /// A file is no program that can run in a domain.
    NoImage(PathBuf, String),
    /// What was asked for cannot be written to where it is to go.
    Output(io::Error),
    /// There is no domain of that name.
    NoDomain(String),
    /// A domain's name that no domain can have.
    BadName(String),
    /// The node says no.
    Refused(Box<Failure>),
}

impl Error {
    /// Exit code for a command line: 1 = the node said no, 2 = a file cannot be
    /// used, 3 = the node could not be asked or did not answer.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_)
            | Self::BadName(_)
            | Self::NoDomain(_)
            | Self::ImageTooLarge { .. }
            | Self::NoRecord { .. } => 1,
            Self::NoImage(..) | Self::Output(_) => 2,
            _ => 3,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(path, why) if why.kind() == io::ErrorKind::NotFound => {
                write!(
                    f,
                    "there is no control socket {}; does the node run, and is --control right?",
                    path.display()
                )
            }
            Self::Connect(path, why) if why.kind() == io::ErrorKind::ConnectionRefused => {
                write!(f, "nobody listens on {}; the node has ended", path.display())
            }
            Self::Connect(path, why) if why.kind() == io::ErrorKind::WouldBlock => {
                write!(f, "{} is taken by other clients; it serves one at a time", path.display())
            }
            Self::Connect(path, why) => write!(f, "can't connect to {}: {why}", path.display()),
            Self::Silent(path, time) => write!(
                f,
                "no answer on {} within {} s: another client holds it (it serves one at a time), \
                 or the node's supervisor is not up",
                path.display(),
                time.as_secs_f32()
            ),
            Self::NoAnswer(time) => {
                write!(f, "the supervisor did not answer within {} s", time.as_secs_f32())
            }
            Self::Closed => f.write_str("the node closed the control line: it ended"),
            Self::Io(why) => write!(f, "the control line failed: {why}"),
            Self::Version(version) => write!(
                f,
                "the node speaks version {version} of the control protocol, and this is version {VERSION}"
            ),
            Self::OtherBuild => f.write_str(
                "the node's messages can't be read: it was built from another state of the sources",
            ),
            Self::SupervisorRestarted => {
                f.write_str("the supervisor restarted, so nobody knows what came of the command")
            }
            Self::Unexpected(what) => write!(f, "the node's answer is not {what}"),
            Self::NoRecord { sequence, oldest: Some(oldest) } => {
                write!(f, "the record of death {sequence} is kept no more; the oldest is {oldest}")
            }
            Self::NoRecord { sequence, oldest: None } => {
                write!(f, "there was no death {sequence}")
            }
            Self::ImageTooLarge { takes, room } => write!(
                f,
                "the image takes {} KiB in memory, and `update_space` in the manifest is {} KiB",
                takes >> 10,
                room >> 10
            ),
            Self::NoImage(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Output(why) => write!(f, "can't write the output: {why}"),
            Self::NoDomain(name) => write!(f, "no domain is named `{name}`"),
            Self::BadName(name) => write!(f, "no domain can be named `{name}`"),
            Self::Refused(failure) => f.write_str(&failure.text),
        }
    }
}

impl std::error::Error for Error {}
