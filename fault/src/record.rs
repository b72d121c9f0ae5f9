//! What is written down of a trial: one line of JSON.
//!
//! All times are in nanoseconds on the node's clock. The book's chapter on fault
//! injection documents the format; [`SCHEMA`] grows whenever a reader of old
//! lines would misread new ones.

use serde::{Deserialize, Serialize};

use crate::class::{Class, Group};
use crate::plan::Plan;
use crate::terms::terms;
use crate::verdict::Verdict;
use crate::workload::Workload;

/// Version of the format.
pub const SCHEMA: u32 = 1;

/// One trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Number within the campaign, over all its shards.
    pub trial: u64,
    /// The campaign's seed; with the number it decides all that is random.
    pub seed: u64,
    /// Class of the fault.
    pub class: Class,
    /// The class's group.
    pub group: Group,
    /// The domain that it strikes.
    pub target: String,
    /// What the guests did.
    pub workload: Workload,
    /// Boots of a node that this run of the campaign had made, from 1.
    pub node: u32,
    /// What was done, and when.
    pub plan: Plan,
    /// The moment came, and it was done.
    pub injected: bool,
    /// From the injection until the changed instruction was executed or the changed word
    /// used; `None`: it never was, as far as that was watched.
    pub activated_ns: Option<u64>,
    /// What became of it.
    pub manifestation: Manifestation,
    /// Who saw it.
    pub detection: Option<Detection>,
    /// The driver was back.
    pub recovery: Option<Recovery>,
    /// What the target's guest noticed.
    pub guest: Guest,
    /// The guest's data, by end-to-end checksums.
    pub data: Data,
    /// What harm the domains took that have nothing to do with the target, in words.
    pub neighbours: Option<String>,
    /// What harm the hypervisor took, in words: it panicked, the audit failed, it does not answer.
    pub hypervisor: Option<String>,
    /// What QEMU said when it failed an assertion of its own.
    #[serde(default)]
    pub machine: Option<String>,
    /// The judgement of all this.
    pub verdict: Verdict,
    /// Why it is what it is, if the verdict alone does not say.
    pub note: Option<String>,
}

impl Trial {
    /// Whether the fault had an effect, or was at least executed or used: every trial but those
    /// in which nothing whatever was seen of it.
    #[must_use]
    pub fn is_activated(&self) -> bool {
        self.verdict != Verdict::NotActivated
    }

    /// Whether something of the system under test saw the fault. The checksums that the
    /// workload's guest brings along are not part of it.
    #[must_use]
    pub fn detected(&self) -> Option<Detection> {
        self.detection.filter(|detection| detection.by != Detector::Guest)
    }

    /// Whether a guest's data was lost or corrupted.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self.data, Data::Corrupt | Data::Lost)
    }
}

terms! {
    /// How a fault showed.
    pub enum Manifestation {
        None = "none", "Not at all.";
        Panic = "panic", "The driver panicked.";
        Exception = "exception", "A CPU exception.";
        NestedFault = "nested-fault", "An access that the nested page tables forbid.";
        Shutdown = "shutdown", "A triple fault.";
        Hang = "hang", "It did not wait in time.";
        Stall = "stall", "It ran and did no work.";
        Forbidden = "forbidden", "An instruction that domains may not execute.";
        IommuFault = "iommu-fault", "An access by its device that the IOMMU forbids.";
        Memory = "memory", "Its heap was used up.";
        Exit = "exit", "It called `exit`.";
        Protocol = "protocol", "A peer found its answers against the protocol.";
        DeviceError = "device-error", "An error of the device, reported to the guest.";
        Silent = "silent", "The guest got wrong data, or none, and nobody ended the driver.";
    }
}

/// Who saw the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Who.
    pub by: Detector,
    /// From its activation, or the injection if that was not watched. Of what leaves no record,
    /// to the end of the round: the latest that it can have been.
    pub after_ns: u64,
}

terms! {
    /// Who can see a fault.
    pub enum Detector {
        Driver = "driver", "The driver itself: its panic, its exception handler, its own checks.";
        Hypervisor = "hypervisor", "The hypervisor: nested page tables, intercepts.";
        Watchdog = "watchdog", "The hypervisor's watchdog.";
        Iommu = "iommu", "The IOMMU.";
        Frontend = "frontend", "A frontend's checks, or its complaint.";
        Supervisor = "supervisor", "The supervisor; of its own death, by its panic or its exception handler.";
        Guest = "guest", "The guest's end-to-end checksums only.";
    }
}

/// How the driver came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// From the detection to the first request that the guest saw completed; from the
    /// activation if the frontend reconnected by itself.
    pub after_ns: u64,
    /// Deaths until it stayed.
    pub deaths: u32,
    /// A warm spare took over.
    pub spare: bool,
}

/// What the guest noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Requests that it saw completed in this round.
    pub completed: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests that were sent again.
    pub replayed: u64,
    /// Datagrams that never came back; blk loses none.
    pub lost: u64,
    /// Longest time between two completions with requests pending.
    pub longest_ns: u64,
}

terms! {
    /// The guest's data.
    pub enum Data {
        Intact = "intact", "All that was acknowledged is there, and all that was read was right.";
        Corrupt = "corrupt", "The guest read, or received, something wrong.";
        Lost = "lost", "A write that was acknowledged is not there.";
        Unknown = "unknown", "Nobody could look.";
    }
}
