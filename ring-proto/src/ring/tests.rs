//! Properties of the ring; names carry the clause of SPEC.md.

use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

type Front = FrontRing<u64, u32>;
type Back = BackRing<u64, u32>;

fn memory(slots: u32) -> SharedMem {
    let len = layout(slots, 8, 4).unwrap().total;
    let lines: &'static mut [[u64; 8]] = Vec::leak(std::vec![[0; 8]; len / 64 + 2]);
    let at = lines.as_mut_ptr().cast::<u8>();
    // The allocator aligns to 16 only.
    let skip = at.align_offset(64);
    // SAFETY: leaked, long enough for the skipped bytes, used only as a view.
    #[allow(unsafe_code)]
    unsafe {
        SharedMem::new(at.add(skip), len)
    }
}

/// Both ends, as if `start` items had passed already.
fn ends(mem: SharedMem, slots: u32, start: u32) -> (Front, Back) {
    let mut front = Front::new(mem, slots).unwrap();
    let mut back = Back::attach(mem, slots).unwrap();
    for at in [Requests::PROD, Responses::PROD] {
        mem.write_u32(at, start, Relaxed);
    }
    for at in [Requests::EVENT, Responses::EVENT] {
        mem.write_u32(at, start.wrapping_add(1), Relaxed);
    }
    front.requests.next = start;
    front.requests.published = start;
    front.responses.next = start;
    front.responses.seen = start;
    back.requests.next = start;
    back.requests.seen = start;
    back.responses.next = start;
    back.responses.published = start;
    (front, back)
}

#[derive(Clone, Debug)]
enum Act {
    Submit(u64),
    ShowRequests,
    Take,
    Answer,
    ShowAnswers,
    Collect,
    SleepFront,
    SleepBack,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => any::<u64>().prop_map(Act::Submit),
        2 => Just(Act::ShowRequests),
        3 => Just(Act::Take),
        3 => Just(Act::Answer),
        2 => Just(Act::ShowAnswers),
        3 => Just(Act::Collect),
        1 => Just(Act::SleepFront),
        1 => Just(Act::SleepBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Against queues of the standard library; indices near the wrap too.
    #[test]
    fn ring_3_every_request_arrives_once_and_in_order(
        log in 0u32..5,
        start in prop_oneof![Just(0), Just(u32::MAX), any::<u32>(), Just((1u32 << 31) - 3)],
        acts in proptest::collection::vec(act(), 1..300),
    ) {
        let slots = 1 << log;
        let (mut front, mut back) = ends(memory(slots), slots, start);
        let (mut hidden, mut shown) = (VecDeque::new(), VecDeque::new());
        let (mut taken, mut answers) = (VecDeque::new(), VecDeque::new());
        let mut visible = VecDeque::new();
        let (mut front_sleeps, mut back_sleeps) = (false, false);
        let mut count = 0u32;
        for act in acts {
            match act {
                Act::Submit(value) => {
                    let room = front.room() > 0;
                    prop_assert_eq!(front.push(&value).is_ok(), room);
                    if room {
                        hidden.push_back(value);
                    }
                }
                Act::ShowRequests => {
                    let any = !hidden.is_empty();
                    shown.append(&mut hidden);
                    let notify = front.publish();
                    // RING-8: a sleeper is always woken.
                    prop_assert!(!(back_sleeps && any) || notify);
                    back_sleeps &= !notify;
                }
                Act::Take => {
                    let got = back.pop().unwrap();
                    prop_assert_eq!(got, shown.pop_front());
                    taken.extend(got);
                }
                Act::Answer => {
                    let may = taken.pop_front().is_some();
                    prop_assert_eq!(back.push(&count).is_ok(), may);
                    if may {
                        answers.push_back(count);
                        count += 1;
                    }
                }
                Act::ShowAnswers => {
                    let any = !answers.is_empty();
                    visible.append(&mut answers);
                    let notify = back.publish();
                    prop_assert!(!(front_sleeps && any) || notify);
                    front_sleeps &= !notify;
                }
                Act::Collect => {
                    prop_assert_eq!(front.pop().unwrap(), visible.pop_front());
                }
                Act::SleepFront => {
                    let more = front.arm().unwrap();
                    prop_assert_eq!(more, !visible.is_empty());
                    front_sleeps = !more;
                }
                Act::SleepBack => {
                    let more = back.look_or_arm().unwrap();
                    prop_assert_eq!(more, !shown.is_empty());
                    back_sleeps = !more;
                }
            }
            prop_assert!(front.outstanding() <= slots);
        }
    }

    #[test]
    fn ring_4_an_index_out_of_bounds_is_misbehaviour(
        log in 0u32..5,
        start in any::<u32>(),
        sent in 0u32..40,
        claimed in any::<u32>(),
    ) {
        let slots = 1 << log;
        let mem = memory(slots);
        let (mut front, mut back) = ends(mem, slots, start);
        let sent = sent.min(slots);
        for i in 0..sent {
            front.push(&u64::from(i)).unwrap();
        }
        let _ = front.publish();
        // The backend may answer what was sent and nothing else.
        mem.write_u32(Responses::PROD, start.wrapping_add(claimed), Relaxed);
        prop_assert_eq!(front.pop().is_err(), claimed > sent);
        // The frontend may have as many out as there are slots.
        mem.write_u32(Requests::PROD, start.wrapping_add(claimed), Relaxed);
        prop_assert_eq!(back.pop().is_err(), claimed > slots);
    }

    #[test]
    fn ring_4_an_index_that_goes_back_is_misbehaviour(start in any::<u32>(), by in 1u32..4) {
        let mem = memory(8);
        let (mut front, mut back) = ends(mem, 8, start);
        for i in 0..4u64 {
            front.push(&i).unwrap();
        }
        let _ = front.publish();
        prop_assert_eq!(back.pop(), Ok(Some(0)));
        mem.write_u32(Requests::PROD, start.wrapping_add(4 - by), Relaxed);
        prop_assert!(back.arm().is_err());
    }

    #[test]
    fn ring_8_the_peers_event_word_decides_nothing_but_notifications(
        event in any::<u32>(),
        start in any::<u32>(),
    ) {
        let mem = memory(8);
        let (mut front, mut back) = ends(mem, 8, start);
        mem.write_u32(Requests::EVENT, event, Relaxed);
        front.push(&1).unwrap();
        prop_assert_eq!(front.publish(), event == start.wrapping_add(1));
        prop_assert_eq!(back.pop(), Ok(Some(1)));
    }
}

#[test]
fn ring_1_layouts() {
    assert_eq!(
        layout(64, 72, 8),
        Some(Layout { slots: 64, requests: 256, responses: 4864, total: 5376 })
    );
    assert_eq!(layout(64, 72, 8).unwrap().pages(), 2);
    for bad in [0, 3, 65, 2048, 1 << 31, u32::MAX] {
        assert_eq!(layout(bad, 8, 8), None, "{bad}");
    }
    assert_eq!(layout(8, 0, 8), None);
    assert_eq!(layout(8, 8, 5000), None);
    let mem = memory(8);
    assert!(FrontRing::<u64, u32>::new(mem.sub(0, mem.len() - 1).unwrap(), 8).is_none());
    assert!(BackRing::<u64, u32>::attach(mem.sub(4, mem.len() - 4).unwrap(), 1).is_none());
}

#[test]
fn ring_2_a_fresh_queue_has_the_specified_words() {
    let mem = memory(4);
    for at in (0..mem.len()).step_by(4) {
        mem.write_u32(at, 0xdead_beef, Relaxed);
    }
    let _front = Front::new(mem, 4).unwrap();
    let words = |mem: &SharedMem| [0, 64, 128, 192].map(|at| mem.read_u32(at, Relaxed));
    assert_eq!(words(&mem), [0, 1, 0, 1]);
    // All else is clear: nothing of what was there before gets across.
    let others = (0..mem.len()).step_by(4).filter(|at| *at != 64 && *at != 192);
    assert!(others.into_iter().all(|at| mem.read_u32(at, Relaxed) == 0));
    // Each end writes its own words again when it begins.
    for at in [0, 64, 128, 192] {
        mem.write_u32(at, 77, Relaxed);
    }
    let _back = Back::attach(mem, 4).unwrap();
    assert_eq!(words(&mem), [77, 1, 0, 77]);
}

#[test]
fn ring_3_a_second_answer_to_one_request_is_refused() {
    let (mut front, mut back) = ends(memory(4), 4, 0);
    front.push(&1).unwrap();
    let _ = front.publish();
    assert_eq!(back.push(&0), Err(Full));
    assert_eq!(back.pop(), Ok(Some(1)));
    assert_eq!(back.push(&0), Ok(()));
    assert_eq!(back.push(&0), Err(Full));
}

#[test]
fn ring_6_what_the_peer_writes_over_own_words_is_not_read_back() {
    let mem = memory(4);
    let (mut front, mut back) = ends(mem, 4, 0);
    front.push(&1).unwrap();
    let _ = front.publish();
    mem.write_u32(Requests::PROD, 77, Relaxed);
    mem.write_u32(Responses::EVENT, 99, Relaxed);
    assert_eq!(front.room(), 3);
    front.push(&2).unwrap();
    let _ = front.publish();
    assert_eq!(mem.read_u32(Requests::PROD, Relaxed), 2);
    assert_eq!((back.pop(), back.pop(), back.pop()), (Ok(Some(1)), Ok(Some(2)), Ok(None)));
}

#[test]
fn ring_8_a_disarmed_consumer_is_not_notified() {
    let (mut front, mut back) = ends(memory(4), 4, 0);
    back.disarm();
    for i in 0..100 {
        front.push(&i).unwrap();
        assert!(!front.publish());
        assert_eq!(back.pop(), Ok(Some(i)));
        back.push(&0).unwrap();
        let _ = back.publish();
        assert_eq!(front.pop(), Ok(Some(0)));
    }
    assert_eq!(back.look_or_arm(), Ok(false));
    front.push(&1).unwrap();
    assert!(front.publish());
}
