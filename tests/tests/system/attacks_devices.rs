//! Attacks by a compromised driver domain: with its device, and with what it
//! may ask the hypervisor for as a device's owner.
//!
//! The attacker owns a second disk or a second NIC of the demo node, so that
//! the honest drivers serve beside it. AMD-Vi and VT-d are tried for what each
//! can show under QEMU: AMD-Vi blocks DMA and interrupts but reports nothing;
//! VT-d names the culprit, whose generation ends.

use std::{
    collections::BTreeSet,
    fs::{self, File},
};

use anyhow::{Context, Result, ensure};
use ring_proto::control::CrashEntry;
use system_tests::{
    attack::{Attack, DOMAIN, LIMIT},
    bench::Bench,
    runner::Test,
};
use xtask::qemu::Iommu;

/// All of them.
pub fn all() -> Vec<Test> {
    tests![
        self::g1_attack_pci_config,
        self::g1_attack_bar,
        self::g1_attack_irq,
        self::g1_attack_dma,
        self::g1_attack_dma_fault,
        self::g1_attack_dma_nic,
        self::g2_a_nic_that_reaches_too_far_ends_its_domain,
        self::g1_attack_msi,
        self::g1_attack_dma_after_death,
        self::g1_attack_dma_revoked,
        self::g2_attack_irq_storm,
    ]
}

/// Bytes of the attacker's disk.
const DISK: u64 = 4 << 20;

/// `attack-NAME` as the owner of a disk of its own. `options` are QEMU's for it.
fn with_disk(bench: &Bench, name: &str, options: &str) -> Result<Attack> {
    fs::create_dir_all(bench.dir()).context("can't make the test's folder")?;
    let image = bench.dir().join("loot.img");
    let file = File::create(&image).context("can't make the attacker's disk")?;
    file.set_len(DISK).context("can't make the attacker's disk")?;
    let drive = format!("if=none,id=loot,format=raw,file.filename={}", image.display());
    let device = "virtio-blk-pci,drive=loot,addr=6,disable-legacy=on,iommu_platform=on";
    Ok(with_device(name, "storage").qemu(&[
        "-drive",
        &drive,
        "-device",
        &format!("{device}{options}"),
    ]))
}

/// `attack-NAME` as the owner of the second device of a class.
fn with_device(name: &str, class: &str) -> Attack {
    Attack::guest(name)
        .and(&format!("[device.loot]\nmatch = {{ class = \"{class}\", index = 1 }}"))
        .with("dma_pool = \"1MiB\"\ndevice = \"loot\"")
}

/// What QEMU wrote down of the machine.
fn machine_log(bench: &Bench) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(bench.dir()).context("the test's folder")? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("machine.log") {
            text += &String::from_utf8_lossy(&fs::read(path)?);
        }
    }
    Ok(text)
}

fn g1_attack_pci_config(bench: &Bench) -> Result<()> {
    with_disk(bench, "pci-config", "")?
        .run(bench, |scene| scene.done(LIMIT)?.all("tried", "refused", 16_000))
}

fn g1_attack_bar(bench: &Bench) -> Result<()> {
    with_disk(bench, "bar", "")?.run(bench, |scene| {
        let tried = scene.done(LIMIT)?.count("tried")?;
        ensure!(tried >= 10, "only {tried} attempts");
        // Each was the end of its generation.
        (1..=tried as u32).try_for_each(|g| scene.ended(g, "nested-fault").map(drop))
    })
}

fn g1_attack_irq(bench: &Bench) -> Result<()> {
    /// Device vectors of the hypervisor over the node's three devices.
    const SHARE: u64 = 63;
    with_disk(bench, "irq", ",vectors=100")?.run(bench, |scene| {
        let verdict = scene.done(LIMIT)?;
        verdict.all("tried", "refused", 900)?;
        let (entries, bound) = (verdict.count("entries")?, verdict.count("bound")?);
        ensure!(entries == 100 && bound == SHARE, "{bound} of {entries} entries were bound");
        Ok(())
    })
}

fn g1_attack_dma(bench: &Bench) -> Result<()> {
    /// Low memory, hypervisor, IOMMU, I/O APIC, configuration space.
    const MUST_BE_REFUSED: [u64; 6] =
        [0x1000, 0x20_0000, 0x24_0000, 0xfed8_0000, 0xfec0_0000, 0xb000_0000];
    with_disk(bench, "dma", "")?.run(bench, |scene| {
        let verdict = scene.done(LIMIT)?;
        let (tried, stolen) = (verdict.count("tried")?, verdict.count("stolen")?);
        ensure!(tried > 1500 && stolen == 0, "of {tried} accesses {stolen} brought something");
        let refused = refused_addresses(&machine_log(bench)?);
        for address in MUST_BE_REFUSED {
            ensure!(refused.contains(&address), "QEMU saw no refused access at {address:#x}");
        }
        Ok(())
    })
}

fn g1_attack_dma_fault(bench: &Bench) -> Result<()> {
    let attack = with_disk(bench, "dma-fault", "")?.qemu(&["-trace", "vtd_dmar_fault"]);
    attack.configure(|_, config| config.iommu = Iommu::Intel).run(bench, |scene| {
        let tried = scene.done(LIMIT)?.count("tried")?;
        ensure!(tried >= 10, "only {tried} attempts");
        let aims: Vec<u64> = scene.lines().iter().filter_map(|line| aim(line)).collect();
        ensure!(aims.len() as u64 == tried, "{} of {tried} attempts were named", aims.len());
        for (generation, address) in (1..).zip(aims) {
            fault(bench, &scene.ended(generation, "iommu-fault")?, address)?;
        }
        Ok(())
    })
}

/// The address that `attack-dma-fault` says it aims at.
fn aim(line: &str) -> Option<u64> {
    let (_, digits) = line.split_once("attack: dma-fault: aims at 0x")?;
    u64::from_str_radix(digits, 16).ok()
}

/// The record of a death says which device did it, and where it reached, and
/// QEMU's own record agrees.
fn fault(bench: &Bench, death: &CrashEntry, address: u64) -> Result<()> {
    const DEVICE: &str = "00:06.0";
    ensure!(
        death.fault_address == address && death.message.contains(DEVICE),
        "a fault of {DEVICE} at {address:#x} was recorded as one at {:#x}: {}",
        death.fault_address,
        death.message
    );
    let log = machine_log(bench)?;
    let seen = log.lines().any(|line| line.contains(&format!("{address:x} ")));
    ensure!(seen, "QEMU saw no refused access at {address:#x}");
    Ok(())
}

/// The same by a NIC.
fn g2_a_nic_that_reaches_too_far_ends_its_domain(bench: &Bench) -> Result<()> {
    let device = "virtio-net-pci,netdev=loot,addr=6,romfile=,disable-legacy=on,iommu_platform=on";
    let attack = with_device("dma-nic", "network").qemu(&[
        "-netdev",
        "user,id=loot",
        "-device",
        device,
        "-trace",
        "vtd_dmar_fault",
    ]);
    attack.configure(|_, config| config.iommu = Iommu::Intel).run(bench, |scene| {
        let death = scene.ended(1, "iommu-fault")?;
        fault(bench, &death, 0x1000)
    })
}

fn g1_attack_dma_nic(bench: &Bench) -> Result<()> {
    let capture = bench.dir().join("wire.pcap");
    let dump = format!("filter-dump,id=capture,netdev=loot,file={}", capture.display());
    let device = "virtio-net-pci,netdev=loot,addr=6,romfile=,disable-legacy=on,iommu_platform=on";
    with_device("dma-nic", "network")
        .qemu(&["-netdev", "user,id=loot", "-device", device, "-object", &dump])
        .run(bench, |scene| {
            let tried = scene.done(LIMIT)?.count("tried")?;
            ensure!(tried > 900, "only {tried} accesses");
            let capture = fs::read(&capture).context("the capture")?;
            let frames = stolen(&capture)?;
            ensure!(frames.len() >= 500, "only {} of its frames on the wire", frames.len());
            let leak = frames.iter().find(|payload| payload.iter().any(|&byte| byte != 0));
            ensure!(leak.is_none(), "a frame carries stolen memory: {leak:x?}");
            Ok(())
        })
}

/// Payloads of the attacker's frames in a capture (pcap, little-endian).
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

/// First addresses of accesses that the IOMMU refused, from QEMU's own record.
fn refused_addresses(text: &str) -> BTreeSet<u64> {
    let address = |line: &str| {
        let rest = line.split_once(" at addr 0x")?.1;
        let (digits, rest) = rest.split_once(',')?;
        rest.contains("rejected").then(|| u64::from_str_radix(digits, 16).ok())?
    };
    text.lines().filter_map(address).collect()
}

fn g1_attack_msi(bench: &Bench) -> Result<()> {
    /// Where the hypervisor has all devices send their messages.
    const HONEST: &str = "0xfee00000";
    // Asked for, and let through.
    let attack = with_disk(bench, "msi", "")?.qemu(&["-trace", "amdvi_ir_remap_msi*"]);
    attack.run(bench, |scene| {
        let messages = scene.done(LIMIT)?.count("messages")?;
        let log = machine_log(bench)?;
        let forged = |event: &str| {
            let ends = [',', ' '];
            let lines = log.lines().filter_map(|line| line.split_once(event)?.1.split_once(ends));
            lines.filter(|(address, _)| *address != HONEST).count() as u64
        };
        let tried = forged("amdvi_ir_remap_msi_req addr ");
        ensure!(messages >= 8192 && tried >= messages - 64, "QEMU saw only {tried} messages");
        // QEMU takes such a message for the I/O APIC's, which has one entry: the control UART's.
        // It can be named for each core.
        let through = forged("amdvi_ir_remap_msi (addr ");
        ensure!(through <= 8, "{through} forged messages came through");
        Ok(())
    })
}

fn g1_attack_dma_after_death(bench: &Bench) -> Result<()> {
    Attack::guest("dma-after-death")
        .and("[device.loot]\nbdf = \"00:06.0\"")
        .with("dma_pool = \"1MiB\"\ndevice = \"loot\"")
        .qemu(&["-device", "edu,addr=6,dma_mask=0xffffffffffffffff"])
        .run(bench, |scene| {
            let tried = scene.done(LIMIT)?.count("tried")?;
            ensure!(tried == 10, "only {tried} generations");
            (1..=tried as u32).try_for_each(|g| scene.ended(g, "panic").map(drop))
        })
}

fn g1_attack_dma_revoked(bench: &Bench) -> Result<()> {
    let granter = "[domain.granter]\nimage = \"attack-dma-revoked\"\nmemory = \"4MiB\"\n\
                   args = \"role=granter\"\n\
                   [[connection]]\nprotocol = \"net\"\nfrontend = \"granter\"\n";
    let connection = format!("{granter}backend = \"{DOMAIN}\"");
    with_disk(bench, "dma-revoked", "")?
        .and(&connection)
        .run(bench, |scene| scene.done(LIMIT)?.all("tried", "written", 200))
}

fn g2_attack_irq_storm(bench: &Bench) -> Result<()> {
    with_disk(bench, "irq-storm", "")?.run(bench, |scene| {
        // The neighbours are served in the storm.
        scene.served_meanwhile(4)?;
        let verdict = scene.done(LIMIT)?;
        let (requests, calls) = (verdict.count("requests")?, verdict.count("calls")?);
        let status = scene.control()?.domain(DOMAIN)?.context("the attacker is gone")?;
        ensure!(requests > 10 * calls, "no storm: {}", verdict.text());
        // Two before the first is masked; one for each time that it asked for more, as
        // it does once again when it has done and rests.
        let interrupts = status.interrupts;
        ensure!(interrupts <= 2 + calls + 1, "{interrupts} interrupts; {}", verdict.text());
        Ok(())
    })
}
