//! Trials for tests: random, the same for the same seed, and judged as real ones are.

use std::collections::BTreeMap;

use super::campaign::{Campaign, Shard};
use super::log::{Effort, Results};
use crate::class::{Class, Group};
use crate::plan::{Fault, Plan};
use crate::record::{Data, Detection, Detector, Guest, Manifestation, Recovery, SCHEMA, Trial};
use crate::verdict::{Verdict, judge};
use crate::workload::Workload;

/// Functions with all that names in Rust have.
const FUNCTIONS: [&str; 6] = [
    "<driver_blk::service::Service as core::ops::Drop>::drop",
    "core::ptr::drop_in_place<alloc::vec::Vec<(u32, &'static str)>>",
    "driver_blk::service::run",
    "ring_ends::blk::backend::Backend<S>::poll::{{closure}}",
    "virtio_drivers::queue::VirtQueue<H, 16>::add",
    "memcpy",
];

pub(super) fn campaign(trials: Option<u64>, shard: Shard) -> Campaign {
    Campaign {
        schema: SCHEMA,
        program: "v0.1.0-412-g7e2e09a".to_owned(),
        manifest: "nodes/fault.toml".to_owned(),
        seed: 7,
        classes: Class::ALL.to_vec(),
        targets: vec!["blk".to_owned(), "net".to_owned()],
        workload: Workload::Mixed,
        trials,
        bound_ns: 1_000_000_000,
        functions: BTreeMap::from([("blk".to_owned(), 612), ("net".to_owned(), 701)]),
        shard,
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Between `from` and 2^`octaves` times as much, evenly by order of magnitude.
    fn spread(&mut self, from: u64, octaves: u64) -> u64 {
        let octave = self.below(octaves);
        (from << octave) + self.below(from << octave)
    }
}

/// The trial with this number: most as they should be.
pub(super) fn trial(campaign: &Campaign, number: u64) -> Trial {
    let mut random = Random(campaign.seed << 32 | number);
    let class = campaign.classes[random.below(campaign.classes.len() as u64) as usize];
    let target = campaign.targets[random.below(campaign.targets.len() as u64) as usize].clone();
    let function = FUNCTIONS[random.below(FUNCTIONS.len() as u64) as usize];
    let address = 0x20_0000 + random.below(2000) * 4;
    let is_software = class.group() == Group::Software;
    let plan = Plan {
        class,
        target: target.clone(),
        moment: random.below(500),
        round_seed: random.next(),
        fault: if is_software {
            let (before, after) = ("488b4308".to_owned(), "488b4b08".to_owned());
            Fault::Text { address, at: address + 2, before, after }
        } else {
            Fault::Order { kind: 3 }
        },
        function: is_software.then(|| function.to_owned()),
        text: if is_software { "mov rax,[rbx+8] -> mov rcx,[rbx+8]" } else { "order 3" }.to_owned(),
    };
    let mut trial = Trial {
        schema: SCHEMA,
        trial: number,
        seed: campaign.seed,
        class,
        group: class.group(),
        target,
        workload: campaign.workload,
        node: 1,
        plan,
        injected: true,
        activated_ns: None,
        manifestation: Manifestation::None,
        detection: None,
        recovery: None,
        guest: Guest { completed: 500, longest_ns: 40_000, ..Guest::default() },
        data: Data::Intact,
        neighbours: None,
        hypervisor: None,
        machine: None,
        verdict: Verdict::NotActivated,
        note: None,
    };
    show(&mut trial, &mut random);
    trial.verdict = judge(&trial);
    trial
}

fn show(trial: &mut Trial, random: &mut Random) {
    let die = random.below(1000);
    if die < 150 {
        return;
    }
    trial.activated_ns = Some(random.spread(100, 12));
    if die < 350 {
        return;
    }
    if trial.class.may_corrupt() && die >= 960 {
        trial.data = Data::Corrupt;
        trial.manifestation = Manifestation::Silent;
        let after_ns = random.spread(100_000, 8);
        trial.detection = Some(Detection { by: Detector::Guest, after_ns });
        return;
    }
    if trial.class.group() == Group::Device && trial.class.may_report() {
        trial.manifestation = Manifestation::DeviceError;
        trial.guest.errors = 1 + random.below(3);
        return;
    }
    let (manifestation, by, from) = match random.below(10) {
        0..=3 => (Manifestation::Panic, Detector::Driver, 2_000),
        4..=5 => (Manifestation::Exception, Detector::Driver, 1_500),
        6 => (Manifestation::NestedFault, Detector::Hypervisor, 900),
        7 => (Manifestation::Protocol, Detector::Frontend, 30_000),
        8 => (Manifestation::IommuFault, Detector::Iommu, 10_000),
        _ => (Manifestation::Hang, Detector::Watchdog, 100_000_000),
    };
    trial.manifestation = manifestation;
    if die == 959 {
        trial.note = Some("no <answer> within the bound & nobody saw it".to_owned());
        return;
    }
    trial.detection = Some(Detection { by, after_ns: random.spread(from, 2) });
    trial.recovery = Some(Recovery {
        after_ns: random.spread(150_000 + trial.class as u64 * 9_000, 5),
        deaths: 1,
        spare: random.below(2) == 0,
    });
    trial.guest.replayed = random.below(32);
}

/// A whole campaign.
pub(super) fn results(trials: u64) -> Results {
    let campaign = campaign(Some(trials), Shard::WHOLE);
    Results {
        trials: (0..trials).map(|number| trial(&campaign, number)).collect(),
        effort: Effort { wall_seconds: trials as f64 / 23.5, boots: 12, runs: 1, set_aside: 0 },
        campaign,
        torn: None,
    }
}

/// Trials of a class in which nothing was seen of the fault.
pub(super) fn quiet(class: Class) -> impl Fn(u64) -> Trial {
    let campaign = Campaign { classes: vec![class], ..campaign(None, Shard::WHOLE) };
    move |number| Trial {
        activated_ns: None,
        manifestation: Manifestation::None,
        detection: None,
        recovery: None,
        data: Data::Intact,
        verdict: Verdict::NotActivated,
        note: None,
        ..trial(&campaign, number)
    }
}
