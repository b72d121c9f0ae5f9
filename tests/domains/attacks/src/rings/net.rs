//! Frames as a hostile guest sends them.

use ring_proto::net::{
    MAX_SEGMENTS, RxRequest, RxResponse, Segment, Status, TxRequest, TxResponse,
};

use super::{LIMIT, front::Front, until};

/// Bytes of requests and responses: tx, rx.
pub const SIZES: [(usize, usize); 2] = [
    (size_of::<TxRequest>(), size_of::<TxResponse>()),
    (size_of::<RxRequest>(), size_of::<RxResponse>()),
];

/// The gateway of the wire, which answers ARP.
pub const GATEWAY: [u8; 4] = [10, 0, 2, 2];
/// Ethertype for local experiments.
pub const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Shortest frame of a real wire.
pub const SHORT: u32 = 60;

/// A request to send what lies in the segments.
pub fn request(id: u32, segments: &[Segment]) -> TxRequest {
    let mut all = [Segment::default(); MAX_SEGMENTS];
    all[..segments.len()].copy_from_slice(segments);
    TxRequest {
        id,
        flags: 0,
        gso_type: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        segment_count: segments.len() as u8,
        reserved: [0; 3],
        segments: all,
    }
}

/// Writes a frame for the wire, with the own address as its source, to the pool.
pub fn frame(front: &Front, offset: u32) {
    let mut frame = [0; SHORT as usize];
    frame[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
    frame[6..12].copy_from_slice(&front.connection.boot.mac);
    frame[12..14].copy_from_slice(&EXPERIMENT);
    front.pool.mem.copy_to(offset as usize, &frame).expect("within the pool");
}

/// Writes an ARP probe for the gateway, which brings an answer from the wire.
pub fn probe(front: &Front, offset: u32) {
    let mac = front.connection.boot.mac;
    let mut frame = [0; SHORT as usize];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[38..42].copy_from_slice(&GATEWAY);
    front.pool.mem.copy_to(offset as usize, &frame).expect("within the pool");
}

/// Sends a frame and waits for the answer: its status, or `None` if none came
/// or it names another request.
pub fn call(front: &mut Front, request: &TxRequest) -> Option<u8> {
    let queue = front.queues.first_mut()?;
    queue.put_request(request);
    queue.show_requests();
    front.notify();
    let mut answer = None;
    until(LIMIT, || {
        answer = front.queues.first_mut().and_then(|queue| queue.response::<TxResponse>());
        answer.is_some() || !front.is_connected()
    });
    answer.filter(|answer| answer.id == request.id).map(|answer| answer.status)
}

/// Has the wire send a frame here; true if the probe went out.
pub fn call_in(front: &mut Front) -> bool {
    probe(front, 0);
    let id = front.id();
    call(front, &request(id, &[Segment { offset: 0, len: SHORT }])) == Some(Status::Ok as u8)
}

/// Posts an rx buffer; [`super::Queue::show_requests`] publishes it.
pub fn post(front: &mut Front, buffer: Segment) -> u32 {
    let id = front.id();
    if let Some(queue) = front.queues.get_mut(1) {
        queue.put_request(&RxRequest { id, buffer, reserved: 0 });
    }
    id
}

/// Whether a frame is sent.
pub fn is_served(front: &mut Front) -> bool {
    frame(front, 0);
    let id = front.id();
    call(front, &request(id, &[Segment { offset: 0, len: SHORT }])) == Some(Status::Ok as u8)
}
