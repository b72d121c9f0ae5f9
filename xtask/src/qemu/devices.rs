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

/// A disk over the drive `disk` that `drive` makes, a NIC, and another NIC on
/// the same hub, for a domain at the other end of the wire. A frame takes `wire_ns`
/// of virtual time from one virtio NIC to the other.
///
/// `ioeventfd=off` has the CPU's own thread start a request at once, and not
/// the main loop some time later.
#[must_use]
pub fn with_peer(drive: Vec<OsString>, plugged: &Plugged, wire_ns: u32) -> Vec<OsString> {
    let mut arguments = drive;
    arguments.push("-device".into());
    arguments.push(disk(plugged, "addr=4", "ioeventfd=off,").into());
    let virtio = Plugged::default();
    let nics = [("under-test", 5, MAC, plugged), ("peer", 6, PEER_MAC, &virtio)];
    for (id, address, mac, plugged) in nics {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        arguments.push("-netdev".into());
        arguments.push(format!("hubport,id={id},hubid=0").into());
        arguments.push("-device".into());
        let at = format!("{id},addr={address},mac={mac}");
        let more = format!("ioeventfd=off,tx=timer,x-txtimer={wire_ns},");
        arguments.push(nic(plugged, &at, &more).into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_may_want_other_devices() {
        let text = |plugged: &Plugged| {
            let all = with_peer(Vec::new(), plugged, 7);
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
}
