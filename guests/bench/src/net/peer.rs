//! The other end of the wire: a domain with a NIC of its own, the driver
//! linked in, on the same hub as the NIC under test. It lives in the same
//! machine so that both ends run on one virtual clock.
//!
//! Three services over TCP: one reads and forgets, one writes without end, one
//! sends back what it gets. Datagrams go back, too ([`Mirror`]).

use alloc::vec;

use domain_rt::{events, set_ready};
use smoltcp::{iface::SocketHandle, socket::tcp};

use super::{
    ECHO, PEER, SINK, SOURCE,
    fused::Fused,
    mirror::Mirror,
    stack::{Nic, Stack, socket},
};

/// Serves for ever.
pub(crate) fn serve() -> Result<(), &'static str> {
    let mut stack = Stack::new(Mirror(Fused::open(0)?), PEER, 2);
    let services = [SINK, SOURCE, ECHO].map(|port| (stack.sockets.add(socket()), port));
    let mut buffer = vec![0x5a; 16 << 10];
    set_ready();
    loop {
        let deadline = stack.turn();
        let mut acted = false;
        for (handle, port) in services {
            acted |= step(&mut stack, handle, port, &mut buffer);
        }
        if acted || deadline == 0 {
            events::breathe();
        } else {
            stack.rest(deadline);
        }
    }
}

/// One step of a service. Returns whether it did anything.
fn step<N: Nic>(stack: &mut Stack<N>, handle: SocketHandle, port: u16, buffer: &mut [u8]) -> bool {
    let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(handle);
    if !socket.is_open() {
        // An own port is always valid.
        return socket.listen(port).is_ok();
    }
    if socket.may_send() && !socket.may_recv() {
        socket.close();
        return true;
    }
    let mut moved = 0;
    match port {
        SINK => {
            while let Ok(count @ 1..) = socket.recv_slice(buffer) {
                moved += count;
            }
        }
        SOURCE => {
            while socket.can_send()
                && let Ok(count @ 1..) = socket.send_slice(buffer)
            {
                moved += count;
            }
        }
        _ => {
            while socket.can_recv() && socket.send_capacity() > socket.send_queue() {
                let room = socket.send_capacity() - socket.send_queue();
                let most = room.min(buffer.len());
                let Some(part) = buffer.get_mut(..most) else { break };
                let Ok(count @ 1..) = socket.recv_slice(part) else { break };
                let sent = part.get(..count).map(|data| socket.send_slice(data));
                if !matches!(sent, Some(Ok(_))) {
                    break;
                }
                moved += count;
            }
        }
    }
    moved > 0
}
