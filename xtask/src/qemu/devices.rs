//! Disks and NICs.

use std::ffi::OsString;

use crate::manifest::Plugged;

/// Without `iommu_platform` a virtio device would bypass the IOMMU silently.
const VIRTIO: &str = "disable-legacy=on,iommu_platform=on";

/// MAC address of the NIC under test.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// MAC address of the peer's NIC.
pub const PEER_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57];

/// A disk over the drive `disk`, at `place`: a virtio disk, with `more` in front of other
/// properties, if the manifest names no other.
pub fn disk(plugged: &Plugged, place: &str, more: &str) -> String {
    match &plugged.disk {
        Some(device) => format!("{device},drive=disk,{place}"),
        None => format!("virtio-blk-pci,drive=disk,{place},{more}{VIRTIO}"),
    }
}

/// A NIC on the network and at the place that `at` names, likewise.
pub fn nic(plugged: &Plugged, at: &str, more: &str) -> String {
    match &plugged.nic {
        Some(device) => format!("{device},netdev={at},romfile="),
        None => format!("virtio-net-pci,netdev={at},romfile=,{more}{VIRTIO}"),
    }
}

/// Where devices are plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The root bus, for ever.
    Root,
    /// A root port for each, out of which they can be pulled: [`port`] names it, and [`plugged`]
    /// the device in it.
    Ports,
}

/// The id of the root port of device `index`, and of its bus.
#[must_use]
pub fn port(index: usize) -> String {
    format!("port{index}")
}

/// The id of device `index` in its port.
#[must_use]
pub fn plugged(index: usize) -> String {
    format!("plugged{index}")
}

impl Place {
    /// The properties that put device `index` there.
    fn of(self, index: usize) -> String {
        match self {
            Self::Root => format!("addr={}", FIRST + index),
            Self::Ports => format!("bus={},id={}", port(index), plugged(index)),
        }
    }
}

/// Device 0 on the root bus, or its port.
const FIRST: usize = 4;

/// What the drivers of disk and NIC drive, as `-device` wants it, the disk first. A frame takes
/// `wire_ns` of virtual time from one virtio NIC to the other.
///
/// `ioeventfd=off` has the CPU's own thread start a request at once, and not
/// the main loop some time later.
#[must_use]
pub fn under_test(wanted: &Plugged, wire_ns: u32, place: Place) -> [String; 2] {
    let disk = disk(wanted, &place.of(0), "ioeventfd=off,");
    [disk, at_hub(wanted, "under-test", MAC, wire_ns, &place.of(1))]
}

/// A NIC at the hub.
fn at_hub(wanted: &Plugged, id: &str, mac: [u8; 6], wire_ns: u32, place: &str) -> String {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let more = format!("ioeventfd=off,tx=timer,x-txtimer={wire_ns},");
    nic(wanted, &format!("{id},{place},mac={mac}"), &more)
}

/// A disk over the drive `disk` that `drive` makes, a NIC, and another NIC on
/// the same hub, for a domain at the other end of the wire: see [`under_test`].
#[must_use]
pub fn with_peer(
    drive: Vec<OsString>,
    wanted: &Plugged,
    wire_ns: u32,
    place: Place,
) -> Vec<OsString> {
    let [disk, nic] = under_test(wanted, wire_ns, place);
    let peer = at_hub(&Plugged::default(), "peer", PEER_MAC, wire_ns, &place.of(2));
    let mut arguments = drive;
    let mut add = |option: &str, value: String| {
        arguments.extend([OsString::from(option), value.into()]);
    };
    // All of them, so that they are found in the same order.
    for index in 0..if place == Place::Ports { 3 } else { 0 } {
        let (id, chassis, address) = (port(index), index + 1, FIRST + index);
        add("-device", format!("pcie-root-port,id={id},chassis={chassis},addr={address}"));
    }
    add("-device", disk);
    for (id, device) in [("under-test", nic), ("peer", peer)] {
        add("-netdev", format!("hubport,id={id},hubid=0"));
        add("-device", device);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_may_want_other_devices() {
        let text = |plugged: &Plugged| {
            let all = with_peer(Vec::new(), plugged, 7, Place::Root);
            all.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        let virtio = text(&Plugged::default());
        assert_eq!(virtio.matches(VIRTIO).count(), 3, "{virtio}");
        assert_eq!(virtio.matches("x-txtimer=7").count(), 2, "{virtio}");
        let own = |text: &str| Some(text.to_owned());
        let plugged = Plugged { disk: own("nvme,serial=1"), nic: own("e1000e") };
        let others = text(&plugged);
        assert!(others.contains("-device nvme,serial=1,drive=disk,addr=4 "), "{others}");
        let nic = "-device e1000e,netdev=under-test,addr=5,mac=52:54:00:12:34:56,romfile= ";
        assert!(others.contains(nic), "{others}");
        // The peer is virtio all the same.
        assert_eq!(others.matches(VIRTIO).count(), 1, "{others}");
    }

    #[test]
    fn what_is_pulled_out_of_a_port_is_what_is_put_back() {
        let wanted = Plugged::default();
        let all = with_peer(Vec::new(), &wanted, 7, Place::Ports);
        let all: Vec<_> = all.iter().map(|word| word.to_string_lossy()).collect();
        for (index, device) in under_test(&wanted, 7, Place::Ports).iter().enumerate() {
            assert!(all.iter().any(|word| word == device), "{all:?}");
            assert!(device.contains(&format!("bus=port{index},id=plugged{index},")), "{device}");
            let port = format!("pcie-root-port,id=port{index},chassis=");
            assert!(all.iter().any(|word| word.starts_with(&port)), "{all:?}");
        }
    }
}
