//! Block requests as a hostile guest makes them.

use ring_proto::blk::{MAX_SEGMENTS, Op, Request, Response, Segment, Status};

use super::{LIMIT, front::Front, until};

/// Bytes of a request and of a response.
pub const SIZES: [(usize, usize); 1] = [(size_of::<Request>(), size_of::<Response>())];

/// A request with any segments.
pub fn request(id: u32, op: Op, sector: u64, segments: &[Segment]) -> Request {
    let mut all = [Segment::default(); MAX_SEGMENTS];
    all[..segments.len()].copy_from_slice(segments);
    Request {
        id,
        op: op as u8,
        segment_count: segments.len() as u8,
        reserved: 0,
        sector,
        sectors: 0,
        segments: all,
    }
}

/// One segment.
pub fn segment(offset: u32, len: u32) -> [Segment; 1] {
    [Segment { offset, len }]
}

/// Sends a request and waits for the answer: its status, or `None` if none
/// came or it names another request.
pub fn call(front: &mut Front, request: &Request) -> Option<u8> {
    let queue = front.queues.first_mut()?;
    queue.put_request(request);
    queue.show_requests();
    front.notify();
    let mut answer = None;
    until(LIMIT, || {
        answer = front.queues.first_mut().and_then(|queue| queue.response::<Response>());
        answer.is_some() || !front.is_connected()
    });
    answer.filter(|answer| answer.id == request.id).map(|answer| answer.status)
}

/// Whether a sector can be read.
pub fn is_served(front: &mut Front) -> bool {
    let id = front.id();
    call(front, &request(id, Op::Read, 0, &segment(0, 512))) == Some(Status::Ok as u8)
}
