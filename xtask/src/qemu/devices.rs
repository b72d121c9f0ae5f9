//! Devices other than those of an ordinary node.

use std::ffi::OsString;

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
    for (id, address, mac) in
        [("under-test", 5, "52:54:00:12:34:56"), ("peer", 6, "52:54:00:12:34:57")]
    {
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
