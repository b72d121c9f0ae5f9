//! From a campaign's seed and a trial's number to what the trial does.

use fault::class::{Class, Group};
use fault::disk::{Kind, Misdeed};
use fault::mutate;
use fault::plan::{Change, Fault, Plan};
use fault::wire::{Mischief, Towards};
use ring_proto::control::{Command, FRAME_MAX, Request, encode};
use ring_proto::event::Inject;
use ring_proto::net::{MAX_FRAME, MIN_FRAME};

use super::gdb::hex;
use super::node::Judged;
use super::strike::NOTIFY;
use super::target::Target;
use super::{rings, second};

/// Requests of a round.
pub const REQUESTS: u64 = 24;
/// The moment comes after at least one request, and leaves so many to do.
const LAST_REQUESTS: u64 = 16;
/// Hypercalls that may come before the one that is struck: few, as each is a stop that costs
/// QEMU all that it has translated, and the moment is random already.
const BEFORE: u32 = 2;
/// Interrupts that may.
const INTERRUPTS_BEFORE: u32 = 6;
/// Hypercalls with answers in the ring that may come before the one at which they are struck.
const ANSWERS_BEFORE: u32 = 2;
/// Most disturbances on the control line.
const DISTURBANCES: usize = 4;
/// Requests of its kind that the disk carries out well before it strikes one.
const DISK_BEFORE: u32 = 4;
/// How long the disk withholds an answer: from what nobody minds, past the bound of a stall and
/// that of the supervisor's check, ms.
const LATE_MS: std::ops::RangeInclusive<u32> = 10..=200;
/// Chains that come before the one that is struck, of those that would do.
const CHAINS_BEFORE: u32 = 3;
/// Most frames that pass before some are struck, that are struck, and that pass a late one.
const FRAMES: u32 = 4;
/// Where the interrupt messages of the platform go (the destination is in bits 12 to 19), bytes of
/// that, and where they are for the node's one core.
const MESSAGES: u64 = 0xfee0_0000;
const MESSAGES_LEN: u64 = 1 << 20;
const PAGE: u64 = 1 << 12;
/// How long there is no link, ms.
const DOWN_MS: std::ops::RangeInclusive<u32> = 1..=100;
/// How long there is no device, ms: as long as its driver takes to be held, or less.
const GONE_MS: std::ops::RangeInclusive<u32> = 1..=100;
/// Numbers of hypercalls, and a few that are none.
const CALLS: u64 = 48;

/// The order to the driver's runtime that a class is, if it is one.
fn order(class: Class) -> Option<Inject> {
    Some(match class {
        Class::Panic => Inject::Panic,
        Class::Exception => Inject::Exception,
        Class::NullWrite => Inject::NullWrite,
        Class::StackOverflow => Inject::StackOverflow,
        Class::TripleFault => Inject::TripleFault,
        Class::EndlessLoop => Inject::Loop,
        Class::Stall => Inject::Stall,
        Class::Livelock => Inject::Livelock,
        Class::Slow => Inject::Slow,
        Class::OutOfMemory => Inject::OutOfMemory,
        Class::InterruptStorm => Inject::Storm,
        _ => return None,
    })
}

/// Whether a class can strike a driver of this kind, `blk` or `net`.
pub fn fits(class: Class, target: &str) -> bool {
    match class {
        Class::IoError
        | Class::Timeout
        | Class::TornWrite
        | Class::LostWrite
        | Class::CorruptWrite
        | Class::MisdirectedWrite => target == "blk",
        Class::LinkDown
        | Class::PacketLoss
        | Class::PacketDuplicate
        | Class::PacketCorrupt
        | Class::PacketReorder => target == "net",
        // Only what is received has a length.
        Class::RingLength => rings::queues(target).iter().any(|queue| queue.length.is_some()),
        _ => true,
    }
}

/// Whether a class can strike the driver `target`, of which `judged` tells.
pub fn strikes(class: Class, judged: &Judged, target: &str) -> bool {
    // What a device that is not virtio takes from its driver nobody here knows.
    let is_ring = matches!(class, Class::WildDma | Class::MsiForgery);
    judged.driver == target && fits(class, judged.kind) && (judged.is_virtio || !is_ring)
}

/// What the device does.
fn device(class: Class, target: &str, rng: &mut fastrand::Rng) -> Option<(Fault, String)> {
    // Other classes draw no numbers here.
    if class.group() != Group::Device {
        return None;
    }
    if class == Class::DeviceGone {
        let ms = rng.u32(GONE_MS);
        return Some((Fault::Pull { ms }, format!("no device for {ms} ms")));
    }
    wire(class, rng).or_else(|| disk(class, rng)).or_else(|| descriptor(class, target, rng))
}

/// Another address in front of the device.
fn descriptor(class: Class, target: &str, rng: &mut fastrand::Rng) -> Option<(Fault, String)> {
    let (value, written) = match class {
        // As many low addresses as high ones: what is there at all is low.
        Class::WildDma => (rng.u64(..) >> rng.u32(..u64::BITS), false),
        Class::MsiForgery => {
            // Most buffers fill a page: from its first byte on they are a message for each word.
            let core = if rng.bool() { 0 } else { rng.u64(..MESSAGES_LEN / PAGE) };
            let word = if rng.bool() { 0 } else { rng.u64(..PAGE / 4) };
            (MESSAGES + core * PAGE + word * 4, true)
        }
        _ => return None,
    };
    // A NIC receives by its queue 0, and sends by 1.
    let queue = if target == "net" && !written { rng.u16(..2) } else { 0 };
    let (after, fraction) = (rng.u32(..CHAINS_BEFORE), rng.u16(..));
    let text = format!("{value:#x} is an address in queue {queue} after {after} chains");
    Some((Fault::Descriptor { queue, after, fraction, written, value }, text))
}

fn wire(class: Class, rng: &mut fastrand::Rng) -> Option<(Fault, String)> {
    let mischief = match class {
        Class::LinkDown => {
            let ms = rng.u32(DOWN_MS);
            return Some((Fault::Link { ms }, format!("no link for {ms} ms")));
        }
        Class::PacketLoss => Mischief::Lose,
        Class::PacketDuplicate => Mischief::Duplicate,
        Class::PacketCorrupt => Mischief::Corrupt { fraction: rng.u32(..) },
        Class::PacketReorder => Mischief::Delay { frames: rng.u32(1..=FRAMES) },
        _ => return None,
    };
    let towards = if rng.bool() { Towards::Driver } else { Towards::Peer };
    let (after, count) = (rng.u32(..FRAMES), rng.u32(1..=FRAMES));
    let text = format!("wire: {count} frames to the {towards:?} after {after}: {mischief:?}");
    Some((Fault::Wire { towards, after, count, mischief }, text))
}

fn disk(class: Class, rng: &mut fastrand::Rng) -> Option<(Fault, String)> {
    let kind = match class {
        Class::IoError | Class::Timeout if rng.bool() => Kind::Read,
        _ => Kind::Write,
    };
    let after = rng.u32(..DISK_BEFORE);
    let misdeed = match class {
        Class::IoError => Misdeed::Error,
        Class::Timeout => Misdeed::Late { ms: rng.u32(LATE_MS) },
        Class::TornWrite => Misdeed::Torn { fraction: rng.u16(..) },
        Class::LostWrite => Misdeed::Lost,
        Class::CorruptWrite => Misdeed::Corrupt { fraction: rng.u16(..), mask: rng.u64(1..) },
        Class::MisdirectedWrite => Misdeed::Misdirected { fraction: rng.u32(..) },
        _ => return None,
    };
    let text = format!("disk: {kind:?} after {after} others: {misdeed:?}");
    Some((Fault::Disk { kind, after, misdeed }, text))
}

/// What becomes of answers in a queue of `queues`, for classes that change them.
fn change(class: Class, rng: &mut fastrand::Rng) -> Option<Change> {
    // As many small numbers as large ones: what is nearly right is more than what is nowhere
    // near.
    let scaled = |rng: &mut fastrand::Rng| rng.u32(1..) >> rng.u32(..32);
    let not_zero = |rng: &mut fastrand::Rng| scaled(rng).max(1);
    Some(match class {
        Class::RingIndex => {
            let by = not_zero(rng);
            Change::Index { by: if rng.bool() { by } else { by.wrapping_neg() } }
        }
        Class::RingId => Change::Id { bits: not_zero(rng) },
        Class::RingLength => Change::Length { value: scaled(rng) },
        Class::RingStatus => Change::Status { bits: (rng.u8(1..) >> rng.u32(..8)).max(1) },
        Class::DuplicateCompletion => Change::Repeat,
        Class::ReorderedCompletion => Change::Exchange,
        Class::WithheldCompletion => Change::Withhold { last: false },
        Class::ForgedCompletion => {
            let id = (rng.u8(..4) == 0).then(|| scaled(rng));
            Change::Forge { fraction: rng.u16(..), id, length: rng.u32(MIN_FRAME..=MAX_FRAME) }
        }
        _ => return None,
    })
}

/// Random bytes, and frames with a damage: none of them is sound, but by a chance of one in
/// 2^32, and a command that changes nothing is what it would be.
fn disturbances(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.usize(1..=DISTURBANCES) {
        let request = Request { seq: rng.u32(..), command: Command::Info };
        // It is short.
        let mut frame = encode(&request).map(|frame| frame.to_vec()).unwrap_or_default();
        let end = frame.len().max(2);
        match rng.u8(..5) {
            0 => {
                let len = rng.usize(1..256);
                frame = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
            }
            1 => frame.truncate(rng.usize(1..end - 1)),
            2 => frame.insert(rng.usize(..end - 1), rng.u8(1..)),
            3 => {
                // Longer than a frame can be.
                let len = FRAME_MAX + rng.usize(..64);
                frame = std::iter::repeat_with(|| rng.u8(1..)).take(len).collect();
                frame.push(0);
            }
            _ => {
                let at = rng.usize(..end - 1);
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= 1 << rng.u8(..8);
                }
            }
        }
        bytes.append(&mut frame);
    }
    bytes
}

/// The random numbers of a trial.
pub fn random(seed: u64, trial: u64) -> fastrand::Rng {
    // One stream gives each trial its seed: neighbours have nothing in common.
    let mut seeds = fastrand::Rng::with_seed(seed ^ trial.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    fastrand::Rng::with_seed(seeds.u64(..))
}

/// What a trial of this class does to this target; `None` if the program has no place for it.
pub fn choose(class: Class, target: &Target, rng: &mut fastrand::Rng) -> Option<Plan> {
    let mut moment = rng.u64(1..REQUESTS - LAST_REQUESTS);
    let round_seed = rng.u64(..);
    let (fault, function, text) = if let Some((fault, text)) = device(class, target.kind, rng) {
        (fault, None, text)
    } else if class.group() == Group::Recovery {
        second::choose(class, target, rng)?
    } else if let Some(kind) = order(class) {
        (Fault::Order { kind: kind as u32 }, None, format!("{kind:?} ordered"))
    } else if let Some(change) = change(class, rng) {
        let fits = |queue: &rings::Shape| class != Class::RingLength || queue.length.is_some();
        let queues = rings::queues(target.kind);
        let fitting: Vec<usize> = (0..queues.len()).filter(|&i| fits(&queues[i])).collect();
        let queue = *rng.choice(&fitting)?;
        let mut after = rng.u32(..ANSWERS_BEFORE);
        // The last answer of a round has none behind it that shows it after all. Where frames
        // are received there is none, as there are always buffers for more.
        let last = queues[queue].length.is_none() && rng.bool();
        let change = match change {
            Change::Withhold { .. } if last => {
                (moment, after) = (REQUESTS - 1, 0);
                Change::Withhold { last }
            }
            change => change,
        };
        let text = format!("{change:x?} in queue {queue}");
        (Fault::Answer { queue, after, change }, None, text)
    } else {
        match class {
            Class::LostNotify => {
                let after = rng.u32(..BEFORE);
                let text = format!("notify left out after {after} others");
                (Fault::SkipCall { call: NOTIFY, after }, None, text)
            }
            Class::LostInterrupt => {
                let after = rng.u32(..INTERRUPTS_BEFORE);
                (
                    Fault::LoseInterrupt { after },
                    None,
                    format!("interrupt lost after {after} others"),
                )
            }
            Class::Hypercall => {
                let after = rng.u32(..BEFORE);
                let mut registers = [0; 6];
                registers.fill_with(|| rng.u64(..) >> rng.u32(..64));
                registers[0] = rng.u64(..CALLS);
                let text = format!("hypercall {} with {:#x?}", registers[0], &registers[1..]);
                (Fault::Call { after, registers }, None, text.replace('\n', " "))
            }
            Class::ControlFrame => {
                let bytes = disturbances(rng);
                let text = format!("{} bytes on the control line", bytes.len());
                (Fault::Control { bytes: hex(&bytes) }, None, text)
            }
            Class::UseAfterFree => {
                let (fault, text) = target.allocator.choose(rng)?;
                let function = fault.address().and_then(|at| target.program.function_at(at));
                (fault, function.map(|function| function.name.clone()), text)
            }
            _ => {
                let planned = mutate::plan(class, &target.program, rng, &|at| target.is_live(at))?;
                (planned.fault, planned.function, planned.text)
            }
        }
    };
    Some(Plan { class, target: target.name.clone(), moment, round_seed, fault, function, text })
}

#[cfg(test)]
mod tests {
    use ring_proto::control::Decoder;

    use super::super::target::samples;
    use super::*;

    #[test]
    fn every_class_has_a_plan() {
        let (mut blk, mut net) = (samples::blk(), samples::blk());
        (blk.name, net.name, net.kind) = ("blk".to_owned(), "net".to_owned(), "net");
        let targets = [&blk, &net];
        for class in Class::ALL {
            let fitting = targets.iter().filter(|target| fits(*class, target.kind));
            assert!(fitting.clone().count() > 0, "nobody for {class}");
            for target in fitting {
                let plan = choose(*class, target, &mut random(1, 1));
                let plan = plan.unwrap_or_else(|| panic!("no plan for {class}"));
                assert_eq!((plan.class, &plan.target), (*class, &target.name));
                assert!((1..REQUESTS).contains(&plan.moment), "{plan:?}");
            }
        }
    }

    #[test]
    fn only_what_has_a_length_gets_another() {
        let (blk, mut net) = (samples::blk(), samples::blk());
        net.kind = "net";
        let choose = |target| choose(Class::RingLength, target, &mut random(1, 1));
        assert!(!fits(Class::RingLength, "blk") && choose(&blk).is_none());
        let plan = choose(&net).filter(|_| fits(Class::RingLength, "net")).unwrap();
        assert!(matches!(plan.fault, Fault::Answer { queue: 1, .. }), "{plan:?}");
    }

    #[test]
    fn a_change_of_a_field_changes_it() {
        for trial in 0..1000 {
            let by = |class| change(class, &mut random(1, trial));
            assert_ne!(by(Class::RingIndex), Some(Change::Index { by: 0 }));
            assert_ne!(by(Class::RingId), Some(Change::Id { bits: 0 }));
            assert_ne!(by(Class::RingStatus), Some(Change::Status { bits: 0 }));
        }
    }

    #[test]
    fn an_answer_is_withheld_for_good_where_that_can_be() {
        let mut net = samples::blk();
        net.kind = "net";
        let mut last = [0; 2];
        for trial in 0..200 {
            let plan = choose(Class::WithheldCompletion, &net, &mut random(1, trial)).unwrap();
            let Fault::Answer { queue, change, .. } = plan.fault else { panic!("{plan:?}") };
            last[queue] += u32::from(change == Change::Withhold { last: true });
        }
        assert!(last[0] > 20 && last[1] == 0, "{last:?}");
    }

    #[test]
    fn disturbances_are_no_commands() {
        for trial in 0..1000 {
            let mut bytes = disturbances(&mut random(1, trial));
            // What stands half on the line is ended.
            bytes.push(0);
            let (mut decoder, mut input) = (Decoder::new(), &bytes[..]);
            let mut damaged = 0;
            while let Some(result) = decoder.feed::<Request>(&mut input) {
                assert!(result.is_err(), "{trial}: {result:?}");
                damaged += 1;
            }
            assert!(damaged > 0, "{trial}");
        }
    }

    #[test]
    fn seed_and_number_decide_it_all() {
        let target = samples::blk();
        let plan = |seed, trial| choose(Class::Nop, &target, &mut random(seed, trial)).unwrap();
        assert_eq!(plan(7, 3), plan(7, 3));
        assert_ne!(plan(7, 3), plan(7, 4));
        assert_ne!(plan(7, 3), plan(8, 3));
        // Neighbours of one campaign are not those of another, shifted.
        assert_ne!(plan(7, 4), plan(8, 3));
    }

    #[test]
    fn faults_are_made_in_live_functions_only() {
        let mut target = samples::blk();
        let only = target.program.functions().iter().max_by_key(|f| f.range().count()).unwrap();
        let only = only.range();
        target.seen.retain(|address| *address == only.start);
        for trial in 0..50 {
            let plan = choose(Class::Nop, &target, &mut random(1, trial)).unwrap();
            assert!(only.contains(&plan.fault.address().unwrap()), "{plan:?}");
        }
    }
}
