//! Numbered datagrams to the peer and back without end, while the driver dies
//! over and over. Who waits for an answer is the load; what never comes back
//! was lost.

use alloc::{collections::BTreeSet, vec};

use domain_rt::{events, set_ready, time::MS};
use smoltcp::socket::udp;

use super::{
    DATAGRAMS, OWN, PEER, ring,
    stack::{Stack, datagrams},
};
use crate::outage::Outages;

/// Datagrams on their way at a time.
const WINDOW: usize = 32;
/// Bytes of one.
const LEN: usize = 1024;
/// Until a datagram that was on its way counts as lost: a hundred times what
/// one takes there and back.
const SETTLE: u64 = 5 * MS;

/// Returns only if something is wrong with the load itself.
pub(crate) fn run() -> Result<(), &'static str> {
    let mut stack = Stack::new(ring::open()?, OWN, 1);
    let handle = stack.sockets.add(datagrams(2 * WINDOW, LEN));
    stack.sockets.get_mut::<udp::Socket<'_>>(handle).bind(DATAGRAMS).map_err(|_| "no port")?;
    let mut outages = Outages::new("net", SETTLE);
    let mut data = vec![0x5au8; LEN];
    let mut next = 0u64;
    let mut under_way = BTreeSet::new();
    // Those that were under way when the connection came back.
    let mut in_doubt = BTreeSet::new();
    let mut window = WINDOW;
    set_ready();
    loop {
        let deadline = stack.turn();
        if outages.look(stack.nic().front.counters()) {
            in_doubt.append(&mut under_way);
            // As transports do after a loss: one goes first, to see whether it arrives.
            window = 1;
            // Nor does the first answer wait for those behind it.
            stack.most = 1;
        }
        let socket = stack.sockets.get_mut::<udp::Socket<'_>>(handle);
        let mut acted = false;
        while let Ok((len, _)) = socket.recv_slice(&mut data) {
            let number = data.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let Some(number) = number.filter(|_| len == LEN) else {
                return Err("a datagram came back changed");
            };
            acted = true;
            // One that was sent twice comes back twice.
            let _ = under_way.remove(&number) || in_doubt.remove(&number);
            outages.completed();
            window = WINDOW;
            stack.most = usize::MAX;
        }
        while under_way.len() < window && socket.can_send() {
            if let Some(head) = data.first_chunk_mut() {
                *head = next.to_le_bytes();
            }
            if socket.send_slice(&data, (PEER, DATAGRAMS)).is_err() {
                break;
            }
            acted = true;
            under_way.insert(next);
            next += 1;
        }
        if outages.is_settled() {
            outages.tell(in_doubt.len() as u64);
            in_doubt.clear();
        }
        if acted || deadline == 0 {
            events::breathe();
        } else {
            stack.rest(deadline.min(outages.deadline()));
        }
    }
}
