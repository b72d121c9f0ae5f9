//! Against the rings themselves: what a frontend makes of answers that were changed.

use ring_proto::ring::{BackRing, FrontRing, PeerMisbehaved, Slot};
use ring_proto::shm::SharedMem;

use super::*;

/// Two ends of a queue, with a copy of its memory in between.
struct Ends<Q, S> {
    mem: SharedMem,
    shape: Shape,
    front: FrontRing<Q, S>,
    back: BackRing<Q, S>,
    /// Answers that the backend had shown when the frontend last looked.
    before: u32,
}

impl<Q: Slot, S: Slot> Ends<Q, S> {
    fn new(shape: Shape) -> Self {
        let len = shape.layout().unwrap().total.next_multiple_of(PAGE_SIZE);
        // 64 bytes more, so that an aligned view fits.
        let words: &'static mut [u64] = Vec::leak(vec![0u64; len / 8 + 8]);
        #[allow(unsafe_code)]
        // SAFETY: leaked, and used through the view only.
        let mem = unsafe { SharedMem::new(words.as_mut_ptr().cast(), words.len() * 8) };
        let skipped = (0..64).step_by(8).find(|&at| mem.sub(at, len).unwrap().is_aligned(64));
        let mem = mem.sub(skipped.unwrap(), len).unwrap();
        let front = FrontRing::new(mem, shape.slots).unwrap();
        let back = BackRing::attach(mem, shape.slots).unwrap();
        Self { mem, shape, front, back, before: 0 }
    }

    /// Requests that the backend has taken.
    fn request(&mut self, requests: &[Q]) {
        for request in requests {
            self.front.push(request).unwrap();
        }
        let _ = self.front.publish();
        while self.back.pop().unwrap().is_some() {}
    }

    fn answer(&mut self, answers: &[S]) {
        for answer in answers {
            self.back.push(answer).unwrap();
        }
        let _ = self.back.publish();
    }

    fn ring(&self) -> Ring {
        let layout = self.shape.layout().unwrap();
        let mut bytes = vec![0; self.mem.len()];
        self.mem.copy_from(0, &mut bytes).unwrap();
        Ring { bytes, layout, shape: self.shape, owner: 0, pages: Vec::new() }
    }

    /// Makes the change; whether it could be made.
    fn change(&mut self, change: Change) -> bool {
        let mut ring = self.ring();
        let changed = ring.change(&change, ring.shown_since(self.before));
        self.mem.copy_to(0, &ring.bytes).unwrap();
        changed
    }

    /// All answers that the frontend gets, until there are no more.
    fn take(&mut self) -> Result<Vec<S>, PeerMisbehaved> {
        let mut all = Vec::new();
        self.before = self.ring().produced();
        loop {
            match self.front.pop()? {
                Some(answer) => all.push(answer),
                None if self.front.arm()? => {}
                None => return Ok(all),
            }
        }
    }
}

type Blk = Ends<blk::Request, blk::Response>;
type Rx = Ends<net::RxRequest, net::RxResponse>;

fn request(id: u32) -> blk::Request {
    blk::Request {
        id,
        op: blk::Op::Flush as u8,
        segment_count: 0,
        reserved: 0,
        sector: 0,
        sectors: 0,
        segments: [blk::Segment::default(); blk::MAX_SEGMENTS],
    }
}

fn answer(id: u32) -> blk::Response {
    blk::Response { id, status: 0, reserved: [0; 3] }
}

/// Requests 1 to `requests`, of which the first `answers` are answered, after the rings have
/// been through their end.
fn begun(requests: u32, answers: u32) -> Blk {
    let mut ends = Blk::new(BLK[0]);
    for id in 1000..1000 + blk::SLOTS + 5 {
        ends.request(&[request(id)]);
        ends.answer(&[answer(id)]);
        assert_eq!(ends.take().unwrap(), [answer(id)]);
    }
    ends.request(&(1..=requests).map(request).collect::<Vec<_>>());
    ends.answer(&(1..=answers).map(answer).collect::<Vec<_>>());
    ends
}

fn ids(answers: &[blk::Response]) -> Vec<u32> {
    answers.iter().map(|answer| answer.id).collect()
}

#[test]
fn answers_are_altered_only_before_they_are_taken() {
    for change in [
        Change::Index { by: 1 },
        Change::Id { bits: 1 },
        Change::Status { bits: 1 },
        Change::Repeat,
        Change::Withhold { last: false },
        Change::Forge { fraction: 0, id: None, length: 0 },
    ] {
        let mut ends = begun(3, 0);
        assert!(!ends.change(change), "{change:?}: there is none");
        ends.answer(&[answer(1)]);
        assert!(ends.change(change), "{change:?}");
        let mut ends = begun(3, 1);
        ends.take().unwrap();
        assert!(!ends.change(change), "{change:?}: it was taken");
    }
}

#[test]
fn answers_of_other_rings_are_not_counted() {
    let ends = begun(3, 2);
    assert_eq!(ends.ring().shown_since(ends.before), 2);
    // The same rings made anew begin at 0.
    assert_eq!(ends.ring().shown_since(ends.before + 1000), 0);
}

#[test]
fn an_index_is_moved() {
    let mut ends = begun(3, 1);
    assert!(ends.change(Change::Index { by: 3 }));
    assert_eq!(ends.take(), Err(PeerMisbehaved), "more than are out");
    let mut ends = begun(3, 1);
    assert!(ends.change(Change::Index { by: 2u32.wrapping_neg() }));
    assert_eq!(ends.take(), Err(PeerMisbehaved), "backwards");
    // What was in the ring one lap ago; the frontend itself must tell that its ids are old.
    let mut ends = begun(3, 1);
    assert!(ends.change(Change::Index { by: 1 }));
    assert!(ids(&ends.take().unwrap())[1] >= 1000);
}

#[test]
fn fields_of_the_last_answer_are_changed_and_no_others() {
    let mut ends = begun(3, 2);
    assert!(ends.change(Change::Id { bits: 0x10_0003 }));
    assert_eq!(ends.take().unwrap(), [answer(1), answer(0x10_0001)]);
    let mut ends = begun(3, 2);
    assert!(ends.change(Change::Status { bits: 0x81 }));
    assert_eq!(ends.take().unwrap(), [answer(1), blk::Response { status: 0x81, ..answer(2) }]);
    assert!(!begun(3, 2).change(Change::Length { value: 1 }), "blk has no length");
}

#[test]
fn an_answer_is_repeated() {
    let mut ends = begun(3, 2);
    assert!(ends.change(Change::Repeat));
    assert_eq!(ids(&ends.take().unwrap()), [1, 2, 2]);
}

#[test]
fn two_answers_exchange_their_places() {
    assert!(!begun(3, 1).change(Change::Exchange));
    let mut ends = begun(3, 0);
    let [first, second, third] =
        [1, 2, 3].map(|n: u8| blk::Response { status: n, ..answer(u32::from(n) * 0x0101_0101) });
    ends.answer(&[first, second, third]);
    assert!(ends.change(Change::Exchange));
    assert_eq!(ends.take().unwrap(), [first, third, second]);
}

#[test]
fn an_answer_is_withheld_until_the_next_one() {
    let mut ends = begun(3, 2);
    assert!(ends.change(Change::Withhold { last: false }));
    assert_eq!(ids(&ends.take().unwrap()), [1]);
    assert!(ends.take().unwrap().is_empty());
    ends.answer(&[answer(3)]);
    assert_eq!(ids(&ends.take().unwrap()), [2, 3]);
}

#[test]
fn the_last_answer_of_all_is_withheld_for_good() {
    assert!(!begun(3, 2).change(Change::Withhold { last: true }), "one is to come");
    let mut ends = begun(3, 3);
    assert!(ends.change(Change::Withhold { last: true }));
    assert_eq!(ids(&ends.take().unwrap()), [1, 2]);
}

#[test]
fn an_answer_to_what_was_not_answered_is_forged() {
    let forge = |fraction, id| Change::Forge { fraction, id, length: 0 };
    assert!(!begun(2, 2).change(forge(0, None)), "all are answered");
    // The latest is at the one end, the oldest at the other.
    for (fraction, id) in [(0, 4), (u16::MAX, 3)] {
        let mut ends = begun(4, 2);
        assert!(ends.change(forge(fraction, None)));
        assert_eq!(ids(&ends.take().unwrap()), [1, 2, id]);
        // It is in the place of the driver's own next answer, which is not seen.
        ends.answer(&[answer(3)]);
        assert!(ends.take().unwrap().is_empty());
        ends.answer(&[answer(4)]);
        assert_eq!(ids(&ends.take().unwrap()), [4]);
    }
    let mut ends = begun(4, 2);
    assert!(ends.change(forge(0, Some(77))));
    assert_eq!(ids(&ends.take().unwrap()), [1, 2, 77]);
}

#[test]
fn frames_have_lengths() {
    let mut ends = Rx::new(NET[1]);
    let empty = |id| net::RxRequest { id, buffer: blk::Segment::default(), reserved: 0 };
    let frame = |id, len| net::RxResponse { id, len, status: 0, flags: 0, reserved: [0; 6] };
    ends.request(&[empty(1), empty(2)]);
    ends.answer(&[frame(2, 60)]);
    assert!(ends.change(Change::Length { value: 0x1234_5678 }));
    assert_eq!(ends.take().unwrap(), [frame(2, 0x1234_5678)]);
    ends.request(&[empty(3)]);
    ends.answer(&[frame(3, 60)]);
    assert!(ends.change(Change::Forge { fraction: 0, id: None, length: 99 }));
    assert_eq!(ends.take().unwrap(), [frame(3, 60), frame(1, 99)]);
}

#[test]
fn rings_are_what_is_granted_without_the_device() {
    let ring = MAP | WRITE;
    let entries = [
        GrantEntry::new(0x1000, 3, ring),
        GrantEntry::new(0x2000, 3, ring | ring_proto::grant::IN_USE),
        GrantEntry::new(0x3000, 3, ring | DMA),
        GrantEntry::new(0x4000, 4, ring),
        GrantEntry::new(0x5000, 3, MAP),
        GrantEntry(GrantEntry::new(0x6000, 3, ring).0 & !VALID),
        GrantEntry::new(0x7000, 3, ring),
    ];
    let found = rings_granted(entries.into_iter().map(|entry| entry.0), 3);
    assert_eq!(found, [0x1000, 0x2000, 0x7000]);
}
