//! What exactly a trial does: enough to do it again.

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::disk::{Kind, Misdeed};
use crate::wire::{Mischief, Towards};

/// One fault, with all random choices made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Fault {
    /// Bytes of the program are replaced while the guest works; they are put back before the
    /// driver's next generation begins, for the hypervisor restores what a domain can write.
    Text {
        /// The instruction whose execution activates the fault.
        address: u64,
        /// First byte that changes.
        at: u64,
        /// Bytes there, in hexadecimal.
        before: String,
        /// Bytes instead, in hexadecimal.
        after: String,
    },
    /// A register is changed when the driver comes to an instruction.
    Register {
        /// The instruction.
        address: u64,
        /// Number of the register in GDB's order: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 ….
        register: usize,
        /// What it becomes.
        value: u64,
    },
    /// A store of the driver goes elsewhere: the base register is changed for one instruction.
    Store {
        /// The instruction.
        address: u64,
        /// The base register.
        register: usize,
        /// Where the base points for this one time.
        value: u64,
    },
    /// A word of the stack in use is replaced when the driver comes to an instruction.
    Stack {
        /// The instruction.
        address: u64,
        /// Which word: this many 65536ths of the way from the stack pointer to the base.
        fraction: u16,
        /// What it becomes.
        value: u64,
    },
    /// A word of the heap that is not zero is replaced.
    Heap {
        /// Which: this many 2^32ths of the way through all such words.
        fraction: u32,
        /// What it becomes.
        value: u64,
    },
    /// The driver panics, as ordered; and the allocator of its next generation hands a block out
    /// that is in use.
    Reuse {
        /// Where the call of the allocator returns to that hands the first block out.
        address: u64,
        /// How many it hands out, with that one, before it hands one of these out again.
        blocks: u8,
        /// Which: this many 65536ths of the way through those that were not given back.
        fraction: u16,
    },
    /// The driver's own runtime misbehaves as ordered; the number is that of
    /// `ring_proto::event::Inject`.
    Order {
        /// Which kind.
        kind: u32,
    },
    /// A hypercall of the driver does not happen and seems to succeed.
    SkipCall {
        /// Its number.
        call: u64,
        /// How many of them happen before.
        after: u32,
    },
    /// Events of a device's interrupt are taken away before the driver sees them.
    LoseInterrupt {
        /// How many come before.
        after: u32,
    },
    /// A hypercall of the driver becomes another one.
    Call {
        /// How many happen before.
        after: u32,
        /// RAX, RDI, RSI, RDX, RCX, R8; the number and the arguments instead.
        registers: [u64; 6],
    },
    /// Answers that the driver has shown since it last gave way, so that its peer has not taken
    /// them yet, are altered in their ring, as if the driver had written them so.
    Answer {
        /// Which queue of the connection: blk has one; net sends with 0 and receives with 1.
        queue: usize,
        /// How many hypercalls of the driver come before at which there are such answers.
        after: u32,
        /// What becomes of them.
        change: Change,
    },
    /// Bytes come over the control line.
    Control {
        /// They, in hexadecimal.
        bytes: String,
    },
    /// The disk does not do what it is asked to, once.
    Disk {
        /// Which requests count: those within the judged volume.
        kind: Kind,
        /// How many of them come before.
        after: u32,
        /// What it does instead.
        misdeed: Misdeed,
    },
    /// The wire does not bring frames as they are sent.
    Wire {
        /// Whither they go.
        towards: Towards,
        /// How many come before.
        after: u32,
        /// How many are struck.
        count: u32,
        /// What becomes of them.
        mischief: Mischief,
    },
    /// An address in a descriptor of the driver's queue is replaced before the device reads it.
    Descriptor {
        /// Number of the device's queue.
        queue: u16,
        /// How many chains come before, of those that hold such a buffer.
        after: u32,
        /// Which of the chain's buffers: 65536ths.
        fraction: u16,
        /// Only one that the device writes, with room for an interrupt message.
        written: bool,
        /// The address instead.
        value: u64,
    },
    /// The NIC has no link for a while.
    Link {
        /// So many milliseconds of the host's time.
        ms: u32,
    },
    /// The driver's device is pulled out of its slot, and another one of its kind put there. If
    /// the driver is held by then, as it has no device, somebody releases it.
    Pull {
        /// So many milliseconds of the host's time between them.
        ms: u32,
    },
    /// The driver dies as its runtime is ordered to, and while it is recovered from that somebody
    /// dies of a second fault. Both kinds are numbers of `ring_proto::event::Inject`.
    Second {
        /// Of what the driver dies at the moment.
        first: u32,
        /// Who dies then.
        whom: Whom,
        /// Before which instruction: the first time that it comes there while the driver is being
        /// recovered.
        address: u64,
        /// Of what.
        kind: u32,
    },
}

/// Who dies of a second fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// The driver's next generation, before it has served.
    Driver,
    /// The spare that has taken over, before it has served.
    Spare,
    /// The supervisor, before the driver has served again.
    Supervisor,
}

impl Whom {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Spare, Self::Supervisor];
}

/// What becomes of answers in a ring. The driver keeps its own count of what it sent, and writes
/// over whatever it did not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Change {
    /// The producer index is another one, until the driver sends its next answer.
    Index {
        /// What is added to it, modulo 2^32.
        by: u32,
    },
    /// The last answer names another request.
    Id {
        /// Bits that are inverted.
        bits: u32,
    },
    /// The last answer has another length.
    Length {
        /// It.
        value: u32,
    },
    /// The last answer has another status.
    Status {
        /// Bits that are inverted.
        bits: u8,
    },
    /// The last answer is there once more, behind itself.
    Repeat,
    /// The last two answers have exchanged their places.
    Exchange,
    /// The last answer is not shown before the driver sends its next one.
    Withhold {
        /// Only where the driver has answered all that it was asked: then its next answer comes
        /// after another request, if there is one.
        last: bool,
    },
    /// Behind the last answer there is one to a request that the driver has not answered, which
    /// says that all went well.
    Forge {
        /// Which request: this many 65536ths of the way through all of them, the latest first.
        fraction: u16,
        /// None of these: the request of this id, whether there is one or not.
        id: Option<u32>,
        /// Bytes of the frame, where an answer has a length.
        length: u32,
    },
}

impl Fault {
    /// The instruction of the target at which it happens, if it is at one.
    #[must_use]
    pub fn address(&self) -> Option<u64> {
        match *self {
            Self::Text { address, .. }
            | Self::Register { address, .. }
            | Self::Store { address, .. }
            | Self::Stack { address, .. }
            | Self::Reuse { address, .. }
            | Self::Second { address, whom: Whom::Driver | Whom::Spare, .. } => Some(address),
            _ => None,
        }
    }
}

/// A fault and when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its class.
    pub class: Class,
    /// Name of the driver domain.
    pub target: String,
    /// How many requests of the round the guest has seen completed by then.
    pub moment: u64,
    /// Seed of the round's work.
    pub round_seed: u64,
    /// The fault.
    pub fault: Fault,
    /// The function that it lies in.
    pub function: Option<String>,
    /// For people: `mov rax,[rbx+8] -> mov rcx,[rbx+8]`.
    pub text: String,
}
