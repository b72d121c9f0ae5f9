//! Devices other than those of an ordinary node.

use std::ffi::OsString;

/// MAC address of the NIC under test.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// MAC address of the peer's NIC.
pub const PEER_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57];

/// A virtio disk over the drive `disk` that `drive` makes, a NIC, and another NIC on
/// the same hub, for a domain at the other end of the wire. A frame takes `wire_ns`
/// of virtual time from one to the other.
///
/// `ioeventfd=off` has the CPU's own thread start a request at once, and not
/// the main loop some time later.
#[must_use]
pub fn with_peer(drive: Vec<OsString>, wire_ns: u32) -> Vec<OsString> {
    let mut arguments = drive;
    let disk = "virtio-blk-pci,drive=disk,addr=4,ioeventfd=off";
    arguments.push("-device".into());
    arguments.push(format!("{disk},disable-legacy=on,iommu_platform=on").into());
    for (id, address, mac) in [("under-test", 5, MAC), ("peer", 6, PEER_MAC)] {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        arguments.push("-netdev".into());
        arguments.push(format!("hubport,id={id},hubid=0").into());
        arguments.push("-device".into());
        arguments.push(
            format!(
                "virtio-net-pci,netdev={id},addr={address},mac={mac},romfile=,ioeventfd=off,\
                 tx=timer,x-txtimer={wire_ns},disable-legacy=on,iommu_platform=on"
            )
            .into(),
        );
    }
    arguments
}
