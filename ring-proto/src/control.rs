//! Control messages between the supervisor and the host.
//!
//! They travel over a serial line that anybody may write junk to, so a message
//! is a *frame*: the bytes `version, postcard body, CRC-32 of both (little
//! endian)`, COBS-encoded so that they hold no zero, and then one zero. A
//! receiver that lost its place is back in step at the next zero; a sender
//! that is not sure of the line's state sends a zero first. [`encode`] and
//! [`Decoder`] are all there is to it, and both use fixed memory.
//!
//! The host sends [`Request`]s; the node sends [`FromNode`]: one reply for
//! each request it understood, with the request's `seq`, and events that
//! nobody asked for. Replies may come in another order than the requests.
//! Lists and logs come in pages, so that every frame fits [`FRAME_MAX`].

use heapless::{String, Vec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    DomainId, Generation,
    bundle::Name,
    crash::{BACKTRACE, Timeline},
};

mod frame;

pub use frame::{Decoder, EncodeError, FrameError, encode};

/// First byte of every frame's content: version of these messages.
pub const VERSION: u8 = 4;
/// Most bytes of a frame on the line, with its closing zero.
pub const FRAME_MAX: usize = 2048;
/// Most entries of a page of [`Answer::Domains`] or [`Answer::Connections`].
pub const PAGE_ENTRIES: usize = 8;
/// Most bytes of a page of [`Answer::Log`].
pub const LOG_BYTES: usize = 1792;
/// Most bytes of one [`Command::Stage`].
pub const STAGE_BYTES: usize = 1792;
/// Longest that a command may take, ms; larger wishes are cut to this.
pub const MAX_TIMEOUT_MS: u32 = 300_000;

/// Text in a failure.
pub type Text = String<160>;

/// What the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the reply.
    pub seq: u32,
    /// What to do.
    pub command: Command,
}

/// What the host can ask for. New commands go to the end.
// Parts of images are large, and there is no heap to box them.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The node and the supervisor: [`Answer::Info`].
    Info,
    /// Domains from number `first` on: [`Answer::Domains`].
    List {
        /// First domain of the page.
        first: DomainId,
    },
    /// Connections from number `first` on: [`Answer::Connections`].
    Connections {
        /// First connection of the page.
        first: u16,
    },
    /// Stop a domain if it is alive and start its next generation:
    /// [`Answer::Serving`], or [`Answer::Leaving`] for the supervisor itself.
    Restart {
        /// Which.
        domain: Name,
        /// How long the next generation may take to serve, ms.
        timeout_ms: u32,
        /// How long the old one may take to finish its work first, ms; 0 = it is ended
        /// at once. When this is over it is ended all the same.
        drain_ms: u32,
    },
    /// Have a domain misbehave, and wait until its next generation serves:
    /// as for [`Command::Restart`].
    Crash {
        /// Which.
        domain: Name,
        /// In which way.
        how: How,
        /// How long death and recovery may take together, ms.
        timeout_ms: u32,
    },
    /// Not to be started any more until released: [`Answer::Done`].
    Hold {
        /// Which.
        domain: Name,
    },
    /// Undo a hold and start the domain: [`Answer::Serving`].
    Release {
        /// Which.
        domain: Name,
        /// How long the next generation may take to serve, ms.
        timeout_ms: u32,
    },
    /// Console text from `cursor` on, 0 = the oldest kept: [`Answer::Log`].
    Log {
        /// From the last page, or 0.
        cursor: u64,
        /// Only what this domain wrote in this generation; 0 = in any.
        of: Option<(DomainId, Generation)>,
    },
    /// Check all nested and IOMMU tables: [`Answer::Audit`].
    Audit,
    /// The oldest kept crash record with a sequence number not below `from`:
    /// [`Answer::Crash`].
    Crashes {
        /// Sequence number.
        from: u64,
    },
    /// Power the node off in good order: [`Answer::Done`], then silence.
    Shutdown,
    /// Part of an image file ([`crate::bundle::IMAGE_MAGIC`]) for a domain's update:
    /// [`Answer::Done`]. Parts come in order; one may be sent again, as it or its
    /// answer was lost or the supervisor restarted, and then those after it, too.
    Stage {
        /// Which domain.
        domain: Name,
        /// Where it begins in the file.
        offset: u32,
        /// The bytes.
        bytes: Vec<u8, STAGE_BYTES>,
    },
    /// Try the image that was staged, and keep it if it works: [`Answer::Updated`].
    Update {
        /// Which domain.
        domain: Name,
    },
}

/// Ways to misbehave; see [`crate::event::Inject`]. New ones go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// A Rust panic.
    Panic,
    /// A write through a null pointer.
    NullWrite,
    /// An endless loop that never waits.
    Loop,
    /// An undefined instruction.
    Exception,
    /// Calls without end.
    StackOverflow,
    /// An exception without a handler.
    TripleFault,
    /// Allocations without end.
    OutOfMemory,
    /// It goes on waiting and does no work.
    Stall,
}

impl How {
    /// All that a node sees by itself: all but [`Self::Stall`].
    pub const ALL: [Self; 7] = [
        Self::Panic,
        Self::NullWrite,
        Self::Loop,
        Self::Exception,
        Self::StackOverflow,
        Self::TripleFault,
        Self::OutOfMemory,
    ];
}

/// What the node sends.
#[allow(clippy::large_enum_variant)] // See `Answer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNode {
    /// To a request.
    Reply(Reply),
    /// Unasked.
    Event(Event),
}

/// To the request with the same `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub seq: u32,
    /// What came of it.
    pub result: Result<Answer, Failure>,
}

/// What went well. New answers go to the end.
// Crash records and pages of logs are large, and there is no heap to box them.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Command::Info`].
    Info(Info),
    /// To [`Command::List`].
    Domains(Page<DomainStatus>),
    /// To [`Command::Connections`].
    Connections(Page<ConnectionStatus>),
    /// The next generation serves.
    Serving(Recovery),
    /// The supervisor is the one to go. Its next generation sends
    /// [`Event::Started`]; its death is crash record `sequence` or a later one.
    Leaving {
        /// The generation that sends this.
        generation: Generation,
        /// Sequence number that the next crash record will get.
        sequence: u64,
    },
    /// To [`Command::Log`].
    Log(LogPage),
    /// To [`Command::Audit`].
    Audit(Vec<DomainAudit, { crate::MAX_DOMAINS }>),
    /// To [`Command::Crashes`]; `None`: there is none yet.
    Crash(Option<CrashEntry>),
    /// Done, nothing more to say.
    Done,
    /// To [`Command::Update`]: its trial is over.
    Updated(Updated),
}

/// What came of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updated {
    /// Domain.
    pub domain: Name,
    /// The new image is the domain's now; else the one before is.
    pub kept: bool,
    /// Checksum of the domain's image.
    pub image_crc: u32,
    /// Why it was not kept.
    pub why: Text,
    /// Crash record of the generation that ended for it, if one did.
    pub record: Option<u64>,
}

/// Part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// In order of their numbers.
    pub entries: Vec<T, PAGE_ENTRIES>,
    /// `first` of the next page, if there is one.
    pub next: Option<u16>,
}

/// The node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Cores in use.
    pub cores: u32,
    /// Domains in the manifest.
    pub domains: u32,
    /// RAM that the firmware reported usable, bytes.
    pub memory: u64,
    /// RAM not given to anybody, bytes.
    pub free: u64,
    /// ns since the hypervisor's entry.
    pub now_ns: u64,
    /// Sequence number that the next crash record will get.
    pub next_crash: u64,
    /// TLB shootdowns.
    pub shootdowns: u64,
    /// Entries to a domain that flushed its cached translations.
    pub tlb_flushes: u64,
    /// IOTLB invalidations.
    pub iotlb_flushes: u64,
    /// The supervisor's domain.
    pub supervisor: DomainId,
    /// The supervisor's generation.
    pub generation: Generation,
    /// Control frames that it could not read since its start.
    pub bad_frames: u64,
    /// Events that it threw away since its start because the line was busy.
    pub lost_events: u64,
    /// How long nobody was there before this supervisor began to serve.
    pub absence: Absence,
}

/// The time from the end of a supervisor to the service of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absence {
    /// How long, ns on the node's clock; 0 = there was none before.
    pub ns: u64,
    /// Deaths of others meanwhile.
    pub deaths: u32,
}

/// A domain. Numbers of states and reasons are those of
/// [`crate::hypercall::DomainState`] and [`crate::crash::Reason`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Number.
    pub id: DomainId,
    /// Name.
    pub name: Name,
    /// State.
    pub state: u32,
    /// It declared itself ready.
    pub ready: bool,
    /// Core.
    pub core: u16,
    /// Present or last generation.
    pub generation: Generation,
    /// Deaths since boot.
    pub deaths: u32,
    /// Reason of the last death.
    pub last_reason: u32,
    /// Bytes.
    pub memory: u64,
    /// When this generation was started, ns.
    pub started_ns: u64,
    /// When the last death was seen, ns; 0 = never.
    pub died_ns: u64,
    /// CPU time of all generations, ns.
    pub cpu_ns: u64,
    /// Exits of all generations.
    pub exits: u64,
    /// Hypercalls among them.
    pub hypercalls: u64,
    /// `notify` calls among them.
    pub notifies: u64,
    /// Device interrupts delivered.
    pub interrupts: u64,
    /// Pages of its grant window that are in use.
    pub mapped: u32,
    /// Its grants that others have mapped.
    pub granted: u32,
    /// It is the warm spare of this domain; ready means that it stands by.
    pub spare_of: Option<DomainId>,
    /// [`crate::crash::Reset`] with which its last life began.
    pub reset: u16,
    /// Devices that it owns.
    pub devices: u16,
    /// Resets of its devices by the hypervisor.
    pub resets: u16,
    /// Checksum of the image that it runs, or ran last.
    pub image_crc: u32,
    /// The same of the one that it is to run, but for a trial.
    pub good_crc: u32,
    /// [`crate::hypercall::Trial`] of a new image.
    pub trial: u32,
    /// Bytes that an image may take in memory if it is updated; 0 = it cannot be.
    pub update_space: u64,
}

/// A connection; states are those of [`crate::conn::State`], the protocol that
/// of [`crate::conn::Protocol`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Number.
    pub id: u16,
    /// Protocol.
    pub protocol: u16,
    /// Frontend's domain.
    pub frontend: DomainId,
    /// Backend's domain.
    pub backend: DomainId,
    /// What the frontend says of itself.
    pub frontend_state: u32,
    /// What the backend says of itself.
    pub backend_state: u32,
}

/// Times of one recovery on the node's clock, ns; 0 = unknown, or did not
/// happen (a domain that was stopped before did not die).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The command came.
    pub ordered: u64,
    /// The death was seen.
    pub detected: u64,
    /// The old generation could touch nothing any more.
    pub quiesced: u64,
    /// The next generation was entered.
    pub restarted: u64,
    /// It declared itself ready.
    pub ready: u64,
    /// The supervisor saw it ready and connected to all its live peers.
    pub connected: u64,
}

/// A recovery that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Domain.
    pub domain: Name,
    /// Generation that serves now.
    pub generation: Generation,
    /// Generation that was to end.
    pub ended: Generation,
    /// [`crate::crash::Reason`] of that end.
    pub reason: u32,
    /// It finished its work before the end, as it was told to.
    pub drained: bool,
    /// When what happened.
    pub times: Times,
}

/// Console text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// Where to go on; equal to the cursor asked for when there is no more yet.
    pub next: u64,
    /// [`crate::hypercall::LogHeader`] and text, any number of times.
    pub bytes: Vec<u8, LOG_BYTES>,
}

/// What the audit found in one domain's tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainAudit {
    /// Domain.
    pub domain: Name,
    /// Number of violations, or the [`crate::hypercall::Error`] of the attempt.
    pub violations: Result<u64, u64>,
}

/// A [`crate::crash::CrashRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashEntry {
    /// Counts the node's deaths.
    pub sequence: u64,
    /// Domain.
    pub domain: DomainId,
    /// Its name.
    pub name: Name,
    /// Generation that died.
    pub generation: Generation,
    /// [`crate::crash::Reason`].
    pub reason: u32,
    /// Exception vector.
    pub vector: u32,
    /// Exception error code.
    pub error_code: u64,
    /// Instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// CR2.
    pub cr2: u64,
    /// Guest-physical address of a nested fault.
    pub fault_address: u64,
    /// EXITCODE.
    pub exit_code: u64,
    /// See [`crate::crash::CrashReport::registers`].
    pub registers: [u64; 15],
    /// Return addresses, innermost first.
    pub backtrace: Vec<u64, BACKTRACE>,
    /// When which step was done.
    pub times: Timeline,
    /// [`crate::crash::Rebuild`].
    pub rebuild: u16,
    /// Pages that were restored for the next generation.
    pub pages_restored: u32,
    /// Requests that it had taken and not answered, if it said so.
    pub in_flight: Option<u32>,
    /// [`crate::bundle::Image::crc`] of what it ran.
    pub image_crc: u32,
    /// It was ordered: an end, or a misbehaviour.
    pub ordered: bool,
    /// [`crate::crash::Reset`] for the next generation.
    pub reset: u16,
    /// Panic message and place.
    pub message: String<192>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub text: Text,
}

/// Kinds of failures. New ones go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such domain.
    NotFound,
    /// The domain's state forbids it.
    BadState,
    /// Too many commands under way.
    Busy,
    /// Not done within its time.
    Timeout,
    /// The hypervisor said no: a [`crate::hypercall::Error`] code.
    Hypervisor(u64),
}

/// What the node tells unasked. New events go to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A supervisor begins to serve; whatever was asked of the generation
    /// before it will not be answered.
    Started {
        /// Its generation.
        generation: Generation,
        /// How long nobody was there before it.
        absence: Absence,
    },
    /// A domain died.
    Died {
        /// Which.
        domain: DomainId,
        /// The generation that died.
        generation: Generation,
        /// [`crate::crash::Reason`].
        reason: u32,
        /// Sequence number of its crash record.
        sequence: u64,
    },
    /// The supervisor started a domain's next generation.
    Restarted {
        /// Which.
        domain: DomainId,
    },
    /// A domain used up its restart budget and is held.
    Held {
        /// Which.
        domain: DomainId,
        /// Deaths within its window.
        deaths: u32,
    },
    /// A frame came that this node cannot read: damaged, or of another
    /// [`VERSION`].
    BadFrame,
}

impl Failure {
    /// A failure with text for people, cut where it is too long.
    pub fn new(kind: FailureKind, text: core::fmt::Arguments<'_>) -> Self {
        Self { kind, text: format(text) }
    }
}

/// Formats into a bounded string; what does not fit is cut.
pub fn format<const N: usize>(text: core::fmt::Arguments<'_>) -> String<N> {
    struct Cut<'a, const N: usize>(&'a mut String<N>);
    impl<const N: usize> core::fmt::Write for Cut<'_, N> {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            for c in text.chars() {
                self.0.push(c).map_err(|_| core::fmt::Error)?;
            }
            Ok(())
        }
    }
    let mut out = String::new();
    // The only error is "full", and then the text is cut as promised.
    let _ = core::fmt::Write::write_fmt(&mut Cut(&mut out), text);
    out
}

/// What can travel in a frame.
pub trait Message: Serialize + DeserializeOwned {}
impl Message for Request {}
impl Message for FromNode {}

#[cfg(test)]
mod tests;
