//! A compromised driver domain aims its device at memory that is not its own.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use system_tests::bench::{BOOT, Bench, Node};
use xtask::{qemu::NodeConfig, workspace};

/// For the attack, whose every access QEMU writes down.
const ATTACK: Duration = Duration::from_secs(300);
/// What must be among the refused addresses whatever else is: low memory, the
/// hypervisor's text and data, the IOMMU's registers.
const MUST_BE_REFUSED: [u64; 4] = [0x1000, 0x20_0000, 0x24_0000, 0xfed8_0000];

/// Boots a node with a rogue, waits for the end of its attack and gives its
/// last word.
fn attack(bench: &Bench, kind: &str, check: impl FnOnce(&Node, &str) -> Result<()>) -> Result<()> {
    let refused = bench.dir().join("refused.log");
    let configure = |config: &mut NodeConfig| {
        config.manifest = workspace::root().join(format!("tests/manifests/rogue-{kind}.toml"));
        config.extra_args.extend(["-d".into(), "guest_errors".into()]);
        // What a device writes to the interrupt addresses does not count as memory.
        config.extra_args.extend(["-trace".into(), "amdvi_ir_err".into(), "-D".into()]);
        config.extra_args.push(refused.clone().into());
        if kind == "nic" {
            let capture = bench.dir().join("wire.pcap");
            config.extra_args.push("-object".into());
            let object = format!("filter-dump,id=capture,netdev=wire,file={}", capture.display());
            config.extra_args.push(object.into());
        }
    };
    bench.with_node(configure, |node| {
        let done = |line: &str| line.contains("rogue: ") && line.contains(" accesses by the ");
        let (_, verdict) = node
            .machine()
            .log()
            .wait_for_line(0, done, ATTACK)
            .context("the rogue did not finish its attack")?;
        check(node, &verdict)?;
        // The neighbours live, and the supervisor still obeys.
        let mut client = node.control()?;
        let neighbour = if kind == "nic" { "blk" } else { "net" };
        node.wait_running(&mut client, neighbour, 1)?;
        let recovery = client.crash(neighbour, nodectl::control::How::Panic, BOOT)?;
        ensure!(recovery.generation == 2, "{neighbour} came back as {}", recovery.generation);
        Ok(())
    })?;
    let text = fs::read_to_string(&refused).context("QEMU's record of refused accesses")?;
    let forged = text.lines().filter(|line| line.contains("amdvi_ir_err")).count();
    ensure!(kind == "nic" || forged > 0, "QEMU saw no refused interrupt message");
    let addresses = refused_addresses(&text);
    for address in MUST_BE_REFUSED {
        ensure!(addresses.contains(&address), "QEMU saw no refused access at {address:#x}");
    }
    Ok(())
}

/// First addresses of accesses that the IOMMU refused, from QEMU's own record.
fn refused_addresses(text: &str) -> BTreeSet<u64> {
    let address = |line: &str| {
        let rest = line.split_once(" at addr 0x")?.1;
        let (digits, rest) = rest.split_once(',')?;
        rest.contains("rejected").then(|| u64::from_str_radix(digits, 16).ok())?
    };
    text.lines().filter_map(address).collect()
}

pub fn g1_a_disk_reaches_nothing_but_pool_and_grants(bench: &Bench) -> Result<()> {
    attack(bench, "disk", |_, verdict| {
        ensure!(verdict.ends_with(" 0 leaks"), "the disk stole memory: {verdict}");
        Ok(())
    })
}

pub fn g1_a_nic_reaches_nothing_but_pool_and_grants(bench: &Bench) -> Result<()> {
    attack(bench, "nic", |_, _| {
        let capture = fs::read(bench.dir().join("wire.pcap")).context("the capture")?;
        let frames = stolen(&capture)?;
        ensure!(frames.len() >= 100, "only {} of the rogue's frames on the wire", frames.len());
        let leak = frames.iter().find(|payload| payload.iter().any(|&byte| byte != 0));
        ensure!(leak.is_none(), "a frame carries stolen memory: {:x?}", leak);
        Ok(())
    })
}

/// Payloads of the rogue's frames in a capture (pcap, little-endian).
fn stolen(capture: &[u8]) -> Result<Vec<&[u8]>> {
    const FILE_HEADER: usize = 24;
    const RECORD_HEADER: usize = 16;
    const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
    ensure!(capture.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "not a capture");
    let mut frames = Vec::new();
    let mut rest = capture.get(FILE_HEADER..).unwrap_or_default();
    while let Some((header, body)) = rest.split_at_checked(RECORD_HEADER) {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        // The last record may be cut off: QEMU still writes it.
        let Some((frame, next)) = body.split_at_checked(len) else { break };
        if frame.get(12..14) == Some(&ETHERTYPE) {
            frames.push(frame.get(14..).unwrap_or_default());
        }
        rest = next;
    }
    Ok(frames)
}
