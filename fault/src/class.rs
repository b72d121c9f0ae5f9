//! Classes of faults.
//!
//! Each has a short name that stays, a definition and its source. The book's
//! chapter on fault injection holds the same list; a test compares them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a class of faults strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// The program of a driver: its instructions, registers and memory.
    Software,
    /// What a driver does as a whole.
    Control,
    /// What crosses a boundary: rings, hypercalls, control frames.
    Interface,
    /// The device and its medium or wire.
    Device,
    /// A second fault, while the first is being recovered from.
    Recovery,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Software, Self::Control, Self::Interface, Self::Device, Self::Recovery];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Control => "control",
            Self::Interface => "interface",
            Self::Device => "device",
            Self::Recovery => "recovery",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! classes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $group:ident, $corrupts:literal,
        $definition:literal, $source:literal;)*) => {
        /// A class of faults.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Class {
            $(#[doc = $definition] #[serde(rename = $name)] $variant,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name on the command line and in records.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it strikes.
            #[must_use]
            pub fn group(self) -> Group {
                match self { $(Self::$variant => Group::$group,)* }
            }

            /// Whether the corruption of a guest's data is what it is, or what a
            /// driver that does it may do: the architecture confines a rogue driver,
            /// it does not vouch for what passes through it.
            #[must_use]
            pub fn may_corrupt(self) -> bool {
                match self { $(Self::$variant => $corrupts,)* }
            }

            /// What it does, exactly.
            #[must_use]
            pub fn definition(self) -> &'static str {
                match self { $(Self::$variant => $definition,)* }
            }

            /// Where the class comes from.
            #[must_use]
            pub fn source(self) -> &'static str {
                match self { $(Self::$variant => $source,)* }
            }
        }
    };
}

classes! {
    TextBit = "text-bit", Software, true,
        "One random bit of one instruction is inverted.", "MINIX swifi `text`; Nooks";
    Nop = "nop", Software, true,
        "One instruction is replaced by no-operations of the same length.", "MINIX swifi `nop`";
    Destination = "destination", Software, true,
        "The register that one instruction writes is replaced by another of the same size.",
        "MINIX swifi `destination`; Nooks";
    Source = "source", Software, true,
        "A register that one instruction reads is replaced by another of the same size.",
        "MINIX swifi `source`; Nooks";
    Branch = "branch", Software, true,
        "The condition of one conditional branch is inverted.", "Nooks";
    Pointer = "pointer", Software, true,
        "The base register of one memory operand is replaced by another, or one bit of its displacement inverted.",
        "MINIX swifi `pointer`; Nooks";
    LoopBound = "loop-bound", Software, true,
        "The condition that ends one loop is off by one: `<` becomes `<=` or the other way round, or the constant compared with one more or less.",
        "MINIX swifi `loop`; Nooks";
    Uninitialised = "uninitialised", Software, true,
        "One store of an initial value into the stack frame, or the zeroing of the register that it stores, in a function's first 16 instructions, is left out.",
        "MINIX swifi `init`; Nooks";
    Stack = "stack", Software, true,
        "One word between the stack pointer and the stack's base is replaced by a random one.",
        "Nooks";
    Heap = "heap", Software, true,
        "One word of the heap that is in use is replaced by a random one.", "Nooks";
    UseAfterFree = "use-after-free", Software, true,
        "The allocator hands a block out that is still in use.", "Nooks";
    RandomWord = "random-word", Software, true,
        "One register is replaced by a random value in front of a random instruction that reads it.",
        "MINIX swifi `random`";

    Panic = "panic", Control, false,
        "The driver panics.", "Linux LKDTM `PANIC`";
    Exception = "exception", Control, false,
        "The driver executes an undefined instruction.", "Linux LKDTM `EXCEPTION`";
    NullWrite = "null-write", Control, false,
        "The driver writes through a null pointer.", "Linux LKDTM `ACCESS_NULL`";
    WildWrite = "wild-write", Control, true,
        "One store of the driver goes to a random address.", "Nooks";
    StackOverflow = "stack-overflow", Control, false,
        "The driver calls without end.", "Linux LKDTM `EXHAUST_STACK`";
    TripleFault = "triple-fault", Control, false,
        "The driver takes an exception without a handler.", "Bulkhead G2";
    EndlessLoop = "endless-loop", Control, false,
        "The driver loops and never waits.", "Linux LKDTM `SOFTLOCKUP`";
    Stall = "stall", Control, false,
        "The driver goes on waiting for events, and answers nothing.", "Linux LKDTM `HUNG_TASK`";
    Livelock = "livelock", Control, false,
        "The driver runs and waits in turns without end, and answers nothing.", "genode #1592";
    Slow = "slow", Control, false,
        "Each pass of the driver's main loop takes some milliseconds longer.",
        "Linux `fail_function`; nbdkit delay filter";
    OutOfMemory = "out-of-memory", Control, false,
        "The driver takes all its heap.", "Linux `failslab`";
    LostNotify = "lost-notify", Control, false,
        "One event that the driver sends to its peer is lost.", "Linux `fail_function`";
    LostInterrupt = "lost-interrupt", Control, false,
        "One interrupt of the device is lost.", "MINIX swifi `irq`";
    InterruptStorm = "interrupt-storm", Control, false,
        "The driver unmasks its interrupt without end, and never looks at the device.",
        "MINIX swifi `irq`";

    RingIndex = "ring-index", Interface, false,
        "The producer index of a response ring is replaced by a random one.",
        "Bulkhead SPEC; cloud-hypervisor #7044";
    RingId = "ring-id", Interface, true,
        "The request id in one response is replaced by a random one, which may be that of another request.",
        "Bulkhead SPEC";
    RingLength = "ring-length", Interface, true,
        "The length in one response is replaced by a random one.", "Bulkhead SPEC";
    RingStatus = "ring-status", Interface, true,
        "The status in one response is replaced by a random one.", "Bulkhead SPEC";
    DuplicateCompletion = "duplicate-completion", Interface, true,
        "One response is sent twice.", "Bulkhead SPEC";
    ReorderedCompletion = "reordered-completion", Interface, false,
        "Two responses exchange their places.", "Bulkhead SPEC";
    WithheldCompletion = "withheld-completion", Interface, false,
        "One response is not shown before the driver sends the next one; the last of a round, not at all.",
        "Linux `fail_make_request`, `fail_io_timeout`";
    ForgedCompletion = "forged-completion", Interface, true,
        "A response says that a request was carried out that the driver has not answered, or that does not exist.",
        "Bulkhead SPEC";
    Hypercall = "hypercall", Interface, true,
        "Number and arguments of one hypercall are replaced by random ones.", "Bulkhead G2; Xen XTF";
    ControlFrame = "control-frame", Interface, false,
        "Random bytes, and damaged frames, come over the control line.", "Bulkhead SPEC";

    IoError = "io-error", Device, false,
        "The disk answers some requests with an error.", "Linux `fail_make_request`; MINIX fbd `error`";
    Timeout = "timeout", Device, false,
        "The disk does not answer a request for a long time.", "Linux `fail_io_timeout`";
    TornWrite = "torn-write", Device, true,
        "The disk stores the first part of a write only, and says that it stored all.",
        "MINIX fbd `torn`";
    LostWrite = "lost-write", Device, true,
        "The disk stores nothing of a write, and says that it did.", "MINIX fbd `lost`";
    CorruptWrite = "corrupt-write", Device, true,
        "The disk stores a write with some bytes changed.", "MINIX fbd `corrupt`";
    MisdirectedWrite = "misdirected-write", Device, true,
        "The disk stores a write in another place.", "MINIX fbd `misdirected`";
    LinkDown = "link-down", Device, false,
        "The wire is unplugged for a while.", "QEMU `set_link`";
    PacketLoss = "packet-loss", Device, false,
        "The wire loses some frames.", "Linux netem `loss`";
    PacketDuplicate = "packet-duplicate", Device, false,
        "The wire brings some frames twice.", "Linux netem `duplicate`";
    PacketCorrupt = "packet-corrupt", Device, false,
        "The wire changes some bits.", "Linux netem `corrupt`";
    PacketReorder = "packet-reorder", Device, false,
        "The wire brings some frames late.", "Linux netem `reorder`";
    DeviceGone = "device-gone", Device, false,
        "The device is pulled without a word, and later put back.", "PCI Express, surprise removal";
    WildDma = "wild-dma", Device, true,
        "One address in a descriptor of the driver's queue is replaced by a random one.",
        "Nooks; xcp #470";
    MsiForgery = "msi-forgery", Device, true,
        "One address in a descriptor of the driver's queue is replaced by that of an interrupt message.",
        "Xen XSA-3; Wojtczuk and Rutkowska 2011";

    SecondFault = "second-fault", Recovery, false,
        "The driver dies a second time while it is being recovered.", "ReHype";
    SpareFault = "spare-fault", Recovery, false,
        "The warm spare dies while it takes over.", "Bulkhead G6";
    SupervisorFault = "supervisor-fault", Recovery, false,
        "The supervisor dies while it recovers a driver.", "Bulkhead G7";
}

impl Class {
    /// Whether it brings errors about that a guest is to hear of: the device's own, or what a
    /// rogue driver says.
    #[must_use]
    pub fn may_report(self) -> bool {
        self == Self::IoError || self.may_corrupt()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|class| class.name() == text);
        found.copied().ok_or_else(|| format!("there is no class of faults `{text}`"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        let names: HashSet<&str> = Class::ALL.iter().map(|class| class.name()).collect();
        assert_eq!(names.len(), Class::ALL.len());
        for class in Class::ALL {
            assert_eq!(class.name().parse(), Ok(*class));
            let json = serde_json::to_string(class).unwrap();
            assert_eq!(json, format!("{:?}", class.name()));
            assert_eq!(serde_json::from_str::<Class>(&json).unwrap(), *class);
        }
    }
}
