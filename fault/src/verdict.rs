//! The judgement of a trial.

use serde::{Deserialize, Serialize};

use crate::class::Group;
use crate::record::{Data, Manifestation, Trial};
use crate::terms::terms;

terms! {
    /// The judgement of a trial, from best to worst.
    pub enum Verdict {
        NotActivated = "not-activated", "The fault was never activated within the trial's bound.";
        Harmless = "harmless", "It was activated, and all checks found nothing.";
        Recovered = "recovered", "It was detected, the driver recovered, and nothing was lost.";
        Reported = "reported", "The guest got errors, which the class brings about by its definition.";
        Corrupted = "corrupted", "The guest got wrong data through the driver or device, of a class that does that.";
        MachineFailed = "machine-failed", "QEMU failed an assertion of its own over what a device was given: nothing can be said of the trial.";
        Undetected = "undetected", "The driver did not work, nobody noticed within the bound, or it did not come back.";
        DataLost = "data-lost", "Acknowledged data was lost or corrupted by a class that must not do that.";
        NeighbourHarmed = "neighbour-harmed", "A domain was harmed that has nothing to do with the target.";
        HypervisorFailed = "hypervisor-failed", "The hypervisor failed.";
        Unexplained = "unexplained", "None of these: to be looked into.";
    }
}

impl Verdict {
    /// Whether all is as the guarantees have it, and no data was touched.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self <= Self::Reported
    }

    /// Whether a promise was broken, or might have been: neither clean, nor the corruption of
    /// data that the class stands for, which the architecture does not promise to prevent, nor the
    /// end of a machine that is but emulated.
    #[must_use]
    pub fn falls_short(self) -> bool {
        self > Self::MachineFailed
    }
}

/// Judges what was observed; all of the record but [`Trial::verdict`] counts.
#[must_use]
pub fn judge(trial: &Trial) -> Verdict {
    if trial.machine.is_some() {
        return Verdict::MachineFailed;
    }
    if trial.hypervisor.is_some() {
        return Verdict::HypervisorFailed;
    }
    if trial.neighbours.is_some() {
        return Verdict::NeighbourHarmed;
    }
    let may_corrupt = trial.class.may_corrupt();
    match trial.data {
        Data::Corrupt | Data::Lost if may_corrupt => return Verdict::Corrupted,
        Data::Corrupt | Data::Lost => return Verdict::DataLost,
        Data::Unknown => return Verdict::Unexplained,
        Data::Intact => {}
    }
    let is_recovered = trial.recovery.is_some();
    match trial.manifestation {
        Manifestation::None if trial.guest.errors > 0 => Verdict::Unexplained,
        Manifestation::None if trial.activated_ns.is_none() => Verdict::NotActivated,
        Manifestation::None => Verdict::Harmless,
        Manifestation::DeviceError if trial.class.may_report() => Verdict::Reported,
        // A guest sees no error of a fault that its device knows nothing of (G3).
        Manifestation::DeviceError => Verdict::Unexplained,
        Manifestation::Silent => Verdict::Undetected,
        _ if is_recovered && trial.guest.errors == 0 => Verdict::Recovered,
        _ if is_recovered && may_corrupt => match trial.group {
            // The device said so itself, before anybody ended its driver.
            Group::Device => Verdict::Reported,
            _ => Verdict::Corrupted,
        },
        _ => Verdict::Undetected,
    }
}
