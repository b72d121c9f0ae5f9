//! Frames: datagrams to the peer and back, and the question for its address.
//! There is no stack: one would wait a second after a lost answer to ARP.

use core::net::Ipv4Addr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
        EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
    },
};

use crate::args::Ends;

/// Bytes of the longest frame.
pub(crate) const FRAME: usize = 1514;
/// Bytes in front of a datagram's payload: Ethernet, IPv4, UDP.
pub(crate) const HEADERS: usize = 14 + 20 + 8;
/// Routers that a datagram may pass.
const HOPS: u8 = 64;

/// What a frame is.
pub(crate) enum Frame<'a> {
    /// Not for us, or about other things.
    Other,
    /// The peer's address on the wire.
    Address(EthernetAddress),
    /// IP for us, and its form or a checksum is wrong.
    Damaged,
    /// What the peer sent back.
    Payload(&'a [u8]),
}

/// The two ends of the wire.
pub(crate) struct Wire {
    pub(crate) ends: Ends,
    pub(crate) own: EthernetAddress,
}

impl Wire {
    /// A question for the peer's address; its length.
    pub(crate) fn ask(&self, frame: &mut [u8; FRAME]) -> usize {
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.own,
            source_protocol_addr: self.ends.own,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: *self.ends.peer.ip(),
        };
        let len = EthernetFrame::<&[u8]>::header_len() + arp.buffer_len();
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        let (src_addr, dst_addr) = (self.own, EthernetAddress::BROADCAST);
        EthernetRepr { src_addr, dst_addr, ethertype: EthernetProtocol::Arp }.emit(&mut ethernet);
        arp.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
        len
    }

    /// A datagram to `peer` with `len` bytes of payload, which `fill` writes; its length.
    pub(crate) fn datagram(
        &self,
        peer: EthernetAddress,
        frame: &mut [u8; FRAME],
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> usize {
        let (from, to) = (self.ends.own, *self.ends.peer.ip());
        let port = self.ends.peer.port();
        let udp = UdpRepr { src_port: port, dst_port: port };
        let ip = Ipv4Repr {
            src_addr: from,
            dst_addr: to,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + len,
            hop_limit: HOPS,
        };
        let checksums = ChecksumCapabilities::default();
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..HEADERS + len]);
        let (src_addr, dst_addr) = (self.own, peer);
        EthernetRepr { src_addr, dst_addr, ethertype: EthernetProtocol::Ipv4 }.emit(&mut ethernet);
        let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.emit(&mut packet, &checksums);
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        udp.emit(&mut datagram, &from.into(), &to.into(), len, fill, &checksums);
        HEADERS + len
    }

    /// Looks at a frame that came.
    pub(crate) fn look<'a>(&self, frame: &'a [u8]) -> Frame<'a> {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return Frame::Other };
        if ethernet.dst_addr() != self.own {
            return Frame::Other;
        }
        match ethernet.ethertype() {
            EthernetProtocol::Arp => self.address(ethernet.payload()).unwrap_or(Frame::Other),
            EthernetProtocol::Ipv4 => self.payload(ethernet.payload()),
            _ => Frame::Other,
        }
    }

    fn address<'a>(&self, packet: &[u8]) -> Option<Frame<'a>> {
        match ArpRepr::parse(&ArpPacket::new_checked(packet).ok()?).ok()? {
            ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr,
                source_protocol_addr,
                ..
            } if source_protocol_addr == *self.ends.peer.ip() => {
                Some(Frame::Address(source_hardware_addr))
            }
            _ => None,
        }
    }

    fn payload<'a>(&self, packet: &'a [u8]) -> Frame<'a> {
        let Ok(ip) = Ipv4Packet::new_checked(packet).map_err(drop) else { return Frame::Damaged };
        if !ip.verify_checksum() {
            return Frame::Damaged;
        }
        let (from, to): (Ipv4Addr, Ipv4Addr) = (ip.src_addr(), ip.dst_addr());
        if to != self.ends.own || from != *self.ends.peer.ip() {
            return Frame::Other;
        }
        if ip.next_header() != IpProtocol::Udp {
            return Frame::Other;
        }
        let Ok(udp) = UdpPacket::new_checked(ip.payload()) else { return Frame::Damaged };
        if !udp.verify_checksum(&from.into(), &to.into()) {
            return Frame::Damaged;
        }
        let port = self.ends.peer.port();
        if (udp.src_port(), udp.dst_port()) != (port, port) {
            return Frame::Other;
        }
        Frame::Payload(udp.payload())
    }
}
