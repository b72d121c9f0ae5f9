//! The peer's datagrams: they go back from below its stack. The peer shares a
//! core with what is measured, so this end of the wire must cost little.

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket};

use super::{DATAGRAMS, PEER, stack::Nic};

/// A NIC that sends back what comes for [`DATAGRAMS`].
pub(super) struct Mirror<N>(pub(super) N);

impl<N: Nic> Nic for Mirror<N> {
    fn mac(&self) -> [u8; 6] {
        self.0.mac()
    }

    fn look(&mut self) {
        self.0.look();
    }

    fn has_room(&self) -> bool {
        self.0.has_room()
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.send(frame);
    }

    fn receive(&mut self, to: &mut [u8; 2048]) -> Option<usize> {
        while self.0.has_room() {
            let len = self.0.receive(to)?;
            let frame = to.get_mut(..len)?;
            if turn_round(frame).is_none() {
                return Some(len);
            }
            self.0.send(frame);
            // It does not wait for those behind it.
            self.0.kick();
        }
        None
    }

    fn kick(&mut self) {
        self.0.kick();
    }

    fn rest(&mut self, deadline: u64) {
        self.0.rest(deadline);
    }
}

/// Exchanges the ends of a datagram, which leaves its checksums right. `None`,
/// and nothing changed, if the frame is something else.
fn turn_round(frame: &mut [u8]) -> Option<()> {
    let mut ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let macs = (ethernet.src_addr(), ethernet.dst_addr());
    let mut ip = Ipv4Packet::new_checked(ethernet.payload_mut()).ok()?;
    let ends = (ip.src_addr(), ip.dst_addr());
    if ip.next_header() != IpProtocol::Udp || ends.1 != PEER {
        return None;
    }
    let mut udp = UdpPacket::new_checked(ip.payload_mut()).ok()?;
    let ports = (udp.src_port(), udp.dst_port());
    if ports.1 != DATAGRAMS {
        return None;
    }
    udp.set_src_port(ports.1);
    udp.set_dst_port(ports.0);
    ip.set_src_addr(ends.1);
    ip.set_dst_addr(ends.0);
    ethernet.set_src_addr(macs.1);
    ethernet.set_dst_addr(macs.0);
    Some(())
}
