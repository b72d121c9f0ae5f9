//! The `args` of a guest: words of the form `name=value`.

use core::{fmt, net::Ipv4Addr};

/// How the guest gets its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// By DHCP.
    Dhcp,
    /// As the manifest says.
    Fixed {
        /// Own address.
        ip: Ipv4Addr,
        /// Bits of the network part.
        prefix: u8,
        /// Router.
        gateway: Option<Ipv4Addr>,
    },
}

/// What `ip=dhcp` or `ip=10.0.2.15/24 gw=10.0.2.2`, and `port=80`, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetArgs {
    /// `ip=` and `gw=`; DHCP by default.
    pub address: Address,
    /// `port=`.
    pub port: Option<u16>,
}

/// A word that was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadArg<'a> {
    /// The word.
    pub word: &'a str,
    /// What is expected instead.
    pub expected: &'static str,
}

impl fmt::Display for BadArg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` in args: expected {}", self.word, self.expected)
    }
}

impl core::error::Error for BadArg<'_> {}

impl NetArgs {
    /// Reads the words that are about the network. Others are left to the
    /// guest: `known` says whether it knows a name.
    pub fn parse(args: &str, known: impl Fn(&str) -> bool) -> Result<Self, BadArg<'_>> {
        let mut ip = None;
        let mut gateway = None;
        let mut port = None;
        for word in args.split_ascii_whitespace() {
            let bad = |expected| BadArg { word, expected };
            match word.split_once('=') {
                Some(("ip", "dhcp")) => ip = None,
                Some(("ip", value)) => {
                    ip = Some(cidr(value).ok_or(bad("ip=dhcp or ip=ADDRESS/PREFIX"))?);
                }
                Some(("gw", value)) => {
                    gateway = Some(value.parse().map_err(|_| bad("gw=ADDRESS"))?);
                }
                Some(("port", value)) => {
                    let number = value.parse().ok().filter(|&port: &u16| port > 0);
                    port = Some(number.ok_or(bad("port=1 to port=65535"))?);
                }
                Some((name, _)) if known(name) => {}
                _ => return Err(bad("ip=, gw= or port=")),
            }
        }
        let address = match ip {
            None => Address::Dhcp,
            Some((ip, prefix)) => Address::Fixed { ip, prefix, gateway },
        };
        Ok(Self { address, port })
    }
}

fn cidr(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = value.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|&bits: &u8| bits <= 32)?;
    Some((ip.parse().ok()?, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<NetArgs, BadArg<'_>> {
        NetArgs::parse(args, |name| name == "own")
    }

    #[test]
    fn good_args() {
        let dhcp = NetArgs { address: Address::Dhcp, port: None };
        assert_eq!(parse(""), Ok(dhcp));
        assert_eq!(parse(" ip=dhcp  own=x"), Ok(dhcp));
        let ip = Ipv4Addr::new(10, 0, 2, 15);
        let gateway = Some(Ipv4Addr::new(10, 0, 2, 2));
        let fixed = Address::Fixed { ip, prefix: 24, gateway };
        let expected = NetArgs { address: fixed, port: Some(8080) };
        assert_eq!(parse("ip=10.0.2.15/24 gw=10.0.2.2 port=8080"), Ok(expected));
    }

    #[test]
    fn bad_args() {
        for word in [
            "ip=",
            "ip=10.0.2.15",
            "ip=10.0.2.15/33",
            "ip=10.0.2/24",
            "ip=10.0.2.15/",
            "gw=x",
            "port=0",
            "port=70000",
            "port=",
            "what",
            "other=1",
            "=",
        ] {
            assert_eq!(parse(word).map_err(|e| e.word), Err(word));
        }
    }
}
