//! Attacks of guests on each other by way of the drivers that they share.
//!
//! The table in the book's chapter "Attacks" says what each tries.

use anyhow::{Context, Result, ensure};
use system_tests::{
    attack::{Attack, LIMIT},
    bench::Bench,
    capture::{self, Frame},
    runner::{Test, wait_for},
};

/// All of them.
pub fn all() -> Vec<Test> {
    tests![self::g5_attack_spoof, self::g5_attack_flood, self::g5_attack_over_limits]
}

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// The drivers work without a pause in these tests, and a host that takes the
/// CPU away from QEMU for half a second looks to the watchdog like a driver
/// that hangs. One that does hang is still found.
fn patient(attack: Attack) -> Attack {
    ["blk", "net"].into_iter().fold(attack, |attack, driver| {
        let section = format!("[domain.{driver}]\n");
        attack.replace(&section, &format!("{section}watchdog_ms = 10000\n"))
    })
}

/// An attacker with a vif and a victim with another, beside the demo node. Both
/// run `attack-NAME`; `attacker` are further lines of its connection.
fn with_victim(name: &str, attacker: &str, victim: &str) -> Attack {
    let vif = |domain: &str, mac: &str, lines: &str| {
        format!(
            "[[connection]]\nprotocol = \"net\"\nfrontend = \"{domain}\"\nbackend = \"net\"\n\
             mac = \"02:00:00:00:00:{mac}\"\n{lines}\n"
        )
    };
    let domain = format!(
        "[domain.victim]\nimage = \"attack-{name}\"\nmemory = \"4MiB\"\nargs = \"role=victim\"\n"
    );
    patient(Attack::guest(name))
        .and(&vif("attack", "77", attacker))
        .and(&domain)
        .and(&vif("victim", "66", victim))
        .configure(capture::start)
}

fn g5_attack_spoof(bench: &Bench) -> Result<()> {
    let attack = with_victim(
        "spoof",
        "addresses = [\"10.0.2.77\", \"fd00::77\"]",
        "addresses = [\"10.0.2.66\", \"fd00::66\"]",
    );
    attack.run(bench, |scene| {
        let verdict = scene.done(LIMIT)?;
        ensure!(verdict.count("tried")? >= 100, "too few attempts: {verdict:?}");
        let honest = verdict.count("honest")?;
        scene.served(4)?;
        // Whatever is ahead of the last frame is there, too.
        let marked = |frame: &Frame| frame.has(b"HONEST:") || frame.has(b"HOSTILE:");
        let frames = wait_for("the attacker's last frame on the wire", LIMIT, || {
            let mut frames = capture::frames(bench)?;
            frames.retain(marked);
            Ok(frames.iter().any(|frame| frame.has(b"HONEST:LAST")).then_some(frames))
        })?;
        let hostile = frames.iter().find(|frame| frame.has(b"HOSTILE:"));
        let text = |frame: &Frame| String::from_utf8_lossy(&frame.bytes).into_owned();
        ensure!(hostile.is_none(), "on the wire: {:?}", hostile.map(text));
        // Its own frames reach the wire and the victim, so others could.
        ensure!(frames.len() as u64 > honest, "{} of {honest} honest frames", frames.len());
        let heard: u64 = scene.line("heard", LIMIT)?.parse().context("what the victim heard")?;
        ensure!(heard > honest, "the victim heard {heard} of {honest} honest frames");
        Ok(())
    })
}

fn g5_attack_flood(bench: &Bench) -> Result<()> {
    /// What the switch lets through, `VIF_FLOODS` of the net driver, and at once.
    const PER_SECOND: u64 = 500;
    const BURST: u64 = 64;
    with_victim("flood", "", "").run(bench, |scene| {
        // Answers while the flood is on.
        scene.served_meanwhile(2)?;
        let verdict = scene.done(LIMIT)?;
        let (sent, ms) = (verdict.count("sent")?, verdict.count("ms")?);
        // A little more for what waits in the rings at both ends.
        let most = PER_SECOND * (ms + 500) / 1000 + BURST;
        ensure!(sent > most + PER_SECOND, "{sent} frames in {ms} ms are no flood");
        let heard = scene.line("heard frames=", LIMIT)?;
        let heard: u64 = heard.parse().context("what the victim heard")?;
        ensure!(heard <= most, "{heard} of {sent} frames reached the victim, {most} are allowed");
        let frames = capture::frames(bench)?;
        let wire = frames.iter().filter(|frame| frame.source() == OWN && frame.has(b"FLOOD"));
        let wire = wire.count() as u64;
        ensure!(wire <= most, "{wire} of {sent} frames reached the wire, {most} are allowed");
        // The limit is none on what there may be.
        ensure!(heard > BURST && wire > BURST, "only {heard} and {wire} frames came through");
        println!("flood: {sent} sent in {ms} ms, {heard} to the victim, {wire} to the wire");
        Ok(())
    })
}

fn g5_attack_over_limits(bench: &Bench) -> Result<()> {
    const OPS: u64 = 400;
    const BANDWIDTH: u64 = 8 << 20;
    const FRAMES: u64 = 300;
    let limits = format!("limits = {{ ops = {OPS}, bandwidth = \"{BANDWIDTH}B/s\" }}");
    let blk = format!(
        "[[connection]]\nprotocol = \"blk\"\nfrontend = \"attack\"\nbackend = \"blk\"\n\
         volume = \"attack-data\"\n{limits}\n[volume.attack-data]\nsize = \"16MiB\"\n"
    );
    let net = format!(
        "[[connection]]\nprotocol = \"net\"\nfrontend = \"attack\"\nbackend = \"net\"\n\
         mac = \"02:00:00:00:00:77\"\nlimits = {{ ops = {FRAMES} }}\n"
    );
    let attack =
        patient(Attack::guest("over-limits")).and(&blk).and(&net).configure(capture::start);
    attack.run(bench, |scene| {
        scene.served_meanwhile(2)?;
        let verdict = scene.done(LIMIT)?;
        println!("over-limits: {}", verdict.text());
        ensure!(verdict.count("failed")? == 0, "reads failed: {verdict:?}");
        // The rate is kept to 2 %, and the last of a turn may overdraw. A busy
        // host may slow the node down, so below there is more room.
        for (what, limit, slack) in
            [("ops", OPS, 2), ("bytes", BANDWIDTH, 256 << 10), ("frames", FRAMES, 32)]
        {
            let got = verdict.count(what)?;
            ensure!(got <= limit * 102 / 100 + slack, "{got} {what} a second, {limit} allowed");
            ensure!(got >= limit / 2, "only {got} {what} a second of {limit}");
        }
        // The same by QEMU's clock.
        let frames = capture::frames(bench)?;
        let times: Vec<_> = frames.iter().filter(|f| f.source() == OWN).map(|f| f.at).collect();
        let (Some(first), Some(last)) = (times.first(), times.last()) else {
            anyhow::bail!("nothing of the attacker on the wire");
        };
        let passed = last.saturating_sub(*first).as_millis() as u64;
        let most = FRAMES * (passed + 100) / 1000 * 102 / 100 + 32;
        let wire = times.len() as u64;
        ensure!(wire <= most, "{wire} frames on the wire in {passed} ms, {most} are allowed");
        Ok(())
    })
}
