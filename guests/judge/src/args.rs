//! The words of `args`.

use core::net::{Ipv4Addr, SocketAddrV4};

/// Addresses of the two ends of the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) own: Ipv4Addr,
    pub(crate) peer: SocketAddrV4,
}

/// What the manifest says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Args {
    Blk,
    Net(Ends),
}

impl Args {
    /// Reads the words; the error is the one that was not understood, or is missing.
    pub(crate) fn parse(text: &'static str) -> Result<Self, &'static str> {
        let (mut mode, mut own, mut peer) = (None, None, None);
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("mode", value @ ("blk" | "net"))) => mode = Some(value),
                Some(("ip", value)) => own = Some(value.parse().map_err(|_| word)?),
                Some(("peer", value)) => peer = Some(value.parse().map_err(|_| word)?),
                _ => return Err(word),
            }
        }
        match (mode, own, peer) {
            (Some("blk"), None, None) => Ok(Self::Blk),
            (Some("net"), Some(own), Some(peer)) => Ok(Self::Net(Ends { own, peer })),
            _ => Err("mode=blk, or mode=net ip= peer="),
        }
    }
}
