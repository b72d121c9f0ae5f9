//! The judgement of a trial.

use serde::{Deserialize, Serialize};

use crate::record::{Data, Manifestation, Trial};

/// The judgement of a trial, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The fault was never activated within the trial's bound.
    NotActivated,
    /// It was activated, and all checks found nothing.
    Harmless,
    /// It was detected, the driver recovered, and nothing was lost.
    Recovered,
    /// The guest got errors, which the class brings about by its definition.
    Reported,
    /// The guest got wrong data through the driver or device, of a class that does that.
    Corrupted,
    /// The driver did not work, nobody noticed within the bound, or it did not come back.
    Undetected,
    /// Acknowledged data was lost or corrupted by a class that must not do that.
    DataLost,
    /// A domain was harmed that has nothing to do with the target.
    NeighbourHarmed,
    /// The hypervisor failed.
    HypervisorFailed,
    /// None of these: to be looked into.
    Unexplained,
}

impl Verdict {
    /// All of them, from best to worst.
    pub const ALL: [Self; 10] = [
        Self::NotActivated,
        Self::Harmless,
        Self::Recovered,
        Self::Reported,
        Self::Corrupted,
        Self::Undetected,
        Self::DataLost,
        Self::NeighbourHarmed,
        Self::HypervisorFailed,
        Self::Unexplained,
    ];

    /// Whether all is as the guarantees have it.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self <= Self::Reported
    }
}

/// Judges what was observed; all of the record but [`Trial::verdict`] counts.
#[must_use]
pub fn judge(trial: &Trial) -> Verdict {
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
        Manifestation::DeviceError => Verdict::Reported,
        Manifestation::Silent => Verdict::Undetected,
        _ if is_recovered && trial.guest.errors == 0 => Verdict::Recovered,
        _ if is_recovered && may_corrupt => Verdict::Corrupted,
        _ => Verdict::Undetected,
    }
}
